//! `SseChannel` and its spec.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{
    delivery::{AuthSpec, DeliverySpec, PublishSpec},
    exposure::ExposureSpec,
    network::NetworkPolicySpec,
    status::SseChannelStatus,
    stream::{NatsSpec, StreamSpec},
    workload::{MonitoringSpec, ServiceSpec, WorkloadSpec},
};

/// What a channel should be. `spec: {}` is a working channel.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    cel,
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "SseChannel",
    plural = "ssechannels",
    singular = "ssechannel",
    shortname = "sse",
    category = "sse",
    namespaced,
    derive = "PartialEq",
    status = "SseChannelStatus",
    doc = "A channel of server-sent events over HTTP, kept in a JetStream stream: subscribers read GET /channels/<name>, and a reconnect misses nothing.",
    scale(
        spec_replicas_path = ".spec.workload.replicas",
        status_replicas_path = ".status.workload.replicas",
        label_selector_path = ".status.workload.selector"
    ),
    selectable = ".spec.stream.name",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Stream", type_ = "string", json_path = ".status.stream.name"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.workload.ready"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.endpoints[0].url"),
    printcolumn(name = "Exposed", type_ = "string", json_path = ".status.endpoints[?(@.type==\"External\")].url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Epoch", type_ = "string", json_path = ".status.stream.epoch", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 48 characters: a letter, then letters, digits or '-', all lower case, no dots"),
    validation = Rule::new("!has(self.spec.exposure.ingress) || self.spec.exposure.ingress.path in ['', '/', '/channels', '/channels/' + self.metadata.name]")
        .message("must be /, /channels or /channels/<name>: an Ingress cannot change the path, and pods serve the channel at /channels/<name>. For another path use exposure.httpRoute")
        .field_path(".spec.exposure.ingress.path"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.publish.mode != 'Http' || self.auth.mode != 'None' || self.publish.allowAnonymous")
        .message("mode Http without auth lets every client that reaches the channel publish: set publish.allowAnonymous: true if that is meant, or use mode Disabled")
        .field_path(".publish.mode"),
    validation = Rule::new("!has(self.nats)")
        .message("is not supported yet; leave it out, and the channel uses the operator's own NATS connection")
        .field_path(".nats").reason(Reason::FieldValueForbidden),
)]
pub struct SseChannelSpec {
    /// What the operator may do: enforce this spec, only report differences, or leave everything
    /// alone.
    #[serde(default)]
    pub management_policy: ManagementPolicy,
    /// The JetStream stream that keeps the events.
    #[serde(default)]
    pub stream: StreamSpec,
    /// A NATS connection of the channel's own. Not supported yet. Default: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NatsSpec")]
    pub nats: Option<NatsSpec>,
    /// How events are delivered.
    #[serde(default)]
    pub delivery: DeliverySpec,
    /// Which clients may read and publish.
    #[serde(default)]
    pub auth: AuthSpec,
    /// Whether events may be published over HTTP.
    #[serde(default)]
    pub publish: PublishSpec,
    /// The pods that serve the channel.
    #[serde(default)]
    pub workload: WorkloadSpec,
    /// The Service in front of the pods.
    #[serde(default)]
    pub service: ServiceSpec,
    /// How the channel is reached from outside the cluster.
    #[serde(default)]
    pub exposure: ExposureSpec,
    /// Which clients may reach the pods.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
    /// How the pods are monitored.
    #[serde(default)]
    pub monitoring: MonitoringSpec,
}

/// What the operator may do with a channel.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum ManagementPolicy {
    /// Make everything as the spec says.
    #[default]
    Enforce,
    /// Change nothing; report differences in the condition Drifted and in status.drift.
    Observe,
    /// Change nothing and look at nothing.
    Paused,
}
