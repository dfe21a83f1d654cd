//! What the operator counts.

use std::{sync::atomic::AtomicI64, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: String,
    verb: &'static str,
}

/// Counters of the operator; shared by reference.
pub(crate) struct Metrics {
    registry: Registry,
    reconciles: Family<Outcome, Counter>,
    seconds: Histogram,
    writes: Family<Write, Counter>,
    nats_up: Gauge<i64, AtomicI64>,
    nats_connects: Gauge<i64, AtomicI64>,
    leader: Gauge<i64, AtomicI64>,
    leader_transitions: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sluice_operator");
        let (reconciles, writes) = (Family::default(), Family::default());
        let (nats_up, nats_connects) = (Gauge::default(), Gauge::default());
        let (leader, leader_transitions) = (Gauge::default(), Counter::default());
        // From one answer of the API server to the time limits of NATS added up.
        let seconds =
            Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        registry.register("reconciles", "Channel reconciliations by outcome", reconciles.clone());
        registry.register_with_unit(
            "reconcile",
            "Duration of a reconciliation",
            Unit::Seconds,
            seconds.clone(),
        );
        registry.register("api_writes", "Write requests to the API server", writes.clone());
        registry.register("nats_up", "1 while NATS is connected", nats_up.clone());
        registry.register("nats_connects", "How often NATS was connected", nats_connects.clone());
        registry.register("leader", "1 if this instance is the leader", leader.clone());
        registry.register(
            "leader_transitions",
            "How often this instance became leader or ceased to be it",
            leader_transitions.clone(),
        );
        Self {
            registry,
            reconciles,
            seconds,
            writes,
            nats_up,
            nats_connects,
            leader,
            leader_transitions,
        }
    }
}

impl Metrics {
    /// A pass is over.
    pub(crate) fn reconciled(&self, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Outcome { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// A write request is sent.
    pub(crate) fn api_write(&self, kind: &str, verb: &'static str) {
        self.writes.get_or_create(&Write { kind: kind.to_owned(), verb }).inc();
    }

    /// What is known of NATS.
    pub(crate) fn nats(&self, up: bool, connects: u64) {
        self.nats_up.set(i64::from(up));
        self.nats_connects.set(i64::try_from(connects).unwrap_or(i64::MAX));
    }

    /// Whether this operator acts.
    pub(crate) fn leader(&self, leads: bool) {
        let leads = i64::from(leads);
        if self.leader.set(leads) != leads {
            self.leader_transitions.inc();
        }
    }

    /// Everything as OpenMetrics text.
    ///
    /// # Errors
    /// Never for a `String`; the signature is the encoder's.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
