//! Memory that requests may hold at a time, whatever their number: pages of JSON until their
//! readers have them, and payloads until the store has them.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Bytes of JSON pages in the making or not yet written, per pod: twelve of the largest at a time,
/// thousands of small ones. More readers wait, then are answered 503: pages are for polling, and a
/// pod is sized by its streams.
pub(crate) const PAGES_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of payloads that came in and are not stored yet, per pod: sixty-four of the largest, a
/// thousand of the largest that a default channel takes.
pub(crate) const PAYLOADS_BYTES: usize = 64 * 1024 * 1024;

/// Bytes that may be held at a time.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

/// Bytes taken of a budget; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share(OwnedSemaphorePermit);

/// The budgets of a pod.
#[derive(Debug)]
pub(crate) struct Budgets {
    pub(crate) pages: Budget,
    pub(crate) payloads: Budget,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { pages: Budget::new(PAGES_BYTES), payloads: Budget::new(PAYLOADS_BYTES) }
    }
}

fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// Takes `bytes`, waiting for them no longer than `limit`; first come, first served.
    pub(crate) async fn take(&self, bytes: usize, limit: Duration) -> Option<Share> {
        let taken = Arc::clone(&self.0).acquire_many_owned(count(bytes));
        timeout(limit, taken).await.ok()?.ok().map(Share)
    }

    /// Takes `bytes` if they are there at this moment.
    pub(crate) fn take_now(&self, bytes: usize) -> Option<Share> {
        Arc::clone(&self.0).try_acquire_many_owned(count(bytes)).ok().map(Share)
    }
}

impl Share {
    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        // What is split off is dropped.
        drop(self.0.split(self.0.num_permits().saturating_sub(bytes)));
    }

    /// Adds `other`, a share of the same budget.
    pub(crate) fn add(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let wait = Duration::from_secs(1);
        let mut first = budget.take(80, wait).await.unwrap();
        assert!(budget.take_now(21).is_none());
        assert!(budget.take(21, wait).await.is_none(), "a bounded wait");
        first.shrink_to(10);
        first.add(budget.take_now(90).unwrap());
        assert!(budget.take_now(1).is_none());
        drop(first);
        assert!(budget.take_now(100).is_some());
    }
}
