//! Kinds that other projects define, as far as this operator speaks of them. Their definitions may
//! be missing in a cluster, so nothing watches them: they are looked at in each pass.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `gateway.networking.k8s.io/v1 HTTPRoute` (sigs.k8s.io/gateway-api, 1.2 or newer for its
/// timeouts).
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "HTTPRoute",
    plural = "httproutes",
    namespaced,
    schema = "disabled",
    status = "HTTPRouteStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HTTPRouteSpec {
    /// Gateways that take the route.
    pub(crate) parent_refs: Vec<ParentReference>,
    /// Host names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hostnames: Vec<String>,
    /// What is routed where.
    pub(crate) rules: Vec<Value>,
}

/// A Gateway, or one of its listeners.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ParentReference {
    pub(crate) name: String,
    /// Its namespace; the route's own when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// Name of its listener; all when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) section_name: Option<String>,
}

/// What Gateways say of a route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HTTPRouteStatus {
    /// One entry for each Gateway and controller.
    pub(crate) parents: Vec<RouteParentStatus>,
}

/// What one Gateway says of a route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RouteParentStatus {
    pub(crate) parent_ref: ParentReference,
    /// `Accepted`, `ResolvedRefs` and others.
    pub(crate) conditions: Vec<Condition>,
}

/// `monitoring.coreos.com/v1 PodMonitor` (prometheus-operator).
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "monitoring.coreos.com",
    version = "v1",
    kind = "PodMonitor",
    plural = "podmonitors",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodMonitorSpec {
    /// Pods in the monitor's namespace.
    pub(crate) selector: LabelSelector,
    /// Where each is scraped.
    pub(crate) pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

/// Where a pod is scraped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PodMetricsEndpoint {
    /// Name of the container's port.
    pub(crate) port: String,
    pub(crate) path: String,
}
