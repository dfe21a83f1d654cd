//! Blocks of NATS headers (ADR-4): a second reader must find the same values.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use sluice_dataplane::fuzz::header_value;

use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "headers",
    check,
    valid,
    words: &[
        "NATS/1.0\r\n",
        "\r\n",
        "\r",
        "\n",
        ":",
        ": ",
        "Event-Name",
        "Event-Name: x\r\n",
        "\t",
        "é",
        "\0",
    ],
};

/// Headers that the product reads.
const NAMES: &[&str] = &["Event-Name", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Subject", "X"];

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let mut block = "NATS/1.0\r\n".to_owned();
    for _ in 0..rng.random_range(0..5) {
        let name = NAMES.choose(rng).unwrap();
        let value = ["order.created", "7", "", " a b ", "größe", "a: b"].choose(rng).unwrap();
        block += &format!("{name}:{}{value}\r\n", ["", " "].choose(rng).unwrap());
    }
    (block + "\r\n").into_bytes()
}

/// Names and values in their order: after the version line, what stands before and after the first
/// colon of a line, without the white space around.
fn reference(block: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(block);
    let mut headers = Vec::new();
    let mut rest = text.find("\r\n").map_or("", |end| &text[end + 2..]);
    while !rest.is_empty() {
        let end = rest.find("\r\n").unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 2..).unwrap_or_default();
        if let Some(colon) = line.find(':') {
            headers.push((line[..colon].trim().to_owned(), line[colon + 1..].trim().to_owned()));
        }
    }
    headers
}

/// The client library asserts that a header has a name of visible ASCII characters and a value
/// without line ends; a block of a publisher that does not keep to that ends the task that reads
/// it. `true` once such blocks are read: then this target covers them too.
const ANY_BYTES: bool = false;

fn check(input: &[u8]) -> bool {
    let headers = reference(input);
    let is_taken = |(name, value): &(String, String)| {
        name.chars().all(|c| c.is_ascii_graphic()) && !value.contains(['\r', '\n'])
    };
    if !ANY_BYTES && !headers.iter().all(is_taken) {
        return false;
    }
    for name in NAMES {
        let values: Vec<_> = headers.iter().filter(|(other, _)| other == name).collect();
        let found = header_value(input, name).map(|v| String::from_utf8_lossy(&v).into_owned());
        // The store's own rule is the last one of a name that is repeated; the product has taken
        // the first. Both pass until it is the last one everywhere.
        let mut expected = [values.last(), values.first()].into_iter();
        assert!(
            expected.any(|header| header.map(|(_, value)| value) == found.as_ref()),
            "{name} is {found:?} in {headers:?}"
        );
    }
    !headers.is_empty()
}
