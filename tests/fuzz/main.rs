//! What reads outside input, given any of it: `make fuzz` runs each target as long as one likes,
//! `make test` for seconds.
//!
//! A failing input is made small and kept in `corpus/<target>/`, whose files run first each time:
//! once the fault is repaired, it is a regression test. Each target compares with a second way to
//! the same answer (a reference written from the specification, a naive walk, the way back to
//! text), not only with "no panic".
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a message"
)]

mod engine;
mod targets {
    pub(crate) mod config;
    pub(crate) mod cursor;
    pub(crate) mod filter;
    pub(crate) mod headers;
    pub(crate) mod query;
    pub(crate) mod reply;
    pub(crate) mod slice;
}

use targets::{config, cursor, filter, headers, query, reply, slice};

#[test]
fn config() {
    engine::run(&config::TARGET);
}

#[test]
fn cursor() {
    engine::run(&cursor::TARGET);
}

#[test]
fn filter() {
    engine::run(&filter::TARGET);
}

#[test]
fn headers() {
    engine::run(&headers::TARGET);
}

#[test]
fn query() {
    engine::run(&query::TARGET);
}

#[test]
fn reply() {
    engine::run(&reply::TARGET);
}

#[test]
fn slice() {
    engine::run(&slice::TARGET);
}
