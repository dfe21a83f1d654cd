//! Accepting connections: a deep backlog, a bound on those that ask nothing, an end for each task.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::connection::{self, Ends, Service};
use crate::throttle::Throttle;

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
/// Pause after a failed accept. Nothing is lost by it: connections wait in the backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are logged once in this time.
const ACCEPT_LOG_PERIOD: Duration = Duration::from_secs(1);

/// Connections that are told to close at once when there are no file descriptors.
const ROOM: usize = 16;

/// Binds `address` with a deep backlog, and with the options that each accepted socket needs. The
/// socket does not block. `[::]` takes connections of both families, and those of IPv4 where the
/// kernel has no IPv6: a pod does not know which of them its cluster has.
///
/// # Errors
/// The operating system's, for example when the port is in use.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    bind_with(address, |domain| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)))
}

fn bind_with(
    address: SocketAddr,
    open: impl Fn(Domain) -> io::Result<Socket>,
) -> io::Result<std::net::TcpListener> {
    let any = address.is_ipv6() && address.ip().is_unspecified();
    match bind_one(address, &open) {
        Err(error) if any && is_without_family(&error) => {
            bind_one((Ipv4Addr::UNSPECIFIED, address.port()).into(), &open)
        }
        bound => bound,
    }
}

fn bind_one(
    address: SocketAddr,
    open: impl Fn(Domain) -> io::Result<Socket>,
) -> io::Result<std::net::TcpListener> {
    let socket = open(Domain::for_address(address))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // The default is the host's to set: `net.ipv6.bindv6only`.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit them: three calls fewer for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether the kernel said that it has no such addresses: built or started without IPv6, or the
/// family is filtered.
fn is_without_family(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw_os_error)
        .is_some_and(|errno| [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].contains(&errno))
}

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Incoming {
    Listener(TcpListener),
    /// Accepted elsewhere; not blocking.
    Queue(mpsc::Receiver<(std::net::TcpStream, SocketAddr)>),
}

impl Incoming {
    /// The next one; `None`: there will be none.
    async fn next(&mut self) -> Option<io::Result<(TcpStream, SocketAddr)>> {
        match self {
            Self::Listener(listener) => Some(listener.accept().await),
            Self::Queue(queue) => {
                let (socket, address) = queue.recv().await?;
                Some(TcpStream::from_std(socket).map(|socket| (socket, address)))
            }
        }
    }
}

/// Serves `service` on what `incoming` gives until `stop`; connections go on as tasks of `tracker`
/// until they end or leave for a fan-out thread, or until `abort`.
pub(crate) async fn serve(
    mut incoming: Incoming,
    service: Service,
    tracker: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
) {
    let failures = Throttle::new(ACCEPT_LOG_PERIOD);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                service.connections.room().await;
                incoming.next().await
            } => accepted,
        };
        match accepted {
            None => return,
            Some(Ok((socket, address))) => {
                let place = service.connections.enter(address);
                let ends = Ends { tracker: tracker.clone(), stop: stop.clone() };
                // In a box: the future is large, and a task is moved several times before it first
                // runs.
                let connection = Box::pin(connection::serve(socket, place, service.clone(), ends));
                let abort = abort.clone();
                tracker.spawn(async move {
                    let _ = abort.run_until_cancelled(connection).await;
                });
            }
            Some(Err(error)) => {
                // Out of file descriptors, most likely.
                if let Some(passed_over) = failures.admit() {
                    tracing::warn!(%error, passed_over, "cannot accept a connection");
                }
                (0..ROOM).for_each(|_| service.connections.make_room());
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_have_the_options() {
        let listener =
            TcpListener::from_std(bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let options = SockRef::from(&accepted);
        assert!(options.tcp_nodelay().unwrap());
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(PEER_TIMEOUT));
        assert_eq!(options.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
        assert!(!SockRef::from(&client).tcp_nodelay().unwrap(), "what the options are by default");
    }

    #[tokio::test]
    async fn the_unspecified_address_takes_both_families_or_the_one_there_is() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let open = |domain| Socket::new(domain, Type::STREAM, Some(Protocol::TCP));
        let both = TcpListener::from_std(bind(any).unwrap()).unwrap();
        let port = both.local_addr().unwrap().port();
        for host in ["127.0.0.1", "::1"] {
            let _client = TcpStream::connect((host, port)).await.unwrap();
            both.accept().await.unwrap();
        }
        // What a kernel without IPv6 says, from the socket or from its address.
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let without =
                |domain| if domain == Domain::IPV6 { Err(errno.into()) } else { open(domain) };
            let one = TcpListener::from_std(bind_with(any, without).unwrap()).unwrap();
            let port = one.local_addr().unwrap().port();
            let _client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            one.accept().await.unwrap();
            // An address that was asked for by name is not exchanged for another.
            assert!(bind_with((Ipv6Addr::LOCALHOST, 0).into(), without).is_err());
        }
        let denied = |_| Err(io::Error::from(Errno::ACCESS));
        assert!(bind_with(any, denied).is_err(), "other errors are told");
    }
}
