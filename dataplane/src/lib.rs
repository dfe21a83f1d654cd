//! The data plane of sluice: serves the events of JetStream streams as Server-Sent Events.
//!
//! ```text
//! JetStream ─tail─▶ log ◀─history─ JetStream        subscriber = position + filter over the log
//!                    │ head on a watch
//! client ─▶ server (route, CORS, start) ─▶ subscriber ─ready frames─▶ socket
//! ```

mod admin;
mod admission;
pub mod args;
mod budget;
mod cgroup;
mod channel;
mod config_dir;
mod fanout;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
mod limits;
pub mod log;
mod metrics;
mod peer;
mod phase;
pub mod pod;
mod pulse;
mod registry;
mod server;
pub mod source;
mod state;
mod subscriber;
mod throttle;
