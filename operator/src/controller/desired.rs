//! Step 4, pure: a checked channel → the objects that serve it. No client is seen here, nothing is
//! read, no clock, and nothing depends on the operator's version: a new operator restarts no pod.

pub(crate) mod config;
pub(crate) mod deployment;
pub(crate) mod disruption;
pub(crate) mod exposure;
mod monitoring;
mod network;
pub(crate) mod scaling;
pub(crate) mod service;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::{Ingress, NetworkPolicy},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::Resource as _;

use super::{
    foreign::{HTTPRoute, PodMonitor},
    validate::ValidChannel,
};
use crate::crd::{
    SseChannel,
    network::NetworkPolicyMode,
    workload::{self, Switch},
};
pub(crate) use scaling::Load;

/// Label on every object of a channel, with the channel's name.
pub(crate) const CHANNEL_LABEL: &str = "sluice.dev/channel";
/// Value of the label `app.kubernetes.io/managed-by`.
pub(crate) const MANAGED_BY: &str = "sluice-operator";
/// What follows the channel's name in the names of its objects.
const SUFFIX: &str = "-sse";

/// What the operator was told about the pods it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Image of the data plane for channels that name none.
    pub(crate) image: String,
    /// NATS servers as pods reach them.
    pub(crate) nats: Vec<String>,
    /// Secret in each channel's namespace whose key `nats.creds` holds NATS credentials.
    pub(crate) credentials_secret: Option<String>,
    /// Secret in each channel's namespace whose key `ca.crt` holds the NATS servers' authority.
    pub(crate) ca_secret: Option<String>,
    /// Secret of type `kubernetes.io/tls` in each channel's namespace with the client certificate
    /// for NATS.
    pub(crate) client_certificate_secret: Option<String>,
    pub(crate) jetstream_domain: Option<String>,
    pub(crate) cluster_domain: String,
    /// Namespace of the operator's own pod, which asks the pods of channels what they serve.
    pub(crate) operator_namespace: String,
}

/// Every object of a channel. A `None` must not exist.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Children {
    /// Identity of the pods, without rights; `None` when the spec names one.
    pub(crate) service_account: Option<ServiceAccount>,
    /// The file that the pods read.
    pub(crate) config: ConfigMap,
    pub(crate) deployment: Deployment,
    /// Their address.
    pub(crate) service: Service,
    /// One pod at a time.
    pub(crate) disruption_budget: Option<PodDisruptionBudget>,
    /// Which clients may reach the pods.
    pub(crate) network_policy: Option<NetworkPolicy>,
    /// Number of pods by processor use.
    pub(crate) autoscaler: Option<HorizontalPodAutoscaler>,
    /// The way in from outside, by an Ingress.
    pub(crate) ingress: Option<Ingress>,
    /// The way in from outside, by the Gateway API.
    pub(crate) http_route: Option<HTTPRoute>,
    /// Tells Prometheus of the pods.
    pub(crate) pod_monitor: Option<PodMonitor>,
}

/// Why the objects could not be written down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file for the data plane; a defect of this program.
    #[error("cannot write the channel's file: {0}")]
    Config(#[from] serde_json::Error),
}

/// The objects of `channel` under `load`.
///
/// # Errors
/// [`Error::Config`], in theory.
pub(crate) fn desired(
    channel: &ValidChannel,
    settings: &Settings,
    load: Load,
) -> Result<Children, Error> {
    let own_account = channel.workload.service_account_name.is_empty();
    let restricted = channel.network_policy.mode == NetworkPolicyMode::Restrict;
    let monitored = channel.monitoring.pod_monitor == workload::PodMonitor::Enabled;
    Ok(Children {
        service_account: own_account.then(|| service_account(channel)),
        config: config::config_map(channel)?,
        deployment: deployment::deployment(channel, settings, load),
        service: service::service(channel),
        disruption_budget: (channel.workload.disruption_budget == Switch::Enabled)
            .then(|| disruption::budget(channel)),
        network_policy: restricted.then(|| network::policy(channel, settings)),
        autoscaler: scaling::autoscaler(channel, load),
        ingress: exposure::ingress(channel),
        http_route: exposure::http_route(channel),
        pod_monitor: monitored.then(|| monitoring::pod_monitor(channel)),
    })
}

/// Name of all objects of the channel `name`: `orders` → `orders-sse`.
#[must_use]
pub(crate) fn object_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// Selector of a channel's pods, as text.
#[must_use]
pub(crate) fn selector_text(name: &str) -> String {
    selector_labels(name)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Never changes in a channel's life: a Deployment's selector is immutable.
fn selector_labels(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "sluice".to_owned()),
        (CHANNEL_LABEL.to_owned(), name.to_owned()),
    ])
}

fn selector(channel: &ValidChannel) -> LabelSelector {
    LabelSelector {
        match_labels: Some(selector_labels(channel.name.as_str())),
        match_expressions: None,
    }
}

fn labels(channel: &ValidChannel) -> BTreeMap<String, String> {
    let mut labels = selector_labels(channel.name.as_str());
    labels.insert("app.kubernetes.io/instance".to_owned(), channel.name.to_string());
    labels.insert("app.kubernetes.io/component".to_owned(), "dataplane".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned());
    labels
}

fn metadata(channel: &ValidChannel) -> ObjectMeta {
    ObjectMeta {
        name: Some(object_name(channel.name.as_str())),
        namespace: Some(channel.namespace.clone()),
        labels: Some(labels(channel)),
        owner_references: Some(vec![OwnerReference {
            api_version: SseChannel::api_version(&()).into_owned(),
            kind: SseChannel::kind(&()).into_owned(),
            name: channel.name.to_string(),
            uid: channel.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

fn service_account(channel: &ValidChannel) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(channel),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
