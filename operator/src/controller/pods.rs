//! What is known of a channel's pods: from Kubernetes, and from themselves.

use k8s_openapi::api::{
    core::v1::{ContainerStateWaiting, Pod},
    events::v1::Event,
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::desired::deployment::CONTAINER;
use crate::{
    crd::condition::{Cause, reason},
    kube_error,
};

/// Events that are read of a pod that does not start: kubelet counts up the ones that it repeats.
const EVENTS: u32 = 50;
/// Longest text of another program that is quoted, characters.
const QUOTED: usize = 400;

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
    /// The first trouble of a pod that is not ready.
    pub(crate) trouble: Option<Trouble>,
    /// Why a pod refuses the channel's configuration file, if one does.
    pub(crate) refused: Option<String>,
    /// Open streams of the channel on all pods that told theirs.
    pub(crate) connections: u64,
    /// Whether a ready pod did not tell its number of streams.
    pub(crate) uncounted: bool,
}

/// What keeps a pod from being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) cause: Cause,
    pub(crate) weight: Weight,
}

/// How much a trouble means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// It is of the pod's way up, or may be: pods that serve go on, and the channel is as ready as
    /// it was.
    Passing,
    /// What was asked for does not run, but what runs is tried again.
    Failing,
    /// Nothing will come of it without a change from outside.
    Lasting,
}

impl Trouble {
    pub(super) fn new(weight: Weight, reason: &'static str, message: impl Into<String>) -> Self {
        Self { cause: Cause::new(reason, message), weight }
    }
}

/// What stands against a channel whose pods refuse its file.
pub(crate) fn config_refused(why: &str) -> Cause {
    let message = format!(
        "a pod refuses the configuration that the operator wrote: {why}; use a data plane of the operator's release (dataplane.image, spec.workload.image)"
    );
    Cause::new(reason::CONFIG_REFUSED, message)
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What keeps a pod from being ready, as far as Kubernetes knows. The texts hold nothing that
/// changes from one look to the next, or the channel's status would be written each time.
pub(super) fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let scheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = scheduled.filter(|c| c.reason.as_deref() == Some("Unschedulable")) {
        let message = condition.message.clone().unwrap_or_default();
        let message = format!("pod cannot be scheduled: {message}");
        // A node may be on its way.
        return Some(Trouble::new(Weight::Passing, reason::UNSCHEDULABLE, message));
    }
    let container = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER)?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" => Some(not_pulled(pod, waiting, Weight::Failing)),
        "InvalidImageName" | "ErrImageNeverPull" => Some(not_pulled(pod, waiting, Weight::Lasting)),
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let code = last.map_or_else(String::new, |t| format!(" (exit code {})", t.exit_code));
            let message =
                format!("the container keeps crashing{code}; see `kubectl logs --previous`");
            Some(Trouble::new(Weight::Failing, reason::CRASH_LOOPING, message))
        }
        "CreateContainerConfigError" | "CreateContainerError" => {
            let message = waiting.message.as_deref().unwrap_or_default();
            let message = format!("container cannot be created: {message}");
            Some(Trouble::new(Weight::Failing, reason::PODS_NOT_READY, message))
        }
        _ => None,
    }
}

fn not_pulled(pod: &Pod, waiting: &ContainerStateWaiting, weight: Weight) -> Trouble {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let image = containers.into_iter().find(|c| c.name == CONTAINER).and_then(|c| c.image.clone());
    let image = image.unwrap_or_default();
    let words = waiting.message.as_deref().and_then(pull_words);
    let words = words.map_or_else(String::new, |words| format!(": {words}"));
    let message = format!(
        "image {image} cannot be pulled{words}; correct spec.workload.image or imagePullSecrets"
    );
    Trouble::new(weight, reason::IMAGE_PULL_FAILED, message)
}

/// Why an image cannot be pulled, in kubelet's words, and the same ones while it tries
/// (`ErrImagePull`) as while it waits to try again (`ImagePullBackOff`).
fn pull_words(message: &str) -> Option<String> {
    let cause = match message.strip_prefix("Back-off pulling image ") {
        None => message,
        // Older kubelets say no more than that they wait.
        Some(waits) => waits.split_once(": ErrImagePull: ")?.1,
    };
    let cause = match cause.strip_prefix("rpc error: ").and_then(|rpc| rpc.split_once("desc = ")) {
        Some((_, cause)) => cause,
        None => cause,
    };
    let cause = cause.trim();
    (!cause.is_empty()).then(|| quoted(cause))
}

/// Whether a pod is on a node, and neither runs nor says why.
pub(super) fn is_silent(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let on_a_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let mut containers = status.container_statuses.iter().flatten();
    let starts = containers.next().is_none_or(|container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        matches!(reason, Some("ContainerCreating" | "PodInitializing"))
    });
    pod.metadata.deletion_timestamp.is_none()
        && on_a_node
        && status.phase.as_deref() == Some("Pending")
        && starts
}

/// Why a [silent](is_silent) pod does not start, by the Events that kubelet writes of it: that a
/// volume cannot be mounted is said nowhere else.
pub(super) async fn mount_trouble(client: &Client, pod: &Pod) -> Option<Trouble> {
    let namespace = pod.namespace().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let fields = format!("regarding.uid={}", pod.uid().unwrap_or_default());
    let list = events.list(&ListParams::default().fields(&fields).limit(EVENTS)).await;
    match list {
        Ok(events) => mount_failure(&events.items, &namespace),
        Err(error) => {
            let error = kube_error::text(&error);
            tracing::debug!(error, "the pods' Events cannot be read");
            None
        }
    }
}

fn mount_failure(events: &[Event], namespace: &str) -> Option<Trouble> {
    let notes = events
        .iter()
        .filter(|event| {
            matches!(event.reason.as_deref(), Some("FailedMount" | "FailedAttachVolume"))
        })
        .filter_map(|event| event.note.as_deref());
    let (missing, mut others): (Vec<&str>, Vec<&str>) =
        notes.partition(|note| note.contains("not found"));
    if let Some(note) = missing.iter().min() {
        let (why, fix) = if note.contains("secret \"") {
            let fix = format!("; create the Secret in namespace {namespace}");
            (reason::SECRET_NOT_FOUND, fix)
        } else {
            (reason::PODS_NOT_READY, String::new())
        };
        let message = format!("pod cannot start: {}{fix}", quoted(note));
        return Some(Trouble::new(Weight::Failing, why, message));
    }
    // The shortest names the cause; the others count what waits for it.
    others.sort_by_key(|note| (note.len(), *note));
    let message = format!("pod cannot start: {}", quoted(others.first()?));
    Some(Trouble::new(Weight::Passing, reason::PODS_NOT_READY, message))
}

/// The beginning of what another program said, on one line.
pub(super) fn quoted(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn waiting(reason: &str, message: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "n", "containers": [{"name": CONTAINER, "image": "r.example/x:1"}]},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}},
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn an_image_that_is_not_pulled_is_told_in_kubelets_words_that_do_not_alternate() {
        const CAUSE: &str = "failed to pull and unpack image \"r.example/x:1\": failed to resolve reference \"r.example/x:1\": r.example/x:1: not found";
        let rpc = format!("rpc error: code = NotFound desc = {CAUSE}");
        let tries = trouble(&waiting("ErrImagePull", Some(&rpc))).unwrap();
        let backs_off = format!("Back-off pulling image \"r.example/x:1\": ErrImagePull: {rpc}");
        let waits = trouble(&waiting("ImagePullBackOff", Some(&backs_off))).unwrap();
        assert_eq!(tries, waits);
        assert_eq!(
            (tries.cause.reason, tries.weight),
            (reason::IMAGE_PULL_FAILED, Weight::Failing)
        );
        assert!(tries.cause.message.contains(CAUSE), "{}", tries.cause.message);
        let silent = Some("Back-off pulling image \"r.example/x:1\"");
        for message in [silent, Some(""), None] {
            let found = trouble(&waiting("ImagePullBackOff", message)).unwrap();
            assert!(found.cause.message.starts_with("image r.example/x:1 cannot be pulled; "));
        }
    }

    #[test]
    fn a_name_that_is_no_images_lasts() {
        let message = "Failed to apply default image tag \"Foo Bar\": couldn't parse image name: invalid reference format";
        let found = trouble(&waiting("InvalidImageName", Some(message))).unwrap();
        assert_eq!(found.weight, Weight::Lasting);
        assert!(found.cause.message.contains("invalid reference format"));
    }

    #[test]
    fn a_pod_that_hangs_is_told_by_what_it_misses() {
        let events = |notes: &[(&str, &str)]| -> Vec<Event> {
            let event = |(why, note): &(&str, &str)| -> Value {
                json!({"metadata": {"name": "e"}, "eventTime": null, "reason": why, "note": note})
            };
            notes.iter().map(|note| serde_json::from_value(event(note)).unwrap()).collect()
        };
        let secret =
            "MountVolume.SetUp failed for volume \"nats-credentials\" : secret \"ghost\" not found";
        let waits = "Unable to attach or mount volumes: unmounted volumes=[nats-credentials]: timed out waiting for the condition";
        let map = "MountVolume.SetUp failed for volume \"config\" : configmap \"c\" not found";
        let cache =
            "MountVolume.SetUp failed for volume \"config\" : failed to sync configmap cache";
        for (notes, expected) in [
            (
                vec![("FailedMount", waits), ("FailedMount", secret)],
                (reason::SECRET_NOT_FOUND, Weight::Failing, secret),
            ),
            (vec![("FailedMount", map)], (reason::PODS_NOT_READY, Weight::Failing, map)),
            (
                vec![("FailedMount", waits), ("FailedMount", cache)],
                (reason::PODS_NOT_READY, Weight::Passing, cache),
            ),
        ] {
            let found = mount_failure(&events(&notes), "shop").unwrap();
            assert_eq!((found.cause.reason, found.weight), (expected.0, expected.1));
            assert!(found.cause.message.contains(expected.2), "{}", found.cause.message);
        }
        assert_eq!(
            mount_failure(&events(&[("Scheduled", "not found"), ("Pulled", "x")]), "shop"),
            None
        );
    }

    #[test]
    fn only_a_pod_that_waits_in_silence_is_looked_into() {
        assert!(is_silent(&waiting("ContainerCreating", None)));
        assert!(!is_silent(&waiting("ImagePullBackOff", None)));
        let mut pod = waiting("ContainerCreating", None);
        pod.spec.as_mut().unwrap().node_name = None;
        assert!(!is_silent(&pod));
    }
}
