use proptest::prelude::*;

use super::*;

const EPOCH: Epoch = Epoch::from_bits(1);

fn event(sequence: u64, topic: &str) -> Event {
    Event {
        sequence,
        time_nanos: 1_000,
        topic: topic.into(),
        name: None,
        payload: format!("p{sequence}").into(),
    }
}

/// Sequences 10, 11, 14, 15 of 10..18; 12–13 and 16–17 are missing. Odd ones have topic `odd`.
fn segment(reason: GapReason) -> Segment {
    let mut segment = Segment::open(10);
    for sequence in [10, 11, 14, 15] {
        let topic = if sequence % 2 == 0 { "even" } else { "odd" };
        assert!(segment.append(
            EPOCH,
            &event(sequence, topic),
            Dialect::Plain,
            Encoding::Text,
            reason
        ));
    }
    segment.skip_to(18, reason);
    segment
}

fn text(slice: &Slice) -> (String, u64) {
    let Slice::Frames { parts, next, .. } = slice else { panic!("{slice:?}") };
    (parts.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect(), *next)
}

fn frames(sequences: &[u64]) -> String {
    sequences.iter().map(|s| format!("id: 00000001-{s}\ndata: p{s}\n\n")).collect()
}

#[test]
fn frames_stop_before_a_hole_and_go_on_once_it_is_told() {
    let all = Filter::default();
    for segment in [Arc::new(segment(GapReason::Deleted)), segment(GapReason::Deleted).seal()] {
        assert_eq!((segment.start(), segment.end()), (10, 18));
        assert_eq!(text(&segment.slice(10, 0, &all)), (frames(&[10, 11]), 12));
        let gap = Gap { from: Some(12), to: Some(13), missed: Some(2), reason: GapReason::Deleted };
        assert_eq!(segment.slice(12, 0, &all), Slice::Gap { gap, next: 14 });
        assert_eq!(text(&segment.slice(14, 13, &all)), (frames(&[14, 15]), 16));
        let gap = Gap { from: Some(17), to: Some(17), missed: Some(1), reason: GapReason::Deleted };
        assert_eq!(segment.slice(17, 13, &all), Slice::Gap { gap, next: 18 });
    }
}

#[test]
fn compaction_is_told_once_per_segment() {
    let segment = segment(GapReason::Compacted).seal();
    let all = Filter::default();
    assert_eq!(text(&segment.slice(10, 0, &all)), (frames(&[10, 11]), 12));
    let gap = Gap { from: Some(13), to: Some(17), missed: Some(3), reason: GapReason::Compacted };
    assert_eq!(segment.slice(13, 0, &all), Slice::Gap { gap, next: 14 });
    assert_eq!(text(&segment.slice(14, 17, &all)), (frames(&[14, 15]), 18));
}

#[test]
fn a_filter_takes_what_matches_and_passes_the_rest() {
    let segment = segment(GapReason::Deleted).seal();
    let odd = Filter::new(["odd"]).unwrap();
    assert_eq!(text(&segment.slice(10, 0, &odd)), (frames(&[11]), 12));
    assert_eq!(text(&segment.slice(12, 17, &odd)), (frames(&[15]), 18));
    let none = Filter::new(["none"]).unwrap();
    assert_eq!(text(&segment.slice(10, 17, &none)), (String::new(), 18));
    assert_eq!(segment.newest(18, 2, &Filter::default()), [15, 14]);
    assert_eq!(segment.newest(15, 2, &odd), [11]);
}

#[test]
fn one_slice_is_bounded_but_never_empty_for_a_large_event() {
    let mut segment = Segment::open(1);
    for sequence in 1..=3 {
        let large = Event { payload: vec![b'x'; 100_000].into(), ..event(sequence, "t") };
        segment.append(EPOCH, &large, Dialect::Plain, Encoding::Text, GapReason::Deleted);
    }
    for filter in [Filter::default(), Filter::new(["*"]).unwrap()] {
        let Slice::Frames { next, events, .. } = segment.slice(1, 0, &filter) else { panic!() };
        assert_eq!((next, events), (2, 1));
    }
}

proptest! {
    /// A segment says the same before it is sealed and after, wherever one starts to read and
    /// whatever passes.
    #[test]
    fn open_and_sealed_are_alike(lengths in proptest::collection::vec(0usize..4_000, 1..200), from in 0usize..200, filtered: bool) {
        let (mut open, mut gathered) = (Segment::open(1), Segment::gather(1));
        let mut expected = Vec::new();
        let from = (from % lengths.len()) as u64 + 1;
        for (sequence, length) in (1..).zip(&lengths) {
            let event = Event { payload: vec![b'x'; *length].into(), ..event(sequence, if sequence % 3 == 0 { "a" } else { "b" }) };
            open.append(EPOCH, &event, Dialect::Plain, Encoding::Text, GapReason::Deleted);
            gathered.append(EPOCH, &event, Dialect::Plain, Encoding::Text, GapReason::Deleted);
            if sequence >= from && (!filtered || sequence % 3 == 0) {
                frame::encode(&mut expected, EPOCH, &event, Dialect::Plain, Encoding::Text);
            }
        }
        let filter = Filter::new(if filtered { &["a"][..] } else { &[] }.iter().copied()).unwrap();
        let read = |segment: &Segment| {
            let (mut position, mut bytes, mut count) = (from, Vec::new(), 0);
            while position < segment.end() {
                let Slice::Frames { parts, events, next, .. } = segment.slice(position, 0, &filter) else { panic!("no hole") };
                assert!(next > position, "a read makes progress");
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                (position, count) = (next, count + events);
            }
            (bytes, count)
        };
        let (bytes, count) = read(&open);
        prop_assert!(bytes == expected, "the open segment");
        prop_assert_eq!(&read(&gathered), &(bytes.clone(), count));
        prop_assert_eq!(&read(&gathered.seal()), &(bytes.clone(), count));
        prop_assert_eq!(read(&open.seal()), (bytes, count));
    }
}

proptest! {
    /// A slice of a sealed segment has the events that one gets by going through it event by event,
    /// whatever their sizes.
    #[test]
    fn slices_end_where_a_walk_ends(sizes in prop::collection::vec(prop_oneof![0usize..200, 0usize..9_000, Just(20_000)], 1..200), missing in 0usize..3) {
        let mut segment = Segment::gather(1);
        let mut sequences = Vec::new();
        let mut frames = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let sequence = 1 + (index + if missing > 0 { index / (3 * missing) } else { 0 }) as u64;
            let event = Event { payload: "x".repeat(*size).into(), ..event(sequence, "a") };
            let before = segment.bytes();
            segment.append(EPOCH, &event, Dialect::Plain, Encoding::Text, GapReason::Compacted);
            frames.push(segment.bytes() - before);
            sequences.push(sequence);
        }
        let end = segment.end();
        let segment = segment.seal();
        for first in 0..sequences.len() {
            // By hand: events are taken until there are SLICE_BYTES or more, or a sequence is
            // missing.
            let (mut bytes, mut after) = (0, first);
            while after < sequences.len() && bytes < limits::SLICE_BYTES && sequences[after] == sequences[first] + (after - first) as u64 {
                bytes += frames[after];
                after += 1;
            }
            let next = match sequences.get(after) {
                Some(next) if *next == sequences[first] + (after - first) as u64 => *next,
                Some(_) => sequences[after - 1] + 1,
                None => end,
            };
            let Slice::Frames { parts, events, next: goes_on, .. } = segment.slice(sequences[first], sequences[first] - 1, &Filter::default()) else {
                panic!("no hole is at an event");
            };
            prop_assert_eq!((parts.iter().map(Bytes::len).sum::<usize>(), events, goes_on), (bytes, (after - first) as u64, next));
        }
    }
}
