//! Runs of events as they were published, for JSON pages: within the same bounds on reads and
//! memory as segments of history, and one read for all callers that ask the same at the same time.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};
use sluice_channel::{Epoch, Event};
use tracing::Instrument;

use super::{
    Log,
    history::{History, is_of},
    room::Share,
};
use crate::{
    limits,
    source::{Error, ReadLimit},
};

/// A run of the log as the store has it: what is neither among the events nor at `end` or later is
/// not there, and that is proven.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    /// Events in rising order.
    pub(crate) events: Vec<Event>,
    /// The sequence to go on at.
    pub(crate) end: u64,
    /// Of the memory for history.
    _share: Option<Share>,
}

/// Life, position and number of events.
type Key = (u64, u64, u64);

#[derive(Debug, Clone)]
struct Unkept;

impl Weighter<Key, Arc<Stretch>> for Unkept {
    fn weight(&self, _: &Key, _: &Arc<Stretch>) -> u64 {
        1
    }
}

/// Reads under way. A cache without room: nothing is kept once all callers that waited for it have
/// it, as what is read as it was published is not encoded, and would be in memory a second time.
#[derive(Debug)]
pub(super) struct Flights(Cache<Key, Arc<Stretch>, Unkept>);

impl Default for Flights {
    fn default() -> Self {
        Self(Cache::with_weighter(1, 0, Unkept))
    }
}

pub(super) fn recreated() -> Error {
    Error::TailEnded("the stream was recreated".into())
}

impl Log {
    /// What the store has from `position` on, up to the head at most, and about `count` events at
    /// most: of the log's `life`.
    ///
    /// # Errors
    /// The store's; also when it cannot prove that nothing is there, and when `life` is over.
    pub(crate) async fn events(
        &self,
        life: u64,
        position: u64,
        count: u64,
    ) -> Result<Arc<Stretch>, Error> {
        let head = self.head_now();
        let Some(epoch) = head.epoch.filter(|_| head.life == life) else { return Err(recreated()) };
        let last = head.next.saturating_sub(1);
        if position > last {
            return Ok(Arc::new(Stretch { end: position, ..Stretch::default() }));
        }
        let count = count.min(limits::PAGE_EVENTS as u64).min(last + 1 - position).max(1);
        let key = (life, position, count);
        let read = self.history.stretch(epoch, position, count, last);
        self.flights.0.get_or_insert_async(&key, read).instrument(self.span.clone()).await
    }
}

impl History {
    /// Reads up to `count` events from `position` on, at most up to `last`.
    async fn stretch(
        &self,
        epoch: Epoch,
        position: u64,
        count: u64,
        last: u64,
    ) -> Result<Arc<Stretch>, Error> {
        let _turn = self.turn().await?;
        let limit = ReadLimit { events: count, bytes: limits::SEGMENT_BYTES };
        let (mut events, proven) = self.events(position, limit, last).await?;
        if !is_of(proven, epoch)? {
            self.check_epoch(epoch).await?;
        }
        let end = events.last().map_or(last + 1, |event| (event.sequence + 1).min(last + 1));
        events.retain(|event| event.sequence <= last);
        let bytes =
            events.iter().map(|e| e.payload.len() + e.topic.len() + size_of::<Event>()).sum();
        Ok(Arc::new(Stretch { events, end, _share: Some(self.share(bytes)) }))
    }
}
