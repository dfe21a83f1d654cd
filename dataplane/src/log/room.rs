//! Memory for history: a segment holds its share for as long as it is referenced, in the cache
//! or not.
//!
//! The cache bounds what it keeps itself. Subscribers that replay keep segments beside it, each for
//! as long as it has its turns; were they read from the store faster than sockets take them, there
//! would be as many segments as subscribers. So a read waits for room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use crate::source::Error;

/// Longest wait for room. A subscriber that holds a segment gets on, or lets go of it when its
/// socket is full; so a wait as long as this means that the fan-out threads have no time left.
const ROOM_TIMEOUT: Duration = Duration::from_secs(3);

/// What there is.
#[derive(Debug)]
pub(super) struct Room {
    capacity: AtomicUsize,
    used: AtomicUsize,
    freed: Notify,
}

/// A share, bytes; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share(Arc<Room>, usize);

impl Room {
    /// Room for `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity: AtomicUsize::new(capacity),
            used: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// Changes what there is.
    pub(super) fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Relaxed);
        self.freed.notify_waiters();
    }

    /// Whether there is some at this moment.
    pub(super) fn is_free(&self) -> bool {
        self.used.load(Relaxed) < self.capacity.load(Relaxed)
    }

    /// Waits until there is some. What is taken then may overshoot it, by one segment for each read
    /// at a time.
    ///
    /// # Errors
    /// None came in time; the same call may be made again.
    pub(super) async fn wait(&self) -> Result<(), Error> {
        let free = async {
            loop {
                let freed = self.freed.notified();
                if self.is_free() {
                    return;
                }
                freed.await;
            }
        };
        timeout(ROOM_TIMEOUT, free)
            .await
            .map_err(|_| Error::Unreachable("history has no room in memory at this moment".into()))
    }

    /// Takes `bytes`.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Share {
        self.used.fetch_add(bytes, Relaxed);
        Share(Arc::clone(self), bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.used.fetch_sub(self.1, Relaxed);
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_read_waits_until_a_share_is_given_back() {
        let room = Room::new(100);
        let shares = (room.take(60), room.take(60));
        assert!(room.wait().await.is_err(), "a bounded wait");
        let mut waiting = Box::pin(room.wait());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(shares.0);
        assert!(waiting.now_or_never().is_some_and(|free| free.is_ok()));
        room.set_capacity(60);
        assert!(!room.is_free());
        drop(shares.1);
        assert_eq!(room.used.load(Relaxed), 0);
    }
}
