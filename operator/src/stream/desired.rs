//! What a stream should be, and the channel that it belongs to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sluice_channel::StreamName;

use crate::crd::stream::{Adoption, Compression, Placement, Storage};

/// Key in a stream's metadata: the cluster of its channel.
pub(super) const CLUSTER: &str = "sluice.dev/cluster";
/// Key in a stream's metadata: the namespace of its channel.
pub(super) const NAMESPACE: &str = "sluice.dev/namespace";
/// Key in a stream's metadata: the name of its channel.
pub(super) const NAME: &str = "sluice.dev/name";
/// Key in a stream's metadata: the UID of its channel.
pub const UID: &str = "sluice.dev/uid";

/// Key in a stream's metadata: it was not made for its channel but taken over.
pub(super) const ADOPTED: &str = "sluice.dev/adopted";

/// Annotation on a channel's Namespace: this stream's mark, the UID of its owner, may become that
/// of a channel in the Namespace.
pub const TAKE_OVER: &str = "tenancy.sluice.dev/take-over";

/// The channel that a stream belongs to; written into its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Identity of the Kubernetes cluster, or `local`.
    pub cluster: String,
    /// Namespace of the channel.
    pub namespace: String,
    /// Name of the channel.
    pub name: String,
    /// UID of the channel's object.
    pub uid: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "channel {}/{} of cluster {}", self.namespace, self.name, self.cluster)
    }
}

/// What a stream should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its name.
    pub name: StreamName,
    /// Subjects it takes.
    pub subjects: Vec<String>,
    /// Where it is kept.
    pub storage: Storage,
    /// Copies.
    pub replicas: usize,
    /// Greatest age of an event.
    pub max_age: Duration,
    /// Most bytes.
    pub max_bytes: u64,
    /// Most events.
    pub max_messages: Option<i64>,
    /// Most events of one subject.
    pub max_messages_per_topic: Option<i64>,
    /// Largest event, bytes.
    pub max_message_size: u64,
    /// How long message ids are remembered.
    pub duplicate_window: Duration,
    /// Compression of the file store.
    pub compression: Compression,
    /// Where in a super-cluster.
    pub placement: Placement,
    /// Whether a stream without an owner may be taken over.
    pub adoption: Adoption,
    /// Fields of JetStream's configuration that the spec leaves at their defaults: an adopted
    /// stream keeps what is wider.
    pub unsaid: BTreeSet<&'static str>,
    /// The spec's own words for values that can be written in several ways, by JetStream's names.
    pub words: BTreeMap<&'static str, String>,
    /// The channel that it belongs to.
    pub owner: Owner,
    /// UID of the owner whose mark may become this owner's. It fits one mark, and fits no longer
    /// once the mark is this owner's.
    pub take_over: Option<String>,
}

impl Owner {
    /// The same object in the API server: a UID is never given twice.
    pub(super) fn same_object(&self, other: &Self) -> bool {
        (&self.namespace, &self.name, &self.uid) == (&other.namespace, &other.name, &other.uid)
    }

    /// The same name in the same cluster, perhaps in another life: a channel that was deleted (with
    /// `Retain`) and made again finds its events. No two objects of one name live at once.
    pub(super) fn same_channel(&self, other: &Self) -> bool {
        (&self.cluster, &self.namespace, &self.name)
            == (&other.cluster, &other.namespace, &other.name)
    }

    /// Description of its stream.
    pub(super) fn description(&self) -> String {
        format!("SSE {self}")
    }

    /// Whether the operator wrote this description, for whichever channel; one that the stream's
    /// users wrote is theirs.
    pub(super) fn wrote(description: &str) -> bool {
        description.starts_with("SSE channel ")
    }

    pub(super) fn metadata(&self) -> BTreeMap<&'static str, &str> {
        BTreeMap::from([
            (CLUSTER, self.cluster.as_str()),
            (NAMESPACE, self.namespace.as_str()),
            (NAME, self.name.as_str()),
            (UID, self.uid.as_str()),
        ])
    }
}
