//! The data plane of sluice: serves the events of JetStream streams as Server-Sent Events.
//!
//! ```text
//! JetStream ─tail─▶ log ◀─history─ JetStream        subscriber = position + filter over the log
//!                    │ head on a watch
//! client ─▶ server (route, CORS, start) ─▶ subscriber ─ready frames─▶ socket
//! ```

pub mod admin;
pub mod admission;
pub mod args;
pub mod channel;
pub mod config_dir;
mod console;
pub mod drain;
pub mod fanout;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod phase;
pub mod pod;
pub mod registry;
pub mod server;
pub mod source;
pub mod subscriber;
