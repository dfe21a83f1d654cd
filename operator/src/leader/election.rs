//! What follows from what was seen of the lease: computation alone, so that every rule can be
//! tested with a clock that stands still.
//!
//! The rules are those of client-go. The lease's resource version is the lock: of two that write at
//! once one is refused. The times in the lease are for people; another's lease runs out by *our*
//! monotonic clock, counted from when its last renewal was seen here, and our own is counted from
//! before the request that renewed it was sent. So clocks that differ do no harm.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::api::ObjectMeta;
use tokio::time::{Duration, Instant};

use super::settings::Settings;

/// What is known of the lease.
pub(super) struct Election {
    settings: Settings,
    seen: Option<Seen>,
    /// When the request was sent by which the lease is ours.
    renewed: Option<Instant>,
}

struct Seen {
    lease: Lease,
    /// When it was first seen to say what it says.
    since: Instant,
    /// Whether it has been deleted since.
    gone: bool,
}

impl Election {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, seen: None, renewed: None }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The lease was read. If it is no longer ours, we lead no longer.
    pub(super) fn saw(&mut self, lease: Lease, now: Instant) {
        if holder_of(&lease) != Some(&self.settings.identity) {
            self.renewed = None;
        }
        let since = match &self.seen {
            // Only a renewal proves that its holder lives; another client's label does not.
            Some(seen) if seen.lease.spec == lease.spec => seen.since,
            _ => now,
        };
        self.seen = Some(Seen { lease, since, gone: false });
    }

    /// There is no lease. Its holder does not know yet, and leads until its time is over.
    pub(super) fn missing(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.gone = true;
        }
    }

    /// What we wrote, with a request sent at `asked`, was taken: the lease is ours.
    pub(super) fn won(&mut self, lease: Lease, asked: Instant) {
        self.seen = Some(Seen { lease, since: asked, gone: false });
        self.renewed = Some(asked);
    }

    /// Until when we may act.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|at| at + self.settings.renew_deadline)
    }

    /// Whether we may act now. Once the time is over it stays over until the lease is won anew.
    pub(super) fn leads(&mut self, now: Instant) -> bool {
        if self.leads_until().is_some_and(|until| now >= until) {
            self.renewed = None;
        }
        self.renewed.is_some()
    }

    /// The lease's holder, as it was seen last.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref().and_then(|seen| holder_of(&seen.lease)).map(String::as_str)
    }

    /// The lease to write in order to hold it from now on: to create, when it has no resource
    /// version, else to replace. `None` while another operator holds it.
    pub(super) fn claim(&self, now: Instant, wall: Timestamp) -> Option<Lease> {
        let Some(Seen { lease, since, gone }) = &self.seen else {
            return Some(self.lease(None, wall));
        };
        let ours = holder_of(lease) == Some(&self.settings.identity);
        let seconds = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|s| u64::try_from(s).ok());
        let duration = seconds.map_or(self.settings.lease_duration, Duration::from_secs);
        if !ours && holder_of(lease).is_some() && now < *since + duration {
            return None;
        }
        Some(self.lease(Some(lease).filter(|_| !gone), wall))
    }

    /// The lease to write in order to let go of it, if it is ours.
    pub(super) fn release(&self, wall: Timestamp) -> Option<Lease> {
        let seen = self
            .seen
            .as_ref()
            .filter(|seen| !seen.gone && holder_of(&seen.lease) == Some(&self.settings.identity))?;
        let mut lease = seen.lease.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(wall));
        // For programs that look at the times only.
        spec.lease_duration_seconds = Some(1);
        Some(lease)
    }

    fn lease(&self, found: Option<&Lease>, wall: Timestamp) -> Lease {
        let Settings { name, namespace, identity, lease_duration, .. } = &self.settings;
        let mut lease = found.cloned().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let before = lease.spec.take().unwrap_or_default();
        let is_new = before.holder_identity.as_ref() != Some(identity);
        lease.spec = Some(LeaseSpec {
            acquire_time: if is_new { Some(MicroTime(wall)) } else { before.acquire_time },
            holder_identity: Some(identity.clone()),
            lease_duration_seconds: Some(
                i32::try_from(lease_duration.as_secs()).unwrap_or(i32::MAX),
            ),
            lease_transitions: Some(
                before
                    .lease_transitions
                    .unwrap_or(0)
                    .saturating_add(i32::from(is_new && found.is_some())),
            ),
            renew_time: Some(MicroTime(wall)),
            ..before
        });
        lease
    }
}

/// An empty name means that there is no holder.
fn holder_of(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);
    const DEADLINE: Duration = Duration::from_secs(10);

    fn election(identity: &str) -> Election {
        Election::new(Settings {
            name: "operator".into(),
            namespace: "system".into(),
            identity: identity.into(),
            lease_duration: LEASE,
            renew_deadline: DEADLINE,
            retry_period: Duration::from_secs(2),
        })
    }

    /// As the API server would answer.
    fn stored(mut lease: Lease, version: u32) -> Lease {
        lease.metadata.resource_version = Some(version.to_string());
        lease
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// `a` has just won the lease by a request of `now`.
    fn won(now: Instant) -> (Election, Lease) {
        let mut a = election("a");
        let lease = stored(a.claim(now, at(0)).expect("nobody holds it"), 1);
        a.won(lease.clone(), now);
        (a, lease)
    }

    #[test]
    fn the_first_creates_it() {
        let now = Instant::now();
        let (mut a, lease) = won(now);
        assert_eq!(
            (lease.metadata.name.as_deref(), lease.metadata.namespace.as_deref()),
            (Some("operator"), Some("system"))
        );
        let spec = lease.spec.as_ref().unwrap();
        assert_eq!(
            (spec.holder_identity.as_deref(), spec.lease_duration_seconds, spec.lease_transitions),
            (Some("a"), Some(15), Some(0))
        );
        assert_eq!(
            (&spec.acquire_time, &spec.renew_time),
            (&Some(MicroTime(at(0))), &Some(MicroTime(at(0))))
        );
        assert!(a.leads(now));
    }

    #[test]
    fn a_renewal_carries_the_lock_and_keeps_the_history() {
        let now = Instant::now();
        let (a, lease) = won(now);
        let renewal = a.claim(now + Duration::from_secs(2), at(2)).unwrap();
        assert_eq!(renewal.metadata.resource_version, lease.metadata.resource_version);
        let spec = renewal.spec.unwrap();
        assert_eq!(
            (spec.acquire_time, spec.renew_time),
            (Some(MicroTime(at(0))), Some(MicroTime(at(2))))
        );
        assert_eq!(spec.lease_transitions, Some(0));
    }

    #[test]
    fn acting_ends_at_the_deadline_counted_from_before_the_request() {
        let now = Instant::now();
        let (mut a, lease) = won(now);
        assert!(a.leads(now + DEADLINE - Duration::from_millis(1)));
        // An answer that was long under way gives no time that has passed already.
        a.won(lease, now + Duration::from_secs(3));
        assert!(a.leads(now + DEADLINE));
        assert!(!a.leads(now + DEADLINE + Duration::from_secs(3)));
        assert!(!a.leads(now), "it is over until the lease is won anew");
    }

    #[test]
    fn anothers_lease_runs_out_by_our_own_clock() {
        let now = Instant::now();
        let (_, lease) = won(now);
        let mut b = election("b");
        // The holder's clock may be years ahead or behind: its times are not looked at.
        for years in [-10, 10] {
            let mut odd = lease.clone();
            odd.spec.as_mut().unwrap().renew_time = Some(MicroTime(at(years * 31_536_000)));
            b.seen = None;
            b.saw(odd.clone(), now);
            assert!(b.claim(now + LEASE - Duration::from_millis(1), at(0)).is_none());
            b.saw(odd, now + Duration::from_secs(5));
            assert!(b.claim(now + LEASE, at(0)).is_some(), "reading it again is no renewal");
        }
        assert!(!b.leads(now + LEASE), "a claim is nothing before it is taken");
    }

    #[test]
    fn a_renewal_is_seen_and_a_label_is_none() {
        let now = Instant::now();
        let (a, lease) = won(now);
        let mut b = election("b");
        b.saw(lease, now);
        let renewed = stored(a.claim(now + Duration::from_secs(2), at(2)).unwrap(), 2);
        b.saw(renewed.clone(), now + Duration::from_secs(3));
        assert!(b.claim(now + LEASE, at(0)).is_none());
        let mut labelled = stored(renewed, 3);
        labelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        b.saw(labelled, now + Duration::from_secs(9));
        let taken = b.claim(now + Duration::from_secs(3) + LEASE, at(20)).unwrap();
        assert_eq!(taken.metadata.resource_version.as_deref(), Some("3"));
        assert!(taken.metadata.labels.is_some(), "what others wrote into it stays");
        let spec = taken.spec.unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(1)));
        assert_eq!(spec.acquire_time, Some(MicroTime(at(20))));
    }

    #[test]
    fn the_holder_says_how_long_it_holds() {
        let now = Instant::now();
        let (_, mut lease) = won(now);
        lease.spec.as_mut().unwrap().lease_duration_seconds = Some(60);
        let mut b = election("b");
        b.saw(lease, now);
        assert!(b.claim(now + LEASE, at(0)).is_none());
        assert!(b.claim(now + Duration::from_secs(60), at(0)).is_some());
    }

    #[test]
    fn what_was_released_is_free_at_once() {
        let now = Instant::now();
        let (a, _) = won(now);
        let free = stored(a.release(at(1)).unwrap(), 2);
        assert_eq!(free.spec.as_ref().unwrap().holder_identity, None);
        let mut b = election("b");
        b.saw(free, now);
        assert_eq!(b.claim(now, at(1)).unwrap().spec.unwrap().lease_transitions, Some(1));
        assert!(b.release(at(1)).is_none(), "only the holder lets go");
    }

    #[test]
    fn somebody_elses_name_in_it_ends_our_time_at_once() {
        let now = Instant::now();
        let (mut a, mut lease) = won(now);
        lease.spec.as_mut().unwrap().holder_identity = Some("b".into());
        a.saw(stored(lease, 2), now + Duration::from_secs(1));
        assert!(!a.leads(now + Duration::from_secs(1)));
        assert!(a.claim(now + Duration::from_secs(1), at(1)).is_none());
    }

    #[test]
    fn a_deleted_lease_still_binds_those_who_saw_it() {
        let now = Instant::now();
        let (mut a, lease) = won(now);
        let mut b = election("b");
        b.saw(lease, now);
        b.missing();
        assert!(b.claim(now + DEADLINE, at(0)).is_none(), "its holder leads still");
        assert_eq!(b.claim(now + LEASE, at(0)).unwrap().metadata.resource_version, None);
        a.missing();
        let again = a.claim(now + Duration::from_secs(1), at(1)).unwrap();
        assert_eq!(again.metadata.resource_version, None, "the holder makes it again");
    }
}
