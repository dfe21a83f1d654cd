//! Where a stream starts that asks for the newest events, or for those since some time: found in
//! memory as far as it reaches, then in the store.

use std::time::Duration;

use sluice_channel::Filter;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::yield_now,
    time::timeout,
};
use tracing::Instrument;

use super::{Log, segment::Segment};
use crate::{
    frame::Dialect,
    limits,
    source::{Error, REQUEST_TIMEOUT},
};

/// Searches by a filter at a time, per channel: each is work for a processor, and yields between
/// segments, so more of them would only all be late.
const SEARCHES: usize = 1;
/// Questions to the store for a place in time at a time, per channel.
const TIME_QUESTIONS: usize = 4;
/// Longest wait for a turn: as for an answer of the store.
const TURN_TIMEOUT: Duration = REQUEST_TIMEOUT;
/// How often a replica that lags is asked again for a place in time.
const LAG_RETRIES: u32 = 3;
/// Pause before it is.
const LAG_PAUSE: Duration = Duration::from_millis(50);

/// Bounds on looking for a start.
#[derive(Debug)]
pub(super) struct Turns {
    pub(super) searches: Semaphore,
    time_questions: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { searches: Semaphore::new(SEARCHES), time_questions: Semaphore::new(TIME_QUESTIONS) }
    }
}

async fn turn(of: &Semaphore) -> Result<SemaphorePermit<'_>, Error> {
    let busy = || Error::Unreachable("too many look for their start at this moment".into());
    timeout(TURN_TIMEOUT, of.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())
}

/// A search backwards.
struct Search<'f> {
    filter: &'f Filter,
    /// Events that are wanted.
    count: usize,
    /// Where it ends at the latest.
    stop: u64,
    /// Sequences found, newest first.
    found: Vec<u64>,
    /// Everything from here on was looked at.
    before: u64,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.found.len() >= self.count || self.before <= self.stop
    }

    /// What is wanted of `segment`, newest first.
    fn newest_of(&self, segment: &Segment) -> Vec<u64> {
        let wanted = self.count.saturating_sub(self.found.len());
        segment.newest(self.before, wanted, self.filter)
    }

    /// Takes what was found from `start` on.
    fn take(&mut self, newest: Vec<u64>, start: u64) {
        self.found.extend(newest.into_iter().filter(|sequence| *sequence >= self.stop));
        self.found.truncate(self.count);
        self.before = self.before.min(start);
    }
}

impl Log {
    /// Where the newest `count` events that pass `filter` start; the head when there are none.
    /// Looks back over at most [`limits::LAST_SCAN_EVENTS`], in memory and history together.
    ///
    /// # Errors
    /// The store's, and when too many others search.
    pub(crate) async fn newest(&self, count: usize, filter: &Filter) -> Result<u64, Error> {
        let _turn = match filter.is_all() {
            // Takes what comes first.
            true => None,
            false => Some(turn(&self.turns.searches).await?),
        };
        let head = self.head_now();
        let Some(epoch) = head.epoch else {
            return Err(Error::Unreachable("not connected yet".into()));
        };
        let stop = head.next.saturating_sub(limits::LAST_SCAN_EVENTS).max(head.first);
        let (found, before) = (Vec::new(), head.next);
        let mut search = Search { filter, count, stop, found, before };
        let memory = self.rings.read().plain.pieces(stop);
        for segment in memory {
            if search.is_over() {
                break;
            }
            search.take(search.newest_of(&segment), segment.start());
            yield_now().await;
        }
        let scope = self.scope(head, epoch, Dialect::Plain);
        while !search.is_over() {
            let block = (search.before - 1) - (search.before - 1) % limits::SEGMENT_SEQUENCES;
            let mut position = block.max(1);
            // Read forwards. Of each only what was found is kept: segments that are held would
            // leave no room for the next one.
            let mut rising = Vec::new();
            while position < search.before {
                let (segment, _) =
                    self.history.segment(scope, position).instrument(self.span.clone()).await?;
                position = segment.end();
                rising.push(search.newest_of(&segment));
                yield_now().await;
            }
            let newest = rising.into_iter().rev().flatten().collect();
            search.take(newest, block);
        }
        Ok(search.found.last().copied().unwrap_or(head.next))
    }

    /// The sequence of the first event stored at or after `time_nanos`; the head where there is
    /// none.
    ///
    /// # Errors
    /// The store's; also when it says that there is none, and the log has seen one; and when too
    /// many others ask.
    pub(crate) async fn since(&self, time_nanos: i64) -> Result<u64, Error> {
        let head = self.head_now();
        {
            let rings = self.rings.read();
            // While the store is away or ahead, what comes next may be older than is asked for.
            let is_all = head.down_since.is_none() && self.status().lag == 0;
            let found = rings.plain.since(time_nanos).filter(|_| rings.life == head.life);
            if let Some(found) = found.filter(|found| *found < head.next || is_all) {
                return Ok(found);
            }
        }
        let _turn = turn(&self.turns.time_questions).await?;
        for attempt in 0..=LAG_RETRIES {
            if attempt > 0 {
                tokio::time::sleep(LAG_PAUSE).await;
            }
            if let Some(sequence) = self.source.first_since(time_nanos).await? {
                return Ok(sequence);
            }
            // All that comes after the head will be delivered, so what counts is what was before.
            let newest = self.marks.lock().newest();
            if newest.is_none_or(|(_, newest_nanos)| newest_nanos < time_nanos) {
                return Ok(head.next);
            }
        }
        Err(Error::Unreachable("a replica that lags was asked for a place in time".into()))
    }
}
