//! When an object that is no longer wanted may go.

use std::collections::BTreeSet;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::ResourceExt;

use super::{Applied, Live, Removal};

/// Which objects the pods can do without, now that everything is made.
pub(super) fn reached(applied: &Applied, live: &Live) -> Option<Removal> {
    let deployment = live.deployment.as_ref().filter(|_| applied.pods.is_ok())?;
    if deployment.metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(if is_rolled_out(deployment, &live.pods) { Removal::RolledOut } else { Removal::Applied })
}

/// Whether all pods are of the newest template. The Deployment no longer counts a pod that is
/// ending, but it runs on until its subscribers have been told to go elsewhere.
fn is_rolled_out(deployment: &Deployment, pods: &[Pod]) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return false };
    let (replicas, updated) =
        (status.replicas.unwrap_or_default(), status.updated_replicas.unwrap_or_default());
    let templates: BTreeSet<_> =
        pods.iter().map(|pod| pod.labels().get("pod-template-hash")).collect();
    status.observed_generation >= deployment.metadata.generation
        && updated >= wanted
        && replicas <= updated
        && templates.len() <= 1
        && pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_none())
}
