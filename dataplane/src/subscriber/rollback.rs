//! Events that were given out and may be rolled back, as long as nothing of them was written.

/// A subscriber's state before [`Step::Events`](super::Step::Events).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoint {
    pub(super) next: u64,
    pub(super) last_id_sent: u64,
}
