//! Accepting connections: a deep backlog, a watch on each socket's progress, the way to a fan-out
//! thread, an end for each task.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::{Bytes, BytesMut};
use http::{Method, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::HttpService,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::handoff::{Handoff, Link};
use crate::{fanout::FanOut, peer::Peer, throttle::Throttle};

/// Connections that the kernel queues before they are accepted. The usual 128 overflows when a herd
/// returns, and a dropped SYN costs its sender a second. The kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A peer that acknowledges nothing for this long is gone: its host lost power or its network.
/// Longer than any `writeTimeout`, which is what ends a peer that is there and does not read.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes that wait in the kernel for one peer's window, about: what it has not asked for yet is
/// better kept once, in the log, than in each socket. It also makes progress visible: a socket has
/// room again once the peer has taken half of it, not a third of the megabytes that the kernel
/// would buffer.
const UNSENT_BYTES: u32 = 128 * 1024;
/// Time for a client to send a request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams on one HTTP/2 connection; browsers open up to 100, proxies more.
const HTTP2_STREAMS: u32 = 1_000;
/// hyper's buffer per connection, bytes: its least. Frames are handed over without a copy into it.
const BUFFER_BYTES: usize = 16 * 1024;
/// What every HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause after a failed accept. Nothing is lost by it: connections wait in the backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are logged once in this time.
const ACCEPT_LOG_PERIOD: Duration = Duration::from_secs(1);
/// Room for the first read of a connection: most request heads fit.
const FIRST_BYTES: usize = 1_024;

/// Binds `address` with a deep backlog, and with the options that each accepted socket needs.
///
/// # Errors
/// The operating system's, for example when the port is in use.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit them: three calls fewer for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What a listener serves, and with what.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) router: Router,
    /// Where streams of plain HTTP/1.1 go once their response head is ready; `None`: they stay.
    pub(crate) fan_out: Option<Arc<FanOut>>,
}

/// Serves `service` on `listener` until `stop`; connections go on as tasks of `tracker` until they
/// end or leave for a fan-out thread, or until `abort`.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Service,
    tracker: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
) {
    let failures = Throttle::new(ACCEPT_LOG_PERIOD);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                // In a box: the future is large, and a task is moved several times before it first
                // runs.
                let connection =
                    Box::pin(connection(socket, address, service.clone(), stop.clone()));
                let abort = abort.clone();
                tracker.spawn(async move {
                    let _ = abort.run_until_cancelled(connection).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely.
                if let Some(passed_over) = failures.admit() {
                    tracing::warn!(%error, passed_over, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    mut socket: TcpStream,
    address: SocketAddr,
    service: Service,
    stop: CancellationToken,
) {
    let first = tokio::select! {
        first = timeout(HEADER_TIMEOUT, first_bytes(&mut socket)) => first,
        // Nothing was asked yet.
        () = stop.cancelled() => return,
    };
    let first = match first {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return tracing::debug!(peer = %address, %error, "connection ended"),
        Err(_) => return tracing::debug!(peer = %address, "no request in time"),
    };
    let peer = Arc::new(Peer::new(address));
    if first.starts_with(PREFACE) {
        // In a box, so that the others need not have room for it.
        return Box::pin(http2(socket, first, peer, service.router, stop)).await;
    }
    let handoff = service.fan_out.as_ref().map(|_| Arc::default());
    let io = TokioIo::new(WatchedSocket {
        socket,
        first,
        peer: Arc::clone(&peer),
        handoff: handoff.clone(),
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES);
    let mut serving =
        builder.serve_connection(io, routed(service.router, Arc::clone(&peer), handoff.clone()));
    let leaves = || handoff.as_ref().and_then(|handoff| handoff.take());
    let leaving =
        until_end(&mut serving, http1::Connection::graceful_shutdown, leaves, &peer, &stop).await;
    if let (Some((head, subscriber)), Some(fan_out)) = (leaving, service.fan_out) {
        match serving.into_parts().io.into_inner().socket.into_std() {
            Ok(socket) => fan_out.take(socket, head, subscriber),
            Err(error) => {
                tracing::debug!(peer = %address, %error, "a socket could not be taken from the runtime");
            }
        }
    }
}

async fn http2(
    socket: TcpStream,
    first: Bytes,
    peer: Arc<Peer>,
    router: Router,
    stop: CancellationToken,
) {
    let io = TokioIo::new(WatchedSocket { socket, first, peer: Arc::clone(&peer), handoff: None });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .keep_alive_interval(Duration::from_secs(20));
    let mut serving = builder.serve_connection(io, routed(router, Arc::clone(&peer), None));
    until_end(&mut serving, http2::Connection::graceful_shutdown, || None::<()>, &peer, &stop)
        .await;
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

/// `router` for one connection's requests.
fn routed(
    router: Router,
    peer: Arc<Peer>,
    handoff: Option<Arc<Handoff>>,
) -> impl HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        // A response to HTTP/1.0 has no chunks, and one to HEAD no body.
        let handoff = handoff
            .clone()
            .filter(|_| request.version() == Version::HTTP_11 && request.method() == Method::GET);
        request.extensions_mut().insert(Link { peer: Arc::clone(&peer), handoff });
        router.clone().oneshot(request.map(Body::new))
    })
}

/// Drives `serving` to its end, or until `leaves` gives what it leaves with, which is asked each
/// time it has nothing to do.
async fn until_end<C, E, L>(
    serving: &mut C,
    graceful_shutdown: impl Fn(Pin<&mut C>),
    leaves: impl Fn() -> Option<L>,
    peer: &Peer,
    stop: &CancellationToken,
) -> Option<L>
where
    C: Future<Output = Result<(), E>> + Unpin,
    E: std::fmt::Display,
{
    let mut stopping = false;
    loop {
        let step = std::future::poll_fn(|cx| match Pin::new(&mut *serving).poll(cx) {
            Poll::Ready(served) => Poll::Ready(Err(served)),
            Poll::Pending => leaves().map_or(Poll::Pending, |leaving| Poll::Ready(Ok(leaving))),
        });
        tokio::select! {
            step = step => return match step {
                Ok(leaving) => Some(leaving),
                Err(Ok(())) => None,
                Err(Err(error)) => {
                    tracing::debug!(peer = %peer.address, %error, "connection ended");
                    None
                }
            },
            () = peer.disconnect_wanted() => return None,
            () = stop.cancelled(), if !stopping => {
                // Idle connections close now, open streams once they end.
                stopping = true;
                graceful_shutdown(Pin::new(&mut *serving));
            }
        }
    }
}

/// A socket that notes when it takes bytes and when it would not.
struct WatchedSocket {
    socket: TcpStream,
    /// What was read from it before hyper had it.
    first: Bytes,
    peer: Arc<Peer>,
    handoff: Option<Arc<Handoff>>,
}

impl WatchedSocket {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(_) => self.peer.progressed(),
            Poll::Pending => self.peer.blocked(),
        }
    }
}

impl AsyncRead for WatchedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.handoff.as_ref().is_some_and(|handoff| handoff.keep(buf)) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(handoff) = &self.handoff {
            let kept =
                bufs.iter().take_while(|buf| handoff.keep(buf)).map(|buf| buf.len()).sum::<usize>();
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_have_the_options() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let options = SockRef::from(&accepted);
        assert!(options.tcp_nodelay().unwrap());
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(PEER_TIMEOUT));
        assert_eq!(options.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
        assert!(!SockRef::from(&client).tcp_nodelay().unwrap(), "what the options are by default");
    }
}
