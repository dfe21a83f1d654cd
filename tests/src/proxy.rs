//! A TCP proxy whose line can be cut: packets are lost without a word to either end; or which
//! refuses, as a port does that nothing listens on.

use std::{net::SocketAddr, pin::pin, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::process::free_port;

/// Pause before the port is asked for again after a refusal: something else may hold it.
const BIND_PAUSE: Duration = Duration::from_millis(50);

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    /// Open and silent.
    Cut,
    /// Closed, and not to be had.
    Refused,
}

/// A proxy on a loopback port of its own; it ends with the guard.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one in front of `target`.
    ///
    /// # Panics
    /// When no port is to be had.
    pub async fn start(target: SocketAddr) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listener = TcpListener::bind(address).await.expect("a port for the proxy");
        let (line, watched) = watch::channel(Line::Open);
        let task = tokio::spawn(serve(listener, address, target, watched));
        Self { address, line, task }
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes: connections stay open and silent, as behind a broken link.
    pub fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Closes all connections, and refuses new ones.
    pub fn refuse(&self) {
        self.line.send_replace(Line::Refused);
    }

    /// New connections pass again. Those from before or during a cut are closed, with what was
    /// under way in them.
    pub fn mend(&self) {
        self.line.send_replace(Line::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    mut line: watch::Receiver<Line>,
) {
    let mut connections = JoinSet::new();
    let mut listening = Some(listener);
    loop {
        while connections.try_join_next().is_some() {}
        if *line.borrow_and_update() == Line::Refused {
            // Without a listener it is the kernel that refuses.
            listening = None;
            if line.wait_for(|now| *now != Line::Refused).await.is_err() {
                return;
            }
        }
        let Some(listener) = &listening else {
            listening = TcpListener::bind(address).await.ok();
            if listening.is_none() {
                tokio::time::sleep(BIND_PAUSE).await;
            }
            continue;
        };
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                connections.spawn(connection(client, target, line.clone()));
            }
            changed = line.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn connection(client: TcpStream, target: SocketAddr, mut line: watch::Receiver<Line>) {
    if *line.borrow_and_update() != Line::Open {
        let _ = line.wait_for(|now| *now != Line::Cut).await;
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    // Pinned here, so that both ends are held, silent, until the line is mended.
    let mut copies =
        pin!(async { tokio::join!(copy(from_client, to_server), copy(from_server, to_client)) });
    let was_cut = tokio::select! {
        _ = copies.as_mut() => false,
        cut = async { line.wait_for(|now| *now != Line::Open).await.is_ok() } => cut,
    };
    if was_cut {
        let _ = line.wait_for(|now| *now != Line::Cut).await;
    }
}

/// Until one side ends; the end is passed on.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_cut_line_is_silent_and_a_mended_one_is_new() {
        crate::run(Duration::from_secs(20), async {
            let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = echo.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let mut all = JoinSet::new();
                while let Ok((stream, _)) = echo.accept().await {
                    all.spawn(async move {
                        let (from, to) = stream.into_split();
                        copy(from, to).await;
                    });
                }
            });
            let proxy = Proxy::start(target).await;
            let mut line = TcpStream::connect(proxy.address()).await.unwrap();
            let mut byte = [0];
            line.write_all(b"a").await.unwrap();
            line.read_exact(&mut byte).await.unwrap();
            proxy.cut();
            tokio::time::sleep(Duration::from_millis(100)).await;
            line.write_all(b"b").await.unwrap();
            let silent = Duration::from_millis(300);
            assert!(tokio::time::timeout(silent, line.read(&mut byte)).await.is_err());
            let mut another = TcpStream::connect(proxy.address()).await.unwrap();
            assert!(tokio::time::timeout(silent, another.read(&mut byte)).await.is_err());
            proxy.mend();
            assert!(!matches!(line.read(&mut byte).await, Ok(1)), "what was under way is lost");
            assert!(!matches!(another.read(&mut byte).await, Ok(1)));
            let mut line = TcpStream::connect(proxy.address()).await.unwrap();
            line.write_all(b"c").await.unwrap();
            line.read_exact(&mut byte).await.unwrap();
            assert_eq!(&byte, b"c");
            server.abort();
        });
    }

    #[test]
    fn a_refused_line_is_closed_until_it_is_mended() {
        crate::run(Duration::from_secs(20), async {
            let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = echo.local_addr().unwrap();
            let server = tokio::spawn(async move {
                while let Ok((stream, _)) = echo.accept().await {
                    let (from, to) = stream.into_split();
                    copy(from, to).await;
                }
            });
            let proxy = Proxy::start(target).await;
            let mut line = TcpStream::connect(proxy.address()).await.unwrap();
            let mut byte = [0];
            line.write_all(b"a").await.unwrap();
            line.read_exact(&mut byte).await.unwrap();
            proxy.refuse();
            assert!(!matches!(line.read(&mut byte).await, Ok(1)), "what was open is closed");
            let refused = async || {
                let error = TcpStream::connect(proxy.address()).await.err()?;
                (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
            };
            crate::eventually("it refuses", Duration::from_secs(5), refused).await;
            proxy.mend();
            let open = async || TcpStream::connect(proxy.address()).await.ok();
            let mut line = crate::eventually("it is open", Duration::from_secs(5), open).await;
            line.write_all(b"b").await.unwrap();
            line.read_exact(&mut byte).await.unwrap();
            assert_eq!(&byte, b"b");
            server.abort();
        });
    }
}
