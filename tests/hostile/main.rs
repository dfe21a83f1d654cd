//! What a publisher, a client or a crowd of clients may send that no well-behaved one does: made
//! from a seed, sent to real data planes and real nats-servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail the test at their place"
)]

mod answers;
mod any_bytes;
#[path = "../stream/fixture.rs"]
#[allow(dead_code, reason = "it is the stream suite's, and that uses all of it")]
mod fixture;
mod floods;
mod frames;
mod grammar;
mod messages;
mod probe;
mod raw;
mod reading;
mod requests;
mod scale;
mod truth;
