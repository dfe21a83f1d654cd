//! What is known of a channel's pods: from Kubernetes, and from themselves.

use k8s_openapi::api::core::v1::Pod;

use super::desired::deployment::CONTAINER;
use crate::crd::condition::reason;

/// What a ready pod serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Serves {
    /// This generation of the channel.
    Generation(i64),
    /// The channel is not among what it serves.
    Nothing,
    /// It gives no answer.
    Unreachable,
    /// It was not asked yet.
    Unasked,
}

/// All pods of a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    /// Each ready pod, by name.
    pub(crate) ready: Vec<(String, Serves)>,
    /// The first trouble of a pod that is not ready: a reason and what is the case.
    pub(crate) trouble: Option<(&'static str, String)>,
    /// Why a pod refuses the channel's configuration file, if one does.
    pub(crate) refused: Option<String>,
    /// Open streams of the channel on all pods that told theirs.
    pub(crate) connections: u64,
    /// Whether a ready pod did not tell its number of streams.
    pub(crate) uncounted: bool,
}

/// What stands against a channel whose pods refuse its file.
pub(crate) fn config_refused(why: &str) -> (&'static str, String) {
    let message = format!(
        "a pod refuses the configuration that the operator wrote: {why}; use a data plane of the operator's release (dataplane.image, spec.workload.image)"
    );
    (reason::CONFIG_REFUSED, message)
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What keeps a pod from being ready, as far as Kubernetes knows. The texts hold nothing that
/// changes from one look to the next, or the channel's status would be written each time.
pub(super) fn trouble(pod: &Pod) -> Option<(&'static str, String)> {
    let status = pod.status.as_ref()?;
    let scheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = scheduled.filter(|c| c.reason.as_deref() == Some("Unschedulable")) {
        let message = condition.message.clone().unwrap_or_default();
        return Some((reason::UNSCHEDULABLE, format!("pod cannot be scheduled: {message}")));
    }
    let container = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER)?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
    match waiting {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            let image = pod
                .spec
                .iter()
                .flat_map(|s| &s.containers)
                .find(|c| c.name == CONTAINER)
                .and_then(|c| c.image.clone());
            let image = image.unwrap_or_default();
            Some((
                reason::IMAGE_PULL_FAILED,
                format!(
                    "image {image} cannot be pulled; correct spec.workload.image or imagePullSecrets"
                ),
            ))
        }
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let code = last.map_or_else(String::new, |t| format!(" (exit code {})", t.exit_code));
            Some((
                reason::CRASH_LOOPING,
                format!("the container keeps crashing{code}; see `kubectl logs --previous`"),
            ))
        }
        "CreateContainerConfigError" | "CreateContainerError" => {
            let message =
                container.state.as_ref()?.waiting.as_ref()?.message.clone().unwrap_or_default();
            Some((reason::PODS_NOT_READY, format!("container cannot be created: {message}")))
        }
        _ => None,
    }
}
