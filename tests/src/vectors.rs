//! The vectors of `tests/clients/vectors.json` against the harness's parser, and the product's
//! encoder against both.

use bytes::Bytes;
use serde::Deserialize;
use sluice_channel::{Epoch, Event, config::Encoding};
use sluice_dataplane::frame::{self, Dialect};

use crate::sse::{self, Item};

#[derive(Deserialize)]
struct Vectors {
    streams: Vec<Stream>,
    payloads: Vec<Payload>,
}

#[derive(Deserialize)]
struct Stream {
    name: String,
    rule: String,
    stream: Option<String>,
    hex: Option<String>,
    events: Vec<Expected>,
    retry: Option<u64>,
}

#[derive(Deserialize, PartialEq, Debug)]
struct Expected {
    event: String,
    data: String,
    id: String,
}

#[derive(Deserialize)]
struct Payload {
    case: String,
    event: String,
    payload: String,
    data: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../clients/vectors.json")).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn read(items: Vec<Item>) -> (Vec<Expected>, Option<u64>) {
    let mut retry = None;
    let mut events = Vec::new();
    for item in items {
        match item {
            Item::Event(e) => {
                events.push(Expected { event: e.name, data: e.data, id: e.last_event_id });
            }
            Item::Retry(millis) => retry = Some(millis),
            Item::Comment(_) => {}
        }
    }
    (events, retry)
}

#[test]
fn the_parser_reads_every_stream_however_it_is_cut() {
    let vectors = vectors();
    assert!(vectors.streams.len() > 30);
    for Stream { name, rule, stream, hex: raw, events, retry } in vectors.streams {
        let bytes = stream.map(String::into_bytes).or_else(|| raw.map(|r| hex(&r))).unwrap();
        for cut in 0..=bytes.len() {
            let mut parser = sse::Parser::new();
            parser.push(&bytes[..cut]);
            parser.push(&bytes[cut..]);
            let found = read(std::iter::from_fn(|| parser.pop()).collect());
            assert_eq!(found.0, events, "{name}: {rule} Cut at {cut}.");
            assert_eq!(found.1, retry, "{name}: {rule} Cut at {cut}.");
        }
    }
}

#[test]
fn every_payload_arrives_through_the_encoder() {
    let vectors = vectors();
    assert!(vectors.payloads.len() > 20);
    let mut stream = Vec::new();
    frame::retry(&mut stream, std::time::Duration::from_millis(170));
    let mut expected = Vec::new();
    for (sequence, Payload { case, event, payload, data }) in (1..).zip(vectors.payloads) {
        let name = (!event.is_empty()).then(|| event.clone());
        let one = Event {
            sequence,
            time_nanos: 0,
            topic: "t".to_owned(),
            name,
            payload: Bytes::from(payload),
        };
        assert!(
            frame::encode(&mut stream, Epoch::from_bits(1), &one, Dialect::Plain, Encoding::Text),
            "{case}"
        );
        stream.extend_from_slice(frame::HEARTBEAT);
        let event = if event.is_empty() { "message".to_owned() } else { event };
        expected.push(Expected { event, data, id: format!("00000001-{sequence}") });
    }
    assert_eq!(read(sse::parse(&stream)), (expected, Some(170)));
}
