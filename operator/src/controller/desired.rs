//! Step 4, pure: a checked channel → the objects that serve it. No client is seen here, nothing is
//! read, no clock, and nothing depends on the operator's version: a new operator restarts no pod.

mod common;
pub(crate) mod config;
pub(crate) mod deployment;
pub(crate) mod disruption;
pub(crate) mod exposure;
mod monitoring;
mod network;
pub(crate) mod scaling;
pub(crate) mod service;

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};

use super::{
    foreign::{HTTPRoute, PodMonitor},
    validate::ValidChannel,
};
use crate::crd::{
    network::NetworkPolicyMode,
    workload::{self, Switch},
};
use common::metadata;
pub(crate) use common::{MANAGED_BY, Settings, object_name, selector_text};
pub(crate) use scaling::Load;

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

fn service_account(channel: &ValidChannel) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(channel),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
