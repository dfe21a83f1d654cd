//! The other end of a connection, and whether its socket takes what is written to it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// The other end of one TCP connection, which may carry several streams (HTTP/2).
#[derive(Debug)]
pub(crate) struct Peer {
    /// Address and port that the connection came from.
    pub(crate) address: SocketAddr,
    started: Instant,
    /// Milliseconds after `started` since when the socket has taken nothing, plus one; 0 = it
    /// takes.
    blocked_since: AtomicU64,
    disconnect_wanted: Notify,
}

impl Peer {
    /// The peer at `address`, whose socket takes bytes.
    #[must_use]
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            started: Instant::now(),
            blocked_since: AtomicU64::new(0),
            disconnect_wanted: Notify::new(),
        }
    }

    /// Notes that the socket took bytes.
    pub(crate) fn progressed(&self) {
        self.blocked_since.store(0, Relaxed);
    }

    /// Notes that the socket would take nothing.
    pub(crate) fn blocked(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        // Only the first refusal counts; progress sets it back.
        let _ = self.blocked_since.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// How long the socket has been taking nothing.
    #[must_use]
    pub(crate) fn blocked_for(&self) -> Duration {
        match self.blocked_since.load(Relaxed) {
            0 => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_millis(since - 1)),
        }
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
