//! Step 4: the cluster is made as desired, by server-side apply with one field manager, and only where it differs:
//! an apply that changes nothing is a write request all the same.

use std::{collections::HashMap, fmt::Debug};

use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    dereference::{Live, MANAGER, is_ours},
    desired::Children,
    validate::Channel,
};
use crate::{metrics::Metrics, stream::Difference};

/// Annotation with the hash of what was applied last: a field that is no longer desired cannot be seen otherwise.
pub const APPLIED: &str = "sluice.dev/applied";

/// Why an object is not as desired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of that name is there and is not the channel's.
    #[error(
        "{kind} {name} exists and does not belong to this channel; it is left alone. Delete or rename it, or choose another name for the channel"
    )]
    NameTaken {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server refused it.
    #[error("the API server refused {kind} {name}: {message}")]
    Refused {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The server's words.
        message: String,
    },
    /// The API server could not be asked, or asks to come again.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// An object could not be written as JSON; a defect of this program.
    #[error("cannot write an object: {0}")]
    Json(#[from] serde_json::Error),
}

/// What the API server made of the objects that were applied: it writes some values its own way (`0.5` of a
/// processor becomes `500m`), which is no drift. By kind.
pub type Memory = HashMap<String, (String, Value)>;

/// One pass over the objects of a channel.
pub struct Pass<'a> {
    /// Client of the API server.
    pub client: &'a Client,
    /// The channel.
    pub channel: &'a Channel,
    /// What earlier passes learned.
    pub memory: &'a mut Memory,
    /// Writes are counted here.
    pub metrics: &'a Metrics,
}

impl Pass<'_> {
    /// Makes the objects as `desired`, starting from `live`, and updates `live` to what is there then.
    ///
    /// # Errors
    /// The first [`Error`]; objects after it are left for the next pass.
    pub async fn apply(&mut self, desired: Children, live: &mut Live) -> Result<(), Error> {
        // Destructured whole, so that a new kind cannot be forgotten here. What pods need goes before them.
        let Children { service_account, config, deployment, service, disruption_budget } = desired;
        self.converge(service_account, &mut live.service_account).await?;
        self.converge(Some(config), &mut live.config).await?;
        self.converge(Some(service), &mut live.service).await?;
        self.converge(disruption_budget, &mut live.disruption_budget).await?;
        self.converge(Some(deployment), &mut live.deployment).await
    }

    async fn converge<K>(&mut self, desired: Option<K>, live: &mut Option<K>) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.channel.namespace);
        let kind = K::kind(&()).into_owned();
        if let Some(found) = live.as_ref().filter(|found| !is_ours(found.meta(), &self.channel.uid)) {
            // One that must not exist is none of our business then.
            return if desired.is_none() { Ok(()) } else { Err(Error::NameTaken { kind, name: found.name_any() }) };
        }
        match (desired, live.as_ref()) {
            (None, None) => Ok(()),
            (None, Some(found)) => {
                let preconditions = Preconditions { uid: found.uid(), resource_version: None };
                let name = found.name_any();
                self.metrics.api_write(&kind, "delete");
                match api.delete(&name, &DeleteParams::background().preconditions(preconditions)).await {
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
                let applied = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&want)).await;
                let applied = applied.map_err(|error| refused(kind.clone(), name, error))?;
                self.memory.insert(kind, (hash, project(&want, &serde_json::to_value(&applied)?)));
                *live = Some(applied);
                Ok(())
            }
        }
    }

    fn is_as_applied<K: Resource + Serialize>(&self, kind: &str, want: &Value, hash: &str, found: &K) -> bool {
        if found.meta().deletion_timestamp.is_some() {
            return true; // it goes first; its end wakes the channel again
        }
        let Ok(found) = serde_json::to_value(found) else { return false };
        let same_hash = found.pointer("/metadata/annotations").and_then(|a| a.get(APPLIED)).and_then(Value::as_str) == Some(hash);
        let remembered = self.memory.get(kind).is_some_and(|(of, projection)| of == hash && *projection == project(want, &found));
        same_hash && (remembered || contains(&found, want))
    }
}

/// The objects that are not as desired, for `managementPolicy: Observe`.
///
/// # Errors
/// [`Error::Json`], in theory.
pub fn differences(desired: &Children, live: &Live, uid: &str) -> Result<Vec<Difference>, Error> {
    let Children { service_account, config, deployment, service, disruption_budget } = desired;
    let rows = [
        difference(service_account.as_ref(), live.service_account.as_ref(), uid)?,
        difference(Some(config), live.config.as_ref(), uid)?,
        difference(Some(deployment), live.deployment.as_ref(), uid)?,
        difference(Some(service), live.service.as_ref(), uid)?,
        difference(disruption_budget.as_ref(), live.disruption_budget.as_ref(), uid)?,
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn difference<K>(desired: Option<&K>, live: Option<&K>, uid: &str) -> Result<Option<Difference>, Error>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let row = |name: String, desired: &str, observed: &str| {
        Some(Difference { field: format!("{}/{name}", K::kind(&())), desired: desired.to_owned(), observed: observed.to_owned() })
    };
    Ok(match (desired, live) {
        (None, None) => None,
        (None, Some(found)) if is_ours(found.meta(), uid) => row(found.meta().name.clone().unwrap_or_default(), "missing", "exists"),
        (None, Some(_)) => None,
        (Some(want), None) => row(want.meta().name.clone().unwrap_or_default(), "exists", "missing"),
        (Some(want), Some(found)) => {
            let name = want.meta().name.clone().unwrap_or_default();
            if !is_ours(found.meta(), uid) {
                row(name, "of this channel", "of somebody else")
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

/// FNV-1a, 64 bits: to notice a change, not to withstand an attack.
pub(super) fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether `live` has everything that `want` has. More in it is others' business.
fn contains(live: &Value, want: &Value) -> bool {
    match (live, want) {
        (Value::Object(live), Value::Object(want)) => {
            want.iter().all(|(key, want)| live.get(key).map_or_else(|| is_empty(want), |live| contains(live, want)))
        }
        (Value::Array(live), Value::Array(want)) => live.len() == want.len() && live.iter().zip(want).all(|(l, w)| contains(l, w)),
        (live, want) => live == want,
    }
}

/// What the API server leaves out when it writes an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The values of `live` at the places that `want` speaks of.
fn project(want: &Value, live: &Value) -> Value {
    match (want, live) {
        (Value::Object(want), Value::Object(live)) => {
            let fields = want.iter().map(|(key, want)| (key.clone(), project(want, live.get(key).unwrap_or(&Value::Null))));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        (Value::Array(want), Value::Array(live)) if want.len() == live.len() => want.iter().zip(live).map(|(w, l)| project(w, l)).collect(),
        (_, live) => live.clone(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_desired_is_fine_and_less_is_not() {
        let want = json!({"a": {"b": 1}, "list": [{"n": "x"}], "none": {}, "nothing": null});
        assert!(contains(&json!({"a": {"b": 1, "c": 2}, "list": [{"n": "x", "more": 1}], "other": 1}), &want));
        for less in [
            json!({"a": {"b": 2}, "list": [{"n": "x"}]}),
            json!({"a": {}, "list": [{"n": "x"}]}),
            json!({"a": {"b": 1}, "list": []}),
            json!({"a": {"b": 1}, "list": [{"n": "x"}, {"n": "y"}]}),
        ] {
            assert!(!contains(&less, &want), "{less}");
        }
    }

    #[test]
    fn what_the_server_writes_its_own_way_is_remembered() {
        let want = json!({"cpu": "0.5", "list": [{"n": "x"}]});
        let live = json!({"cpu": "500m", "list": [{"n": "x", "more": 1}], "other": 1});
        let learned = project(&want, &live);
        assert_eq!(learned, json!({"cpu": "500m", "list": [{"n": "x"}]}));
        assert_ne!(project(&want, &json!({"cpu": "1", "list": [{"n": "x"}]})), learned);
    }
}
