//! What all parts of a run share: its time, its ledger, its numbers, and what it has found.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sluice_channel::Epoch;
use tokio::{sync::watch, time::Instant};

use crate::{
    balancer::Balancer,
    book::Book,
    judge::Finding,
    session::{Broken, Millis},
};

/// Findings that are printed in full; the others are counted by their kind.
const FINDINGS_SHOWN: usize = 6;
/// What is shown of the time line before and after a finding.
const AROUND: Duration = Duration::from_secs(20);
/// A pause between two events that is worth remembering.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the numbers are noted.
const SAMPLED: Duration = Duration::from_millis(250);

/// What happens to subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// No event follows the one with this sequence: read up to it, and end.
    Until(u64),
}

/// Numbers that only rise.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: AtomicU64,
    pub(crate) resumes: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) degraded: AtomicU64,
    /// Answers to POST and to requests for pages, by status.
    pub(crate) answers: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// Reasons of `channel.close`.
    pub(crate) closes: Mutex<BTreeMap<String, u64>>,
}

/// The numbers at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Snapshot {
    pub(crate) acknowledged: u64,
    pub(crate) received: u64,
    pub(crate) resumes: u64,
    pub(crate) expired: u64,
    pub(crate) deleted: u64,
}

impl Snapshot {
    fn zip(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            acknowledged: of(self.acknowledged, other.acknowledged),
            received: of(self.received, other.received),
            resumes: of(self.resumes, other.resumes),
            expired: of(self.expired, other.expired),
            deleted: of(self.deleted, other.deleted),
        }
    }
}

impl std::iter::Sum for Snapshot {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| sum.zip(one, u64::saturating_add))
    }
}

/// A run.
#[derive(Debug)]
pub(crate) struct Soak {
    pub(crate) seed: u64,
    pub(crate) epoch: Epoch,
    pub(crate) path: String,
    pub(crate) started: Instant,
    pub(crate) balancer: Balancer,
    pub(crate) phase: watch::Sender<Phase>,
    /// False: publishers end.
    pub(crate) publishing: watch::Sender<bool>,
    /// Changes when all subscribers are to hang up.
    pub(crate) anew: watch::Sender<()>,
    pub(crate) counts: Counts,
    book: Mutex<Book>,
    findings: Mutex<Vec<Finding>>,
    timeline: Mutex<Vec<(Duration, String)>>,
    /// From when to when a subscriber that follows the head waited for an event.
    pauses: Mutex<Vec<(Duration, Duration)>>,
    /// The numbers over time.
    samples: Mutex<Vec<(Duration, Snapshot)>>,
    numbers: AtomicU64,
}

impl Soak {
    pub(crate) fn new(seed: u64, epoch: Epoch, path: String, balancer: Balancer) -> Self {
        Self {
            seed,
            epoch,
            path,
            started: Instant::now(),
            balancer,
            phase: watch::Sender::new(Phase::Running),
            publishing: watch::Sender::new(true),
            anew: watch::Sender::new(()),
            counts: Counts::default(),
            book: Mutex::default(),
            findings: Mutex::default(),
            timeline: Mutex::default(),
            pauses: Mutex::default(),
            samples: Mutex::default(),
            numbers: AtomicU64::new(1),
        }
    }

    pub(crate) fn now(&self) -> Millis {
        Millis::try_from(self.started.elapsed().as_millis()).unwrap()
    }

    /// The number of the next event.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Relaxed)
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Adds a line to the time line.
    pub(crate) fn note(&self, line: impl Into<String>) {
        self.timeline.lock().unwrap().push((self.started.elapsed(), line.into()));
    }

    /// A promise was broken, now.
    pub(crate) fn broke(&self, by: &str, broken: Broken) {
        self.found(Finding { at: self.now(), by: by.to_owned(), broken });
    }

    pub(crate) fn found(&self, finding: Finding) {
        let mut findings = self.findings.lock().unwrap();
        if findings.len() < FINDINGS_SHOWN {
            let Finding { at, by, broken } = &finding;
            println!("! {:.1} s {by}: {}: {}", f64::from(*at) / 1e3, broken.kind, broken.what);
        }
        findings.push(finding);
    }

    pub(crate) fn check(&self, by: &str, result: Result<(), Broken>) {
        if let Err(broken) = result {
            self.broke(by, broken);
        }
    }

    pub(crate) fn answered(&self, what: &'static str, how: impl Into<String>) {
        *self.counts.answers.lock().unwrap().entry((what, how.into())).or_default() += 1;
    }

    pub(crate) fn closed(&self, reason: &str) {
        *self.counts.closes.lock().unwrap().entry(reason.to_owned()).or_default() += 1;
    }

    /// A subscriber that follows the head got nothing since `last`.
    pub(crate) fn paused(&self, last: Instant) {
        if last.elapsed() >= PAUSE {
            let span = (last.saturating_duration_since(self.started), self.started.elapsed());
            self.pauses.lock().unwrap().push(span);
        }
    }

    /// The longest of those pauses that fell, at least in part, between these two moments.
    pub(crate) fn longest_pause(&self, from: Duration, to: Duration) -> Duration {
        let pauses = self.pauses.lock().unwrap();
        let within = pauses.iter().filter(|(begin, end)| *begin <= to && *end >= from);
        within.map(|(begin, end)| *end - *begin).max().unwrap_or_default()
    }

    /// Notes the numbers, again and again.
    pub(crate) async fn sample(&self) {
        loop {
            let sample = (self.started.elapsed(), self.snapshot());
            self.samples.lock().unwrap().push(sample);
            tokio::time::sleep(SAMPLED).await;
        }
    }

    /// What was counted between two moments.
    pub(crate) fn between(&self, from: Duration, to: Duration) -> Snapshot {
        let samples = self.samples.lock().unwrap();
        let at = |moment| {
            let after = samples.partition_point(|(at, _)| *at <= moment);
            samples.get(after.saturating_sub(1)).map(|(_, sample)| *sample).unwrap_or_default()
        };
        at(to).zip(at(from), u64::saturating_sub)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let Counts { received, resumes, expired, deleted, .. } = &self.counts;
        Snapshot {
            acknowledged: self.book().acknowledged(),
            received: received.load(Relaxed),
            resumes: resumes.load(Relaxed),
            expired: expired.load(Relaxed),
            deleted: deleted.load(Relaxed),
        }
    }

    /// What was found so far: none, or a text with the time line around each finding.
    pub(crate) fn verdict(&self) -> Option<String> {
        let mut findings = self.findings.lock().unwrap().clone();
        findings.sort_by_key(|finding| finding.at);
        let mut kinds: BTreeMap<&str, (usize, Vec<&Finding>)> = BTreeMap::new();
        for finding in &findings {
            let (count, first) = kinds.entry(finding.broken.kind).or_default();
            *count += 1;
            if first.len() < FINDINGS_SHOWN {
                first.push(finding);
            }
        }
        if kinds.is_empty() {
            return None;
        }
        let timeline = self.timeline.lock().unwrap();
        let mut text = String::new();
        for (kind, (count, findings)) in kinds {
            text += &format!("\n{count} × {kind}\n");
            for Finding { at, by, broken } in &findings {
                text += &format!("  {:>7.1} s  {by}: {}\n", f64::from(*at) / 1e3, broken.what);
            }
            let at = Duration::from_millis(findings[0].at.into());
            text += "  what happened around the first of them:\n";
            for (when, line) in timeline.iter().filter(|(when, _)| when.abs_diff(at) < AROUND) {
                text += &format!("    {:>7.1} s  {line}\n", when.as_secs_f64());
            }
        }
        Some(text)
    }

    /// The whole time line, one line each.
    pub(crate) fn timeline(&self) -> String {
        let timeline = self.timeline.lock().unwrap();
        timeline.iter().map(|(at, line)| format!("{:.3} {line}\n", at.as_secs_f64())).collect()
    }
}
