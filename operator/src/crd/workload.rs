//! `spec.workload`, `spec.service` and what surrounds the pods of a channel.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults::of_nothing,
    text::{Amount, IMAGE_MESSAGE, IMAGE_RULE, NAME_MESSAGE, NAME_RULE},
};

/// The pods that serve a channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.autoscaling) || !has(self.autoscaling.cpuUtilization) || 'cpu' in self.resources.requests")
        .message("is a share of the processor that a pod requests: set workload.resources.requests.cpu").field_path(".autoscaling.cpuUtilization"),
)]
pub struct WorkloadSpec {
    /// Number of pods; with 0 the stream is kept and nothing served. Without effect while
    /// autoscaling is set.
    #[serde(default = "replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Number of pods by load, instead of replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Autoscaling")]
    pub autoscaling: Option<Autoscaling>,
    /// Image of the data plane, such as registry.example.com/sluice-dataplane:v2; another one
    /// rolls the pods. Default: the operator's setting.
    #[serde(default)]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(IMAGE_RULE).message(IMAGE_MESSAGE))]
    pub image: String,
    /// Resources of each pod.
    #[serde(default)]
    pub resources: Resources,
    /// Whether pods must be, or should be, on different nodes and in different zones.
    #[serde(default)]
    pub topology_spread: TopologySpread,
    /// Whether node drains take one pod at a time (a PodDisruptionBudget).
    #[serde(default)]
    pub disruption_budget: Switch,
    /// Seconds that a pod has to hand its subscribers over when it stops.
    #[serde(default = "grace")]
    #[schemars(range(min = 10, max = 900))]
    pub termination_grace_period_seconds: i64,
    /// Service account of the pods. Default: one made for the channel, without any rights.
    #[serde(default)]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(NAME_RULE).message(NAME_MESSAGE))]
    pub service_account_name: String,
    /// Priority class of the pods.
    #[serde(default)]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(NAME_RULE).message(NAME_MESSAGE))]
    pub priority_class_name: String,
    /// Labels that a node must have.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Secrets for pulling the image.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub image_pull_secrets: Vec<ImagePullSecret>,
    /// Annotations of the pods.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("!self.exists(k, k.startsWith('sluice.dev/'))")
        .message("must not contain sluice.dev/ keys: the operator sets those itself"))]
    pub pod_annotations: BTreeMap<String, String>,
    /// Labels of the pods, beside the operator's own.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("!self.exists(k, k.startsWith('app.kubernetes.io/') || k.startsWith('sluice.dev/'))")
        .message("must not contain app.kubernetes.io/ or sluice.dev/ keys: the operator sets those itself"))]
    pub pod_labels: BTreeMap<String, String>,
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        of_nothing()
    }
}

fn replicas() -> i32 {
    2
}
fn grace() -> i64 {
    60
}

/// Number of pods by load. With both measures the larger number counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas").message("must be at least minReplicas").field_path(".maxReplicas"),
    validation = Rule::new("has(self.connectionsPerPod) || has(self.cpuUtilization)")
        .message("needs something to scale by: set connectionsPerPod, cpuUtilization or both"),
)]
pub struct Autoscaling {
    /// Fewest pods, however few streams are open.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most pods, however many streams are open.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Open streams per pod to aim at. The operator counts them: up at once, down after five
    /// minutes of less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = 1_000_000))]
    pub connections_per_pod: Option<i32>,
    /// Processor use to aim at, percent of the request, by a HorizontalPodAutoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = 100))]
    pub cpu_utilization: Option<i32>,
}

/// Resources of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    // By name: the estimated cost of a rule counts every entry that a map may have.
    validation = Rule::new("['cpu', 'memory', 'ephemeral-storage'].all(k, !(k in self.requests) || !(k in self.limits) || !isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k])) || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)")
        .message("must be at least what is requested: raise resources.limits or lower resources.requests").field_path(".limits"),
)]
pub struct Resources {
    /// What the scheduler sets aside, by resource. Default: cpu 100m, memory 128Mi.
    #[serde(default = "requests")]
    #[schemars(extend("maxProperties" = 8))]
    pub requests: BTreeMap<String, Amount>,
    /// What the pod may not pass, by resource; at least what is requested. Default: memory 512Mi.
    #[serde(default = "limits")]
    #[schemars(extend("maxProperties" = 8))]
    pub limits: BTreeMap<String, Amount>,
}

impl Default for Resources {
    fn default() -> Self {
        of_nothing()
    }
}

fn requests() -> BTreeMap<String, Amount> {
    BTreeMap::from([("cpu".to_owned(), "100m".into()), ("memory".to_owned(), "128Mi".into())])
}
fn limits() -> BTreeMap<String, Amount> {
    BTreeMap::from([("memory".to_owned(), "512Mi".into())])
}

/// How pods are spread over nodes and zones.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum TopologySpread {
    /// Anywhere.
    None,
    /// Apart where possible.
    #[default]
    Preferred,
    /// Apart, or not scheduled.
    Required,
}

/// On or off; on by default.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Switch {
    /// On.
    #[default]
    Enabled,
    /// Off.
    Disabled,
}

/// A Secret for pulling images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ImagePullSecret {
    /// Name of the Secret in the channel's namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(NAME_RULE).message(NAME_MESSAGE))]
    pub name: String,
}

/// The Service in front of the pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Kind of Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Whether one client is kept on one pod. Only a hint for the cache: any pod can resume any
    /// client.
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    /// Families of the Service's addresses. PreferDualStack takes both where the cluster has both,
    /// and is of no effect where it has one; SingleStack takes the cluster's first.
    #[serde(default)]
    pub ip_family_policy: IpFamilyPolicy,
    /// Annotations of the Service.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("!self.exists(k, k.startsWith('sluice.dev/'))")
        .message("must not contain sluice.dev/ keys: the operator sets those itself"))]
    pub annotations: BTreeMap<String, String>,
}

/// Families of a Service's addresses.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum IpFamilyPolicy {
    /// One, the cluster's first.
    SingleStack,
    /// IPv4 and IPv6 where the cluster has both.
    #[default]
    PreferDualStack,
    /// IPv4 and IPv6, or no Service.
    RequireDualStack,
}

/// Kind of Service.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum ServiceType {
    /// Inside the cluster.
    #[default]
    ClusterIP,
    /// On a port of every node.
    NodePort,
    /// Through the cloud's load balancer.
    LoadBalancer,
}

/// Whether one client is kept on one pod.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum SessionAffinity {
    /// No.
    #[default]
    None,
    /// By client address.
    ClientIP,
}

/// How the pods are monitored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MonitoringSpec {
    /// Whether a PodMonitor of the Prometheus operator is made.
    #[serde(default)]
    pub pod_monitor: PodMonitor,
}

/// Whether a PodMonitor is made.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum PodMonitor {
    /// None is made.
    #[default]
    Disabled,
    /// One is made, where the Prometheus operator's definitions are installed.
    Enabled,
}
