//! `spec.networkPolicy`: the clients that may reach the pods of a channel.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Not `isCIDR`, which API servers before 1.31 do not know. The operator looks closer.
const CIDR_RULE: &str = "self == '' || self.matches('^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])([.](25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}/([12]?[0-9]|3[0-2])|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}(:[0-9.]{7,15})?/([1-9]?[0-9]|1[01][0-9]|12[0-8]))$')";

/// Which clients may reach the pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'Restrict' || size(self.from) == 0")
        .message("has no effect with mode Disabled: set networkPolicy.mode: Restrict, or remove it").field_path(".from"),
)]
pub struct NetworkPolicySpec {
    /// Whether a NetworkPolicy is made.
    #[serde(default)]
    pub mode: NetworkPolicyMode,
    /// Clients that may subscribe and publish. Default: all of them. The admin port stays closed to
    /// them.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub from: Vec<NetworkPeer>,
}

/// Whether a NetworkPolicy is made.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum NetworkPolicyMode {
    /// None is made.
    #[default]
    Disabled,
    /// Only `from` may reach the events, and only the operator and Prometheus the admin port.
    Restrict,
}

/// Clients that may connect: pods by labels, or addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(size(self.cidr) > 0) != (size(self.namespaceLabels) > 0 || size(self.podLabels) > 0)")
        .message("must have either cidr, or namespaceLabels and podLabels, and not be empty"),
)]
pub struct NetworkPeer {
    /// Labels of namespaces, like kubernetes.io/metadata.name. Default: the channel's own
    /// namespace.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub namespace_labels: BTreeMap<String, String>,
    /// Labels of pods. Default: all pods of those namespaces.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub pod_labels: BTreeMap<String, String>,
    /// Range of addresses, like 10.0.0.0/8 or 2001:db8::/32.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(CIDR_RULE)
        .message("must be a range of addresses like 10.0.0.0/8 or 2001:db8::/32"))]
    pub cidr: String,
}
