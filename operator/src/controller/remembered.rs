//! What is remembered of each channel from one pass to the next.

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;

use super::{kinds, live, scaling, status::outcome::Pace};
use crate::crd::SseChannel;

/// First pause after a failed pass; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause after a failed pass: an API server or a NATS that comes back is noticed within a
/// minute.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What is remembered of one channel.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// UID of the channel, once it is known: another one of its name inherits nothing.
    uid: Option<String>,
    failures: u32,
    /// Why the last pass was cut short, if it was.
    pub(super) error: Option<String>,
    pub(super) projections: kinds::Projections,
    pub(super) absent: live::Absent,
    /// Pods that the connections asked for lately.
    pub(super) scaling: scaling::Window,
    /// How long it has not been as asked.
    pub(super) pace: Pace,
    /// The last Event about a missing PodMonitor.
    pub(super) unmonitored: Option<String>,
    /// Version of the object whose last Event says that it cannot be decoded.
    pub(super) undecodable: Option<String>,
    /// When the mark of the stream was last written, or the channel was first looked at.
    pub(super) marked: Option<Instant>,
    /// Greatest size and copies of the stream for which there was room in the namespace's quota.
    pub(super) fits: Option<(u64, usize)>,
}

impl Remembered {
    /// Forgets everything if it is of another channel than the one with this UID.
    pub(super) fn belongs_to(&mut self, uid: Option<&str>) {
        if self.uid.as_deref() != uid {
            let is_anew = self.uid.is_some();
            self.uid = uid.map(str::to_owned);
            if is_anew {
                *self = Self { uid: self.uid.take(), ..Self::default() };
            }
        }
    }

    /// The pause after one more failure in a row.
    pub(super) fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        (FIRST_RETRY * 2_u32.saturating_pow(self.failures.saturating_sub(1).min(10)))
            .min(LAST_RETRY)
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// A pass came to its end. Answers whether the one before was cut short.
    pub(super) fn recovered(&mut self) -> bool {
        self.error.take().is_some()
    }
}

/// All channels; as many entries as there are channels.
#[derive(Default)]
pub(super) struct RememberedChannels(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Counts how often everything was forgotten.
    era: u64,
    channels: HashMap<ObjectRef<SseChannel>, Remembered>,
    /// Those that a pass has at the moment, and whether the channel has gone meanwhile.
    taken: HashMap<ObjectRef<SseChannel>, bool>,
}

impl RememberedChannels {
    /// Takes what is remembered of a channel for as long as a pass lasts. One channel has one pass
    /// at a time.
    pub(super) fn take(&self, channel: &ObjectRef<SseChannel>) -> Taken<'_> {
        let mut inner = self.0.lock();
        let remembered = inner.channels.remove(channel).unwrap_or_default();
        inner.taken.insert(channel.clone(), false);
        Taken { from: self, channel: channel.clone(), era: inner.era, remembered, keep: true }
    }

    /// The channel has gone. What a pass has taken of it is not put back.
    pub(super) fn forget(&self, channel: &ObjectRef<SseChannel>) {
        let mut inner = self.0.lock();
        inner.channels.remove(channel);
        if let Some(gone) = inner.taken.get_mut(channel) {
            *gone = true;
        }
    }

    #[cfg(test)]
    pub(super) fn knows(&self, channel: &ObjectRef<SseChannel>) -> bool {
        self.0.lock().channels.contains_key(channel)
    }

    /// Forgets all channels. What is taken at this moment is not put back: it stems from before.
    pub(super) fn forget_all(&self) {
        let mut inner = self.0.lock();
        inner.era += 1;
        inner.channels.clear();
    }
}

/// What was taken goes back when this is dropped, so that a pass that is cut off loses nothing.
pub(super) struct Taken<'a> {
    from: &'a RememberedChannels,
    channel: ObjectRef<SseChannel>,
    era: u64,
    remembered: Remembered,
    keep: bool,
}

impl Taken<'_> {
    /// The channel has gone.
    pub(super) fn forget(mut self) {
        self.keep = false;
    }
}

impl Deref for Taken<'_> {
    type Target = Remembered;

    fn deref(&self) -> &Remembered {
        &self.remembered
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Remembered {
        &mut self.remembered
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut inner = self.from.0.lock();
        let has_gone = inner.taken.remove(&self.channel).unwrap_or_default();
        if self.keep && !has_gone && self.era == inner.era {
            inner.channels.insert(self.channel.clone(), std::mem::take(&mut self.remembered));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(channels: &RememberedChannels) -> u32 {
        channels.take(&ObjectRef::new("orders").within("shop")).failures
    }

    #[test]
    fn what_was_taken_goes_back() {
        let (channels, orders) =
            (RememberedChannels::default(), ObjectRef::new("orders").within("shop"));
        channels.take(&orders).failed();
        channels.take(&orders).failed();
        assert_eq!(failures(&channels), 2);
        channels.take(&orders).forget();
        assert_eq!(failures(&channels), 0);
    }

    #[test]
    fn a_pass_that_began_before_everything_was_forgotten_puts_nothing_back() {
        let (channels, orders) =
            (RememberedChannels::default(), ObjectRef::new("orders").within("shop"));
        let mut taken = channels.take(&orders);
        taken.failed();
        channels.forget_all();
        drop(taken);
        assert_eq!(failures(&channels), 0);
    }

    #[test]
    fn a_channel_that_is_made_anew_inherits_nothing() {
        let (channels, orders) =
            (RememberedChannels::default(), ObjectRef::new("orders").within("shop"));
        let mut taken = channels.take(&orders);
        taken.failed();
        taken.belongs_to(Some("1"));
        drop(taken);
        let mut taken = channels.take(&orders);
        taken.belongs_to(Some("1"));
        assert_eq!(taken.failures, 1, "it is the same");
        taken.belongs_to(Some("2"));
        assert_eq!(taken.failures, 0, "it is another");
    }

    #[test]
    fn a_pass_over_a_channel_that_goes_meanwhile_puts_nothing_back() {
        let (channels, orders) =
            (RememberedChannels::default(), ObjectRef::new("orders").within("shop"));
        let mut taken = channels.take(&orders);
        taken.failed();
        channels.forget(&orders);
        drop(taken);
        assert!(!channels.knows(&orders));
        channels.take(&orders).failed();
        assert!(channels.knows(&orders), "the next one of its name is remembered");
        channels.forget(&orders);
        assert!(!channels.knows(&orders));
    }

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let mut remembered = Remembered::default();
        let pauses: Vec<_> = (0..8).map(|_| remembered.failed().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        remembered.succeeded();
        assert_eq!(remembered.failed().as_secs(), 1);
    }
}
