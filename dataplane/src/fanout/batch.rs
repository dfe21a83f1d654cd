//! The bytes that many live streams of a channel share.
//!
//! A *batch* is what all streams with the same filter, dialect and position get next. Its bytes are
//! shared further: they are known by the events in them, so that filters which select the same of
//! what is new share one chunk. Ten thousand streams with a filter of their own
//! (`topic=user.7&topic=all`) have a broadcast once.

use std::collections::HashMap;

use bytes::Bytes;
use sluice_channel::Filter;

use super::{chunk, stream::SEND};
use crate::{
    channel::Channel,
    frame::Dialect,
    limits,
    log::{Head, Now, segment::Slice},
};

/// Batches kept at most: more filters than a channel has whose streams are many. Without its bytes
/// a batch is some 200 bytes.
const BATCHES: usize = 1_024;
/// Bytes of chunks after which no other batch is added to those that are kept: many filters that
/// each select other events. The newest batch comes on top, [`limits::WRITE_BYTES`] and one event.
const KEPT_BYTES: usize = 1024 * 1024;
/// With no more batches than this, their tables are kept for the next ones.
const FEW_BATCHES: usize = 16;

/// What each live stream of one [`BatchKey`] gets next.
#[derive(Debug)]
pub(super) struct Batch {
    /// Empty when nothing passed the filter. Each in a buffer of its own, because a stream whose
    /// socket is full keeps no more than one of them.
    pub(super) chunks: Vec<Chunk>,
    /// Store time of the oldest event, Unix nanoseconds.
    pub(super) oldest_nanos: i64,
    /// The sequence to deliver after it.
    pub(super) next: u64,
}

/// About [`limits::SLICE_BYTES`] of a batch.
#[derive(Debug)]
pub(super) struct Chunk {
    /// With its framing.
    pub(super) whole: Bytes,
    /// Bytes of frames in it.
    pub(super) bytes: u64,
    pub(super) events: u64,
    /// The sequence of its last event.
    pub(super) last: u64,
    /// The sequence to deliver after it.
    pub(super) next: u64,
}

/// What streams have to have in common for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BatchKey {
    /// The filter's number in the group.
    pub(super) filter: u32,
    pub(super) dialect: Dialect,
    /// The first sequence of the batch.
    pub(super) sequence: u64,
}

/// Batches made under one head: each is made once, however many streams share it, as long as there
/// is room.
#[derive(Debug, Default)]
pub(super) struct Batches {
    made: Vec<(BatchKey, Option<Batch>)>,
    numbers: HashMap<BatchKey, usize>,
    /// The batch of the last delivery. Nearly all streams have the same key, and find it here
    /// without a hash.
    last: usize,
    chunks: Chunks,
}

/// Chunks, by what is in them.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    whole: HashMap<Content, Bytes>,
    /// Of all of them.
    bytes: usize,
}

/// The events of a chunk, in runs, and their dialect. One head is of one life of the log, in which
/// a sequence is one event.
type Content = (Dialect, Vec<(u64, u64)>);

impl Batches {
    /// Lets go of all: the head has moved, or each stream has its own.
    pub(super) fn clear(&mut self) {
        if self.made.len() > FEW_BATCHES {
            *self = Self::default();
            return;
        }
        self.made.clear();
        self.numbers.clear();
        self.chunks.whole.clear();
        self.chunks.bytes = 0;
    }

    pub(super) fn get_or_make(
        &mut self,
        key: BatchKey,
        make: impl FnOnce(&mut Chunks) -> Option<Batch>,
    ) -> Option<&Batch> {
        if self.made.get(self.last).is_none_or(|(of, _)| *of != key) {
            self.last = match self.numbers.get(&key) {
                Some(number) => *number,
                None => self.add(key, make),
            };
        }
        self.made.get(self.last).and_then(|(_, batch)| batch.as_ref())
    }

    fn add(&mut self, key: BatchKey, make: impl FnOnce(&mut Chunks) -> Option<Batch>) -> usize {
        if self.made.len() >= BATCHES || self.chunks.bytes > KEPT_BYTES {
            self.clear();
        }
        let number = self.made.len();
        self.numbers.insert(key, number);
        self.made.push((key, make(&mut self.chunks)));
        number
    }
}

impl Chunks {
    fn whole(&mut self, dialect: Dialect, runs: Vec<(u64, u64)>, parts: &[Bytes]) -> Bytes {
        let all = &mut self.bytes;
        let make = || {
            let whole = chunk::whole(parts);
            *all += whole.len();
            whole
        };
        self.whole.entry((dialect, runs)).or_insert_with(make).clone()
    }
}

/// What is at `position` for a live stream, about [`limits::WRITE_BYTES`] at most; `None` when that
/// is no run of frames in memory. Adds to `compared` the comparisons of topics that it takes.
pub(super) fn batch(
    channel: &Channel,
    head: Head,
    position: u64,
    (filter, dialect): (&Filter, Dialect),
    chunks: &mut Chunks,
    compared: &mut usize,
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
        let Now::Slice(Slice::Frames { parts, runs, events, oldest_nanos, next, compared: more }) =
            slice
        else {
            break;
        };
        *compared += more;
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        if let Some((_, last)) = runs.last().copied() {
            let whole = chunks.whole(dialect, runs, &parts);
            batch.chunks.push(Chunk { whole, bytes: bytes as u64, events, last, next });
        }
        if batch.oldest_nanos == 0 {
            batch.oldest_nanos = oldest_nanos;
        }
        left = left.saturating_sub(bytes);
        batch.next = next;
    }
    (batch.next > position).then_some(batch)
}

/// What of a batch was written to one stream, or has to be.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) events: u64,
    /// Bytes of frames.
    pub(super) bytes: u64,
    /// The sequence of the last event.
    pub(super) last: u64,
    /// The sequence to deliver after it.
    pub(super) next: u64,
    /// What the socket has not taken of the last chunk.
    pub(super) rest: Option<Bytes>,
}

impl Batch {
    /// The chunks of which something was written, or has to be, when the socket took `taken` bytes.
    pub(super) fn cut(&self, mut taken: usize) -> Cut {
        let mut cut = Cut { events: 0, bytes: 0, last: 0, next: self.next, rest: None };
        for chunk in &self.chunks {
            cut.events += chunk.events;
            cut.bytes += chunk.bytes;
            cut.last = chunk.last;
            if taken < chunk.whole.len() {
                cut.next = chunk.next;
                cut.rest = Some(chunk.whole.slice(taken..));
                break;
            }
            taken -= chunk.whole.len();
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(filter: u32) -> BatchKey {
        BatchKey { filter, dialect: Dialect::Plain, sequence: 1 }
    }

    /// A batch of one event of `length` bytes.
    fn one(chunks: &mut Chunks, sequence: u64, length: usize) -> Option<Batch> {
        let runs = vec![(sequence, sequence)];
        let whole = chunks.whole(Dialect::Plain, runs, &[vec![b'x'; length].into()]);
        let chunk =
            Chunk { whole, bytes: length as u64, events: 1, last: sequence, next: sequence + 1 };
        Some(Batch { chunks: vec![chunk], oldest_nanos: 1, next: sequence + 1 })
    }

    #[test]
    fn filters_that_select_the_same_share_its_bytes() {
        let mut batches = Batches::default();
        let mut whole = |filter, sequence| {
            let batch = batches.get_or_make(key(filter), |chunks| one(chunks, sequence, 100));
            batch.unwrap().chunks[0].whole.as_ptr()
        };
        let first = whole(1, 7);
        assert!((2..500).all(|filter| whole(filter, 7) == first));
        assert_ne!(whole(500, 8), first, "another event");
        assert_eq!(whole(1, 7), first, "the batch was kept");
    }

    #[test]
    fn what_is_kept_has_a_bound_whatever_the_filters_select() {
        for length in [10, 60_000, 2_000_000] {
            let mut batches = Batches::default();
            for filter in 0..5_000 {
                batches.get_or_make(key(filter), |chunks| one(chunks, filter.into(), length));
                let chunks =
                    batches.made.iter().flat_map(|(_, batch)| &batch.as_ref().unwrap().chunks);
                let bytes: usize = chunks.map(|chunk| chunk.whole.len()).sum();
                assert!(bytes <= KEPT_BYTES + 2 * (length + 20), "{bytes} bytes");
                assert!(batches.made.len() <= BATCHES && batches.numbers.len() <= BATCHES);
                assert!(batches.chunks.whole.len() <= BATCHES);
            }
        }
    }
}
