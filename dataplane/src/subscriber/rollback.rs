//! Events that were given out and may be taken back, as long as nothing of them was written.

use super::Subscriber;

/// Where a subscriber stood before [`Step::Events`].
#[derive(Debug, Clone, Copy)]
pub struct Checkpoint {
    position: u64,
    shown: u64,
    fresh: bool,
}

impl Subscriber {
    /// So many events and bytes of [`Step::Events`] were given to the connection.
    pub fn count_delivered(&self, events: u64, bytes: usize) {
        let metrics = self.entry.channel().metrics();
        metrics.events_delivered.inc_by(events);
        metrics.bytes_written.inc_by(bytes as u64);
    }

    /// Where it stands.
    #[must_use]
    pub const fn checkpoint(&self) -> Checkpoint {
        Checkpoint { position: self.position, shown: self.shown, fresh: self.fresh }
    }

    /// Goes back to where it stood before [`Step::Events`]: of what came since, nothing was
    /// written.
    pub fn roll_back(&mut self, checkpoint: Checkpoint) {
        Checkpoint { position: self.position, shown: self.shown, fresh: self.fresh } = checkpoint;
        self.note();
    }

    /// Lets go of the segment it is reading: who waits for a socket holds no memory.
    pub fn release_segment(&mut self) {
        self.segment = None;
    }
}
