//! One connection, from its first byte until it ends or leaves for a fan-out thread.

use std::{convert::Infallible, io, pin::Pin, sync::Arc, task::Poll, time::Duration};

use axum::{Router, body::Body};
use bytes::{Bytes, BytesMut};
use http::{Method, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::HttpService,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    connections::{Connections, Place},
    handoff::{Handoff, Link},
    http2::Streams,
    request,
    socket::WatchedSocket,
    writing::{Answer, Overdue, Responses, Watched},
};
use crate::{fanout::FanOut, peer::Peer};

/// Time for a client to send a request head, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams on one HTTP/2 connection; browsers open up to 100, proxies more, and then another
/// connection. Each may hold a slice and what is within its window, until its write timeout.
const HTTP2_STREAMS: u32 = 256;
/// Bytes that wait in the HTTP/2 library for one stream's window.
const HTTP2_SEND_BYTES: usize = 64 * 1024;
/// Bytes of a body that are handed to the HTTP/2 library at a time: a frame of the default size.
/// Whether a stream goes on is seen between two of them.
const HTTP2_PIECE_BYTES: usize = 16 * 1024;
/// Time for an HTTP/2 client to close a connection that it was told to.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// hyper's buffer per connection, bytes: its least. Frames are handed over without a copy into it.
const BUFFER_BYTES: usize = 16 * 1024;
/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read of a connection: most request heads fit.
const FIRST_BYTES: usize = 1_024;

/// What a listener serves, and with what.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) router: Router,
    /// Where streams of plain HTTP/1.1 go once their response head is ready; `None`: they stay.
    pub(crate) fan_out: Option<Arc<FanOut>>,
    pub(crate) connections: Arc<Connections>,
}

/// What ends connections, and owns the tasks of their streams.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) tracker: TaskTracker,
    /// Idle connections close, others once their responses end.
    pub(super) stop: CancellationToken,
}

/// Serves the connection that holds `place`.
pub(super) async fn serve(mut socket: TcpStream, place: Place, service: Service, ends: Ends) {
    let peer = Arc::clone(place.peer());
    let first = tokio::select! {
        first = timeout(HEADER_TIMEOUT, first_bytes(&mut socket)) => first,
        // Nothing was asked yet.
        () = ends.stop.cancelled() => return,
        () = peer.disconnect_wanted() => return,
    };
    let first = match first {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => {
            return tracing::debug!(peer = %peer.address, %error, "connection ended");
        }
        Err(_) => return tracing::debug!(peer = %peer.address, "no request in time"),
    };
    let connection = Connection { responses: Responses::new(place), peer, ends };
    if first.starts_with(PREFACE) {
        // In a box, so that the others need not have room for it.
        Box::pin(connection.http2(socket, first, service.router)).await;
    } else {
        connection.http1(socket, first, service).await;
    }
}

/// The first bytes that the peer sends: as many as tell HTTP/2 from HTTP/1, and what came with
/// them.
async fn first_bytes(socket: &mut TcpStream) -> io::Result<Bytes> {
    let mut first = BytesMut::with_capacity(FIRST_BYTES);
    loop {
        if socket.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first.len() >= PREFACE.len() || !PREFACE.starts_with(&first) {
            return Ok(first.freeze());
        }
    }
}

struct Connection {
    peer: Arc<Peer>,
    responses: Arc<Responses>,
    ends: Ends,
}

impl Connection {
    async fn http1(self, socket: TcpStream, first: Bytes, service: Service) {
        let handoff = service.fan_out.as_ref().map(|_| Arc::default());
        let responses = Arc::clone(&self.responses);
        let io = TokioIo::new(WatchedSocket {
            socket,
            first,
            peer: Arc::clone(&self.peer),
            handoff: handoff.clone(),
            responses: Some(responses),
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(BUFFER_BYTES)
            // A client may close its half once its request is sent; the socket sees to streams.
            .half_close(true);
        let routed = self.routed_http1(service.router, handoff.clone());
        let mut serving = builder.serve_connection(io, routed);
        let leaves = || handoff.as_ref().and_then(|handoff| handoff.take());
        let leaving =
            self.until_end(&mut serving, http1::Connection::graceful_shutdown, leaves, None).await;
        if let (Some((head, subscriber)), Some(fan_out)) = (leaving, service.fan_out) {
            match serving.into_parts().io.into_inner().socket.into_std() {
                Ok(socket) => fan_out.take(socket, head, subscriber),
                Err(error) => {
                    tracing::debug!(peer = %self.peer.address, %error, "a socket could not be taken from the runtime");
                }
            }
        }
    }

    async fn http2(self, socket: TcpStream, first: Bytes, router: Router) {
        let io = TokioIo::new(WatchedSocket {
            socket,
            first,
            peer: Arc::clone(&self.peer),
            handoff: None,
            responses: None,
        });
        // Its streams end with it.
        let end = CancellationToken::new();
        let _end = end.clone().drop_guard();
        let streams = Streams::new(Arc::clone(&self.responses), self.ends.tracker.clone(), end);
        let mut builder = http2::Builder::new(streams);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .max_send_buf_size(HTTP2_SEND_BYTES)
            .keep_alive_interval(Duration::from_secs(20));
        let mut serving = builder.serve_connection(io, self.routed_http2(router));
        let graceful_shutdown = http2::Connection::graceful_shutdown;
        self.until_end(&mut serving, graceful_shutdown, || None::<()>, Some(HEADER_TIMEOUT)).await;
    }

    /// `router` for an HTTP/1 connection, which has one response at a time.
    fn routed_http1(
        &self,
        router: Router,
        handoff: Option<Arc<Handoff>>,
    ) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static>
    + Send
    + 'static
    + use<> {
        let (peer, responses) = (Arc::clone(&self.peer), Arc::clone(&self.responses));
        hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            // A response to HTTP/1.0 has no chunks, and one to HEAD no body.
            let handoff = handoff.clone().filter(|_| {
                request.version() == Version::HTTP_11 && request.method() == Method::GET
            });
            let response = responses.begin();
            let link = Link {
                peer: Arc::clone(&peer),
                handoff,
                is_http1: true,
                answer: Answer::of(&response),
            };
            let answered = answer(router.clone(), link, request);
            async move {
                let writing = Arc::clone(response.writing());
                let watched =
                    |body| Body::new(Watched::new(body, writing, usize::MAX, Some(response)));
                Ok(answered.await.map(watched))
            }
        })
    }

    /// `router` for an HTTP/2 connection, where `Streams` drives each response.
    fn routed_http2(
        &self,
        router: Router,
    ) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static>
    + Send
    + 'static
    + use<> {
        let (peer, responses) = (Arc::clone(&self.peer), Arc::clone(&self.responses));
        hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let (router, peer, responses) =
                (router.clone(), Arc::clone(&peer), Arc::clone(&responses));
            async move {
                let current = Streams::current().unwrap_or_else(|| Answer::of(&responses.begin()));
                let writing = Arc::clone(current.writing());
                let link = Link { peer, handoff: None, is_http1: false, answer: current };
                let watched =
                    |body| Body::new(Watched::new(body, writing, HTTP2_PIECE_BYTES, None));
                Ok(answer(router, link, request).await.map(watched))
            }
        })
    }

    /// Drives `serving` to its end, or until `leaves` gives what it leaves with, which is asked
    /// each time it has nothing to do. `idle`: how long it may be without a response.
    async fn until_end<C, E, L>(
        &self,
        serving: &mut C,
        graceful_shutdown: impl Fn(Pin<&mut C>),
        leaves: impl Fn() -> Option<L>,
        idle: Option<Duration>,
    ) -> Option<L>
    where
        C: Future<Output = Result<(), E>> + Unpin,
        E: std::fmt::Display,
    {
        let (peer, mut overdue) = (&self.peer, Overdue::default());
        let mut stopping = false;
        loop {
            let step = std::future::poll_fn(|cx| {
                if let Poll::Ready(served) = Pin::new(&mut *serving).poll(cx) {
                    return Poll::Ready(Step::Served(served));
                }
                if let Some(leaving) = leaves() {
                    return Poll::Ready(Step::Leaves(leaving));
                }
                let deadline = |since| self.responses.deadline(since);
                overdue.poll(peer.blocked_since(), deadline, cx).map(|()| Step::Stalled)
            });
            let idle = async {
                match idle {
                    Some(limit) if stopping => self.responses.idle(limit + GOAWAY_TIMEOUT).await,
                    Some(limit) => self.responses.idle(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                step = step => return match step {
                    Step::Leaves(leaving) => Some(leaving),
                    Step::Served(Ok(())) => None,
                    Step::Served(Err(error)) => {
                        tracing::debug!(peer = %peer.address, %error, "connection ended");
                        None
                    }
                    Step::Stalled => {
                        // No last frame can be written: the socket is full. The cursor of a
                        // subscriber is intact, so it comes back to the same position.
                        tracing::debug!(peer = %peer.address, "a socket takes nothing: closing it");
                        self.responses.give_up();
                        None
                    }
                },
                () = peer.disconnect_wanted() => {
                    // It was to make room for another; meanwhile it may have opened a stream,
                    // which ends in its own way.
                    if !self.responses.has_stream() {
                        return None;
                    }
                }
                () = self.ends.stop.cancelled(), if !stopping => {
                    // Idle connections close now, open streams once they end.
                    stopping = true;
                    graceful_shutdown(Pin::new(&mut *serving));
                }
                () = idle => {
                    if stopping {
                        return None;
                    }
                    tracing::debug!(peer = %peer.address, "a connection asks nothing: closing it");
                    stopping = true;
                    graceful_shutdown(Pin::new(&mut *serving));
                }
            }
        }
    }
}

/// Why a connection is looked at.
enum Step<L, E> {
    Served(Result<(), E>),
    Leaves(L),
    Stalled,
}

/// What `router` answers, or what is wrong with the request whatever it is for.
async fn answer(
    router: Router,
    link: Link,
    request: hyper::Request<Incoming>,
) -> axum::response::Response {
    if let Some(refusal) = request::refusal(&request) {
        return refusal;
    }
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(link);
    let Ok(response) = router.oneshot(request).await;
    response
}
