//! The other end of a connection, and whether it takes what is written to it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Since when something that should go on has stood still.
#[derive(Debug)]
pub(crate) struct Stall {
    started: Instant,
    /// Milliseconds after `started`, plus one; 0 = it goes on.
    since: AtomicU64,
}

impl Stall {
    /// It goes on.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), since: AtomicU64::new(0) }
    }

    /// Notes that it stands still; only the first note since it last went on counts.
    pub(crate) fn begin(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let _ = self.since.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// Notes that it goes on.
    pub(crate) fn end(&self) {
        self.since.store(0, Relaxed);
    }

    /// Since when it has stood still; `None`: it goes on.
    #[must_use]
    pub(crate) fn since(&self) -> Option<Instant> {
        match self.since.load(Relaxed) {
            0 => None,
            since => Some(self.started + Duration::from_millis(since - 1)),
        }
    }

    /// How long it has stood still; zero: it goes on.
    #[must_use]
    pub(crate) fn lasts(&self) -> Duration {
        self.since().map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// The other end of one TCP connection, which may carry several streams (HTTP/2).
#[derive(Debug)]
pub(crate) struct Peer {
    /// Address and port that the connection came from.
    pub(crate) address: SocketAddr,
    socket: Stall,
    disconnect_wanted: Notify,
    /// Counts the connection among those of its listener for as long as anything writes to it.
    _counted: Arc<()>,
}

impl Peer {
    /// A peer that is not counted.
    #[cfg(test)]
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::counted(address, Arc::default())
    }

    /// The peer at `address`, whose socket takes bytes: one of those that hold a clone of
    /// `counted`.
    #[must_use]
    pub(crate) fn counted(address: SocketAddr, counted: Arc<()>) -> Self {
        // A listener of both families has IPv4 peers as ::ffff:a.b.c.d.
        let address = match address.ip().to_canonical() {
            canonical @ IpAddr::V4(_) => (canonical, address.port()).into(),
            IpAddr::V6(_) => address,
        };
        Self { address, socket: Stall::new(), disconnect_wanted: Notify::new(), _counted: counted }
    }

    /// Notes that the socket took bytes.
    pub(crate) fn progressed(&self) {
        self.socket.end();
    }

    /// Notes that the socket would take nothing.
    pub(crate) fn blocked(&self) {
        self.socket.begin();
    }

    /// How long the socket has been taking nothing.
    #[must_use]
    pub(crate) fn blocked_for(&self) -> Duration {
        self.socket.lasts()
    }

    /// Since when the socket has been taking nothing; `None`: it takes.
    #[must_use]
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.socket.since()
    }

    /// Asks the connection's task to end, and the connection with it.
    pub(crate) fn disconnect(&self) {
        self.disconnect_wanted.notify_one();
    }

    /// Resolves once [`Self::disconnect`] was called.
    pub(crate) async fn disconnect_wanted(&self) {
        self.disconnect_wanted.notified().await;
    }
}
