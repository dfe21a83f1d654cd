//! Turns an `SseChannel` into a JetStream stream and the pods (or, in local mode, the process) that
//! serve it.

mod admin;
pub mod args;
pub mod check;
pub mod controller;
pub mod crd;
mod english;
mod kube_error;
mod leader;
pub mod local;
mod metrics;
mod nats;
pub mod permissions;
pub mod stream;
pub mod tenancy;
