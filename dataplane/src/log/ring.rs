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

    /// Sequences of the newest `count` events that pass `filter`, newest first.
    #[must_use]
    pub(super) fn newest(&self, count: usize, filter: &Filter) -> Vec<u64> {
        let mut found = self.open.newest(u64::MAX, count, filter);
        for segment in self.sealed.iter().rev() {
            if found.len() >= count {
                break;
            }
            found.extend(segment.newest(u64::MAX, count - found.len(), filter));
        }
        found
    }
}
