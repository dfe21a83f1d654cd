//! A sign of life: a number that a thread raises for as long as it goes on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Longest time between two beats of what goes on.
pub(crate) const BEAT: std::time::Duration = std::time::Duration::from_secs(1);

/// Raised by one thread or task, read by the probes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// It goes on. One thread or task alone calls this, at least once in each [`BEAT`].
    pub(crate) fn beat(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The number, which differs from the one before if it has gone on.
    #[must_use]
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
