//! Subjects and blocks of NATS headers (ADR-4), of any bytes: an event is the same from a delivery
//! and from a direct get, and what the publisher wrote moves nothing of the store's.
//!
//! An input is the subject up to the first line end, and then the publisher's block.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use sluice_channel::event;
use sluice_dataplane::fuzz;

use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "headers",
    check,
    valid,
    words: &[
        "NATS/1.0\r\n",
        "NATS/1.0 404 No Messages\r\n",
        "\r\n",
        "\r",
        "\n",
        ":",
        ": ",
        "Event-Name",
        "Event-Name: x\r\n",
        "Nats-Stream: orders\r\nNats-Subject: p.other\r\n",
        "Nats-Sequence: 1\r\nNats-Time-Stamp: 2023-11-14T22:13:20.123456789Z\r\n",
        "\t",
        "é",
        "\0",
    ],
};

const NAMES: &[&str] = &["Event-Name", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Subject", "X"];
const SEQUENCE: u64 = 7;

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let mut input = ["p.a", "p.eu.1", "q", "p.\u{e9}"].choose(rng).unwrap().to_string();
    input += "\r\nNATS/1.0\r\n";
    for _ in 0..rng.random_range(0..5) {
        let name = NAMES.choose(rng).unwrap();
        let value = ["order.created", "7", "", " a b ", "größe", "a: b"].choose(rng).unwrap();
        input += &format!("{name}:{}{value}\r\n", ["", " "].choose(rng).unwrap());
    }
    (input + "\r\n").into_bytes()
}

/// The block of nats-server's answer to a direct get: the publisher's without its last line end,
/// then the store's headers. A CR of the subject is shown as a blank.
fn answer(block: &[u8], subject: &[u8]) -> Vec<u8> {
    let mut all = match block.len() {
        0..=2 => b"NATS/1.0\r\n".to_vec(),
        length => block[..length - 2].to_vec(),
    };
    all.extend(b"Nats-Stream: orders\r\nNats-Subject: ");
    all.extend(subject.iter().map(|byte| if *byte == b'\r' { b' ' } else { *byte }));
    all.extend(format!("\r\nNats-Sequence: {SEQUENCE}\r\n").bytes());
    all.extend(b"Nats-Time-Stamp: 2023-11-14T22:13:20.123456789Z\r\n");
    all.extend(b"Nats-Num-Pending: 3\r\nNats-Last-Sequence: 6\r\n\r\n");
    all
}

fn check(input: &[u8]) -> bool {
    let end = input.windows(2).position(|pair| pair == b"\r\n").unwrap_or(input.len());
    let (subject, block) = (&input[..end], input.get(end + 2..).unwrap_or_default());
    // No broker takes such a subject.
    if subject.is_empty() || subject.iter().any(|byte| b" \t\n\0".contains(byte)) {
        return false;
    }
    let delivered = fuzz::delivered(SEQUENCE, block, subject);
    assert_eq!(fuzz::direct(&answer(block, subject)), Some(delivered.clone()));
    let (sequence, _, name) = delivered;
    assert_eq!(sequence, SEQUENCE, "the store's");
    if let Some(name) = name {
        assert!(event::check_name(&name).is_ok(), "{name:?}");
    }
    block.starts_with(b"NATS/1.0")
}
