//! The streams of one channel on one thread: those that wait for its head, and the bytes that many
//! of them share.

use std::{collections::HashMap, sync::Arc, time::Instant};

use bytes::Bytes;
use sluice_channel::Filter;

use super::{
    chunk,
    stream::{SEND, Stream},
    waiters::{NOT_WAITING, Waiters},
};
use crate::{
    channel::Channel,
    frame::Dialect,
    limits,
    log::{Head, Now, segment::Slice},
    metrics::seconds_since,
};

/// Deliveries after which the clock is read again for the latency that the metrics show.
const CLOCK_EVERY: u64 = 64;

/// What each live stream of one [`BatchKey`] gets next.
#[derive(Debug)]
pub(super) struct Batch {
    /// Empty when nothing passed the filter. Each in a buffer of its own, because a stream whose
    /// socket is full keeps no more than one of them.
    chunks: Vec<Chunk>,
    /// Store time of the oldest event, Unix nanoseconds.
    oldest_nanos: i64,
    /// The sequence to deliver after it.
    next: u64,
}

/// About [`limits::SLICE_BYTES`] of a batch.
#[derive(Debug)]
struct Chunk {
    /// With its framing.
    whole: Bytes,
    /// Bytes of frames in it.
    bytes: u64,
    events: u64,
    /// The sequence to deliver after it.
    next: u64,
}

/// How the delivery to one stream went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivered {
    /// It has everything up to the head.
    AtHead,
    /// What it needs next is its own, not a batch's.
    Individual,
    /// Its socket is full.
    Blocked,
    /// Its connection is broken.
    Broken,
}

/// What streams have to have in common for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct BatchKey {
    /// The filter's number in the group.
    filter: u32,
    dialect: Dialect,
    /// The first sequence of the batch.
    sequence: u64,
}

/// One channel on one thread.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) channel: Arc<Channel>,
    /// The head up to which deliveries are made.
    pub(super) head: Head,
    /// The streams that wait for the head to move.
    pub(super) waiters: Waiters,
    /// Streams, waiting or not.
    pub(super) members: usize,
    filters: Filters,
    batches: Batches,
}

/// The batches made under one head: each is made once, however many streams share it.
#[derive(Debug, Default)]
struct Batches {
    made: Vec<(BatchKey, Option<Batch>)>,
    numbers: HashMap<BatchKey, usize>,
    /// The batch of the last delivery. Nearly all streams have the same key, and find it here
    /// without a hash.
    last: usize,
}

impl Batches {
    fn clear(&mut self) {
        self.made.clear();
        self.numbers.clear();
    }

    fn get_or_make(
        &mut self,
        key: BatchKey,
        make: impl FnOnce() -> Option<Batch>,
    ) -> Option<&Batch> {
        if self.made.get(self.last).is_none_or(|(of, _)| *of != key) {
            let next = self.made.len();
            self.last = *self.numbers.entry(key).or_insert(next);
            if self.last == next {
                self.made.push((key, make()));
            }
        }
        self.made.get(self.last).and_then(|(_, batch)| batch.as_ref())
    }
}

/// Numbers of the filters in use; 0 is no filter.
#[derive(Debug, Default)]
struct Filters {
    known: HashMap<Filter, (u32, usize)>,
    last: u32,
}

impl Filters {
    fn join(&mut self, filter: &Filter) -> u32 {
        if filter.is_all() {
            return 0;
        }
        if let Some((number, users)) = self.known.get_mut(filter) {
            *users += 1;
            return *number;
        }
        // A number is used again after four billion filters; its former streams are gone by then.
        self.last = self.last.checked_add(1).unwrap_or(1);
        self.known.insert(filter.clone(), (self.last, 1));
        self.last
    }

    fn leave(&mut self, filter: &Filter) {
        if let Some((_, users)) = self.known.get_mut(filter) {
            *users -= 1;
            if *users == 0 {
                self.known.remove(filter);
            }
        }
    }
}

impl Group {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        let head = channel.log().head_now();
        Self {
            channel,
            head,
            waiters: Waiters::default(),
            members: 0,
            filters: Filters::default(),
            batches: Batches::default(),
        }
    }

    /// Takes a stream in; returns its filter's number.
    pub(super) fn join(&mut self, filter: &Filter) -> u32 {
        self.members += 1;
        self.filters.join(filter)
    }

    /// Lets a stream go, which must not wait for the head.
    pub(super) fn leave(&mut self, filter: &Filter) {
        self.members -= 1;
        self.filters.leave(filter);
    }

    /// Has a stream wait for the head.
    pub(super) fn wait(&mut self, key: usize, stream: &mut Stream) {
        if stream.slot == NOT_WAITING {
            stream.slot = self.waiters.insert(key);
        }
    }

    /// Reads the head. When it has moved, all streams that wait for it are due.
    pub(super) fn read_head(&mut self) {
        let head = self.channel.log().head_now();
        if head != self.head {
            self.head = head;
            self.batches.clear();
            self.waiters.head_moved();
        }
    }

    /// Delivers everything up to the head to a stream that waits for it, as far as batches go.
    pub(super) fn deliver(
        &mut self,
        stream: &mut Stream,
        heartbeat_at: Instant,
        tally: &mut Tally,
    ) -> Delivered {
        let dialect = stream.subscriber.dialect();
        loop {
            let Some(position) = stream.subscriber.live_at(self.head) else {
                return Delivered::Individual;
            };
            if position >= self.head.next {
                return Delivered::AtHead;
            }
            let key = BatchKey { filter: stream.filter, dialect, sequence: position };
            let (channel, head) = (&self.channel, self.head);
            let make = || batch(channel, head, position, stream.subscriber.filter(), dialect);
            let Some(batch) = self.batches.get_or_make(key, make) else {
                return Delivered::Individual;
            };
            if batch.chunks.is_empty() {
                stream.subscriber.delivered(batch.next, None);
                continue;
            }
            let Ok(taken) = stream.send(batch.chunks.iter().map(|chunk| &chunk.whole)) else {
                return Delivered::Broken;
            };
            tally.begin(batch.oldest_nanos, channel);
            let cut = batch.cut(taken, tally);
            stream.subscriber.delivered(
                cut.as_ref().map_or(batch.next, |(_, next)| *next),
                Some(heartbeat_at.into()),
            );
            if let Some((rest, _)) = cut {
                stream.keep(rest);
                return Delivered::Blocked;
            }
        }
    }
}

impl Batch {
    /// Counts the chunks of which something was written, or has to be, when the socket took `taken`
    /// bytes. Returns what it has not taken of the last of them, and the sequence to deliver after
    /// that one.
    fn cut(&self, mut taken: usize, tally: &mut Tally) -> Option<(Bytes, u64)> {
        for chunk in &self.chunks {
            tally.events += chunk.events;
            tally.bytes += chunk.bytes;
            if taken < chunk.whole.len() {
                return Some((chunk.whole.slice(taken..), chunk.next));
            }
            taken -= chunk.whole.len();
        }
        None
    }
}

/// What is at `position` for a live stream, about [`limits::WRITE_BYTES`] at most; `None` when that
/// is no run of frames in memory.
fn batch(
    channel: &Channel,
    head: Head,
    position: u64,
    filter: &Filter,
    dialect: Dialect,
) -> Option<Batch> {
    let mut batch = Batch { chunks: Vec::new(), oldest_nanos: 0, next: position };
    let mut left = limits::WRITE_BYTES;
    while left > 0 && batch.next < head.next && batch.chunks.len() < SEND {
        // To a live stream each hole before its position was announced.
        let slice = channel.log().read_now(
            head.life,
            batch.next,
            batch.next.saturating_sub(1),
            filter,
            dialect,
        );
        let Now::Slice(Slice::Frames { parts, events, oldest_nanos, next }) = slice else { break };
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        if bytes > 0 {
            batch.chunks.push(Chunk {
                whole: chunk::whole(&parts),
                bytes: bytes as u64,
                events,
                next,
            });
        }
        if batch.oldest_nanos == 0 {
            batch.oldest_nanos = oldest_nanos;
        }
        left = left.saturating_sub(bytes);
        batch.next = next;
    }
    (batch.next > position).then_some(batch)
}

/// What was delivered in one turn: the metrics are written once for many streams.
#[derive(Debug, Default)]
pub(super) struct Tally {
    events: u64,
    bytes: u64,
    /// Deliveries of the batch whose oldest event is of `oldest_nanos`, not yet observed.
    deliveries: u64,
    oldest_nanos: i64,
}

impl Tally {
    fn begin(&mut self, oldest_nanos: i64, channel: &Channel) {
        if self.oldest_nanos != oldest_nanos || self.deliveries == CLOCK_EVERY {
            self.observe(channel);
            self.oldest_nanos = oldest_nanos;
        }
        self.deliveries += 1;
    }

    fn observe(&mut self, channel: &Channel) {
        if self.deliveries > 0 {
            channel
                .metrics()
                .publish_to_write
                .observe(seconds_since(self.oldest_nanos), self.deliveries);
            self.deliveries = 0;
        }
    }

    /// Adds it to the channel's metrics.
    pub(super) fn count(mut self, channel: &Channel) {
        self.observe(channel);
        channel.metrics().events_delivered.inc_by(self.events);
        channel.metrics().bytes_written.inc_by(self.bytes);
    }
}
