//! How many channels replace their pods at a time when it is not their own spec that asks for it: a
//! new default image, or a release whose pods look otherwise, concerns all channels at once.
//!
//! A channel that has to wait keeps its pods, and serves. A roll-out that gets stuck holds its
//! place for a while, so that a default that does not work stops with the first channels.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;

use crate::{crd::SseChannel, metrics::Metrics};

type Channel = ObjectRef<SseChannel>;

/// How long a roll-out counts that does not come to its end: as long as Kubernetes waits before it
/// says that a Deployment makes no progress. One channel whose pods cannot start must not hold up
/// the others for ever.
const LIMIT: Duration = Duration::from_secs(600);

/// How many channels may replace their pods at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaxRolling {
    /// Of all channels, rounded up.
    Percent(usize),
    Channels(usize),
}

impl MaxRolling {
    fn of(self, channels: usize) -> usize {
        match self {
            Self::Percent(percent) => channels.saturating_mul(percent).div_ceil(100).max(1),
            Self::Channels(count) => count,
        }
    }
}

impl FromStr for MaxRolling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse::<usize>().ok().filter(|number| *number > 0);
        let found = match text.strip_suffix('%') {
            Some(percent) => number(percent).filter(|p| *p <= 100).map(Self::Percent),
            None => number(text).map(Self::Channels),
        };
        found.ok_or_else(|| "must be a number of channels, or 1% to 100%".to_owned())
    }
}

#[derive(Default)]
struct Inner {
    /// Since when.
    rolling: HashMap<Channel, Instant>,
    held: HashSet<Channel>,
}

/// The roll-outs that take turns.
pub(super) struct Rollouts {
    max: MaxRolling,
    inner: Mutex<Inner>,
    metrics: Arc<Metrics>,
}

impl Rollouts {
    pub(super) fn new(max: MaxRolling, metrics: Arc<Metrics>) -> Self {
        Self { max, inner: Mutex::default(), metrics }
    }

    /// Whether it is the turn of `channel`, one of `channels`, to replace its pods.
    pub(super) fn may_begin(&self, channel: &Channel, channels: usize) -> bool {
        let mut inner = self.inner.lock();
        inner.rolling.retain(|_, since| since.elapsed() < LIMIT);
        let may =
            inner.rolling.contains_key(channel) || inner.rolling.len() < self.max.of(channels);
        if may {
            inner.held.remove(channel);
            inner.rolling.entry(channel.clone()).or_insert_with(Instant::now);
        } else {
            inner.held.insert(channel.clone());
        }
        self.tell(&inner);
        may
    }

    /// The pods of `channel` are as they should be, or are not replaced in its turn any more.
    pub(super) fn is_over(&self, channel: &Channel) {
        let mut inner = self.inner.lock();
        let was_rolling = inner.rolling.remove(channel).is_some();
        if inner.held.remove(channel) || was_rolling {
            self.tell(&inner);
        }
    }

    /// Another operator may have acted since.
    pub(super) fn forget_all(&self) {
        let mut inner = self.inner.lock();
        *inner = Inner::default();
        self.tell(&inner);
    }

    fn tell(&self, inner: &Inner) {
        self.metrics.rollouts(inner.rolling.len(), inner.held.len());
    }
}

/// Whether all pods are of the newest template and available.
pub(super) fn is_complete(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return false };
    let count = |count: Option<i32>| count.unwrap_or_default();
    status.observed_generation >= deployment.metadata.generation
        && count(status.updated_replicas) == wanted
        && count(status.replicas) == wanted
        && count(status.available_replicas) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(n: usize) -> Channel {
        ObjectRef::new(&format!("c{n}")).within("shop")
    }

    #[test]
    fn a_share_is_of_all_channels_and_one_at_least() {
        let of = |text: &str, channels| text.parse::<MaxRolling>().unwrap().of(channels);
        assert_eq!((of("10%", 1_000), of("10%", 11), of("10%", 1)), (100, 2, 1));
        assert_eq!((of("100%", 7), of("3", 1_000), of("1%", 0)), (7, 3, 1));
        for wrong in ["", "%", "0", "0%", "101%", "-1", "1.5", "ten", "10 %"] {
            assert!(wrong.parse::<MaxRolling>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn as_many_roll_as_may_and_each_gets_its_turn() {
        let rollouts = Rollouts::new(MaxRolling::Percent(10), Arc::default());
        let begun = |n: &usize| rollouts.may_begin(&channel(*n), 50);
        assert_eq!((0..50).filter(begun).count(), 5);
        assert_eq!((0..50).filter(begun).count(), 5, "the same ones");
        rollouts.is_over(&channel(0));
        assert!(begun(&49) && !begun(&48));
        rollouts.is_over(&channel(30));
        assert!(!begun(&48), "it had no place");
    }

    #[test]
    fn what_is_stuck_holds_its_place_for_a_while_only() {
        let rollouts = Rollouts::new(MaxRolling::Channels(1), Arc::default());
        assert!(rollouts.may_begin(&channel(0), 2) && !rollouts.may_begin(&channel(1), 2));
        for since in rollouts.inner.lock().rolling.values_mut() {
            *since = since.checked_sub(LIMIT).unwrap_or(*since);
        }
        assert!(rollouts.may_begin(&channel(1), 2));
        assert!(!rollouts.may_begin(&channel(0), 2));
    }

    #[test]
    fn it_is_complete_when_all_pods_are_new_and_available() {
        let deployment = |generation, updated, all, available| -> Deployment {
            serde_json::from_value(serde_json::json!({
                "metadata": {"generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"observedGeneration": generation, "updatedReplicas": updated,
                    "replicas": all, "availableReplicas": available},
            }))
            .unwrap()
        };
        assert!(is_complete(&deployment(2, 2, 2, 2)));
        for other in [(1, 2, 2, 2), (2, 1, 2, 2), (2, 2, 3, 2), (2, 2, 2, 1)] {
            assert!(!is_complete(&deployment(other.0, other.1, other.2, other.3)), "{other:?}");
        }
    }
}
