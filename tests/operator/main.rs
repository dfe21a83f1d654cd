//! The operator against a real API server, real NATS servers and the real data plane.
//!
//! Each test has a namespace, a nats-server and an operator process of its own, which acts under a
//! service account of its own with the chart's rights; a refused request (403) in the audit log
//! fails the test. Tests wait more than they work: `--test-threads 8` suits two cores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod anew;
mod channel;
mod delete;
mod drift;
mod everywhere;
mod exposure;
mod fixture;
mod gateway;
mod leader;
mod lifecycle;
mod network;
mod obstacles;
mod outage;
mod ownership;
mod permissions;
mod policy;
mod quiet;
mod rbac;
mod ready;
mod removal;
mod restored;
mod rollouts;
mod scale;
mod scaling;
mod scopes;
mod standin;
mod tenancy;
mod told;
