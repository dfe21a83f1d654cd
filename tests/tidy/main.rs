//! What reviewers would otherwise have to remember, as tests: what may depend on what, where I/O
//! may happen, how large a module may grow, that documentation points to what exists, that
//! generated files are current.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with a message"
)]

mod blocks;
mod code;
mod docs;
mod generated;
mod layering;
mod logs;
mod modules;
mod tree;
