//! `spec.exposure`: how a channel is reached from outside the cluster.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::text::{NAME_MESSAGE, NAME_RULE, Text};

/// How the channel is reached from outside: at most one way. With none, only its Service is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.ingress) && has(self.httpRoute))").message("at most one of ingress and httpRoute may be set"),
)]
pub struct ExposureSpec {
    /// Through an Ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "IngressSpec")]
    pub ingress: Option<IngressSpec>,
    /// Through a Gateway API HTTPRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HttpRouteSpec")]
    pub http_route: Option<HttpRouteSpec>,
}

/// An Ingress for the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.host.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')")
        .message("must be a host name in lower case, like events.example.com or *.example.com").field_path(".host"),
)]
pub struct IngressSpec {
    /// Ingress class. Default: the cluster's.
    #[serde(default)]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(NAME_RULE).message(NAME_MESSAGE))]
    pub class_name: String,
    /// Host name.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// What is let through: /, /channels or /channels/<name>. Default: /channels/<name>
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub path: String,
    /// Secret of type kubernetes.io/tls with the certificate, in the channel's namespace. Default:
    /// no TLS.
    #[serde(default)]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(NAME_RULE).message(NAME_MESSAGE))]
    pub tls_secret_name: String,
    /// Annotations of the Ingress, for its controller.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("!self.exists(k, k.startsWith('sluice.dev/'))")
        .message("must not contain sluice.dev/ keys: the operator sets those itself"))]
    pub annotations: BTreeMap<String, String>,
}

/// An HTTPRoute for the channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.hostnames.all(h, h.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))")
        .message("must be host names in lower case, like events.example.com or *.example.com").field_path(".hostnames"),
    validation = Rule::new("self.path == '' || (self.path.matches('^/[-A-Za-z0-9/._~]*$') && !self.path.contains('//') && !self.path.contains('/.'))")
        .message("must begin with '/' and consist of letters, digits, '-', '.', '_', '~' and '/', without '//' and '/.'").field_path(".path"),
)]
pub struct HttpRouteSpec {
    /// Gateways that take the route.
    #[schemars(length(min = 1, max = 4))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names. Default: those of the Gateway.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub hostnames: Vec<Text>,
    /// Path under which the channel appears. Default: /channels/<name>
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub path: String,
    /// Scheme of the addresses in status.endpoints; whether there is TLS is the Gateway's to say.
    #[serde(default)]
    pub scheme: Scheme,
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Name of the Gateway.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of the Gateway. Default: the channel's.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Listener of the Gateway. Default: all of them.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub section_name: String,
}

/// Scheme of an address.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Scheme {
    /// https, the Gateway's listener has a certificate.
    #[default]
    Https,
    /// http.
    Http,
}
