//! The timers of a thread's streams: one heap of the moments at which a stream has to be looked at.
//!
//! A stream's next moment is later each time it is written to. The heap stays as it is then: when
//! the old moment comes, the stream is found to have more time and its timer is armed again. So a
//! delivery touches no timer.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::stream::Stream;
use crate::limits;

/// Moments, each with the key and the generation of its stream.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Instant, usize, u64)>>);

impl Timers {
    /// Has `stream` looked at at `at`, unless a timer of its own is earlier.
    pub(super) fn arm(&mut self, at: Instant, key: usize, stream: &mut Stream) {
        if stream.timer_at.is_none_or(|armed| at < armed) {
            stream.timer_at = Some(at);
            self.insert(at, key, stream.generation);
        }
    }

    /// Adds a moment. `generation` tells the users of a key apart.
    pub(super) fn insert(&mut self, at: Instant, key: usize, generation: u64) {
        self.0.push(Reverse((at, key, generation)));
    }

    /// How long until the next moment, at most `limit`.
    pub(super) fn until_next(&self, now: Instant, limit: Duration) -> Duration {
        self.0
            .peek()
            .map_or(limit, |Reverse((at, ..))| at.saturating_duration_since(now).min(limit))
    }

    /// Takes out one that is due: its moment, key and generation.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Instant, usize, u64)> {
        let Reverse((at, ..)) = self.0.peek()?;
        if *at > now {
            return None;
        }
        let due = self.0.pop().map(|Reverse(entry)| entry);
        if let Some(capacity) = limits::spare(self.0.len(), self.0.capacity()) {
            self.0.shrink_to(capacity);
        }
        due
    }
}
