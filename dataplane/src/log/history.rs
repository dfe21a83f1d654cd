//! The older part of the log: segments read from the store on demand, cached by bytes, one read per
//! place however many subscribers ask for it.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter, sync::Cache, sync::DefaultLifecycle,
};
use sluice_channel::{Epoch, Event, config::Encoding};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc},
    time::Instant,
};

use super::{
    room::{Room, Share},
    segment::Segment,
};
use crate::{
    frame::{Dialect, GapReason},
    limits,
    source::{Batch, Error, ReadLimit, Source, proof::Proofs},
};

/// Reads of the store at the same time, per channel and pod: replays share them and leave the
/// connection room for the tail.
const CONCURRENT_READS: usize = 4;
/// Segments that wait to be read before a subscriber asks for them.
const AHEAD: usize = 16;
/// How often a replica that lags is asked again before the leader is.
const LAG_RETRIES: u32 = 3;
/// Pause before a replica that lags is asked again.
const LAG_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    life: u64,
    dialect: Dialect,
    /// How payloads and holes were encoded (base64, compacted): a read that was under way when that
    /// changed is of the old rule, and is not found by the new one.
    rule: (bool, bool),
    start: u64,
}

#[derive(Debug, Clone)]
struct Cost;

impl Weighter<Key, Arc<Segment>> for Cost {
    fn weight(&self, _: &Key, segment: &Arc<Segment>) -> u64 {
        segment.cost() as u64
    }
}

/// What a read is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// The log's life, so that segments of a former one are never found.
    pub(super) life: u64,
    /// The stream's epoch.
    pub(super) epoch: Epoch,
    /// Dialect of the frames.
    pub(super) dialect: Dialect,
    /// Encoding of payloads.
    pub(super) encoding: Encoding,
    /// Whether holes are compaction.
    pub(super) compacted: bool,
    /// Highest sequence known to exist.
    pub(super) last: u64,
}

impl Scope {
    fn key(&self, start: u64) -> Key {
        let rule = (self.encoding == Encoding::Base64, self.compacted);
        Key { life: self.life, dialect: self.dialect, rule, start }
    }
}

/// Cached segments of the past.
#[derive(Debug)]
pub(super) struct History {
    source: Arc<dyn Source>,
    proofs: Arc<Proofs>,
    cache: Cache<Key, Arc<Segment>, Cost>,
    /// Memory of all its segments, cached or still held by a subscriber.
    room: Arc<Room>,
    reads: Semaphore,
    /// Places that will be read soon. Bounded; what does not fit is read when it is asked for.
    ahead: mpsc::Sender<(Scope, u64)>,
    ahead_queue: Mutex<Option<mpsc::Receiver<(Scope, u64)>>>,
}

/// Why what ends at `to` is missing of a stream whose first event is `first`.
pub(super) const fn missing(compacted: bool, to: u64, first: u64) -> GapReason {
    match (compacted, to < first) {
        (true, _) => GapReason::Compacted,
        (false, true) => GapReason::Expired,
        (false, false) => GapReason::Deleted,
    }
}

/// Whether events are proven to be of `epoch`.
///
/// # Errors
/// They are proven to be of another one.
pub(super) fn is_of(proven: Option<Epoch>, epoch: Epoch) -> Result<bool, Error> {
    match proven {
        None => Ok(false),
        Some(proven) if proven == epoch => Ok(true),
        Some(_) => Err(Error::TailEnded("the stream was recreated".into())),
    }
}

/// Memory for history where `capacity` bytes of it are cached: half as much again, for
/// segments that have left the cache while subscribers were still reading them.
fn room_beside(capacity: u64) -> usize {
    usize::try_from(capacity.saturating_add(capacity / 2)).unwrap_or(usize::MAX)
}

impl std::fmt::Debug for dyn Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

impl History {
    /// A history over `source` that caches up to `capacity` bytes.
    #[must_use]
    pub(super) fn new(source: Arc<dyn Source>, proofs: Arc<Proofs>, capacity: u64) -> Self {
        let items = usize::try_from(capacity / (64 * 1024)).unwrap_or(usize::MAX).max(16);
        // One shard: a shard takes no entry larger than its own share of the capacity.
        let cache = match OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(items)
            .weight_capacity(capacity)
            .build()
        {
            Ok(options) => Cache::with_options(
                options,
                Cost,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            // Only if an option were missing.
            Err(_) => Cache::with_weighter(items, capacity, Cost),
        };
        let (ahead, queue) = mpsc::channel(AHEAD);
        let room = Room::new(room_beside(capacity));
        Self {
            source,
            proofs,
            cache,
            room,
            reads: Semaphore::new(CONCURRENT_READS),
            ahead,
            ahead_queue: Mutex::new(Some(queue)),
        }
    }

    /// Changes the bytes cached.
    pub(super) fn set_capacity(&self, capacity: u64) {
        self.cache.set_capacity(capacity);
        self.room.set_capacity(room_beside(capacity));
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.cache.clear();
    }

    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Forgets everything, and caches nothing any more.
    pub(super) fn close(&self) {
        self.cache.set_capacity(0);
        self.cache.clear();
    }

    /// Says that `start`, where a segment ends that is being read now, will be asked for next.
    pub(super) fn expect(&self, scope: Scope, start: u64) {
        if self.cache.peek(&scope.key(start)).is_none() {
            let _ = self.ahead.try_send((scope, start));
        }
    }

    /// Reads what is expected, one segment at a time: of the reads that the store is given at a
    /// time, replays that wait have the others. Never ends; cancel safe.
    pub(super) async fn read_ahead(&self) {
        let Some(mut queue) = self.ahead_queue.lock().take() else { return };
        while let Some((scope, start)) = queue.recv().await {
            if self.room.is_free() && self.cached(scope, start).is_none() {
                // An error shows to the subscriber that asks for the segment.
                let _ = self.segment(scope, start).await;
            }
        }
    }

    /// The segment that covers `from` if it is in memory.
    pub(super) fn cached(&self, scope: Scope, from: u64) -> Option<Arc<Segment>> {
        let mut start = from - from % limits::SEGMENT_SEQUENCES;
        loop {
            let segment = self.cache.get(&scope.key(start))?;
            if segment.covers(from) {
                return Some(segment);
            }
            if segment.end() <= start || segment.end() > from {
                return None;
            }
            start = segment.end();
        }
    }

    /// The segment that covers `from` (which must be at most `scope.last`), and whether the store
    /// was asked.
    ///
    /// # Errors
    /// The store's, after which the same call may be made again: nothing is lost.
    pub(super) async fn segment(
        &self,
        scope: Scope,
        from: u64,
    ) -> Result<(Arc<Segment>, bool), Error> {
        let mut start = from - from % limits::SEGMENT_SEQUENCES;
        let mut asked = false;
        loop {
            let key = scope.key(start);
            let read = async {
                asked = true;
                self.read(scope, start).await
            };
            let segment = self.cache.get_or_insert_async(&key, read).await?;
            if segment.end() > from {
                return Ok((segment, asked));
            }
            if segment.end() <= start {
                return Err(Error::Refused(format!("nothing can be read at sequence {start}")));
            }
            start = segment.end();
        }
    }

    /// Waits for memory, and for a turn among the reads at a time.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.room.wait().await?;
        self.reads.acquire().await.map_err(|e| Error::Unreachable(e.to_string()))
    }

    /// Takes `bytes` of the memory for history.
    pub(super) fn share(&self, bytes: usize) -> Share {
        self.room.take(bytes)
    }

    /// Reads sequences from `start` to the end of its block, or less when they are large; more
    /// where a hole reaches over the end. What one answer holds is taken as a whole: nothing is
    /// read twice.
    async fn read(&self, scope: Scope, start: u64) -> Result<Arc<Segment>, Error> {
        let _turn = self.turn().await?;
        let block_end = start - start % limits::SEGMENT_SEQUENCES + limits::SEGMENT_SEQUENCES - 1;
        let to = block_end.min(scope.last);
        // The store has no sequence 0.
        let mut segment = Segment::gather(start.max(1));
        let mut first = None;
        let mut proven = true;
        while segment.end() <= to && segment.bytes() < limits::SEGMENT_BYTES {
            let limit = ReadLimit {
                events: to + 1 - segment.end(),
                bytes: limits::SEGMENT_BYTES - segment.bytes(),
            };
            let (events, epoch) = self.events(segment.end(), limit, scope.last).await?;
            proven &= is_of(epoch, scope.epoch)?;
            if events.is_empty() {
                let reason = self.hole_reason(scope, to, &mut first).await?;
                segment.skip_to(to + 1, reason);
            }
            for event in events {
                if event.sequence > segment.end() {
                    let reason = self.hole_reason(scope, event.sequence - 1, &mut first).await?;
                    segment.skip_to(event.sequence, reason);
                }
                if event.sequence > to {
                    break;
                }
                segment.append(
                    scope.epoch,
                    &event,
                    scope.dialect,
                    scope.encoding,
                    GapReason::Deleted,
                );
            }
        }
        if !proven {
            self.check_epoch(scope.epoch).await?;
        }
        Ok(segment.seal_in(&self.room))
    }

    /// Makes sure that what was just read is of `epoch`: the stream may have been recreated before
    /// the reader has noticed. Epochs do not come back, so asking *after* the read is proof.
    pub(super) async fn check_epoch(&self, epoch: Epoch) -> Result<(), Error> {
        let now = self.proofs.state().await?.state.epoch;
        if now == epoch { Ok(()) } else { Err(Error::TailEnded("the stream was recreated".into())) }
    }

    /// Events from `next` on, at least one unless there is none, and their epoch where that is
    /// known. A replica may lag, so its silence is no proof: it is asked again, then the leader is,
    /// which has to reach `known`, a sequence that was given out, and to prove that it leads.
    pub(super) async fn events(
        &self,
        next: u64,
        limit: ReadLimit,
        known: u64,
    ) -> Result<(Vec<Event>, Option<Epoch>), Error> {
        let mut lacking = None;
        for attempt in 0..=LAG_RETRIES {
            if attempt > 0 {
                tokio::time::sleep(LAG_PAUSE).await;
            }
            let Batch { mut events, epoch, .. } = self.source.read(next, limit).await?;
            events.retain(|event| event.sequence >= next);
            let Some(first) = events.first().map(|event| event.sequence) else { continue };
            if first == next {
                return Ok((events, epoch));
            }
            match self.source.read_leader(next).await? {
                Some(event) if event.sequence < first => lacking = Some(event),
                Some(_) => return Ok((events, epoch)),
                None => lacking = None,
            }
        }
        if let Some(event) = lacking {
            return Ok((vec![event], None));
        }
        let leader = self.proofs.state().await?.state;
        if leader.last < known {
            return Err(behind(leader.last, known));
        }
        if let Some(event) = self.source.read_leader(next).await? {
            return Ok((vec![event], None));
        }
        let proven = self.proofs.prove(leader.lead, Instant::now()).await?;
        if proven.last < known {
            return Err(behind(proven.last, known));
        }
        // That "not found" does not say whose it is: a leader that has just lost its place answers
        // a moment longer.
        if let Some(event) = self.source.read_leader(next).await? {
            return Ok((vec![event], None));
        }
        Ok((Vec::new(), Some(proven.epoch)))
    }

    /// Why the sequences up to `to` are missing; asks the store for its first one at most once per
    /// read.
    async fn hole_reason(
        &self,
        scope: Scope,
        to: u64,
        first: &mut Option<u64>,
    ) -> Result<GapReason, Error> {
        let first = match *first {
            Some(first) => first,
            None if scope.compacted => 0,
            None => *first.insert(self.proofs.state().await?.state.first),
        };
        Ok(missing(scope.compacted, to, first))
    }
}

fn behind(last: u64, known: u64) -> Error {
    Error::Unreachable(format!("it is at {last}, but {known} is known to exist"))
}
