//! Slices of segments: whatever is in a segment and wherever one begins to read, a slice has what a
//! walk from event to event finds, in each of the three forms that a segment has.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use rand::{Rng, RngCore, rngs::StdRng};
use sluice_channel::{Epoch, Event, Filter, config::Encoding};
use sluice_dataplane::{
    frame::{self, Dialect, Gap, GapReason},
    fuzz,
    log::segment::{Segment, Slice},
};

use super::filter;
use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "slice",
    check: |input| check(input).is_ok(),
    valid,
    words: &["\0\0\0\0", "\u{1}\u{1}", "~~~~~~~~", "@@@@@@@@@@@@@@@@"],
};

const EPOCH: Epoch = Epoch::from_bits(0xab);
/// First sequences of a segment: the usual one, those where a narrower number ends, and one near
/// the greatest.
const STARTS: [u64; 5] = [1, 1_024, (1 << 32) - 3, (1 << 53) - 3, u64::MAX - (1 << 40)];
/// Payloads about as large as what a slice is bounded by, and others.
const SIZES: [usize; 8] =
    [0, 1, 100, 3_000, fuzz::SLICE_BYTES / 2, fuzz::SLICE_BYTES - 20, fuzz::SLICE_BYTES, 40_000];
const TOPICS: [&str; 5] = ["a", "b", "eu.orders", "eu.a.b", "orders.ü"];
const PATTERNS: [&[&str]; 6] = [&[], &[">"], &["a"], &["eu.>"], &["*", "orders.*"], &["none"]];

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(8..600)];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// An event as the walk sees it.
struct Walked {
    sequence: u64,
    time_nanos: i64,
    topic: &'static str,
    frame: Vec<u8>,
}

/// A segment by its definition.
struct Model {
    start: u64,
    end: u64,
    events: Vec<Walked>,
    /// First, last and reason of what is missing.
    holes: Vec<(u64, u64, GapReason)>,
}

impl Model {
    fn skip_to(&mut self, sequence: u64, reason: GapReason) {
        if sequence > self.end {
            self.holes.push((self.end, sequence - 1, reason));
            self.end = sequence;
        }
    }

    /// From event to event: up to a hole that was not told, or to the event after those that fill a
    /// slice.
    fn slice(&self, from: u64, told: u64, patterns: &[&str]) -> Slice {
        let untold = self.holes.iter().find(|(_, to, _)| *to >= from && *to > told);
        let stop = untold.map_or(self.end, |(first, ..)| *first);
        let rest = || self.events.iter().filter(|event| event.sequence >= from);
        if let Some((first, to, reason)) = untold
            && rest().all(|event| event.sequence > *first)
        {
            return self.gap((*first).max(from), *to, *reason, told);
        }
        let (mut bytes, mut events, mut oldest_nanos, mut next) = (Vec::new(), 0, 0, stop);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut before = None;
        for event in rest().filter(|event| event.sequence < stop) {
            let before = before.replace(event.sequence);
            if filter::reference(patterns, event.topic) != Some(true) {
                continue;
            }
            if bytes.len() >= fuzz::SLICE_BYTES {
                next = event.sequence;
                break;
            }
            if events == 0 {
                oldest_nanos = event.time_nanos;
            }
            bytes.extend_from_slice(&event.frame);
            events += 1;
            match runs.last_mut() {
                Some((_, last)) if Some(*last) == before => *last = event.sequence,
                _ => runs.push((event.sequence, event.sequence)),
            }
        }
        let parts = vec![bytes.into()];
        Slice::Frames { parts, runs, events, oldest_nanos, next, compared: 0 }
    }

    fn gap(&self, begin: u64, to: u64, reason: GapReason, told: u64) -> Slice {
        let mut last = to;
        let mut missed = to + 1 - begin;
        if reason == GapReason::Compacted {
            // All that is missing from here on for this reason, told at once.
            let later = self
                .holes
                .iter()
                .filter(|(first, end, why)| *why == reason && *first > to && *end > told);
            for (first, end, _) in later {
                (last, missed) = (*end, missed + end + 1 - first);
            }
        }
        let gap = Gap { from: Some(begin), to: Some(last), missed: Some(missed), reason };
        Slice::Gap { gap, next: to + 1 }
    }
}

/// Adds an event to the model and to both open forms.
fn append(
    model: &mut Model,
    forms: [&mut Segment; 2],
    u: &mut Unstructured<'_>,
    compacted: bool,
) -> Result<()> {
    let reasons = [GapReason::Deleted, GapReason::Expired];
    let reason = if compacted { GapReason::Compacted } else { *u.choose(&reasons)? };
    let distance = if u.ratio(1, 4)? { u.int_in_range(1..=300)? } else { 0 };
    let event = Event {
        sequence: model.end + distance,
        time_nanos: i64::from(u.int_in_range(1..=i32::MAX)?),
        topic: (*u.choose(&TOPICS)?).to_owned(),
        name: u.ratio(1, 8)?.then(|| "n".to_owned()),
        payload: vec![*u.choose(b"x\n\xff")?; *u.choose(&SIZES)?].into(),
    };
    let mut frame = Vec::new();
    let (dialect, encoding) = (Dialect::Plain, Encoding::Text);
    let valid = frame::encode(&mut frame, EPOCH, &event, dialect, encoding);
    for form in forms {
        assert_eq!(form.append(EPOCH, &event, dialect, encoding, reason), valid);
    }
    model.skip_to(event.sequence, reason);
    let topic = TOPICS.into_iter().find(|topic| *topic == event.topic).unwrap();
    model.events.push(Walked {
        sequence: event.sequence,
        time_nanos: event.time_nanos,
        topic,
        frame,
    });
    model.end = event.sequence + 1;
    Ok(())
}

fn check(input: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(input);
    let start = *u.choose(&STARTS)?;
    let compacted = u.arbitrary()?;
    let mut model = Model { start, end: start, events: Vec::new(), holes: Vec::new() };
    let (mut open, mut gathered) = (Segment::open(start), Segment::gather(start));
    for _ in 0..u.int_in_range(0..=80)? {
        if u.is_empty() {
            break;
        }
        append(&mut model, [&mut open, &mut gathered], u, compacted)?;
    }
    if u.ratio(1, 3)? {
        let reason = if compacted { GapReason::Compacted } else { GapReason::Expired };
        let to = model.end + u.int_in_range(1..=50)?;
        model.skip_to(to, reason);
        open.skip_to(to, reason);
        gathered.skip_to(to, reason);
    }
    if model.start == model.end {
        return Ok(());
    }
    let patterns = *u.choose(&PATTERNS)?;
    let from = u.int_in_range(model.start..=model.end - 1)?;
    let told = if u.arbitrary()? { from - 1 } else { u.int_in_range(0..=model.end)? };
    compare(&model, &open, from, told, patterns);
    compare(&model, &gathered, from, told, patterns);
    let (open, gathered) = (open.seal(), gathered.seal());
    compare(&model, &gathered, from, told, patterns);
    compare(&model, &open, from, told, patterns);
    walk(&model, &gathered, from, patterns);
    let newest = u.int_in_range(0..=10)?;
    let mut expected: Vec<_> = model
        .events
        .iter()
        .filter(|event| {
            event.sequence < from && filter::reference(patterns, event.topic) == Some(true)
        })
        .map(|event| event.sequence)
        .collect();
    expected.reverse();
    expected.truncate(newest);
    assert_eq!(
        gathered.newest(from, newest, &Filter::new(patterns.iter().copied()).unwrap()),
        expected
    );
    Ok(())
}

/// A slice with its bytes in one part, without what it has cost.
fn joined(slice: Slice) -> Slice {
    match slice {
        Slice::Frames { parts, runs, events, oldest_nanos, next, .. } => {
            let parts = vec![parts.concat().into()];
            Slice::Frames { parts, runs, events, oldest_nanos, next, compared: 0 }
        }
        gap @ Slice::Gap { .. } => gap,
    }
}

fn compare(model: &Model, segment: &Segment, from: u64, told: u64, patterns: &[&str]) {
    assert_eq!((segment.start(), segment.end()), (model.start, model.end));
    let expected = model.slice(from, told, patterns);
    // Twice: the second one finds the matches of the first.
    for _ in 0..2 {
        let slice =
            joined(segment.slice(from, told, &Filter::new(patterns.iter().copied()).unwrap()));
        let same = slice == expected;
        assert!(
            same,
            "from {from}, told {told}, {patterns:?}: {} is not {}",
            short(&slice),
            short(&expected)
        );
    }
}

/// Without the bytes.
fn short(slice: &Slice) -> String {
    match slice {
        Slice::Frames { parts, runs, events, oldest_nanos, next, .. } => {
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            format!("{events} events {runs:?} of {bytes} bytes from {oldest_nanos}, next {next}")
        }
        Slice::Gap { gap, next } => format!("{gap:?}, next {next}"),
    }
}

/// Read to its end, as a subscriber does: each event once, each missing sequence told once.
fn walk(model: &Model, segment: &Arc<Segment>, from: u64, patterns: &[&str]) {
    let filter = Filter::new(patterns.iter().copied()).unwrap();
    let (mut position, mut told, mut bytes, mut missed) = (from, from - 1, Vec::new(), 0);
    while position < segment.end() {
        let before = position;
        match segment.slice(position, told, &filter) {
            Slice::Frames { parts, next, .. } => {
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                position = next;
            }
            Slice::Gap { gap, next } => {
                (told, missed) = (gap.to.unwrap(), missed + gap.missed.unwrap());
                position = next;
            }
        }
        assert!(position > before, "a read makes progress");
    }
    let passing = |event: &&Walked| {
        event.sequence >= from && filter::reference(patterns, event.topic) == Some(true)
    };
    let frames: Vec<_> =
        model.events.iter().filter(passing).map(|event| &event.frame[..]).collect();
    assert!(bytes == frames.concat(), "from {from}, {patterns:?}");
    let missing = model.holes.iter().filter(|(_, to, _)| *to >= from);
    assert_eq!(missed, missing.map(|(first, to, _)| to + 1 - (*first).max(from)).sum::<u64>());
}
