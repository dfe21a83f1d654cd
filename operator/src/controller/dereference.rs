//! Step 1: everything a pass needs to know of the cluster, read fresh, so that no stale cache decides anything.

use std::fmt::Debug;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use super::desired::{object_name, selector_text};

/// Field manager of everything that the operator applies.
pub const MANAGER: &str = "sluice-operator";

/// The channel's objects as they are. An object of the right name that belongs to somebody else is here too:
/// [`is_ours`] tells.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// See [`super::desired::Children`].
    pub service_account: Option<ServiceAccount>,
    /// See [`super::desired::Children`].
    pub config: Option<ConfigMap>,
    /// See [`super::desired::Children`].
    pub deployment: Option<Deployment>,
    /// See [`super::desired::Children`].
    pub service: Option<Service>,
    /// See [`super::desired::Children`].
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// The channel's pods.
    pub pods: Vec<Pod>,
}

/// Reads the objects of the channel `name` in `namespace`.
///
/// # Errors
/// What the API server or the network said.
pub async fn live(client: &Client, namespace: &str, name: &str) -> Result<Live, kube::Error> {
    let object = object_name(name);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selected = ListParams::default().labels(&selector_text(name));
    let (service_account, config, deployment, service, disruption_budget, pods) = tokio::try_join!(
        get(client, namespace, &object),
        get(client, namespace, &object),
        get(client, namespace, &object),
        get(client, namespace, &object),
        get(client, namespace, &object),
        pods.list(&selected),
    )?;
    Ok(Live { service_account, config, deployment, service, disruption_budget, pods: pods.items })
}

async fn get<K>(client: &Client, namespace: &str, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    Api::<K>::namespaced(client.clone(), namespace).get_opt(name).await
}

/// Whether an object is the channel's: owned by it, or made by this operator and robbed of its owner.
#[must_use]
pub fn is_ours(metadata: &ObjectMeta, uid: &str) -> bool {
    let controller = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    match controller {
        Some(owner) => owner.uid == uid,
        None => metadata.managed_fields.iter().flatten().any(|entry| {
            entry.manager.as_deref() == Some(MANAGER) && entry.operation.as_deref() == Some("Apply") && entry.subresource.is_none()
        }),
    }
}
