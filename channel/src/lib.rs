//! What the operator and the pods of an SSE channel must agree on: names, cursors, topics, events,
//! bounds, and the configuration file that one writes and the other reads.
//!
//! Invariant: no I/O, no async runtime and no Kubernetes here (held by `tests/tidy`).

pub mod config;
pub mod credentials;
pub mod cursor;
pub mod event;
pub mod limits;
pub mod name;
pub mod text;
pub mod topic;

pub use config::ChannelConfig;
pub use credentials::Credentials;
pub use cursor::{Cursor, Epoch};
pub use event::Event;
pub use name::{ChannelName, StreamName};
pub use topic::{Filter, Topic};
