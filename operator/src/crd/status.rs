//! `status`: what was observed. `stream` and `mark` are also read, as the one memory that outlives
//! the operator; nothing is made because a status asks for it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Observed state, as last reported by the operator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SseChannelStatus {
    /// metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,
    /// Ready, StreamReady, WorkloadAvailable, Exposed, Drifted, Reconciling, Stalled, Accepted: all
    /// eight condition types are always present.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "StreamStatus")]
    pub stream: Option<StreamStatus>,
    /// What is remembered of the stream's events, to know it again after NATS was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Mark")]
    pub mark: Option<Mark>,
    /// The pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "WorkloadStatus")]
    pub workload: Option<WorkloadStatus>,
    /// Where the channel is reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub endpoints: Vec<Endpoint>,
    /// Differences between spec and stream that were found and not repaired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub drift: Vec<Drift>,
}

/// The stream as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamStatus {
    /// Name of the stream.
    #[schemars(length(max = 128))]
    pub name: String,
    /// Identity of this life of the stream; the head of every cursor.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub epoch: String,
    /// When the stream was created, as nats-server says (RFC 3339).
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub created_time: String,
    /// Whether the stream's metadata names this channel.
    #[serde(default)]
    pub owned: bool,
}

/// One event of the stream, remembered where a restored NATS does not bring it back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    /// Its sequence; 0 while the stream is empty.
    pub sequence: i64,
    /// When nats-server stored it (RFC 3339).
    #[schemars(length(max = 64))]
    pub time: String,
    /// How often the stream has been given a new epoch.
    #[serde(default)]
    pub epochs: i64,
}

/// The pods as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// Pods.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods that are ready, of those that are wanted: 2/3.
    #[serde(default)]
    #[schemars(length(max = 24))]
    pub ready: String,
    /// Pods updated to the current template.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Label selector of the pods.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub selector: String,
}

/// Where the channel is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// From where.
    #[serde(rename = "type")]
    pub type_: EndpointType,
    /// Address.
    #[schemars(length(max = 1024))]
    pub url: String,
}

/// From where an endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum EndpointType {
    /// From inside the cluster.
    Internal,
    /// From outside.
    External,
}

/// One difference between spec and stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// Field, by its path in the spec where it has one.
    #[schemars(length(max = 128))]
    pub field: String,
    /// What the spec says.
    #[schemars(length(max = 256))]
    pub desired: String,
    /// What was found.
    #[schemars(length(max = 256))]
    pub observed: String,
}
