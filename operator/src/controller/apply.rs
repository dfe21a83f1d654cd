//! Step 5: the cluster is made as desired, by server-side apply with one field manager, and only
//! where it differs: an apply that changes nothing is a write request all the same.

mod compare;

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
};

use k8s_openapi::{
    api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use compare::{contains, project};

use super::{
    desired::Children,
    hash::fnv1a64,
    live::Live,
    ownership::{MANAGER, is_ours},
    validate::ValidChannel,
};
use crate::{
    crd::condition::reason,
    kube_error,
    metrics::Metrics,
    stream::{Difference, EXISTS, MISSING},
};

/// Annotation with the hash of what was applied last: a field that is no longer desired cannot be
/// seen otherwise.
pub(crate) const APPLIED: &str = "sluice.dev/applied";

/// Field manager of a Deployment's number of pods alone: once it is left to an autoscaler, and
/// while the rest has to wait.
const REPLICAS_MANAGER: &str = "sluice-operator-replicas";

/// Why an object is not as desired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An object of that name is there and is not the channel's.
    #[error(
        "{kind} {name} exists and does not belong to this channel; it is left alone. Delete or rename it, or choose another name for the channel"
    )]
    NameTaken { kind: String, name: String },
    /// The API server refused it.
    #[error("the API server refused {kind} {name}: {message}")]
    Refused {
        kind: String,
        name: String,
        /// The server's words.
        message: String,
    },
    /// The cluster does not know its kind.
    #[error("the cluster does not know the kind {kind}: its definition is not installed")]
    UnknownKind { kind: String },
    /// The API server could not be asked, or asks to come again.
    #[error("{}", kube_error::text(.0))]
    Api(#[from] kube::Error),
    /// An object could not be written as JSON; a defect of this program.
    #[error("cannot write an object: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Reason of the conditions that speak of it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => reason::NAME_TAKEN,
            Self::Refused { .. } | Self::UnknownKind { .. } => reason::API_REJECTED,
            Self::Api(_) | Self::Json(_) => reason::RETRYING,
        }
    }

    /// Whether another attempt may help without a change of the channel or the cluster.
    #[must_use]
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NameTaken { .. } | Self::Refused { .. } | Self::UnknownKind { .. } => false,
            Self::Api(_) | Self::Json(_) => true,
        }
    }
}

/// What became of the objects of a channel.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The pods and all that they need.
    pub(crate) pods: Result<(), Error>,
    /// The way in from outside; made only where the pods' objects are.
    pub(crate) exposure: Result<(), Error>,
    /// The PodMonitor; made only where the pods' objects are.
    pub(crate) monitoring: Result<(), Error>,
}

impl Applied {
    /// Nothing was done.
    #[must_use]
    pub(crate) const fn nothing() -> Self {
        Self { pods: Ok(()), exposure: Ok(()), monitoring: Ok(()) }
    }

    /// The first failure that another attempt may mend.
    ///
    /// # Errors
    /// That failure.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        let Self { pods, exposure, monitoring } = self;
        let failures = [pods, exposure, monitoring].into_iter().filter_map(Result::err);
        failures.into_iter().find(Error::is_transient).map_or(Ok(()), Err)
    }
}

/// What the API server made of the objects that were applied: it writes some values its own way
/// (`0.5` of a processor becomes `500m`), which is no drift. By kind.
pub(crate) type Projections = HashMap<String, (String, Value)>;

/// One pass over the objects of a channel.
pub(crate) struct Applier<'a> {
    pub(crate) client: &'a Client,
    pub(crate) channel: &'a ValidChannel,
    /// What earlier passes learned.
    pub(crate) projections: &'a mut Projections,
    /// Writes are counted here.
    pub(crate) metrics: &'a Metrics,
    /// Whether the pods stay as they are, apart from their number: it is not the channel's turn to
    /// replace them.
    pub(crate) holds_pods: bool,
}

impl Applier<'_> {
    /// Makes the objects as `desired`, starting from `live`, and updates `live` to what is there
    /// then.
    pub(crate) async fn apply(&mut self, desired: Children, live: &mut Live) -> Applied {
        // Destructured whole, so that a new kind cannot be forgotten here.
        let Children {
            service_account,
            config,
            deployment,
            service,
            disruption_budget,
            network_policy,
            autoscaler,
            ingress,
            http_route,
            pod_monitor,
        } = desired;
        let pods = async {
            // What pods need goes before them, and so does what keeps others from them.
            self.converge(service_account, &mut live.service_account).await?;
            self.converge(Some(config), &mut live.config).await?;
            self.converge(network_policy, &mut live.network_policy).await?;
            self.converge(Some(service), &mut live.service).await?;
            self.converge(disruption_budget, &mut live.disruption_budget).await?;
            if autoscaler.is_none() {
                // Two must not set the number of pods.
                self.converge(None, &mut live.autoscaler).await?;
            }
            if deployment.spec.as_ref().is_some_and(|spec| spec.replicas.is_none())
                && let Some(found) = &live.deployment
            {
                self.hand_over_replicas(found).await?;
            }
            match &live.deployment {
                Some(found) if self.holds_pods => self.scale(&deployment, found).await?,
                _ => self.converge(Some(deployment), &mut live.deployment).await?,
            }
            if autoscaler.is_some() {
                self.converge(autoscaler, &mut live.autoscaler).await?;
            }
            Ok(())
        };
        let pods = pods.await;
        // A Service that is not ours must not be opened to the outside.
        let made = pods.is_ok();
        let exposure = async {
            if made || ingress.is_none() {
                self.converge(ingress, &mut live.ingress).await?;
            }
            if made || http_route.is_none() {
                self.converge_foreign(http_route, &mut live.http_route, &live.unknown).await?;
            }
            Ok(())
        };
        let exposure = exposure.await;
        let monitoring = if made || pod_monitor.is_none() {
            self.converge_foreign(pod_monitor, &mut live.pod_monitor, &live.unknown).await
        } else {
            Ok(())
        };
        Applied { pods, exposure, monitoring }
    }

    /// Like [`Self::converge`] for a kind that the cluster may not know.
    async fn converge_foreign<K>(
        &mut self,
        desired: Option<K>,
        live: &mut Option<K>,
        unknown: &BTreeSet<String>,
    ) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let kind = K::kind(&()).into_owned();
        match desired {
            Some(_) if unknown.contains(&kind) => Err(Error::UnknownKind { kind }),
            desired => self.converge(desired, live).await,
        }
    }

    /// A field that its only manager no longer applies goes back to its default: one pod. So before
    /// the number of pods is left to an autoscaler, a second manager applies it as it is.
    async fn hand_over_replicas(&mut self, found: &Deployment) -> Result<(), Error> {
        let owns = |entry: &ManagedFieldsEntry| {
            entry.manager.as_deref() == Some(MANAGER)
                && entry.operation.as_deref() == Some("Apply")
                && entry
                    .fields_v1
                    .as_ref()
                    .is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
        };
        let replicas = found.spec.as_ref().and_then(|spec| spec.replicas);
        let ours =
            is_ours(found.meta(), &self.channel.uid) && found.managed_fields().iter().any(owns);
        let (true, Some(replicas)) = (ours, replicas) else { return Ok(()) };
        match self.set_replicas(found, replicas, false).await {
            // Another manager has set another number meanwhile, and so keeps it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(refused("Deployment".to_owned(), found.name_any(), error)),
            Ok(()) => Ok(()),
        }
    }

    /// Brings the number of pods forward, and nothing else.
    async fn scale(&mut self, desired: &Deployment, found: &Deployment) -> Result<(), Error> {
        let replicas = |of: &Deployment| of.spec.as_ref().and_then(|spec| spec.replicas);
        let Some(wanted) = replicas(desired).filter(|_| replicas(desired) != replicas(found))
        else {
            return Ok(());
        };
        let scaled = self.set_replicas(found, wanted, true).await;
        scaled.map_err(|error| refused("Deployment".to_owned(), found.name_any(), error))
    }

    async fn set_replicas(
        &self,
        found: &Deployment,
        replicas: i32,
        force: bool,
    ) -> Result<(), kube::Error> {
        let (api, name) = (
            Api::<Deployment>::namespaced(self.client.clone(), &self.channel.namespace),
            found.name_any(),
        );
        let number = json!({
            "apiVersion": Deployment::api_version(&()), "kind": Deployment::kind(&()),
            "metadata": {"name": name, "uid": found.uid()}, "spec": {"replicas": replicas},
        });
        let parameters = PatchParams { force, ..PatchParams::apply(REPLICAS_MANAGER) };
        self.metrics.api_write("Deployment", "apply");
        api.patch(&name, &parameters, &Patch::Apply(&number)).await.map(|_| ())
    }

    async fn converge<K>(&mut self, desired: Option<K>, live: &mut Option<K>) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.channel.namespace);
        let kind = K::kind(&()).into_owned();
        if let Some(found) = live.as_ref().filter(|found| !is_ours(found.meta(), &self.channel.uid))
        {
            // One that must not exist is none of our business then.
            return if desired.is_none() {
                Ok(())
            } else {
                Err(Error::NameTaken { kind, name: found.name_any() })
            };
        }
        match (desired, live.as_ref()) {
            (None, None) => Ok(()),
            (None, Some(found)) => {
                let preconditions = Preconditions { uid: found.uid(), resource_version: None };
                let name = found.name_any();
                self.metrics.api_write(&kind, "delete");
                match api
                    .delete(&name, &DeleteParams::background().preconditions(preconditions))
                    .await
                {
                    Err(error) if !is_not_found(&error) => Err(refused(kind, name, error)),
                    _ => {
                        *live = None;
                        Ok(())
                    }
                }
            }
            (Some(desired), found) => {
                let (want, hash) = marked(&desired)?;
                if found.is_some_and(|found| self.is_as_applied(&kind, &want, &hash, found)) {
                    return Ok(());
                }
                let name = desired.name_any();
                self.metrics.api_write(&kind, "apply");
                let applied = api
                    .patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&want))
                    .await;
                let applied = applied.map_err(|error| refused(kind.clone(), name, error))?;
                self.projections
                    .insert(kind, (hash, project(&want, &serde_json::to_value(&applied)?)));
                *live = Some(applied);
                Ok(())
            }
        }
    }

    fn is_as_applied<K: Resource + Serialize>(
        &self,
        kind: &str,
        want: &Value,
        hash: &str,
        found: &K,
    ) -> bool {
        if found.meta().deletion_timestamp.is_some() {
            return true; // it goes first; its end wakes the channel again
        }
        let Ok(found) = serde_json::to_value(found) else { return false };
        let same_hash = found
            .pointer("/metadata/annotations")
            .and_then(|a| a.get(APPLIED))
            .and_then(Value::as_str)
            == Some(hash);
        let remembered = self
            .projections
            .get(kind)
            .is_some_and(|(of, projection)| of == hash && *projection == project(want, &found));
        same_hash && (remembered || contains(&found, want))
    }
}

/// Whether `found` is what was applied last for `desired`, as far as it says so.
///
/// # Errors
/// [`Error::Json`], in theory.
pub(crate) fn was_applied(desired: &Deployment, found: &Deployment) -> Result<bool, Error> {
    let (_, hash) = marked(desired)?;
    Ok(found.annotations().get(APPLIED) == Some(&hash))
}

/// The objects that are not as desired, for `managementPolicy: Observe`.
///
/// # Errors
/// [`Error::Json`], in theory.
pub(crate) fn differences(
    desired: &Children,
    live: &Live,
    uid: &str,
) -> Result<Vec<Difference>, Error> {
    let Children {
        service_account,
        config,
        deployment,
        service,
        disruption_budget,
        network_policy,
        autoscaler,
        ingress,
        http_route,
        pod_monitor,
    } = desired;
    let rows = [
        difference(service_account.as_ref(), live.service_account.as_ref(), uid)?,
        difference(Some(config), live.config.as_ref(), uid)?,
        difference(Some(deployment), live.deployment.as_ref(), uid)?,
        difference(Some(service), live.service.as_ref(), uid)?,
        difference(disruption_budget.as_ref(), live.disruption_budget.as_ref(), uid)?,
        difference(network_policy.as_ref(), live.network_policy.as_ref(), uid)?,
        difference(autoscaler.as_ref(), live.autoscaler.as_ref(), uid)?,
        difference(ingress.as_ref(), live.ingress.as_ref(), uid)?,
        difference(http_route.as_ref(), live.http_route.as_ref(), uid)?,
        difference(pod_monitor.as_ref(), live.pod_monitor.as_ref(), uid)?,
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn difference<K>(
    desired: Option<&K>,
    live: Option<&K>,
    uid: &str,
) -> Result<Option<Difference>, Error>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let row = |name: String, desired: &str, observed: &str| {
        Some(Difference {
            field: format!("{}/{name}", K::kind(&())),
            desired: desired.to_owned(),
            observed: observed.to_owned(),
        })
    };
    Ok(match (desired, live) {
        (None, None) => None,
        (None, Some(found)) if is_ours(found.meta(), uid) => {
            row(found.meta().name.clone().unwrap_or_default(), MISSING, EXISTS)
        }
        (None, Some(_)) => None,
        (Some(want), None) => row(want.meta().name.clone().unwrap_or_default(), EXISTS, MISSING),
        (Some(want), Some(found)) => {
            let name = want.meta().name.clone().unwrap_or_default();
            if !is_ours(found.meta(), uid) {
                row(name, "of this channel", "of another owner")
            } else if contains(&serde_json::to_value(found)?, &serde_json::to_value(want)?) {
                None
            } else {
                row(name, "as the spec says", "altered")
            }
        }
    })
}

/// The object as it is applied: with the hash of itself as an annotation.
fn marked<K: Serialize>(desired: &K) -> Result<(Value, String), Error> {
    let mut want = serde_json::to_value(desired)?;
    let hash = format!("{:016x}", fnv1a64(want.to_string().as_bytes()));
    let metadata = want.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        annotations[APPLIED] = json!(hash);
    }
    Ok((want, hash))
}

fn refused(kind: String, name: String, error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
            Error::Refused { kind, name, message: status.message.clone() }
        }
        other => Error::Api(other),
    }
}

/// Whether the API server knows of no such object.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
