//! Step 5: the cluster is made as desired, by server-side apply with one field manager, and only
//! where it differs: an apply that changes nothing is a write request all the same.

mod compare;
mod removal;

use std::{collections::BTreeSet, fmt::Debug};

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
use removal::reached;

use super::{
    hash::fnv1a64,
    kinds::{Children, Live, Part, Projection, Projections, Removal, for_each_kind},
    ownership::{self, MANAGER, is_ours},
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

/// A difference's value: an object that is no longer wanted, and that pods may still need.
const KEPT: &str = "kept until the pods are rolled out";

/// Why an object is not as desired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An object of that name is there and is not the channel's.
    #[error(
        "{kind} {name} exists and does not belong to this channel; it is left alone. Delete or rename it, or choose another name for the channel"
    )]
    NameTaken { kind: String, name: String },
    /// An object of that name is about to go.
    #[error("{kind} {name} is {going}; the channel's own is made once it has gone")]
    Leaving { kind: String, name: String, going: String },
    /// An object of that name is of a channel of the same name that has gone.
    #[error("the former channel's objects are being removed: {kind} {name} is {going}")]
    OfFormer { kind: String, name: String, going: String },
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
            Self::Leaving { .. } | Self::OfFormer { .. } => reason::PROGRESSING,
            Self::Refused { .. } | Self::UnknownKind { .. } => reason::API_REJECTED,
            Self::Api(_) | Self::Json(_) => reason::RETRYING,
        }
    }

    /// Whether another attempt may help without a change of the channel or the cluster.
    #[must_use]
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NameTaken { .. } | Self::Refused { .. } | Self::UnknownKind { .. } => false,
            Self::Leaving { .. } | Self::OfFormer { .. } | Self::Api(_) | Self::Json(_) => true,
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
    /// Objects that are not as they should be yet, and for which only time is needed.
    pub(crate) pending: Vec<Difference>,
}

impl Applied {
    /// Nothing was done.
    #[must_use]
    pub(crate) const fn nothing() -> Self {
        Self { pods: Ok(()), exposure: Ok(()), monitoring: Ok(()), pending: Vec::new() }
    }

    /// The first failure that another attempt may mend.
    ///
    /// # Errors
    /// That failure.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        let Self { pods, exposure, monitoring, pending: _ } = self;
        let failures = [pods, exposure, monitoring].into_iter().filter_map(Result::err);
        failures.into_iter().find(Error::is_transient).map_or(Ok(()), Err)
    }

    fn of(&mut self, part: Part) -> &mut Result<(), Error> {
        match part {
            Part::Pods => &mut self.pods,
            Part::Exposure => &mut self.exposure,
            Part::Monitoring => &mut self.monitoring,
        }
    }

    /// Whether objects of `part` may be made. A Service that is not ours must not be opened to the
    /// outside.
    fn may_make(&mut self, part: Part) -> bool {
        self.pods.is_ok() && self.of(part).is_ok()
    }

    /// Notes what became of an object of `part`. The first failure of a part is told.
    fn note(&mut self, part: Part, made: Result<Option<Difference>, Error>) {
        match made {
            Ok(pending) => self.pending.extend(pending),
            Err(error) => {
                let of = self.of(part);
                if of.is_ok() {
                    *of = Err(error);
                }
            }
        }
    }
}

/// One pass over the objects of a channel.
pub(crate) struct Applier<'a> {
    pub(crate) client: &'a Client,
    pub(crate) channel: &'a ValidChannel,
    /// Writes are counted here.
    pub(crate) metrics: &'a Metrics,
    /// Whether the pods stay as they are, apart from their number: it is not the channel's turn to
    /// replace them.
    pub(crate) holds_pods: bool,
}

/// An object as it should be, as it is, and as the API server answered to it last.
struct Slot<'a, K> {
    desired: Option<&'a K>,
    live: &'a mut Option<K>,
    projection: &'a mut Option<Projection>,
}

/// A kind of object that a channel has.
trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

impl Applier<'_> {
    /// Makes the objects as `desired`, starting from `live`, and updates `live` to what is there
    /// then. What is not desired is removed after everything is made, and in the reverse order.
    pub(crate) async fn apply(
        &self,
        desired: &Children,
        live: &mut Live,
        projections: &mut Projections,
    ) -> Applied {
        let mut applied = Applied::nothing();
        macro_rules! make {
            ($({
                $(#[$_doc:meta])*
                $field:ident: $kind:ty, $_presence:ident, $part:ident, $_removal:ident
            })*) => {$(
                if applied.may_make(Part::$part) {
                    let slot = Slot {
                        desired: Option::<&$kind>::from(&desired.$field),
                        live: &mut live.$field,
                        projection: &mut projections.$field,
                    };
                    applied.note(Part::$part, self.make(slot, &live.unknown).await);
                }
            )*};
        }
        for_each_kind!(make);
        let reached = reached(&applied, live);
        macro_rules! remove {
            () => {};
            ({
                $(#[$_doc:meta])*
                $field:ident: $kind:ty, $_presence:ident, $part:ident, $removal:ident
            } $($later:tt)*) => {
                remove!($($later)*);
                if Option::<&$kind>::from(&desired.$field).is_none() {
                    let may_go = reached >= Some(Removal::$removal);
                    applied.note(Part::$part, self.remove(may_go, &mut live.$field).await);
                }
            };
        }
        for_each_kind!(remove);
        applied
    }

    /// Makes an object that should be there. Answers what has to pass first, if something has.
    async fn make<K: Kind>(
        &self,
        slot: Slot<'_, K>,
        unknown: &BTreeSet<String>,
    ) -> Result<Option<Difference>, Error> {
        let Slot { desired: Some(desired), live, projection } = slot else { return Ok(None) };
        let (kind, name) = (K::kind(&()).into_owned(), desired.name_any());
        if unknown.contains(&kind) {
            return Err(Error::UnknownKind { kind });
        }
        let (want, hash) = marked(desired)?;
        if let Some(found) = live.as_ref() {
            let metadata = found.meta();
            if !is_ours(metadata, &self.channel.uid) {
                return Err(self.in_the_way(found));
            }
            // Nothing that is written now would stay; the object's end wakes the channel again.
            if let Some(going) = ownership::going(metadata) {
                return Ok(Some(row(found, EXISTS, &going)));
            }
            if is_as_applied(&want, hash, *projection, &serde_json::to_value(found)?) {
                return Ok(None);
            }
            if self.holds_pods && kind == Deployment::kind(&()) {
                self.scale(&kind, &want, found).await?;
                return Ok(None);
            }
            self.hand_over_replicas(&kind, &want, found).await?;
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.channel.namespace);
        self.metrics.api_write(&kind, "apply");
        let applied =
            api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&want)).await;
        let applied = applied.map_err(|error| refused(kind, name, error))?;
        *projection = Some(Projection {
            applied: hash,
            answered: hash_of(&project(&want, &serde_json::to_value(&applied)?)),
        });
        *live = Some(applied);
        Ok(None)
    }

    /// Why an object that is not ours keeps ours from being made.
    fn in_the_way<K: Kind>(&self, found: &K) -> Error {
        let (kind, name, metadata) = (K::kind(&()).into_owned(), found.name_any(), found.meta());
        let going = ownership::going(metadata);
        if ownership::is_of_former(metadata, self.channel.name.as_str(), &self.channel.uid) {
            let going = going.unwrap_or_else(|| "still there".to_owned());
            return Error::OfFormer { kind, name, going };
        }
        match going {
            Some(going) => Error::Leaving { kind, name, going },
            None => Error::NameTaken { kind, name },
        }
    }

    /// Removes an object that should not be there, where it is ours and `may_go`. Answers what has
    /// to pass first, if something has.
    async fn remove<K: Kind>(
        &self,
        may_go: bool,
        live: &mut Option<K>,
    ) -> Result<Option<Difference>, Error> {
        // One that is not ours is none of our business.
        let ours = live.as_ref().filter(|found| is_ours(found.meta(), &self.channel.uid));
        let Some(found) = ours else { return Ok(None) };
        if let Some(going) = ownership::going(found.meta()) {
            return Ok(Some(row(found, MISSING, &going)));
        }
        if !may_go {
            return Ok(Some(row(found, MISSING, KEPT)));
        }
        let (kind, name) = (K::kind(&()).into_owned(), found.name_any());
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.channel.namespace);
        let preconditions = Preconditions { uid: found.uid(), resource_version: None };
        self.metrics.api_write(&kind, "delete");
        match api.delete(&name, &DeleteParams::background().preconditions(preconditions)).await {
            Err(error) if !is_not_found(&error) => Err(refused(kind, name, error)),
            answer => {
                // Some kinds are answered with the object even where it has gone at once.
                let left = answer.ok().and_then(|answer| answer.left());
                *live = left.filter(|left| !left.finalizers().is_empty());
                let going = |left: &K| ownership::going(left.meta());
                Ok(live.as_ref().and_then(|left| Some(row(left, MISSING, &going(left)?))))
            }
        }
    }

    /// A field that its only manager no longer applies goes back to its default: one pod. So before
    /// the number of pods is left to an autoscaler, a second manager applies it as it is.
    async fn hand_over_replicas<K: Kind>(
        &self,
        kind: &str,
        want: &Value,
        found: &K,
    ) -> Result<(), Error> {
        let has =
            |object: &Value| object.pointer("/spec/replicas").filter(|n| !n.is_null()).cloned();
        if kind != Deployment::kind(&()) || has(want).is_some() {
            return Ok(());
        }
        let owns = |entry: &ManagedFieldsEntry| {
            entry.manager.as_deref() == Some(MANAGER)
                && entry.operation.as_deref() == Some("Apply")
                && entry
                    .fields_v1
                    .as_ref()
                    .is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
        };
        let replicas = has(&serde_json::to_value(found)?);
        let (true, Some(replicas)) = (found.managed_fields().iter().any(owns), replicas) else {
            return Ok(());
        };
        match self.set_replicas(found, &replicas, false).await {
            // Another manager has set another number meanwhile, and so keeps it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(refused(kind.to_owned(), found.name_any(), error)),
            Ok(()) => Ok(()),
        }
    }

    /// Brings the number of pods forward, and nothing else.
    async fn scale<K: Kind>(&self, kind: &str, want: &Value, found: &K) -> Result<(), Error> {
        let replicas = |object: &Value| object.pointer("/spec/replicas").cloned();
        let wanted = replicas(want).filter(|number| !number.is_null());
        let there = replicas(&serde_json::to_value(found)?);
        let Some(wanted) = wanted.filter(|wanted| there.as_ref() != Some(wanted)) else {
            return Ok(());
        };
        let scaled = self.set_replicas(found, &wanted, true).await;
        scaled.map_err(|error| refused(kind.to_owned(), found.name_any(), error))
    }

    /// Applies the number of a Deployment's pods alone.
    async fn set_replicas<K: Kind>(
        &self,
        found: &K,
        replicas: &Value,
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
}

fn is_as_applied(want: &Value, hash: u64, learned: Option<Projection>, found: &Value) -> bool {
    let marked = found.pointer("/metadata/annotations").and_then(|a| a.get(APPLIED));
    let same_hash = marked.and_then(Value::as_str) == Some(hash_text(hash).as_str());
    let as_answered = || {
        learned.is_some_and(|learned| {
            learned.applied == hash && learned.answered == hash_of(&project(want, found))
        })
    };
    same_hash && (contains(found, want) || as_answered())
}

/// Whether `found` is what was applied last for `desired`, as far as it says so.
///
/// # Errors
/// [`Error::Json`], in theory.
pub(crate) fn was_applied(desired: &Deployment, found: &Deployment) -> Result<bool, Error> {
    let (_, hash) = marked(desired)?;
    Ok(found.annotations().get(APPLIED) == Some(&hash_text(hash)))
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
    let mut rows = Vec::new();
    macro_rules! compare {
        ($({
            $(#[$_doc:meta])*
            $field:ident: $kind:ty, $_presence:ident, $_part:ident, $_removal:ident
        })*) => {$(
            let wanted = Option::<&$kind>::from(&desired.$field);
            rows.extend(difference(wanted, live.$field.as_ref(), uid)?);
        )*};
    }
    for_each_kind!(compare);
    Ok(rows)
}

fn difference<K: Kind>(
    desired: Option<&K>,
    live: Option<&K>,
    uid: &str,
) -> Result<Option<Difference>, Error> {
    let Some(found) = live else { return Ok(desired.map(|want| row(want, EXISTS, MISSING))) };
    let going = ownership::going(found.meta());
    Ok(match desired {
        None if !is_ours(found.meta(), uid) => None,
        None => Some(row(found, MISSING, going.as_deref().unwrap_or(EXISTS))),
        Some(_) if !is_ours(found.meta(), uid) => {
            Some(row(found, "of this channel", "of another owner"))
        }
        Some(_) if going.is_some() => going.map(|going| row(found, EXISTS, &going)),
        Some(want) if contains(&serde_json::to_value(found)?, &serde_json::to_value(want)?) => None,
        Some(_) => Some(row(found, "as the spec says", "altered")),
    })
}

fn row<K: Kind>(object: &K, desired: &str, observed: &str) -> Difference {
    Difference {
        field: format!("{}/{}", K::kind(&()), object.name_any()),
        desired: desired.to_owned(),
        observed: observed.to_owned(),
    }
}

/// The object as it is applied: with the hash of itself as an annotation.
fn marked<K: Serialize>(desired: &K) -> Result<(Value, u64), Error> {
    let mut want = serde_json::to_value(desired)?;
    let hash = hash_of(&want);
    let metadata = want.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        annotations[APPLIED] = json!(hash_text(hash));
    }
    Ok((want, hash))
}

fn hash_of(value: &Value) -> u64 {
    fnv1a64(value.to_string().as_bytes())
}

fn hash_text(hash: u64) -> String {
    format!("{hash:016x}")
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
