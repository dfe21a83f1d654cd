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
pub mod cgroup;
pub mod channel;
pub mod config_dir;
pub mod fanout;
pub mod frame;
mod limits;
pub mod log;
pub mod metrics;
pub mod peer;
pub mod phase;
pub mod pod;
pub mod registry;
pub mod server;
pub mod source;
pub mod state;
pub mod subscriber;
mod throttle;
