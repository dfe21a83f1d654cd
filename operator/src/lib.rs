//! Turns an `SseChannel` into a JetStream stream and the pods (or, in local mode, the process) that serve it.

pub mod controller;
pub mod crd;
pub mod nats;
pub mod stream;
