//! What a namespace may ask of the NATS account that all channels share.
//!
//! The right to edit channels of one namespace must not reach what belongs to others: so a channel
//! takes subjects, stream names and space of its own namespace, unless a [`Grant`] says more.
//! Grants stand where a namespace's own editors cannot write. The chart's admission policy refuses
//! the same in the same words, where one object is enough to tell.

pub mod check;
mod grant;
mod namespaces;
pub mod quota;
mod rights;

use std::collections::BTreeMap;

pub use grant::{Grant, PREFIX, Size, TakeOver};
pub use namespaces::Namespaces;
pub use rights::{Ask, Refusal, Rights};

/// Whether namespaces are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// A channel may ask for any subject and any stream without an owner.
    #[value(name = "Open")]
    Open,
    /// A channel may ask for what its namespace has, and for what is granted to that.
    #[value(name = "Isolated")]
    Isolated,
}

/// How namespaces are kept apart.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether they are.
    pub mode: Mode,
    /// Most that one channel may ask for in `maxBytes`.
    pub max_bytes: Size,
    /// Most that the streams of a namespace may reserve together.
    pub quota: Size,
    /// Grants beside those of Namespaces' annotations.
    pub grants: BTreeMap<String, Grant>,
}

impl Settings {
    /// What `namespace` may ask for, with what is granted to it by `annotations`.
    #[must_use]
    pub fn rights(&self, namespace: &str, annotations: &BTreeMap<String, String>) -> Rights {
        let mut grant = Grant::of(annotations);
        if let Some(given) = self.grants.get(namespace) {
            grant.add(given);
        }
        Rights::new(namespace, grant, &self.max_bytes, &self.quota)
    }
}
