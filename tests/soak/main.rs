//! Everything goes wrong at once, at random, while 300 subscribers read; and a ledger of every
//! acknowledged event says at the end whether the promises held.
//!
//! `make soak SEED=… SECONDS=…`; CONTRIBUTING.md says how to read what it finds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a message"
)]

mod balancer;
mod bed;
mod book;
mod course;
mod events;
mod faults;
mod judge;
mod pager;
mod publisher;
mod report;
mod schedule;
mod session;
mod soak;
mod subscriber;

use std::time::Duration;

/// Without `SOAK_SECONDS`: what `make test` has time for, and a seed that has nearly all kinds of
/// faults by then.
const SECONDS: u64 = 60;
const SEED: u64 = 8_206;
/// Start, preload, the way to the newest event and the verdict, beside the schedule itself.
const AROUND: Duration = Duration::from_secs(400);

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

#[test]
fn every_acknowledged_event_is_received_once_or_truly_named() {
    let length = variable("SOAK_SECONDS");
    let random = || if length.is_some() { rand::random::<u16>().into() } else { SEED };
    let seed = variable("SOAK_SEED").unwrap_or_else(random);
    let length = Duration::from_secs(length.unwrap_or(SECONDS));
    let seconds = length.as_secs();
    println!(
        "seed {seed}, {seconds} s; the same faults again: make soak SEED={seed} SECONDS={seconds}"
    );
    sluice_tests::run(length + AROUND, course::run(seed, length));
}
