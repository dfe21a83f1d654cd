//! How much all streams of a namespace may reserve, pure.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::{Ask, PREFIX, Refusal, Size};
use crate::crd::{ManagementPolicy, SseChannel};

/// A channel of the namespace that asks for room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its name.
    pub name: String,
    /// Its stream.
    pub stream: String,
    /// Bytes that it wants to reserve.
    pub wants: u64,
}

impl Asking {
    /// What `channel` asks for; `None` where no stream is made for it now.
    #[must_use]
    pub fn of(channel: &SseChannel, ask: &Ask) -> Option<Self> {
        let enforced = channel.spec.management_policy == ManagementPolicy::Enforce;
        (enforced && channel.metadata.deletion_timestamp.is_none()).then(|| Self {
            created: channel.creation_timestamp().map(|time| time.0),
            name: channel.name_any(),
            stream: ask.stream.clone(),
            wants: ask.reserves(),
        })
    }
}

/// What is told of a channel that `wants` more than there is room for beside `used`; `all` is what
/// a sufficient quota would be, if that is known.
#[must_use]
pub fn refusal(used: u64, wants: u64, quota: &Size, all: Option<u64>) -> Refusal {
    let message = format!(
        "spec.stream.maxBytes × replicas is {}, and the namespace's streams reserve {} of {} already: lower it, or set the annotation {PREFIX}quota of the Namespace to allow more",
        size_text(wants),
        size_text(used),
        quota.text
    );
    let all = all.unwrap_or_else(|| used.saturating_add(wants));
    Refusal { message, annotation: Some(("quota", size_text(all))) }
}

/// Whole units where that is exact.
fn size_text(bytes: u64) -> String {
    let fits = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)]
        .into_iter()
        .find(|(_, bits)| bytes >= 1 << bits && bytes.trailing_zeros() >= *bits);
    fits.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}

/// Whether what the channel `name` wants fits into `quota`. `held` is what the namespace's streams
/// reserve, by their names: that counts first, also where it is more than the quota. What channels
/// want beyond it comes next, in the order of their creation and then of their names.
///
/// # Errors
/// What is reserved, with what comes before this channel.
pub fn fits(
    quota: u64,
    held: &BTreeMap<String, u64>,
    mut asking: Vec<Asking>,
    name: &str,
) -> Result<(), u64> {
    let mut used = held.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    asking.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    for one in asking {
        let more = one.wants.saturating_sub(held.get(&one.stream).copied().unwrap_or_default());
        let fits = more == 0 || used.saturating_add(more) <= quota;
        if one.name == name {
            return if fits { Ok(()) } else { Err(used) };
        }
        if fits {
            used = used.saturating_add(more);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str, created: i64, wants: u64) -> Asking {
        let created = Some(Timestamp::from_second(created).unwrap());
        Asking { created, name: name.to_owned(), stream: format!("s-{name}"), wants }
    }

    fn held(streams: &[(&str, u64)]) -> BTreeMap<String, u64> {
        streams.iter().map(|(name, bytes)| (format!("s-{name}"), *bytes)).collect()
    }

    fn who_fits(quota: u64, streams: &[(&str, u64)], channels: &[Asking]) -> Vec<String> {
        let fits = |c: &&Asking| fits(quota, &held(streams), channels.to_vec(), &c.name).is_ok();
        channels.iter().filter(fits).map(|c| c.name.clone()).collect()
    }

    #[test]
    fn streams_that_exist_count_first_then_creation_then_the_name() {
        let channels = [channel("b", 1, 6), channel("a", 1, 6), channel("c", 0, 3)];
        assert_eq!(who_fits(10, &[], &channels), ["a", "c"]);
        // What exists is never taken away.
        assert_eq!(who_fits(10, &[("b", 6)], &channels), ["b", "c"]);
        assert_eq!(who_fits(1, &[("b", 6), ("a", 6)], &channels), ["b", "a"]);
        // A stream whose channel has gone holds what it holds.
        assert_eq!(who_fits(10, &[("gone", 9)], &channels), [""; 0]);
    }

    #[test]
    fn a_raise_that_does_not_fit_leaves_room_for_what_does() {
        let channels = [channel("a", 0, 9), channel("b", 1, 4)];
        assert_eq!(who_fits(10, &[("a", 5), ("b", 3)], &channels), ["b"]);
        assert_eq!(who_fits(13, &[("a", 5), ("b", 3)], &channels), ["a", "b"]);
        let refused = fits(10, &held(&[("a", 5), ("b", 3)]), channels.to_vec(), "a");
        assert_eq!(refused, Err(8));
    }

    #[test]
    fn sums_do_not_overflow() {
        let channels = [channel("a", 0, u64::MAX), channel("b", 1, u64::MAX)];
        assert_eq!(who_fits(u64::MAX - 1, &[("c", u64::MAX)], &channels), [""; 0]);
    }
}
