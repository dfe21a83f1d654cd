//! The wire contract of the data plane, on real nats-servers: one module for each group of promises.

mod cluster;
mod cursor;
mod drain;
mod filter;
mod http;
mod metrics;
mod outage;
mod payload;
mod publish;
mod reload;
mod rig;
mod seam;
mod slow;
