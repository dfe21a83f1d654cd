//! Segments: immutable runs of encoded frames with an index, and the open one at the end of the
//! log.

mod matches;
mod slice;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use sluice_channel::{Epoch, Event, Filter, config::Encoding};

#[cfg(test)]
pub(super) use self::matches::MATCHED;
use self::matches::Matches;
use super::room::{Room, Share};
use crate::{
    frame::{self, Dialect, Gap, GapReason},
    limits,
};

pub use self::slice::Slice;

/// What an index entry costs in memory, and the matches that may be kept for it, bytes: for the
/// cache's accounting.
const ENTRY_COST: usize = size_of::<Entry>() + matches::ENTRY_BYTES;
/// What a topic costs beside its text.
const TOPIC_COST: usize = size_of::<Box<str>>();

/// Frames of an open segment that are put into one buffer, so that a replay takes few buffers at a
/// time.
const RUN_FRAMES: usize = 32;

/// Index entry of one frame.
#[derive(Debug, Clone, Copy)]
struct Entry {
    sequence: u64,
    time_nanos: i64,
    /// Index into `topics`.
    topic: u32,
    /// Where the frame ends in the segment's bytes.
    end: usize,
}

/// A run of missing sequences, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// First missing.
    pub from: u64,
    /// Last missing.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Sequences `start..end` of a stream: what exists of them is here, the rest is a hole.
#[derive(Debug)]
pub struct Segment {
    start: u64,
    end: u64,
    entries: Vec<Entry>,
    holes: Vec<Hole>,
    topics: Vec<Box<str>>,
    /// What they cost in memory.
    topic_bytes: usize,
    frames: Frames,
    /// Its share of the memory for history, where it is of that.
    share: Option<Share>,
}

#[derive(Debug)]
enum Frames {
    /// One buffer, so that an unfiltered reader takes one slice.
    Sealed { bytes: Bytes, matches: Matches },
    /// The segment still grows: buffers in order, each with the offset after it. The last
    /// [`RUN_FRAMES`] hold a frame each at most, the others are runs of as many.
    Open {
        buffers: Vec<(usize, Bytes)>,
        singles: usize,
        interned: HashMap<Box<str>, u32>,
        bytes: usize,
    },
    /// The segment still grows, and is not read before it is sealed.
    Gathering { bytes: Vec<u8>, interned: HashMap<Box<str>, u32> },
}

impl Segment {
    /// An empty open segment that will start at `start`.
    #[must_use]
    pub fn open(start: u64) -> Self {
        Self::of(
            start,
            Frames::Open { buffers: Vec::new(), singles: 0, interned: HashMap::new(), bytes: 0 },
        )
    }

    /// An empty segment that will start at `start`, to be read once it is sealed: cheaper to fill.
    #[must_use]
    pub fn gather(start: u64) -> Self {
        Self::of(start, Frames::Gathering { bytes: Vec::new(), interned: HashMap::new() })
    }

    const fn of(start: u64, frames: Frames) -> Self {
        Self {
            start,
            end: start,
            entries: Vec::new(),
            holes: Vec::new(),
            topics: Vec::new(),
            topic_bytes: 0,
            frames,
            share: None,
        }
    }

    /// First sequence covered.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The sequence after the last one covered.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Whether `sequence` is one of those covered.
    #[must_use]
    pub const fn covers(&self, sequence: u64) -> bool {
        self.start <= sequence && sequence < self.end
    }

    /// Encoded bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.frames {
            Frames::Sealed { bytes, .. } => bytes.len(),
            Frames::Open { bytes, .. } => *bytes,
            Frames::Gathering { bytes, .. } => bytes.len(),
        }
    }

    /// Memory used, bytes, roughly.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes()
            + self.topic_bytes
            + (self.entries.len() + self.holes.len()) * ENTRY_COST
            + size_of::<Self>()
    }

    /// Whether it has no room for more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes() >= limits::SEGMENT_BYTES || self.end - self.start >= limits::SEGMENT_SEQUENCES
    }

    /// Appends `event`, whose sequence must be at or after `end`; what lies between is a hole of
    /// `reason`. Returns whether the payload could be shown as it is.
    pub fn append(
        &mut self,
        epoch: Epoch,
        event: &Event,
        dialect: Dialect,
        encoding: Encoding,
        reason: GapReason,
    ) -> bool {
        debug_assert!(event.sequence >= self.end, "sequences rise");
        self.skip_to(event.sequence, reason);
        let valid = match &mut self.frames {
            Frames::Sealed { .. } => return false,
            Frames::Gathering { bytes, .. } => {
                frame::encode(bytes, epoch, event, dialect, encoding)
            }
            Frames::Open { buffers, singles, bytes, .. } => {
                let mut frame = Vec::with_capacity(event.payload.len() + 64);
                let valid = frame::encode(&mut frame, epoch, event, dialect, encoding);
                *bytes += frame.len();
                buffers.push((*bytes, frame.into()));
                *singles += 1;
                if *singles == RUN_FRAMES {
                    let run = concat(&buffers[buffers.len() - RUN_FRAMES..]);
                    buffers.truncate(buffers.len() - RUN_FRAMES);
                    buffers.push((*bytes, run));
                    *singles = 0;
                }
                valid
            }
        };
        let topic = self.topic(&event.topic);
        self.entries.push(Entry {
            sequence: event.sequence,
            time_nanos: event.time_nanos,
            topic,
            end: self.bytes(),
        });
        self.end = event.sequence + 1;
        valid
    }

    /// The number of a topic.
    fn topic(&mut self, topic: &str) -> u32 {
        let (Frames::Open { interned, .. } | Frames::Gathering { interned, .. }) = &mut self.frames
        else {
            return u32::MAX;
        };
        if let Some(number) = interned.get(topic) {
            return *number;
        }
        let number = u32::try_from(self.topics.len()).unwrap_or(u32::MAX);
        self.topics.push(topic.into());
        self.topic_bytes += topic.len() + TOPIC_COST;
        interned.insert(topic.into(), number);
        number
    }

    /// Covers everything before `sequence`; what is not there is a hole of `reason`.
    pub fn skip_to(&mut self, sequence: u64, reason: GapReason) {
        if sequence > self.end {
            self.holes.push(Hole { from: self.end, to: sequence - 1, reason });
            self.end = sequence;
        }
    }

    /// The same segment, immutable and in one buffer.
    #[must_use]
    pub fn seal(self) -> Arc<Self> {
        Arc::new(self.sealed())
    }

    /// The same for a segment of history, which holds its share of `room` as long as it lives.
    #[must_use]
    pub(super) fn seal_in(self, room: &Arc<Room>) -> Arc<Self> {
        let mut sealed = self.sealed();
        sealed.share = Some(room.take(sealed.cost()));
        Arc::new(sealed)
    }

    fn sealed(self) -> Self {
        let Self { start, end, mut entries, holes, topics, topic_bytes, frames, share } = self;
        let bytes = match frames {
            Frames::Sealed { bytes, .. } => bytes,
            Frames::Open { buffers, .. } => concat(&buffers),
            Frames::Gathering { mut bytes, .. } => {
                bytes.shrink_to_fit();
                bytes.into()
            }
        };
        entries.shrink_to_fit();
        Self {
            start,
            end,
            entries,
            holes,
            topics,
            topic_bytes,
            frames: Frames::Sealed { bytes, matches: Matches::default() },
            share,
        }
    }

    /// What to write next for a subscriber at `from` (`start <= from < end`) that was told of every
    /// hole up to sequence `told`. Stops after about [`limits::SLICE_BYTES`], and before a hole not
    /// yet told.
    #[must_use]
    pub fn slice(&self, from: u64, told: u64, filter: &Filter) -> Slice {
        let first = self.index_of(from);
        let hole = self.holes.iter().find(|hole| hole.to >= from && hole.to > told);
        let stop = match hole {
            Some(hole) if self.entries.get(first).is_none_or(|e| e.sequence > hole.from) => {
                return self.gap(from, told, hole);
            }
            Some(hole) => hole.from,
            None => self.end,
        };
        let after = if stop == self.end { self.entries.len() } else { self.index_of(stop) };
        let mut compared = 0;
        let (out, next) = match &self.frames {
            _ if filter.is_all() => self.run(first, after),
            Frames::Sealed { matches, .. } => {
                let passing = matches.of(filter, &self.entries, &self.topics, &mut compared);
                self.pick(matches::from(&passing, first).take_while(|index| *index < after))
            }
            Frames::Open { .. } | Frames::Gathering { .. } => {
                self.pick((first..after).filter(|at| {
                    compared += filter.patterns();
                    self.passes(filter, &self.entries[*at])
                }))
            }
        };
        let next = next.map_or(stop, |index| self.entries[index].sequence);
        let sequences = |(from, to): (usize, usize)| {
            (self.entries[from].sequence, self.entries[to - 1].sequence)
        };
        Slice::Frames {
            parts: self.parts(&out.runs),
            runs: out.runs.into_iter().map(sequences).collect(),
            events: out.events,
            oldest_nanos: out.oldest_nanos,
            next,
            compared,
        }
    }

    fn passes(&self, filter: &Filter, entry: &Entry) -> bool {
        self.topics.get(entry.topic as usize).is_some_and(|topic| filter.matches(topic))
    }

    /// All of `first..after`, as far as it fits; and the index to go on at, if that is not all.
    fn run(&self, first: usize, after: usize) -> (Collected, Option<usize>) {
        if first >= after {
            return (Collected::default(), None);
        }
        let before = self.begin_of(first);
        let last = self.fill(first, after, before + limits::SLICE_BYTES);
        let to = after.min(last + 1);
        let bytes = self.entries[to - 1].end - before;
        let out = Collected {
            runs: vec![(first, to)],
            bytes,
            events: (to - first) as u64,
            oldest_nanos: self.entries[first].time_nanos,
        };
        (out, (to < after).then_some(to))
    }

    /// The first index with an entry at or after `sequence`. Where nothing is missing it is known
    /// without a search, whose every probe would be of memory that no cache has.
    fn index_of(&self, sequence: u64) -> usize {
        let guess = usize::try_from(sequence.saturating_sub(self.start)).unwrap_or(usize::MAX);
        match self.entries.get(guess) {
            Some(entry) if entry.sequence == sequence => guess,
            _ => self.entries.partition_point(|e| e.sequence < sequence),
        }
    }

    /// The first index of `first..after` whose frame ends at or after `end`, or `after`: searched
    /// from where it is when frames are alike.
    fn fill(&self, first: usize, after: usize, end: usize) -> usize {
        let frame = (self.bytes() / self.entries.len().max(1)).max(1);
        let guess = first + limits::SLICE_BYTES / frame;
        let (mut low, mut high, mut step) = (first, after, 2);
        if guess < after && self.entries[guess].end < end {
            low = guess + 1;
            while low + step < after && self.entries[low + step].end < end {
                low += step + 1;
                step *= 2;
            }
            high = after.min(low + step + 1);
        } else if guess < after {
            high = guess;
            while high >= first + step && self.entries[high - step].end >= end {
                high -= step;
                step *= 2;
            }
            low = first.max(high.saturating_sub(step));
        }
        low + self.entries[low..high].partition_point(|e| e.end < end)
    }

    /// The entries of `indexes`, as far as they fit; and the index to go on at, if that is not all.
    fn pick(&self, indexes: impl Iterator<Item = usize>) -> (Collected, Option<usize>) {
        let mut out = Collected::default();
        for index in indexes {
            if out.bytes >= limits::SLICE_BYTES {
                return (out, Some(index));
            }
            self.collect(&mut out, index, &self.entries[index]);
        }
        (out, None)
    }

    /// Where the frame of an entry begins in the segment's bytes.
    fn begin_of(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.entries[index - 1].end }
    }

    fn collect(&self, out: &mut Collected, index: usize, entry: &Entry) {
        out.bytes += entry.end - self.begin_of(index);
        out.events += 1;
        if out.oldest_nanos == 0 {
            out.oldest_nanos = entry.time_nanos;
        }
        match out.runs.last_mut() {
            Some((_, last)) if *last == index => *last = index + 1,
            _ => out.runs.push((index, index + 1)),
        }
    }

    /// The bytes of these runs of entries.
    fn parts(&self, runs: &[(usize, usize)]) -> Vec<Bytes> {
        let range = |(from, to): &(usize, usize)| (self.begin_of(*from), self.entries[to - 1].end);
        match &self.frames {
            Frames::Gathering { bytes, .. } => runs
                .iter()
                .map(range)
                .map(|(start, end)| Bytes::copy_from_slice(&bytes[start..end]))
                .collect(),
            Frames::Sealed { bytes, .. } => {
                runs.iter().map(range).map(|(start, end)| bytes.slice(start..end)).collect()
            }
            Frames::Open { buffers, .. } => {
                let mut parts = Vec::new();
                for (start, end) in runs.iter().map(range) {
                    let first = buffers.partition_point(|(after, _)| *after <= start);
                    for (after, buffer) in &buffers[first..] {
                        let before = after - buffer.len();
                        if before >= end {
                            break;
                        }
                        parts.push(
                            buffer.slice(
                                start.saturating_sub(before)..buffer.len().min(end - before),
                            ),
                        );
                    }
                }
                parts
            }
        }
    }

    /// The gap event for `hole`. Compaction leaves a hole for nearly every event, so all of a
    /// segment's are told at once; `missed` counts only what is missing.
    fn gap(&self, from: u64, told: u64, hole: &Hole) -> Slice {
        let begin = hole.from.max(from);
        if hole.reason != GapReason::Compacted {
            let gap = Gap {
                from: Some(begin),
                to: Some(hole.to),
                missed: Some(hole.to + 1 - begin),
                reason: hole.reason,
            };
            return Slice::Gap { gap, next: hole.to + 1 };
        }
        let rest = self
            .holes
            .iter()
            .filter(|h| h.to >= begin && h.to > told && h.reason == GapReason::Compacted);
        let (mut to, mut missed) = (hole.to, 0);
        for hole in rest {
            to = hole.to;
            missed += hole.to + 1 - hole.from.max(begin);
        }
        Slice::Gap {
            gap: Gap { from: Some(begin), to: Some(to), missed: Some(missed), reason: hole.reason },
            next: hole.to + 1,
        }
    }

    /// Sequences of the newest `count` events before `before` that pass `filter`, newest first.
    /// Each topic is matched once.
    #[must_use]
    pub fn newest(&self, before: u64, count: usize, filter: &Filter) -> Vec<u64> {
        let passing = match &self.frames {
            _ if filter.is_all() => None,
            Frames::Sealed { matches, .. } => {
                Some(matches.of(filter, &self.entries, &self.topics, &mut 0))
            }
            Frames::Open { .. } | Frames::Gathering { .. } => {
                Some(Matches::default().of(filter, &self.entries, &self.topics, &mut 0))
            }
        };
        let passes = |at: &usize| passing.as_ref().is_none_or(|bits| matches::has(bits, *at));
        let newest_first = (0..self.index_of(before)).rev().filter(passes);
        newest_first.take(count).map(|at| self.entries[at].sequence).collect()
    }

    /// Its index without its frames: a copy of a segment that still grows, to search in.
    #[must_use]
    pub(super) fn index(&self) -> Self {
        Self {
            start: self.start,
            end: self.end,
            entries: self.entries.clone(),
            holes: Vec::new(),
            topics: self.topics.clone(),
            topic_bytes: self.topic_bytes,
            frames: Frames::Sealed { bytes: Bytes::new(), matches: Matches::default() },
            share: None,
        }
    }

    /// When the store took its first event, Unix nanoseconds.
    pub(super) fn first_nanos(&self) -> Option<i64> {
        self.entries.first().map(|entry| entry.time_nanos)
    }

    /// When the store took its last event, Unix nanoseconds.
    pub(super) fn last_nanos(&self) -> Option<i64> {
        self.entries.last().map(|entry| entry.time_nanos)
    }

    /// The sequence of its first event stored at or after `time_nanos`.
    pub(super) fn since(&self, time_nanos: i64) -> Option<u64> {
        let index = self.entries.partition_point(|entry| entry.time_nanos < time_nanos);
        self.entries.get(index).map(|entry| entry.sequence)
    }
}

fn concat(buffers: &[(usize, Bytes)]) -> Bytes {
    let mut all = Vec::with_capacity(buffers.iter().map(|(_, buffer)| buffer.len()).sum());
    buffers.iter().for_each(|(_, buffer)| all.extend_from_slice(buffer));
    all.into()
}

#[derive(Default)]
struct Collected {
    runs: Vec<(usize, usize)>,
    bytes: usize,
    events: u64,
    oldest_nanos: i64,
}

#[cfg(test)]
mod tests;
