//! Fields of a stream's configuration as nats-server answered it.

use serde_json::{Map, Value};
use sluice_channel::cursor::EPOCH_METADATA;

use super::desired::{ADOPTED, CLUSTER, NAME, NAMESPACE, Owner, UID};

/// The owner that a stream's metadata names.
pub(super) fn owner(config: &Map<String, Value>) -> Option<Owner> {
    let entry = |key| config.get("metadata")?.get(key)?.as_str().map(str::to_owned);
    Some(Owner {
        cluster: entry(CLUSTER)?,
        namespace: entry(NAMESPACE)?,
        name: entry(NAME)?,
        uid: entry(UID)?,
    })
}

/// Whether a stream's metadata has some but not all marks of an owner.
pub(super) fn partly_owned(config: &Map<String, Value>) -> bool {
    [CLUSTER, NAMESPACE, NAME, UID]
        .iter()
        .any(|key| config.get("metadata").is_some_and(|m| m.get(key).is_some()))
}

/// Whether the stream was taken over and not made for its channel.
pub(super) fn adopted(config: &Map<String, Value>) -> bool {
    config.get("metadata").is_some_and(|m| m.get(ADOPTED).is_some())
}

pub(super) fn epoch_mark(config: &Map<String, Value>) -> &str {
    config
        .get("metadata")
        .and_then(|m| m.get(EPOCH_METADATA))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// How often the stream has been given a new epoch.
pub(super) fn epochs(config: &Map<String, Value>) -> i64 {
    epoch_mark(config).parse().unwrap_or_default()
}

pub(super) fn replicas(config: &Map<String, Value>) -> usize {
    config
        .get("num_replicas")
        .and_then(Value::as_u64)
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(1)
}
