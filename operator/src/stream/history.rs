//! What was seen of each stream, in memory: its high-water mark, and what the channel's status
//! remembers of it for the time when this memory is gone.
//!
//! All of it is one channel's: what one has seen of a stream tells another nothing, whatever the
//! stream is called.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    config::Want,
    desired::{Desired, Owner},
    error::Error,
    fields,
    server::Observed,
};
use crate::crd::status::Mark;

/// A stream that was not looked at for this long is no channel's any more, or its channel is
/// paused: each one that is managed is looked at every minute.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
/// How long a take-over that failed for want of servers or room, and was undone, is not tried
/// again: nothing tells when there is more, and each attempt is two writes to another's stream.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// A stream, as one channel knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    stream: String,
    owner: Owner,
}

impl Key {
    pub(super) fn new(stream: &str, owner: &Owner) -> Self {
        Self { stream: stream.to_owned(), owner: owner.clone() }
    }

    pub(super) fn of(desired: &Desired) -> Self {
        Self::new(desired.name.as_str(), &desired.owner)
    }
}

/// Each managed stream; and for [`FORGET_AFTER`] those of channels that are gone.
#[derive(Default)]
pub(super) struct History {
    seen: Mutex<HashMap<Key, Seen>>,
    /// Take-overs that failed and were undone. They are known by both configurations, so they hold
    /// whatever other operators do meanwhile.
    refused: Mutex<HashMap<Key, Refused>>,
}

struct Refused {
    /// The stream as it was found and put back.
    observed: Observed,
    want: Want,
    error: Error,
    at: Instant,
}

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
    pub(super) fn seen(&self, key: &Key, observed: &Observed) {
        self.with(key, &observed.created, |seen| {
            seen.last_sequence = observed.last_sequence;
            seen.epochs = fields::epochs(&observed.config);
            seen.adopted = Some(fields::adopted(&observed.config));
        });
    }

    /// What is known of this life of a stream, made or changed.
    fn with(&self, key: &Key, created: &str, change: impl FnOnce(&mut Seen)) {
        let mut history = self.seen.lock();
        if !history.contains_key(key) {
            history.retain(|_, seen| seen.looked_at.elapsed() < FORGET_AFTER);
        }
        let seen = history.entry(key.clone()).or_insert_with(|| Seen::new(created));
        if seen.created != created {
            *seen = Seen::new(created);
        }
        seen.looked_at = Instant::now();
        change(seen);
    }

    /// What the channel's status remembers. It may be of a former life of the stream, as it is
    /// written last.
    pub(super) fn remember(&self, key: &Key, created: &str, mark: Option<&Mark>) {
        let is_former = self.seen.lock().get(key).is_some_and(|seen| seen.created != created);
        if !is_former {
            self.with(key, created, |seen| {
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
        key: &Key,
        observed: &Observed,
        connects: u64,
        interval: Duration,
    ) -> Option<Mark> {
        let history = self.seen.lock();
        let seen = history.get(key).filter(|seen| seen.created == observed.created)?;
        let fresh = |(at, over): (Instant, u64)| over == connects && at.elapsed() < interval;
        seen.mark.clone().filter(|_| !seen.compared.is_some_and(fresh))
    }

    pub(super) fn compared(&self, key: &Key, connects: u64) {
        if let Some(seen) = self.seen.lock().get_mut(key) {
            seen.compared = Some((Instant::now(), connects));
        }
    }

    /// How often the stream was given a new epoch, as far as is remembered.
    pub(super) fn epochs(&self, key: &Key, observed: &Observed) -> i64 {
        let history = self.seen.lock();
        let seen = history.get(key).filter(|seen| seen.created == observed.created);
        seen.and_then(|seen| seen.mark.as_ref()).map_or(0, |mark| mark.epochs)
    }

    pub(super) fn is_same(&self, key: &Key, observed: &Observed) -> bool {
        let history = self.seen.lock();
        history.get(key).is_some_and(|seen| seen.created == observed.created)
    }

    pub(super) fn knows(&self, key: &Key) -> bool {
        self.seen.lock().contains_key(key)
    }

    /// Whether the stream was, or may have been, taken over.
    pub(super) fn may_be_adopted(&self, key: &Key) -> bool {
        self.seen.lock().get(key).is_none_or(|seen| seen.adopted != Some(false))
    }

    pub(super) fn forget(&self, key: &Key) {
        self.seen.lock().remove(key);
    }

    /// Forgets all streams of a channel.
    pub(super) fn forget_owner(&self, owner: &Owner) {
        self.seen.lock().retain(|key, _| !key.owner.same_object(owner));
        self.refused.lock().retain(|key, _| !key.owner.same_object(owner));
    }

    pub(super) fn clear(&self) {
        self.seen.lock().clear();
    }

    /// A take-over failed; `observed` is the stream as it is after that.
    pub(super) fn refuse(&self, key: &Key, observed: Observed, want: Want, error: Error) {
        let refused = Refused { observed, want, error, at: Instant::now() };
        let mut all = self.refused.lock();
        all.retain(|_, refused| refused.at.elapsed() < FORGET_AFTER);
        all.insert(key.clone(), refused);
    }

    /// Why this very take-over has failed before.
    pub(super) fn refused(&self, key: &Key, observed: &Observed, want: &Want) -> Option<Error> {
        let mut all = self.refused.lock();
        let refused = all.get_mut(key)?;
        let same = refused.observed.created == observed.created
            && refused.observed.config == observed.config
            && refused.want == *want;
        let lasts = matches!(refused.error, Error::Incompatible { .. });
        if !same || !lasts && refused.at.elapsed() > REFUSED_FOR {
            all.remove(key);
            return None;
        }
        if lasts {
            refused.at = Instant::now();
        }
        Some(refused.error.clone())
    }

    /// Whether the stream is at an older state than it was seen at, and no epoch tells of it yet.
    pub(super) fn regressed(&self, key: &Key, observed: &Observed) -> bool {
        let history = self.seen.lock();
        history.get(key).is_some_and(|seen| {
            seen.created == observed.created
                && seen.last_sequence > observed.last_sequence
                && seen.epochs >= fields::epochs(&observed.config)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stream: &str, uid: &str) -> Key {
        let [cluster, namespace, name] = ["c", "shop", "orders"].map(str::to_owned);
        Key::new(stream, &Owner { cluster, namespace, name, uid: uid.to_owned() })
    }

    #[test]
    fn streams_that_no_channel_has_are_forgotten() {
        let history = History::default();
        for n in 0..100 {
            history.remember(&key(&format!("preview-{n}"), "u1"), "t", None);
        }
        for seen in history.seen.lock().values_mut() {
            let long_ago = Instant::now().checked_sub(FORGET_AFTER);
            seen.looked_at = long_ago.unwrap_or(seen.looked_at);
        }
        history.remember(&key("preview-7", "u1"), "t", None);
        history.remember(&key("another", "u1"), "t", None);
        let mut left: Vec<_> = history.seen.lock().keys().map(|k| k.stream.clone()).collect();
        left.sort();
        assert_eq!(left, ["another", "preview-7"]);
    }

    #[test]
    fn a_mark_is_of_one_life_of_a_stream() {
        let history = History::default();
        let mark = Mark { sequence: 7, time: "t7".to_owned(), epochs: 1 };
        let key = key("S", "u1");
        history.remember(&key, "second life", None);
        history.remember(&key, "first life", Some(&mark));
        assert!(history.seen.lock()[&key].mark.is_none());
        history.remember(&key, "second life", Some(&mark));
        assert_eq!(history.seen.lock()[&key].mark, Some(mark));
    }

    #[test]
    fn what_one_channel_has_seen_tells_another_nothing() {
        let history = History::default();
        let (first, second) = (key("S", "u1"), key("S", "u2"));
        history.remember(&first, "t", None);
        assert!(history.knows(&first) && !history.knows(&second));
        history.remember(&second, "t", None);
        history.forget_owner(&first.owner);
        assert!(!history.knows(&first) && history.knows(&second));
    }
}
