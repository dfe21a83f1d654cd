//! What was seen of each stream, in memory: its high-water mark, and what the channel's status
//! remembers of it for the time when this memory is gone.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{fields, server::Observed};
use crate::crd::status::Mark;

/// A stream that was not looked at for this long is no channel's any more, or its channel is
/// paused: each one that is managed is looked at every minute.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// Each managed stream; and for [`FORGET_AFTER`] those of channels that are gone.
#[derive(Default)]
pub(super) struct History(Mutex<HashMap<String, Seen>>);

struct Seen {
    created: String,
    last_sequence: u64,
    /// How often it had been given a new epoch.
    epochs: i64,
    /// Whether it was taken over; unknown where only the status remembers the stream.
    adopted: Option<bool>,
    mark: Option<Mark>,
    /// When the stream was last compared with the mark, and over which connection.
    compared: Option<(Instant, u64)>,
    looked_at: Instant,
}

impl Seen {
    fn new(created: &str) -> Self {
        Self {
            created: created.to_owned(),
            last_sequence: 0,
            epochs: 0,
            adopted: None,
            mark: None,
            compared: None,
            looked_at: Instant::now(),
        }
    }
}

impl History {
    pub(super) fn seen(&self, name: &str, observed: &Observed) {
        self.with(name, &observed.created, |seen| {
            seen.last_sequence = observed.last_sequence;
            seen.epochs = fields::epochs(&observed.config);
            seen.adopted = Some(fields::adopted(&observed.config));
        });
    }

    /// What is known of this life of a stream, made or changed.
    fn with(&self, name: &str, created: &str, change: impl FnOnce(&mut Seen)) {
        let mut history = self.0.lock();
        if !history.contains_key(name) {
            history.retain(|_, seen| seen.looked_at.elapsed() < FORGET_AFTER);
        }
        let seen = history.entry(name.to_owned()).or_insert_with(|| Seen::new(created));
        if seen.created != created {
            *seen = Seen::new(created);
        }
        seen.looked_at = Instant::now();
        change(seen);
    }

    /// What the channel's status remembers. It may be of a former life of the stream, as it is
    /// written last.
    pub(super) fn remember(&self, name: &str, created: &str, mark: Option<&Mark>) {
        let is_former = self.0.lock().get(name).is_some_and(|seen| seen.created != created);
        if !is_former {
            self.with(name, created, |seen| {
                if let Some(mark) = mark {
                    seen.mark = Some(mark.clone());
                }
            });
        }
    }

    /// The mark of this life of the stream, when the two were not compared over this connection
    /// within `interval`.
    pub(super) fn due(
        &self,
        name: &str,
        observed: &Observed,
        connects: u64,
        interval: Duration,
    ) -> Option<Mark> {
        let history = self.0.lock();
        let seen = history.get(name).filter(|seen| seen.created == observed.created)?;
        let fresh = |(at, over): (Instant, u64)| over == connects && at.elapsed() < interval;
        seen.mark.clone().filter(|_| !seen.compared.is_some_and(fresh))
    }

    pub(super) fn compared(&self, name: &str, connects: u64) {
        if let Some(seen) = self.0.lock().get_mut(name) {
            seen.compared = Some((Instant::now(), connects));
        }
    }

    /// How often the stream was given a new epoch, as far as is remembered.
    pub(super) fn epochs(&self, name: &str, observed: &Observed) -> i64 {
        let history = self.0.lock();
        let seen = history.get(name).filter(|seen| seen.created == observed.created);
        seen.and_then(|seen| seen.mark.as_ref()).map_or(0, |mark| mark.epochs)
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

    /// Whether the stream is at an older state than it was seen at, and no epoch tells of it yet.
    pub(super) fn regressed(&self, name: &str, observed: &Observed) -> bool {
        let history = self.0.lock();
        history.get(name).is_some_and(|seen| {
            seen.created == observed.created
                && seen.last_sequence > observed.last_sequence
                && seen.epochs >= fields::epochs(&observed.config)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_no_channel_has_are_forgotten() {
        let history = History::default();
        for n in 0..100 {
            history.remember(&format!("preview-{n}"), "t", None);
        }
        for seen in history.0.lock().values_mut() {
            let long_ago = Instant::now().checked_sub(FORGET_AFTER);
            seen.looked_at = long_ago.unwrap_or(seen.looked_at);
        }
        history.remember("preview-7", "t", None);
        history.remember("another", "t", None);
        let mut left: Vec<_> = history.0.lock().keys().cloned().collect();
        left.sort();
        assert_eq!(left, ["another", "preview-7"]);
    }

    #[test]
    fn a_mark_is_of_one_life_of_a_stream() {
        let history = History::default();
        let mark = Mark { sequence: 7, time: "t7".to_owned(), epochs: 1 };
        history.remember("S", "second life", None);
        history.remember("S", "first life", Some(&mark));
        assert!(history.0.lock()["S"].mark.is_none());
        history.remember("S", "second life", Some(&mark));
        assert_eq!(history.0.lock()["S"].mark, Some(mark));
    }
}
