//! What is read of a segment at a time.

use bytes::Bytes;

use crate::frame::Gap;

/// What a subscriber gets from a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Slice {
    /// Frames to write, maybe none (all filtered out), and where to go on.
    Frames {
        /// Bytes in order; each part is whole frames.
        parts: Vec<Bytes>,
        /// First and last sequence of each run of events among them. The same runs of one life of
        /// the log, in the same dialect, are the same bytes.
        runs: Vec<(u64, u64)>,
        /// Events among them.
        events: u64,
        /// Store time of the oldest of them, Unix nanoseconds; 0 when there is none.
        oldest_nanos: i64,
        /// Sequence to go on at.
        next: u64,
        /// Comparisons of a pattern with a topic that it took, at most: what it has cost where it
        /// has little to show for it.
        compared: usize,
    },
    /// Events are missing here; nothing may be delivered before the subscriber was told.
    Gap {
        /// What is missing.
        gap: Gap,
        /// Sequence to go on at: the first after the hole at the position. `gap` may name later
        /// holes too.
        next: u64,
    },
}

impl Slice {
    /// No event, and where to go on.
    pub(crate) const fn nothing(next: u64) -> Self {
        Self::Frames {
            parts: Vec::new(),
            runs: Vec::new(),
            events: 0,
            oldest_nanos: 0,
            next,
            compared: 0,
        }
    }
}
