//! One timer for all connections of a thread: a heap of the moments at which one has to be looked
//! at.
//!
//! A connection's next moment is later each time it is written to. The heap is not told: when the
//! old moment comes, the connection says that it has more time and is put back. So a delivery
//! touches no timer.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::stream::Stream;

/// Moments and the connections that they are of.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Instant, usize, u64)>>);

impl Timers {
    /// `stream` is to be looked at then, if it is not to be earlier.
    pub(super) fn arm(&mut self, at: Instant, key: usize, stream: &mut Stream) {
        if stream.timer_at.is_none_or(|set| at < set) {
            stream.timer_at = Some(at);
            self.insert(at, key, stream.ticket);
        }
    }

    /// `key` is to be looked at then. `ticket` tells a key's users apart.
    pub(super) fn insert(&mut self, at: Instant, key: usize, ticket: u64) {
        self.0.push(Reverse((at, key, ticket)));
    }

    /// How long until the next moment, at most `limit`.
    pub(super) fn wait(&self, now: Instant, limit: Duration) -> Duration {
        self.0
            .peek()
            .map_or(limit, |Reverse((at, ..))| at.saturating_duration_since(now).min(limit))
    }

    /// One that is due: its moment, key and ticket.
    pub(super) fn due(&mut self, now: Instant) -> Option<(Instant, usize, u64)> {
        let Reverse((at, ..)) = self.0.peek()?;
        if *at > now {
            return None;
        }
        self.0.pop().map(|Reverse(entry)| entry)
    }
}
