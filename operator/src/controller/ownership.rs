//! Which objects are a channel's own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

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
