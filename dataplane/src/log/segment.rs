//! Segments: immutable runs of encoded frames with an index, and the open one at the end of the log.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use sluice_channel::{Epoch, Event, Filter, config::Encoding, limits};

use crate::frame::{self, Dialect, Gap, GapReason};

/// What an index entry and its share of the maps cost in memory, bytes: for the cache's accounting.
const ENTRY_COST: usize = 48;

/// Frames of an open segment that are put into one buffer, so that those who replay take few buffers at a time.
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
    frames: Frames,
}

#[derive(Debug)]
enum Frames {
    /// One buffer, so that an unfiltered reader takes one slice.
    Sealed(Bytes),
    /// The segment still grows: buffers in order, each with the offset after it. The last [`RUN_FRAMES`] hold a frame
    /// each at most, the others are runs of as many.
    Open { buffers: Vec<(usize, Bytes)>, singles: usize, interned: HashMap<Box<str>, u32>, bytes: usize },
}

/// What a subscriber gets from a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Slice {
    /// Frames to write, maybe none (all filtered out), and where to go on.
    Frames {
        /// Bytes in order; each part is whole frames.
        parts: Vec<Bytes>,
        /// Events among them.
        events: u64,
        /// Store time of the oldest of them, Unix nanoseconds; 0 when there is none.
        oldest_nanos: i64,
        /// Sequence to go on at.
        next: u64,
    },
    /// Events are missing here; nothing may be delivered before the subscriber was told.
    Gap {
        /// What is missing.
        gap: Gap,
        /// Sequence to go on at: the first after the hole at the position. `gap` may name later holes too.
        next: u64,
    },
}

impl Segment {
    /// An empty open segment that will start at `start`.
    #[must_use]
    pub fn open(start: u64) -> Self {
        let frames = Frames::Open { buffers: Vec::new(), singles: 0, interned: HashMap::new(), bytes: 0 };
        Self { start, end: start, entries: Vec::new(), holes: Vec::new(), topics: Vec::new(), frames }
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
            Frames::Sealed(bytes) => bytes.len(),
            Frames::Open { bytes, .. } => *bytes,
        }
    }

    /// Memory used, bytes, roughly.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes() + (self.entries.len() + self.holes.len()) * ENTRY_COST + size_of::<Self>()
    }

    /// Whether it has no room for more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes() >= limits::SEGMENT_BYTES || self.end - self.start >= limits::SEGMENT_SEQUENCES
    }

    /// Appends `event`, whose sequence must be at or after `end`; what lies between is a hole of `reason`.
    /// Returns whether the payload could be shown as it is.
    pub fn append(&mut self, epoch: Epoch, event: &Event, dialect: Dialect, encoding: Encoding, reason: GapReason) -> bool {
        debug_assert!(event.sequence >= self.end, "sequences rise");
        self.skip_to(event.sequence, reason);
        let mut frame = Vec::with_capacity(event.payload.len() + 64);
        let valid = frame::encode(&mut frame, epoch, event, dialect, encoding);
        let Frames::Open { buffers, singles, interned, bytes } = &mut self.frames else { return valid };
        let topic = if let Some(topic) = interned.get(event.topic.as_str()) {
            *topic
        } else {
            let topic = u32::try_from(self.topics.len()).unwrap_or(u32::MAX);
            self.topics.push(event.topic.as_str().into());
            interned.insert(event.topic.as_str().into(), topic);
            topic
        };
        *bytes += frame.len();
        buffers.push((*bytes, frame.into()));
        *singles += 1;
        if *singles == RUN_FRAMES {
            let run = concat(&buffers[buffers.len() - RUN_FRAMES..]);
            buffers.truncate(buffers.len() - RUN_FRAMES);
            buffers.push((*bytes, run));
            *singles = 0;
        }
        self.entries.push(Entry { sequence: event.sequence, time_nanos: event.time_nanos, topic, end: *bytes });
        self.end = event.sequence + 1;
        valid
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
        let Self { start, end, mut entries, holes, topics, frames } = self;
        let bytes = match frames {
            Frames::Sealed(bytes) => bytes,
            Frames::Open { buffers, .. } => concat(&buffers),
        };
        entries.shrink_to_fit();
        Arc::new(Self { start, end, entries, holes, topics, frames: Frames::Sealed(bytes) })
    }

    /// What to write next for a subscriber at `from` (`start <= from < end`) that was told of every hole up
    /// to sequence `told`. Stops after about [`limits::WRITE_BYTES`], and before a hole not yet told.
    #[must_use]
    pub fn slice(&self, from: u64, told: u64, filter: &Filter) -> Slice {
        let first = self.entries.partition_point(|e| e.sequence < from);
        let hole = self.holes.iter().find(|hole| hole.to >= from && hole.to > told);
        let stop = match hole {
            Some(hole) if self.entries.get(first).is_none_or(|e| e.sequence > hole.from) => return self.gap(from, told, hole),
            Some(hole) => hole.from,
            None => self.end,
        };
        let mut out = Collected::default();
        let mut next = stop;
        for (index, entry) in self.entries.iter().enumerate().skip(first) {
            if entry.sequence >= stop {
                break;
            }
            if out.bytes >= limits::WRITE_BYTES {
                next = entry.sequence;
                break;
            }
            if filter.is_all() || self.topics.get(entry.topic as usize).is_some_and(|topic| filter.matches(topic)) {
                self.collect(&mut out, index, entry);
            }
        }
        Slice::Frames { parts: self.parts(out.runs), events: out.events, oldest_nanos: out.oldest_nanos, next }
    }

    fn collect(&self, out: &mut Collected, index: usize, entry: &Entry) {
        let start = if index == 0 { 0 } else { self.entries[index - 1].end };
        out.bytes += entry.end - start;
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
    fn parts(&self, runs: Vec<(usize, usize)>) -> Vec<Bytes> {
        let range = |(from, to): (usize, usize)| (if from == 0 { 0 } else { self.entries[from - 1].end }, self.entries[to - 1].end);
        match &self.frames {
            Frames::Sealed(bytes) => runs.into_iter().map(range).map(|(start, end)| bytes.slice(start..end)).collect(),
            Frames::Open { buffers, .. } => {
                let mut parts = Vec::new();
                for (start, end) in runs.into_iter().map(range) {
                    let first = buffers.partition_point(|(after, _)| *after <= start);
                    for (after, buffer) in &buffers[first..] {
                        let before = after - buffer.len();
                        if before >= end {
                            break;
                        }
                        parts.push(buffer.slice(start.saturating_sub(before)..buffer.len().min(end - before)));
                    }
                }
                parts
            }
        }
    }

    /// The gap event for `hole`. Compaction leaves a hole for nearly every event, so all of a segment's are
    /// told at once; `missed` counts only what is missing.
    fn gap(&self, from: u64, told: u64, hole: &Hole) -> Slice {
        let begin = hole.from.max(from);
        if hole.reason != GapReason::Compacted {
            let gap = Gap { from: Some(begin), to: Some(hole.to), missed: Some(hole.to + 1 - begin), reason: hole.reason };
            return Slice::Gap { gap, next: hole.to + 1 };
        }
        let rest = self.holes.iter().filter(|h| h.to >= begin && h.to > told && h.reason == GapReason::Compacted);
        let (mut to, mut missed) = (hole.to, 0);
        for hole in rest {
            to = hole.to;
            missed += hole.to + 1 - hole.from.max(begin);
        }
        Slice::Gap { gap: Gap { from: Some(begin), to: Some(to), missed: Some(missed), reason: hole.reason }, next: hole.to + 1 }
    }

    /// Sequences of the newest `count` events before `before` that pass `filter`, newest first.
    #[must_use]
    pub fn newest(&self, before: u64, count: usize, filter: &Filter) -> Vec<u64> {
        let passes = |e: &&Entry| e.sequence < before && self.topics.get(e.topic as usize).is_some_and(|t| filter.matches(t));
        self.entries.iter().rev().filter(passes).take(count).map(|e| e.sequence).collect()
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
