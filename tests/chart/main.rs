//! The chart: what it renders, what it refuses, and what becomes of it on a real API server; and
//! the images it names.
//!
//! Pods that are installed run on the harness's stand-in for a node: the real programs, with the
//! arguments, rights and files that the chart gives them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check;
mod helm;
mod images;
mod life;
mod refused;
mod rendered;
mod rows;
