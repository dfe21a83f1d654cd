//! The newest part of the log, in memory: sealed segments and the open one, contiguous up to the
//! head.

use std::{collections::VecDeque, sync::Arc};

use sluice_channel::{Epoch, Event, Filter, config::Encoding};

use super::segment::{Segment, Slice};
use crate::frame::{Dialect, GapReason};

/// A contiguous run `start..next` of the log in one dialect.
#[derive(Debug)]
pub(super) struct Ring {
    dialect: Dialect,
    sealed: VecDeque<Arc<Segment>>,
    sealed_cost: usize,
    open: Segment,
}

impl Ring {
    /// An empty ring whose first sequence will be `start`.
    #[must_use]
    pub(super) fn new(dialect: Dialect, start: u64) -> Self {
        Self { dialect, sealed: VecDeque::new(), sealed_cost: 0, open: Segment::open(start) }
    }

    /// First sequence in memory.
    #[must_use]
    pub(super) fn start(&self) -> u64 {
        self.sealed.front().map_or(self.open.start(), |s| s.start())
    }

    /// The sequence that comes next.
    #[must_use]
    pub(super) const fn next(&self) -> u64 {
        self.open.end()
    }

    /// Encoded bytes and index, roughly.
    #[must_use]
    pub(super) fn cost(&self) -> usize {
        self.sealed_cost + self.open.cost()
    }

    /// Appends one event at or after `next`. Returns whether its payload could be shown as it is.
    pub(super) fn append(
        &mut self,
        epoch: Epoch,
        event: &Event,
        encoding: Encoding,
        hole: GapReason,
    ) -> bool {
        let valid = self.open.append(epoch, event, self.dialect, encoding, hole);
        self.seal_full();
        valid
    }

    /// Moves `next` to `sequence`: what is between is missing.
    pub(super) fn skip_to(&mut self, sequence: u64, reason: GapReason) {
        self.open.skip_to(sequence, reason);
        self.seal_full();
    }

    fn seal_full(&mut self) {
        if self.open.is_full() {
            let next = self.open.end();
            let sealed = std::mem::replace(&mut self.open, Segment::open(next)).seal();
            self.sealed_cost += sealed.cost();
            self.sealed.push_back(sealed);
        }
    }

    /// Lets go of the oldest segments until at most `capacity` bytes are held (the open one always
    /// stays), and of segments wholly before `first`: what the store has removed is not served.
    pub(super) fn trim(&mut self, capacity: usize, first: u64) {
        while let Some(oldest) = self.sealed.front() {
            if self.cost() <= capacity && oldest.end() > first {
                break;
            }
            self.sealed_cost -= oldest.cost();
            self.sealed.pop_front();
        }
    }

    /// The segment with `sequence`, which must be in `start..next`.
    fn find(&self, sequence: u64) -> Option<&Segment> {
        if sequence >= self.open.start() {
            return (sequence < self.open.end()).then_some(&self.open);
        }
        let index = self.sealed.partition_point(|s| s.end() <= sequence);
        self.sealed.get(index).filter(|s| s.start() <= sequence).map(|s| &**s)
    }

    /// What to write next for a subscriber at `from`; `None` when that is not in memory.
    #[must_use]
    pub(super) fn slice(&self, from: u64, told: u64, filter: &Filter) -> Option<Slice> {
        self.find(from).map(|segment| segment.slice(from, told, filter))
    }

    /// The segments that reach beyond `stop`, newest first, to be looked at without the lock on
    /// the ring.
    pub(super) fn pieces(&self, stop: u64) -> Vec<Arc<Segment>> {
        let open = Arc::new(self.open.index());
        let sealed = self.sealed.iter().rev().take_while(|segment| segment.end() > stop);
        std::iter::once(open).chain(sealed.cloned()).collect()
    }

    /// The sequence of the first event stored at or after `time_nanos`, or of the next one to come;
    /// `None` where it may be older than what is in memory.
    pub(super) fn since(&self, time_nanos: i64) -> Option<u64> {
        let mut segments = self.sealed.iter().map(|s| &**s).chain([&self.open]);
        let first = segments.find_map(Segment::first_nanos)?;
        if first >= time_nanos {
            return None;
        }
        let index = self.sealed.partition_point(|s| s.last_nanos().is_none_or(|t| t < time_nanos));
        let later = self.sealed.iter().skip(index).map(|s| &**s).chain([&self.open]);
        Some(later.into_iter().find_map(|s| s.since(time_nanos)).unwrap_or(self.next()))
    }
}
