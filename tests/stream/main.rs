//! The wire contract of the data plane, on real nats-servers: one module for each group of
//! promises.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail the test at their place"
)]

mod connections;
mod console;
mod cursor;
mod cut_off;
mod drain;
mod families;
mod fanout;
mod filter;
mod fixture;
mod history;
mod http;
mod http2;
mod memory;
mod metrics;
mod nats_cluster;
mod newest_deleted;
mod outage;
mod page_bounds;
mod page_holes;
mod payload;
mod probes;
mod publish;
mod publish_limits;
mod reload;
mod replay;
mod seam;
mod slow;
