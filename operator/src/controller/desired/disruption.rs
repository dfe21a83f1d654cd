//! The PodDisruptionBudget: a node drain takes one pod at a time, and a pod that is broken anyway
//! at any time.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::common::{metadata, selector};
use crate::controller::validate::ValidChannel;

pub(super) fn budget(channel: &ValidChannel) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(channel),
        spec: Some(PodDisruptionBudgetSpec {
            // Not minAvailable: with one replica that would block every drain.
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(channel)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
