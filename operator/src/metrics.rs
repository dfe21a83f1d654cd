//! What the operator counts.

mod queue;

use std::sync::atomic::AtomicI64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub(crate) use queue::Queue;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Scope {
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: String,
    verb: &'static str,
}

/// Counters of the operator; shared by reference.
pub(crate) struct Metrics {
    registry: Registry,
    /// Passes and their queue.
    pub(crate) queue: Queue,
    scopes: Family<Scope, Gauge<i64, AtomicI64>>,
    channels: Gauge<i64, AtomicI64>,
    rolling: Gauge<i64, AtomicI64>,
    held: Gauge<i64, AtomicI64>,
    writes: Family<Write, Counter>,
    nats_up: Gauge<i64, AtomicI64>,
    nats_connects: Gauge<i64, AtomicI64>,
    leader: Gauge<i64, AtomicI64>,
    leader_transitions: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::default();
        let queue = Queue::register(&mut all);
        let registry = all.sub_registry_with_prefix("sluice_operator");
        let build: Family<Build, Gauge<i64, AtomicI64>> = Family::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        let (writes, scopes) = (Family::default(), Family::default());
        let (channels, rolling, held) = (Gauge::default(), Gauge::default(), Gauge::default());
        let (nats_up, nats_connects) = (Gauge::default(), Gauge::default());
        let (leader, leader_transitions) = (Gauge::default(), Counter::default());
        registry.register("build_info", "1, labelled with the version", build);
        registry.register(
            "scope_followed",
            "1 while the channels of a namespace can be followed; * is all namespaces",
            Family::clone(&scopes),
        );
        registry.register("channels", "Channels that are known", channels.clone());
        registry.register(
            "rollouts",
            "Channels whose pods are being replaced in their turn",
            rolling.clone(),
        );
        registry.register(
            "rollouts_held",
            "Channels whose pods wait for their turn to be replaced",
            held.clone(),
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
            registry: all,
            queue,
            scopes,
            channels,
            rolling,
            held,
            writes,
            nats_up,
            nats_connects,
            leader,
            leader_transitions,
        }
    }
}

impl Metrics {
    /// Whether the channels of `namespace` (`*`: of all) can be followed.
    pub(crate) fn scope(&self, namespace: &str, is_followed: bool) {
        let labels = Scope { namespace: namespace.to_owned() };
        self.scopes.get_or_create(&labels).set(i64::from(is_followed));
    }

    /// How many channels are known.
    pub(crate) fn channels(&self, channels: usize) {
        self.channels.set(i64::try_from(channels).unwrap_or(i64::MAX));
    }

    /// How many channels replace their pods in their turn, and how many wait for it.
    pub(crate) fn rollouts(&self, rolling: usize, held: usize) {
        self.rolling.set(i64::try_from(rolling).unwrap_or(i64::MAX));
        self.held.set(i64::try_from(held).unwrap_or(i64::MAX));
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
        self.queue.refresh();
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
