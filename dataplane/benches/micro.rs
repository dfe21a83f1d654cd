//! The parts of the fan-out by themselves: encoder, segment, filter, cursor. Payloads are 256
//! bytes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_channel::{Cursor, Epoch, Event, Filter, config::Encoding};
use sluice_dataplane::{
    frame::{self, Dialect, GapReason},
    log::segment::{Segment, Slice},
};

const EPOCH: Epoch = Epoch::from_bits(0x5f3c_01aa);
/// Events of a segment.
const EVENTS: u64 = 1_024;

fn event(sequence: u64) -> Event {
    Event {
        sequence,
        time_nanos: 1_700_000_000_000_000_000,
        topic: format!("eu.{}.created", sequence % 16),
        name: None,
        payload: vec![b'x'; 256].into(),
    }
}

fn open_segment() -> Segment {
    let mut segment = Segment::open(1);
    (1..=EVENTS).for_each(|sequence| {
        segment.append(EPOCH, &event(sequence), Dialect::Plain, Encoding::Text, GapReason::Deleted);
    });
    segment
}

fn encoder(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(1_024);
    let one = event(123_456);
    for (name, dialect, encoding) in [
        ("plain", Dialect::Plain, Encoding::Text),
        ("envelope", Dialect::Envelope, Encoding::Text),
        ("base64", Dialect::Plain, Encoding::Base64),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                frame::encode(&mut out, EPOCH, black_box(&one), dialect, encoding)
            });
        });
    }
}

/// Reads a segment from end to end; returns its events.
fn walk(segment: &Segment, filter: &Filter) -> u64 {
    let (mut position, mut count) = (segment.start(), 0);
    while position < segment.end() {
        match segment.slice(position, 0, filter) {
            Slice::Frames { parts, events, next, .. } => {
                black_box(parts);
                (position, count) = (next, count + events);
            }
            Slice::Gap { next, .. } => position = next,
        }
    }
    count
}

fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment of 1,024 events");
    group.throughput(Throughput::Elements(EVENTS));
    let events: Vec<_> = (1..=EVENTS).map(event).collect();
    group.bench_function("append", |b| {
        b.iter(|| {
            let mut segment = Segment::open(1);
            for event in &events {
                segment.append(EPOCH, event, Dialect::Plain, Encoding::Text, GapReason::Deleted);
            }
            segment
        });
    });
    group.bench_function("gather and seal", |b| {
        b.iter(|| {
            let mut segment = Segment::gather(1);
            for event in &events {
                segment.append(EPOCH, event, Dialect::Plain, Encoding::Text, GapReason::Deleted);
            }
            segment.seal()
        });
    });
    let (open, sealed) = (open_segment(), open_segment().seal());
    let all = Filter::default();
    group.bench_function("read all, open", |b| b.iter(|| walk(&open, &all)));
    group.bench_function("read all, sealed", |b| b.iter(|| walk(&sealed, &all)));
    for (name, topics) in [
        ("read with a filter for 1 of 16", &["eu.3.*"][..]),
        ("read with 8 filters, nothing matches", &["us.*.a"; 8]),
    ] {
        let filter = Filter::new(topics.iter().copied()).unwrap();
        // Each event is matched anew, and found once.
        group.bench_function(format!("{name}, open"), |b| b.iter(|| walk(&open, &filter)));
        group.bench_function(format!("{name}, sealed"), |b| b.iter(|| walk(&sealed, &filter)));
    }
}

fn filter(c: &mut Criterion) {
    let filter = Filter::new(["orders.*.created", "orders.eu.>"]).unwrap();
    c.bench_function("match a topic with two patterns", |b| {
        b.iter(|| filter.matches(black_box("orders.us.cancelled")));
    });
}

fn cursor(c: &mut Criterion) {
    let text = Cursor::new(EPOCH, 123_456_789).to_string();
    c.bench_function("read a cursor", |b| b.iter(|| black_box(&text).parse::<Cursor>()));
    c.bench_function("write a cursor", |b| {
        b.iter(|| Cursor::new(EPOCH, black_box(123_456_789)).to_string());
    });
}

criterion_group!(benches, encoder, segments, filter, cursor);
criterion_main!(benches);
