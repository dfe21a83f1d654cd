//! Accepting connections: a deep backlog, a watch on each socket's progress, an end for each task.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::registry::Connection;

/// Connections the kernel queues before we accept them. The usual 128 overflows when a herd returns, and a
/// dropped SYN costs its sender a second. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A peer that acknowledges nothing for this long is gone: its host lost power or its network. Longer than any
/// `writeTimeout`, which is what ends a peer that is there and does not read.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a client to send a request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams on one HTTP/2 connection; browsers open up to 100, proxies more.
const HTTP2_STREAMS: u32 = 1_000;
/// hyper's buffer per connection, bytes: its least. Frames are handed over without a copy into it.
const BUFFER_BYTES: usize = 16 * 1024;

/// Binds `address` with a deep backlog.
///
/// # Errors
/// The operating system's, for example when the port is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `router` on `listener` until `stop`; connections go on as tasks of `tracker` until they end, or
/// until `abort`.
pub async fn serve(listener: TcpListener, router: Router, tracker: TaskTracker, stop: CancellationToken, abort: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let connection = connection(socket, peer, router.clone(), stop.clone());
                let abort = abort.clone();
                tracker.spawn(async move {
                    let _ = abort.run_until_cancelled(connection).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely; those who wait are still in the backlog.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    let options = socket2::SockRef::from(&socket);
    if let Err(error) = socket.set_nodelay(true).and_then(|()| options.set_tcp_user_timeout(Some(PEER_TIMEOUT))) {
        tracing::debug!(%error, "a socket option was refused");
    }
    let connection = Arc::new(Connection::new(peer));
    let io = TokioIo::new(WatchedSocket { socket, connection: Arc::clone(&connection) });
    let service = {
        let connection = Arc::clone(&connection);
        hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&connection));
            router.clone().oneshot(request.map(Body::new))
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(HTTP2_STREAMS).keep_alive_interval(Duration::from_secs(20));
    let mut serving = pin!(builder.serve_connection(io, service));
    let mut stopping = false;
    loop {
        tokio::select! {
            served = serving.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                return;
            }
            () = connection.killed() => return,
            () = stop.cancelled(), if !stopping => {
                // Idle connections close now, open streams once they end.
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A socket that notes when it takes bytes and when it would not.
struct WatchedSocket {
    socket: TcpStream,
    connection: Arc<Connection>,
}

impl WatchedSocket {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(_) => self.connection.progressed(),
            Poll::Pending => self.connection.blocked(),
        }
    }
}

impl AsyncRead for WatchedSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
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
