//! Turns an `SseChannel` into a JetStream stream and the pods (or, in local mode, the process) that
//! serve it.

pub mod admin;
pub mod args;
pub mod check;
pub mod controller;
pub mod crd;
mod english;
pub mod leader;
pub mod local;
pub mod metrics;
pub mod nats;
pub mod stream;
