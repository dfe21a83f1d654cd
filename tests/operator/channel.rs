//! Channels and their children as the API shows them: plain JSON, as a user of the API sees it.

use kube::api::DynamicObject;
use serde_json::{Value, json};

/// Group, version, kind.
pub(crate) type Kind = (&'static str, &'static str, &'static str);

pub(crate) const CHANNEL: Kind = ("sluice.dev", "v1alpha1", "SseChannel");
pub(crate) const SERVICE_ACCOUNT: Kind = ("", "v1", "ServiceAccount");
pub(crate) const CONFIG_MAP: Kind = ("", "v1", "ConfigMap");
pub(crate) const DEPLOYMENT: Kind = ("apps", "v1", "Deployment");
pub(crate) const SERVICE: Kind = ("", "v1", "Service");
pub(crate) const BUDGET: Kind = ("policy", "v1", "PodDisruptionBudget");
pub(crate) const POD: Kind = ("", "v1", "Pod");
pub(crate) const INGRESS: Kind = ("networking.k8s.io", "v1", "Ingress");
pub(crate) const NETWORK_POLICY: Kind = ("networking.k8s.io", "v1", "NetworkPolicy");
pub(crate) const AUTOSCALER: Kind = ("autoscaling", "v2", "HorizontalPodAutoscaler");
pub(crate) const HTTP_ROUTE: Kind = ("gateway.networking.k8s.io", "v1", "HTTPRoute");
pub(crate) const POD_MONITOR: Kind = ("monitoring.coreos.com", "v1", "PodMonitor");

/// Everything that the operator makes for every channel.
pub(crate) const CHILDREN: [Kind; 5] = [SERVICE_ACCOUNT, CONFIG_MAP, DEPLOYMENT, SERVICE, BUDGET];
/// The same with what it makes for a channel that asks for it.
pub(crate) const MORE_CHILDREN: [Kind; 7] =
    [SERVICE_ACCOUNT, CONFIG_MAP, DEPLOYMENT, SERVICE, BUDGET, INGRESS, NETWORK_POLICY];

/// All condition types; each is always there.
pub(crate) const CONDITIONS: [&str; 8] = [
    "Ready",
    "StreamReady",
    "WorkloadAvailable",
    "Exposed",
    "Drifted",
    "Reconciling",
    "Stalled",
    "Accepted",
];

/// A channel to create.
pub(crate) fn object(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"name": name}, "spec": spec}))
        .unwrap()
}

/// A channel's condition.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// A channel's condition if it is about the newest generation.
pub(crate) fn current_condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    condition(object, kind).filter(|c| c["observedGeneration"] == object["metadata"]["generation"])
}

/// Whether the channel says it is ready, in its newest generation.
pub(crate) fn is_ready(object: &Value) -> bool {
    current_condition(object, "Ready").is_some_and(|c| c["status"] == "True")
}

/// Where a channel's default stream is.
pub(crate) fn stream(object: &Value) -> String {
    object["status"]["stream"]["name"].as_str().expect("a stream in the status").to_owned()
}

/// What of an object the operator answers for: without what the API server and other controllers
/// fill in.
pub(crate) fn essence(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    value["status"].take();
    let metadata = value["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| {
        matches!(key.as_str(), "name" | "labels" | "annotations" | "ownerReferences")
    });
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("deployment.kubernetes.io/revision");
    }
    // Addresses are the API server's to give.
    if let Some(spec) = value["spec"].as_object_mut() {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    value
}
