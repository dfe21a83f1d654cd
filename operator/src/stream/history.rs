//! What was seen of each stream: a last sequence that goes back in one and the same life of a
//! stream means that it was restored from an older copy, or lost writes. In memory only: at worst a
//! restart of the operator forgets it.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::{fields, server::Observed};

/// High-water mark of each managed stream; as many entries as there are managed streams.
#[derive(Default)]
pub(super) struct History(Mutex<HashMap<String, Seen>>);

struct Seen {
    created: String,
    last_sequence: u64,
    /// Whether it was taken over; unknown where only the status remembers the stream.
    adopted: Option<bool>,
}

impl History {
    pub(super) fn seen(&self, name: &str, observed: &Observed) {
        let seen = Seen {
            created: observed.created.clone(),
            last_sequence: observed.last_sequence,
            adopted: Some(fields::adopted(&observed.config)),
        };
        self.0.lock().insert(name.to_owned(), seen);
    }

    pub(super) fn remember(&self, name: &str, created: &str) {
        let mut history = self.0.lock();
        history.entry(name.to_owned()).or_insert_with(|| Seen {
            created: created.to_owned(),
            last_sequence: 0,
            adopted: None,
        });
    }

    pub(super) fn is_same(&self, name: &str, observed: &Observed) -> bool {
        let history = self.0.lock();
        history.get(name).is_some_and(|seen| seen.created == observed.created)
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.0.lock().contains_key(name)
    }

    /// Whether the stream was, or may have been, taken over.
    pub(super) fn may_be_adopted(&self, name: &str) -> bool {
        self.0.lock().get(name).is_none_or(|seen| seen.adopted != Some(false))
    }

    pub(super) fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    pub(super) fn regressed(&self, name: &str, observed: &Observed) -> bool {
        let history = self.0.lock();
        history.get(name).is_some_and(|seen| {
            seen.created == observed.created && seen.last_sequence > observed.last_sequence
        })
    }
}
