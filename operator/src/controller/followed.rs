//! What is kept of each channel to know of it: neither its spec, nor what tools write into its
//! metadata. A pass reads the whole.

use std::collections::HashMap;

use kube::{
    Resource,
    api::ObjectMeta,
    runtime::{reflector::ObjectRef, watcher::Event},
};
use serde::Deserialize;
use sluice_channel::StreamName;

use crate::crd::SseChannel;

/// A channel as the watch keeps it.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = SseChannel)]
pub(super) struct Followed {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    observed_generation: Option<i64>,
    #[serde(default)]
    stream: Option<Stream>,
}

#[derive(Debug, Clone, Deserialize)]
struct Stream {
    #[serde(default)]
    name: String,
}

impl Followed {
    /// Drops what is not needed: with the fields that managers own, an object is many times as
    /// large.
    pub(super) fn strip(&mut self) {
        let all = std::mem::take(&mut self.metadata);
        self.metadata = ObjectMeta {
            name: all.name,
            namespace: all.namespace,
            uid: all.uid,
            resource_version: all.resource_version,
            generation: all.generation,
            deletion_timestamp: all.deletion_timestamp,
            ..ObjectMeta::default()
        };
    }

    pub(super) fn reference(&self) -> ObjectRef<SseChannel> {
        let (name, namespace) = (self.metadata.name.as_deref(), self.metadata.namespace.as_deref());
        ObjectRef::new(name.unwrap_or_default()).within(namespace.unwrap_or_default())
    }

    pub(super) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether no pass has come to an end since it was made, changed or deleted.
    pub(super) fn is_edited(&self) -> bool {
        let observed = self.status.as_ref().and_then(|status| status.observed_generation);
        self.metadata.deletion_timestamp.is_some() || observed != self.metadata.generation
    }

    fn stream(&self) -> Option<StreamName> {
        let stream = self.status.as_ref()?.stream.as_ref()?;
        StreamName::new(stream.name.as_str()).ok()
    }
}

/// A channel that there is no more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) channel: ObjectRef<SseChannel>,
    pub(super) uid: String,
    /// Its stream, as its status said last.
    pub(super) stream: Option<StreamName>,
}

#[derive(Debug)]
struct Known {
    uid: String,
    stream: Option<StreamName>,
}

/// The channels of one watch. It finds out which have gone, also those that went while the watch
/// was away: their deletes are never told.
#[derive(Debug, Default)]
pub(super) struct Roll {
    known: HashMap<ObjectRef<SseChannel>, Known>,
    /// What a list that is under way has had so far.
    listed: Option<HashMap<ObjectRef<SseChannel>, Known>>,
}

impl Roll {
    /// Takes in what the watch told; answers the channels that have gone by it.
    pub(super) fn note(&mut self, event: &Event<Followed>) -> Vec<Gone> {
        match event {
            Event::Init => {
                self.listed = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(object.reference(), known(object));
                }
                Vec::new()
            }
            Event::InitDone => {
                let before = match self.listed.take() {
                    Some(listed) => std::mem::replace(&mut self.known, listed),
                    None => return Vec::new(),
                };
                let has_gone = |(channel, was): &(ObjectRef<SseChannel>, Known)| {
                    self.known.get(channel).is_none_or(|now| now.uid != was.uid)
                };
                before.into_iter().filter(has_gone).map(gone).collect()
            }
            Event::Apply(object) => {
                let channel = object.reference();
                let was = self.known.insert(channel.clone(), known(object));
                let former = was.filter(|was| was.uid != object.uid());
                former.map(|was| gone((channel, was))).into_iter().collect()
            }
            Event::Delete(object) => {
                self.known.remove(&object.reference());
                vec![gone((object.reference(), known(object)))]
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

fn known(object: &Followed) -> Known {
    Known { uid: object.uid().to_owned(), stream: object.stream() }
}

fn gone((channel, known): (ObjectRef<SseChannel>, Known)) -> Gone {
    Gone { channel, uid: known.uid, stream: known.stream }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, uid: &str) -> Followed {
        let mut object: Followed = serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
            "metadata": {"name": name, "namespace": "shop", "uid": uid, "generation": 2,
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "managedFields": [{"manager": "kubectl", "operation": "Update"}]},
            "spec": {"anything": [1, 2, 3]},
            "status": {"observedGeneration": 2, "stream": {"name": format!("S_{uid}"), "epoch": "e"}},
        }))
        .unwrap();
        object.strip();
        object
    }

    fn names(gone: Vec<Gone>) -> Vec<String> {
        let mut names: Vec<_> =
            gone.into_iter().map(|gone| gone.stream.unwrap().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_tools_write_is_not_kept() {
        let object = object("orders", "1");
        assert!(object.metadata.managed_fields.is_none() && object.metadata.annotations.is_none());
        assert_eq!(object.reference().to_string(), "SseChannel.v1alpha1.sluice.dev/orders.shop");
        assert!(!object.is_edited());
    }

    #[test]
    fn an_edit_is_what_no_status_speaks_of() {
        let mut edited = object("orders", "1");
        edited.metadata.generation = Some(3);
        assert!(edited.is_edited());
        let mut new = object("orders", "1");
        new.status = None;
        assert!(new.is_edited());
        let mut deleted = object("orders", "1");
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ));
        assert!(deleted.is_edited());
    }

    #[test]
    fn channels_that_go_are_noticed_however_they_go() {
        let mut roll = Roll::default();
        for event in [
            Event::Init,
            Event::InitApply(object("a", "1")),
            Event::InitApply(object("b", "2")),
            Event::InitApply(object("c", "3")),
            Event::InitDone,
            Event::Apply(object("d", "4")),
            Event::Apply(object("d", "4")),
        ] {
            assert_eq!(roll.note(&event), []);
        }
        assert_eq!(roll.len(), 4);
        // By a delete.
        assert_eq!(names(roll.note(&Event::Delete(object("a", "1")))), ["S_1"]);
        // By another one of its name.
        assert_eq!(names(roll.note(&Event::Apply(object("b", "5")))), ["S_2"]);
        // While the watch was away: `c` and, with another one in its place, `d`.
        for event in
            [Event::Init, Event::InitApply(object("b", "5")), Event::InitApply(object("d", "6"))]
        {
            assert_eq!(roll.note(&event), []);
        }
        assert_eq!(names(roll.note(&Event::InitDone)), ["S_3", "S_4"]);
        assert_eq!(roll.len(), 2);
    }
}
