//! The reply subject of a delivery: a second reader of ADR-15 must find the same numbers.

use rand::{Rng, rngs::StdRng};
use sluice_dataplane::fuzz::reply_subject;

use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "reply",
    check,
    valid,
    words: &["$JS.ACK.", ".", "_", "-", "..", "$JS.ACK._.HASH.", ".token", "+1", "$JS", "é"],
};

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let mut number = || rng.random::<u64>() >> rng.random_range(0..64);
    let numbers = format!("{}.{}.{}.{}.{}", number(), number(), number(), number() >> 1, number());
    let head = ["", "_.ACCOUNT.", "hub.A1b2C3d4."][rng.random_range(0..3)];
    let tail = if head.is_empty() || rng.random_bool(0.5) { "" } else { ".abcd1234" };
    format!("$JS.ACK.{head}orders.sluice_pod-0_1f.{numbers}{tail}").into_bytes()
}

/// `$JS.ACK.<stream>.<consumer>.<times>.<sequence>.<consumer sequence>.<time>.<pending>`: 9 words;
/// from 11 on there is a domain and an account before the stream. Words after these are ignored,
/// also those that a later server may add.
fn reference(text: &str) -> Option<(u64, u64, i64, u64)> {
    let words: Vec<_> = text.split('.').collect();
    let stream = if words.len() >= 11 { 4 } else { 2 };
    let [sequence, consumer, time, pending] = *words.get(stream + 3..stream + 7)? else {
        return None;
    };
    (words[..2] == ["$JS", "ACK"]).then_some(())?;
    Some((
        sequence.parse().ok()?,
        consumer.parse().ok()?,
        time.parse().ok()?,
        pending.parse().ok()?,
    ))
}

fn check(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let read = reply_subject(&text);
    assert_eq!(read, reference(&text), "{text:?}");
    read.is_some()
}
