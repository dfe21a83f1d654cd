//! Which objects are a channel's own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::crd::SseChannel;

/// Field manager of everything that the operator applies.
pub(crate) const MANAGER: &str = "sluice-operator";

/// Whether an object is the channel's: owned by it, or made by this operator and robbed of its
/// owner.
#[must_use]
pub(crate) fn is_ours(metadata: &ObjectMeta, uid: &str) -> bool {
    let controller =
        metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    match controller {
        Some(owner) => owner.uid == uid,
        None => metadata.managed_fields.iter().flatten().any(|entry| {
            entry.manager.as_deref() == Some(MANAGER)
                && entry.operation.as_deref() == Some("Apply")
                && entry.subresource.is_none()
        }),
    }
}

/// Whether an object is that of a former channel of the same name. A name belongs to one channel at
/// a time, so that owner has gone, and its objects are about to go.
#[must_use]
pub(crate) fn is_of_former(metadata: &ObjectMeta, name: &str, uid: &str) -> bool {
    let group = SseChannel::group(&());
    metadata.owner_references.iter().flatten().any(|owner| {
        owner.controller == Some(true)
            && owner.kind == SseChannel::kind(&())
            && owner.api_version.split_once('/').is_some_and(|(of, _)| of == group)
            && owner.name == name
            && owner.uid != uid
    })
}

/// What an object that is being deleted is, for a message; `None` = it is not. Finalizers are
/// named: only their controllers can let go of it.
#[must_use]
pub(crate) fn going(metadata: &ObjectMeta) -> Option<String> {
    metadata.deletion_timestamp.as_ref()?;
    let held = metadata.finalizers.as_deref().unwrap_or_default();
    Some(if held.is_empty() {
        "being deleted".to_owned()
    } else {
        format!("being deleted, held by finalizers {}", held.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    fn owned_by(api_version: &str, kind: &str, name: &str, controller: bool) -> ObjectMeta {
        metadata(json!({"ownerReferences": [{"apiVersion": api_version, "kind": kind,
            "name": name, "uid": "1", "controller": controller}]}))
    }

    #[test]
    fn only_a_channel_of_the_same_name_is_a_former_one() {
        let of = |owner: &ObjectMeta| is_of_former(owner, "orders", "2");
        assert!(of(&owned_by("sluice.dev/v1alpha1", "SseChannel", "orders", true)));
        assert!(of(&owned_by("sluice.dev/v1", "SseChannel", "orders", true)));
        for other in [
            owned_by("sluice.dev/v1alpha1", "SseChannel", "payments", true),
            owned_by("sluice.dev/v1alpha1", "SseChannel", "orders", false),
            owned_by("sluice.dev/v1alpha1", "Other", "orders", true),
            owned_by("example.com/v1alpha1", "SseChannel", "orders", true),
            owned_by("apps/v1", "Deployment", "orders", true),
            ObjectMeta::default(),
        ] {
            assert!(!of(&other), "{other:?}");
        }
        let own = owned_by("sluice.dev/v1alpha1", "SseChannel", "orders", true);
        assert!(!is_of_former(&own, "orders", "1") && is_ours(&own, "1"));
    }

    #[test]
    fn what_holds_an_object_is_named() {
        let deleted = |finalizers| json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers});
        for (value, expected) in [
            (json!({"finalizers": ["a/b"]}), None),
            (deleted(json!(null)), Some("being deleted")),
            (deleted(json!(["a/b"])), Some("being deleted, held by finalizers a/b")),
            (deleted(json!(["a/b", "c"])), Some("being deleted, held by finalizers a/b, c")),
        ] {
            assert_eq!(going(&metadata(value)).as_deref(), expected);
        }
    }
}
