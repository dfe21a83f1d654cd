//! What the operator counts.

mod queue;

use std::{collections::HashMap, sync::atomic::AtomicI64};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use parking_lot::Mutex;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub(crate) use queue::Queue;

/// The condition that has a series for each channel.
const READY: &str = "Ready";

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Channel {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Said {
    condition: String,
    status: String,
    reason: String,
}

/// Counters of the operator; shared by reference.
pub(crate) struct Metrics {
    registry: Registry,
    /// Passes and their queue.
    pub(crate) queue: Queue,
    scopes: Family<Scope, Gauge<i64, AtomicI64>>,
    followed: Gauge<i64, AtomicI64>,
    rolling: Gauge<i64, AtomicI64>,
    held: Gauge<i64, AtomicI64>,
    writes: Family<Write, Counter>,
    nats_up: Gauge<i64, AtomicI64>,
    nats_connects: Gauge<i64, AtomicI64>,
    leader: Gauge<i64, AtomicI64>,
    leader_transitions: Counter,
    channel_ready: Family<Channel, Gauge>,
    channels: Family<Said, Gauge>,
    /// What the conditions of each channel say.
    said: Mutex<HashMap<Channel, Vec<Said>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::default();
        let queue = Queue::register(&mut all);
        let registry = all.sub_registry_with_prefix("sluice_operator");
        let build: Family<Build, Gauge<i64, AtomicI64>> = Family::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        let (writes, scopes) = (Family::default(), Family::default());
        let (followed, rolling, held) = (Gauge::default(), Gauge::default(), Gauge::default());
        let (channel_ready, channels) = (Family::default(), Family::default());
        let (nats_up, nats_connects) = (Gauge::default(), Gauge::default());
        let (leader, leader_transitions) = (Gauge::default(), Counter::default());
        registry.register("build_info", "1, labelled with the version", build);
        registry.register(
            "scope_followed",
            "1 while the channels of a namespace can be followed; * is all namespaces",
            Family::clone(&scopes),
        );
        registry.register("channels_followed", "Channels that are known", followed.clone());
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
        registry.register(
            "channel_ready",
            "1 if the channel is ready, else 0",
            channel_ready.clone(),
        );
        registry.register(
            "channels",
            "Channels by what each of their conditions says",
            channels.clone(),
        );
        Self {
            registry: all,
            queue,
            scopes,
            followed,
            rolling,
            held,
            writes,
            nats_up,
            nats_connects,
            leader,
            leader_transitions,
            channel_ready,
            channels,
            said: Mutex::default(),
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
        self.followed.set(i64::try_from(channels).unwrap_or(i64::MAX));
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

    /// What the conditions of a channel say now.
    pub(crate) fn channel(&self, namespace: &str, name: &str, conditions: &[Condition]) {
        let channel = Channel { namespace: namespace.to_owned(), name: name.to_owned() };
        let said: Vec<Said> = conditions
            .iter()
            .map(|c| Said {
                condition: c.type_.clone(),
                status: c.status.clone(),
                reason: c.reason.clone(),
            })
            .collect();
        let mut all = self.said.lock();
        if all.get(&channel) == Some(&said) {
            return;
        }
        let is_ready = said.iter().any(|s| s.condition == READY && s.status == "True");
        self.channel_ready.get_or_create(&channel).set(i64::from(is_ready));
        for one in &said {
            self.channels.get_or_create(one).inc();
        }
        self.unsay(all.insert(channel, said));
    }

    /// A channel is no more. Answers whether it was known.
    pub(crate) fn forget_channel(&self, namespace: &str, name: &str) -> bool {
        let channel = Channel { namespace: namespace.to_owned(), name: name.to_owned() };
        let mut all = self.said.lock();
        let said = all.remove(&channel);
        self.channel_ready.remove(&channel);
        let was_known = said.is_some();
        self.unsay(said);
        was_known
    }

    /// Another operator reconciles the channels, and counts them.
    pub(crate) fn forget_channels(&self) {
        let mut all = self.said.lock();
        all.clear();
        self.channel_ready.clear();
        self.channels.clear();
    }

    /// While `said` is locked: counting up and down must not overtake each other.
    fn unsay(&self, said: Option<Vec<Said>>) {
        for one in said.into_iter().flatten() {
            // A reason that no channel has is no series.
            if self.channels.get_or_create(&one).dec() <= 1 {
                self.channels.remove(&one);
            }
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

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn ready(status: &str, reason: &str) -> Vec<Condition> {
        vec![Condition {
            type_: READY.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: Some(1),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }]
    }

    fn series(metrics: &Metrics) -> Vec<String> {
        let text = metrics.text().unwrap();
        let ours =
            text.lines().filter(|l| l.starts_with("sluice_operator_channel") && l.contains('{'));
        let mut series: Vec<_> = ours.map(str::to_owned).collect();
        series.sort();
        series
    }

    #[test]
    fn series_of_channels_come_and_go_with_them() {
        let metrics = Metrics::default();
        metrics.channel("a", "x", &ready("True", "Ready"));
        metrics.channel("b", "x", &ready("True", "Ready"));
        metrics.channel("b", "x", &ready("True", "Ready"));
        assert_eq!(
            series(&metrics),
            [
                r#"sluice_operator_channel_ready{namespace="a",name="x"} 1"#,
                r#"sluice_operator_channel_ready{namespace="b",name="x"} 1"#,
                r#"sluice_operator_channels{condition="Ready",status="True",reason="Ready"} 2"#,
            ]
        );
        metrics.channel("b", "x", &ready("False", "PodsRefused"));
        assert!(metrics.forget_channel("a", "x"));
        assert!(!metrics.forget_channel("a", "x"));
        assert_eq!(
            series(&metrics),
            [
                r#"sluice_operator_channel_ready{namespace="b",name="x"} 0"#,
                r#"sluice_operator_channels{condition="Ready",status="False",reason="PodsRefused"} 1"#,
            ]
        );
        metrics.forget_channels();
        assert!(series(&metrics).is_empty());
    }
}
