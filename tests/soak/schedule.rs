//! What goes wrong, and when: the same for the same seed, and the longer schedule begins with the
//! shorter one.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::events::TOPICS;

/// Nothing goes wrong before: subscribers connect.
const QUIET_START: Duration = Duration::from_secs(5);

/// A broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// That leads the stream when the fault begins.
    Leader,
    /// That leads JetStream as a whole.
    MetaLeader,
    Server(usize),
}

/// How a link fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Silent.
    Cut,
    /// Closed, and refused.
    Refused,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    KillBroker(Who),
    StopBroker(Who),
    /// All but this one: no quorum.
    StopTwoBrokers(usize),
    Isolate(Who, Link),
    CutBetween(usize, usize),
    KillPod(usize),
    RollPod(usize),
    StopPod(usize),
    /// A pod and all brokers.
    CutPod(usize, Link),
    /// A pod and one broker.
    CutOneLink(usize, usize, Link),
    StepDown,
    StepDownMeta,
    PurgeTopic(u64),
    /// Up to this many hundredths of what is kept.
    PurgeUpTo(u64),
    /// So many messages at places in hundredths of thousandths of what is kept.
    Delete(Vec<u64>),
    DeleteNewest,
    MaxMessages(u64),
    MaxBytes(u64),
    HangUp,
    Configure(Edit),
}

/// Another configuration of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) heartbeat: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) max_connection_age: Duration,
    pub(crate) max_connections: u32,
    pub(crate) cache_bytes: u64,
}

impl Fault {
    /// Its row in the table.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::KillBroker(_) => "broker killed",
            Self::StopBroker(_) => "broker stopped",
            Self::StopTwoBrokers(_) => "two brokers stopped",
            Self::Isolate(_, Link::Cut) => "broker cut off",
            Self::Isolate(_, Link::Refused) => "broker refused",
            Self::CutBetween(..) => "two brokers cut apart",
            Self::KillPod(_) => "pod killed",
            Self::RollPod(_) => "pod rolled",
            Self::StopPod(_) => "pod stopped",
            Self::CutPod(_, Link::Cut) => "pod cut off from NATS",
            Self::CutPod(_, Link::Refused) => "pod refused by NATS",
            Self::CutOneLink(..) => "pod loses one broker",
            Self::StepDown => "stream's leader steps down",
            Self::StepDownMeta => "JetStream's leader steps down",
            Self::PurgeTopic(_) => "purge of a topic",
            Self::PurgeUpTo(_) => "purge of the oldest",
            Self::Delete(_) => "events deleted",
            Self::DeleteNewest => "newest event deleted",
            Self::MaxMessages(_) => "maxMessages lowered",
            Self::MaxBytes(_) => "maxBytes lowered",
            Self::HangUp => "all hang up",
            Self::Configure(_) => "configuration edited",
        }
    }
}

/// A fault with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Since the soak began; later if the one before it in its track is not over.
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    pub(crate) fault: Fault,
}

/// Faults of one subject follow each other; those of different subjects overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// At most one broker fails at a time, but where quorum is meant to be lost.
    pub(crate) brokers: Vec<Planned>,
    pub(crate) pods: Vec<Planned>,
    pub(crate) links: Vec<Planned>,
    pub(crate) stream: Vec<Planned>,
    pub(crate) clients: Vec<Planned>,
    pub(crate) configuration: Vec<Planned>,
}

impl Schedule {
    /// What `seed` has in store for a soak of this length.
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        let mut number = 0;
        let mut track = |pause: [u64; 2], draw: fn(&mut StdRng) -> (Fault, [u64; 2])| {
            number += 1;
            let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(16) + number);
            let mut at = QUIET_START;
            let mut planned = Vec::new();
            loop {
                at += millis(&mut rng, pause);
                let (fault, lasts) = draw(&mut rng);
                let lasts = millis(&mut rng, lasts);
                if at + lasts > length {
                    return planned;
                }
                planned.push(Planned { at, lasts, fault });
                at += lasts;
            }
        };
        Self {
            brokers: track([2_000, 7_000], broker),
            pods: track([3_000, 9_000], pod),
            links: track([3_000, 10_000], link),
            stream: track([1_000, 5_000], stream),
            clients: track([8_000, 20_000], |_| (Fault::HangUp, [0, 0])),
            configuration: track([4_000, 12_000], configuration),
        }
    }

    /// All of it, by time.
    pub(crate) fn all(&self) -> Vec<&Planned> {
        let Self { brokers, pods, links, stream, clients, configuration } = self;
        let mut all: Vec<&Planned> =
            [brokers, pods, links, stream, clients, configuration].into_iter().flatten().collect();
        all.sort_by_key(|planned| planned.at);
        all
    }
}

fn millis(rng: &mut StdRng, [least, most]: [u64; 2]) -> Duration {
    Duration::from_millis(rng.random_range(least..=most))
}

fn who(rng: &mut StdRng) -> Who {
    match rng.random_range(0..7) {
        0..3 => Who::Leader,
        3 => Who::MetaLeader,
        other => Who::Server(other - 4),
    }
}

fn way(rng: &mut StdRng) -> Link {
    if rng.random_bool(0.65) { Link::Cut } else { Link::Refused }
}

fn broker(rng: &mut StdRng) -> (Fault, [u64; 2]) {
    match rng.random_range(0..10) {
        0..3 => (Fault::KillBroker(who(rng)), [500, 8_000]),
        3 => (Fault::StopBroker(who(rng)), [500, 12_000]),
        4 => (Fault::StopTwoBrokers(rng.random_range(0..3)), [1_000, 6_000]),
        5 => {
            let one = rng.random_range(0..3);
            (Fault::CutBetween(one, (one + 1) % 3), [3_000, 15_000])
        }
        _ => (Fault::Isolate(who(rng), way(rng)), [3_000, 20_000]),
    }
}

fn pod(rng: &mut StdRng) -> (Fault, [u64; 2]) {
    let pod = rng.random_range(0..3);
    match rng.random_range(0..6) {
        0..3 => (Fault::KillPod(pod), [0, 3_000]),
        3 => (Fault::RollPod(pod), [0, 1_000]),
        _ => (Fault::StopPod(pod), [300, 12_000]),
    }
}

fn link(rng: &mut StdRng) -> (Fault, [u64; 2]) {
    let pod = rng.random_range(0..3);
    match rng.random_range(0..3) {
        0 => (Fault::CutPod(pod, way(rng)), [1_000, 10_000]),
        _ => (Fault::CutOneLink(pod, rng.random_range(0..3), way(rng)), [1_000, 15_000]),
    }
}

fn stream(rng: &mut StdRng) -> (Fault, [u64; 2]) {
    match rng.random_range(0..14) {
        0..2 => (Fault::StepDown, [0, 0]),
        2 => (Fault::StepDownMeta, [0, 0]),
        3 => (Fault::PurgeTopic(rng.random_range(0..TOPICS)), [0, 0]),
        4 => (Fault::PurgeUpTo(rng.random_range(5..70)), [0, 0]),
        5..8 => {
            let count = rng.random_range(1..12);
            (Fault::Delete((0..count).map(|_| rng.random_range(0..100_000)).collect()), [0, 0])
        }
        8..10 => (Fault::DeleteNewest, [0, 0]),
        10..12 => (Fault::MaxMessages(rng.random_range(300..3_000)), [1_000, 10_000]),
        _ => (Fault::MaxBytes(rng.random_range(200_000..1_500_000)), [1_000, 10_000]),
    }
}

fn configuration(rng: &mut StdRng) -> (Fault, [u64; 2]) {
    let edit = Edit {
        heartbeat: millis(rng, [1_000, 3_000]),
        write_timeout: millis(rng, [2_000, 8_000]),
        max_connection_age: Duration::from_secs(*pick(rng, &[0, 0, 10, 30])),
        max_connections: *pick(rng, &[50_000, 50_000, 50_000, 70]),
        cache_bytes: *pick(rng, &[1 << 20, 4 << 20, 16 << 20]),
    };
    (Fault::Configure(edit), [0, 0])
}

fn pick<'a, T>(rng: &mut StdRng, of: &'a [T]) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_schedule_and_a_longer_one_begins_with_the_shorter() {
        let (short, long) = (Duration::from_secs(60), Duration::from_secs(600));
        assert_eq!(Schedule::new(7, long), Schedule::new(7, long));
        assert_ne!(Schedule::new(7, long), Schedule::new(8, long));
        let (few, many) = (Schedule::new(7, short), Schedule::new(7, long));
        assert!(many.brokers.starts_with(&few.brokers[..few.brokers.len() - 1]));
        assert!(many.stream.starts_with(&few.stream) && !few.stream.is_empty());
    }

    #[test]
    fn in_ten_minutes_everything_goes_wrong_and_ends_in_time() {
        let length = Duration::from_secs(600);
        let schedule = Schedule::new(1, length);
        let mut kinds: Vec<&str> = schedule.all().iter().map(|p| p.fault.kind()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), 22, "{kinds:?}");
        assert!(schedule.all().iter().all(|p| p.at >= QUIET_START && p.at + p.lasts <= length));
    }

    #[test]
    fn the_short_run_has_nearly_all_kinds() {
        let schedule = Schedule::new(crate::SEED, Duration::from_secs(crate::SECONDS));
        let kinds: std::collections::BTreeSet<_> =
            schedule.all().iter().map(|p| p.fault.kind()).collect();
        assert!(kinds.len() >= 18, "choose another seed: {kinds:?}");
    }
}
