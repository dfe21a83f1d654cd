//! What a subscriber wants from the driver that writes its frames.

use bytes::Bytes;
use tokio::time::Instant;

use super::{question::Question, rollback::Checkpoint};

/// What a subscriber needs next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Write these: whole frames, in this order.
    Write(Vec<Bytes>),
    /// Write these frames of events, about [`limits::SLICE_BYTES`].
    /// The driver counts them by [`Subscriber::count_delivered`] or, as long as none of their bytes
    /// is written, goes back to the checkpoint by [`Subscriber::roll_back`].
    ///
    /// [`limits::SLICE_BYTES`]: crate::limits::SLICE_BYTES
    /// [`Subscriber::count_delivered`]: super::Subscriber::count_delivered
    /// [`Subscriber::roll_back`]: super::Subscriber::roll_back
    Events {
        parts: Vec<Bytes>,
        /// How many there are.
        events: u64,
        checkpoint: Checkpoint,
        /// Comparisons of patterns with topics that it took to find them.
        compared: usize,
    },
    /// Nothing to do until the head moves, the stream is to close, or this moment.
    Wait(Instant),
    /// Ask the store, and give its answer to [`Subscriber::answer`]. Until then the subscriber only
    /// waits.
    ///
    /// [`Subscriber::answer`]: super::Subscriber::answer
    Ask(Question),
    /// A long run without a match: other streams have their turn first.
    Yield {
        /// Comparisons of patterns with topics that were made.
        compared: usize,
    },
    /// The last frames were given out.
    End,
}

impl Step {
    /// Nothing to write yet.
    pub(super) const YIELD: Self = Self::Yield { compared: 0 };

    /// One buffer of whole frames.
    pub(super) fn write(frames: Vec<u8>) -> Self {
        Self::Write(vec![frames.into()])
    }
}
