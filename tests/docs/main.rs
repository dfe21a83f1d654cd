//! What the pages show is typed here as it stands there, and what a reader would see is checked.
//!
//! Blocks for a cluster are run by `tests/cluster`, those for a browser or a proxy by
//! `tests/clients`, and `tests/tidy` sees to it that no block is forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod debugging;
mod local;
mod manifests;
mod terminal;
