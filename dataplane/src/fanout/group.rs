//! The streams of one channel on one thread: those that wait for its head, and what they get.

use std::{collections::HashMap, sync::Arc, time::Instant};

use sluice_channel::Filter;

use super::{
    batch::{BatchKey, Batches, batch},
    inbox::HeadWatch,
    stream::Stream,
    waiters::{NOT_WAITING, Waiters},
};
use crate::{channel::Channel, limits, log::Head, metrics::seconds_since};

/// Deliveries after which the clock is read again for the latency that the metrics show.
const CLOCK_EVERY: u64 = 64;

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

/// One channel on one thread.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) channel: Arc<Channel>,
    /// What the log wakes.
    pub(super) watch: Arc<HeadWatch>,
    /// Whether it is among the groups to be visited.
    pub(super) listed: bool,
    /// The head up to which deliveries are made.
    pub(super) head: Head,
    /// The streams that wait for the head to move.
    pub(super) waiters: Waiters,
    /// Streams, waiting or not.
    pub(super) members: usize,
    filters: Filters,
    batches: Batches,
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
                if let Some(capacity) = limits::spare(self.known.len(), self.known.capacity()) {
                    self.known.shrink_to(capacity);
                }
            }
        }
    }
}

impl Group {
    pub(super) fn new(channel: Arc<Channel>, watch: Arc<HeadWatch>) -> Self {
        channel.log().wake_on_change(Arc::clone(&watch).into());
        let head = channel.log().head_now();
        Self {
            channel,
            watch,
            listed: false,
            head,
            waiters: Waiters::default(),
            members: 0,
            filters: Filters::default(),
            batches: Batches::default(),
        }
    }

    /// The log wakes it no longer.
    pub(super) fn forget_watch(&self) {
        self.channel.log().forget_waker(&Arc::clone(&self.watch).into());
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

    /// Ends a round of visits: each stream that waits has what is new, so its bytes are let go.
    pub(super) fn end_round(&mut self) {
        self.batches.clear();
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
            let wanted = (stream.subscriber.filter(), dialect);
            let compared = &mut tally.compared;
            let batch = self.batches.get_or_make(key, |chunks| {
                batch(channel, head, position, wanted, chunks, compared)
            });
            let Some(batch) = batch else { return Delivered::Individual };
            if batch.chunks.is_empty() {
                stream.subscriber.passed(batch.next);
                continue;
            }
            let Ok(taken) = stream.send(batch.chunks.iter().map(|chunk| &chunk.whole)) else {
                return Delivered::Broken;
            };
            tally.begin(batch.oldest_nanos, channel);
            let cut = batch.cut(taken);
            tally.events += cut.events;
            tally.bytes += cut.bytes;
            stream.subscriber.delivered(cut.next, cut.last, heartbeat_at.into());
            if let Some(rest) = cut.rest {
                stream.keep(rest);
                return Delivered::Blocked;
            }
        }
    }
}

/// What was delivered in one turn: the metrics are written once for many streams.
#[derive(Debug, Default)]
pub(super) struct Tally {
    events: u64,
    bytes: u64,
    /// Comparisons of topics that were made to find out what each one gets.
    pub(super) compared: usize,
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
