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

use k8s_openapi::api::core::v1::ServiceAccount;

pub(crate) use super::kinds::Children;
use super::{kinds::Wanted, validate::ValidChannel};
use crate::crd::{
    network::NetworkPolicyMode,
    workload::{self, Switch},
};
use common::metadata;
pub(crate) use common::{MANAGED_BY, Settings, object_name, selector_text};
pub(crate) use scaling::Load;

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
    let wanted = wanted(channel);
    Ok(Children {
        service_account: wanted.service_account.then(|| service_account(channel)),
        config: config::config_map(channel)?,
        deployment: deployment::deployment(channel, settings, load),
        service: service::service(channel),
        disruption_budget: wanted.disruption_budget.then(|| disruption::budget(channel)),
        network_policy: wanted.network_policy.then(|| network::policy(channel, settings)),
        autoscaler: scaling::autoscaler(channel, load),
        ingress: exposure::ingress(channel),
        http_route: exposure::http_route(channel),
        pod_monitor: wanted.pod_monitor.then(|| monitoring::pod_monitor(channel)),
    })
}

/// Which objects `channel` has.
pub(super) fn wanted(channel: &ValidChannel) -> Wanted {
    let autoscaling = channel.workload.autoscaling.as_ref();
    Wanted {
        service_account: channel.workload.service_account_name.is_empty(),
        config: true,
        deployment: true,
        service: true,
        disruption_budget: channel.workload.disruption_budget == Switch::Enabled,
        network_policy: channel.network_policy.mode == NetworkPolicyMode::Restrict,
        autoscaler: autoscaling.is_some_and(|scaling| scaling.cpu_utilization.is_some()),
        ingress: channel.exposure.ingress.is_some(),
        http_route: channel.exposure.http_route.is_some(),
        pod_monitor: channel.monitoring.pod_monitor == workload::PodMonitor::Enabled,
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
