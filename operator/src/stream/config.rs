//! A stream's configuration as JetStream's API writes it: built whole, compared field by field.
//!
//! It is JSON and not async-nats' type so that a field that only a newer server knows survives an
//! update.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sluice_channel::cursor::EPOCH_METADATA;

use super::{
    desired::Desired,
    error::Error,
    table::{self, Class, FIELDS, Mutability},
    text,
};
use crate::crd::stream::{Compression, Placement, Storage};

/// A field that is not as desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path in the channel's spec where the field is one, else the name in JetStream.
    pub field: String,
    /// What it should be.
    pub desired: String,
    /// What it is.
    pub observed: String,
}

impl Difference {
    pub(super) fn new(
        field: impl Into<String>,
        desired: impl Into<String>,
        observed: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), desired: desired.into(), observed: observed.into() }
    }
}

/// A difference's value: an object that is, or should be, there.
pub const EXISTS: &str = "exists";
/// A difference's value: an object that is not, or should not be, there.
pub const MISSING: &str = "missing";

/// As a sentence without a full stop.
impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, desired, observed } = self;
        match (desired.as_str(), observed.as_str()) {
            (EXISTS, MISSING) => write!(f, "{field} does not exist"),
            (MISSING, EXISTS) => write!(f, "{field} exists, but should not"),
            (desired, observed) => write!(f, "{field} is {observed} instead of {desired}"),
        }
    }
}

/// A configuration as it should be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Want {
    pub(super) fields: Map<String, Value>,
    /// The spec's own words for values of it, by JetStream's names.
    pub(super) words: BTreeMap<&'static str, String>,
}

impl Want {
    /// This very configuration.
    pub(super) fn of(fields: Map<String, Value>) -> Self {
        Self { fields, words: BTreeMap::new() }
    }

    pub(super) fn get(&self, nats: &str) -> &Value {
        self.fields.get(nats).unwrap_or(&Value::Null)
    }

    /// Another value than the spec's.
    pub(super) fn set(&mut self, nats: &'static str, value: Value) {
        self.words.remove(nats);
        self.fields.insert(nats.to_owned(), value);
    }

    /// The value as the spec writes it.
    pub(super) fn text(&self, nats: &str) -> String {
        let words = self.words.get(nats).cloned();
        words.unwrap_or_else(|| text::of(nats, self.get(nats)))
    }
}

/// The whole configuration of a channel's own stream. `mark` is a new mark of the epoch; without
/// one the present mark stays. Fields that are not in here stay as they are.
pub(super) fn whole(desired: &Desired, mark: Option<&str>) -> Want {
    let mut fields: Map<_, _> =
        FIELDS.iter().filter_map(|field| Some((field.nats.to_owned(), field.needed()?))).collect();
    fields.extend(said(desired, mark));
    Want { fields, words: desired.words.clone() }
}

/// What spec and owner say.
fn said(desired: &Desired, mark: Option<&str>) -> Map<String, Value> {
    let mut metadata: Map<String, Value> =
        desired.owner.metadata().into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
    if let Some(mark) = mark {
        metadata.insert(EPOCH_METADATA.to_owned(), json!(mark));
    }
    let nanos =
        |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let fields = json!({
        "name": desired.name.as_str(),
        "description": desired.owner.description(),
        "metadata": metadata,
        "subjects": desired.subjects,
        "storage": match desired.storage { Storage::File => "file", Storage::Memory => "memory" },
        "max_age": nanos(desired.max_age),
        "max_bytes": desired.max_bytes,
        "max_msgs": desired.max_messages.unwrap_or(-1),
        "max_msgs_per_subject": desired.max_messages_per_topic.unwrap_or(-1),
        "max_msg_size": desired.max_message_size,
        "duplicate_window": nanos(desired.duplicate_window),
        "num_replicas": desired.replicas,
        "placement": placement(&desired.placement),
        "compression": match desired.compression { Compression::None => "none", Compression::S2 => "s2" },
    });
    match fields {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn placement(placement: &Placement) -> Value {
    let tags: Vec<_> = placement.tags.iter().map(|t| t.0.as_str()).collect();
    match (placement.cluster.as_str(), tags.is_empty()) {
        ("", true) => Value::Null,
        ("", false) => json!({"tags": tags}),
        (cluster, true) => json!({"cluster": cluster}),
        (cluster, false) => json!({"cluster": cluster, "tags": tags}),
    }
}

/// Every field of `want` that `observed` does not have.
pub(super) fn diff(want: &Want, observed: &Map<String, Value>) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (key, desired) in &want.fields {
        let found = observed.get(key).unwrap_or(&Value::Null);
        if key == "metadata" {
            for (name, desired) in desired.as_object().into_iter().flatten() {
                let found = found.get(name).unwrap_or(&Value::Null);
                if found != desired {
                    differences.push(Difference::new(
                        format!("metadata.{name}"),
                        text::of(name, desired),
                        text::of(name, found),
                    ));
                }
            }
        } else if table::normal_of(key, desired) != table::normal_of(key, found) {
            differences.push(difference(want, key, found));
        }
    }
    differences
}

fn difference(want: &Want, key: &str, found: &Value) -> Difference {
    Difference::new(text::path(key), want.text(key), text::of(key, found))
}

/// The update that brings the fields of `class` from `observed` to `want`, if any differs. Fields
/// of later classes stay as they are, and so does what `want` does not speak of.
pub(super) fn update(
    want: &Want,
    observed: &Map<String, Value>,
    class: Class,
) -> Option<Map<String, Value>> {
    let class_of = |key: &str| table::field(key).map_or(Class::Settings, |field| field.class);
    let relevant: Map<_, _> = want
        .fields
        .iter()
        .filter(|(key, _)| class_of(key) == class)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let relevant = Want::of(relevant);
    if diff(&relevant, observed).is_empty() {
        return None;
    }
    let mut update = without_servers_own(observed.clone());
    for (key, value) in relevant.fields {
        if key == "metadata" {
            let entry = update.entry(key).or_insert_with(|| json!({}));
            let mut merged: Map<String, Value> = entry.as_object().cloned().unwrap_or_default();
            merged.extend(value.as_object().cloned().unwrap_or_default());
            *entry = Value::Object(merged);
        } else if value.is_null() {
            update.remove(&key);
        } else {
            update.insert(key, value);
        }
    }
    Some(update)
}

/// A configuration that was read, as it may be written: the server writes its own `_nats.` entries
/// into the metadata and refuses foreign ones.
pub(super) fn without_servers_own(mut config: Map<String, Value>) -> Map<String, Value> {
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !key.starts_with("_nats."));
    }
    config
}

/// What nats-server can never change, checked before anything is written.
pub(super) fn immutable(want: &Want, observed: &Map<String, Value>) -> Result<(), Error> {
    for field in FIELDS.iter().filter(|field| want.fields.contains_key(field.nats)) {
        let found = observed.get(field.nats).unwrap_or(&Value::Null);
        let normal = field.normal(found);
        if normal == field.normal(want.get(field.nats)) {
            continue;
        }
        let fixed = match field.mutability {
            Mutability::Free => false,
            Mutability::Fixed => true,
            Mutability::OnForEver => !normal.is_null(),
            Mutability::NotFrom(value) => found == value,
        };
        if fixed {
            let Difference { field, desired, observed } = difference(want, field.nats, found);
            return Err(Error::ImmutableField { field, desired, observed });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::validate::{self, tests::channel};

    fn desired(spec: &Value) -> Desired {
        validate::validate(&channel("orders", spec), "c").unwrap().stream
    }

    #[test]
    fn what_a_server_leaves_out_is_off() {
        let want = whole(&desired(&json!({})), None);
        let mut observed = want.fields.clone();
        for key in [
            "no_ack",
            "sealed",
            "mirror",
            "sources",
            "republish",
            "subject_transform",
            "placement",
            "compression",
        ] {
            observed.remove(key);
        }
        observed.insert("consumer_limits".to_owned(), json!({}));
        observed["metadata"]["_nats.ver"] = json!("2.15.1");
        assert_eq!(diff(&want, &observed), []);
    }

    #[test]
    fn every_field_is_compared() {
        let want = whole(&desired(&json!({})), None);
        for (key, value) in &want.fields {
            let mut observed = want.fields.clone();
            let other = match value {
                Value::Bool(on) => json!(!on),
                Value::Number(_) => json!(77),
                Value::String(_) => json!("other"),
                Value::Array(_) => json!(["other"]),
                Value::Object(_) => json!({}),
                Value::Null => json!({"name": "other"}),
            };
            observed.insert(key.clone(), other);
            assert!(!diff(&want, &observed).is_empty(), "{key}");
        }
    }

    #[test]
    fn differences_are_told_in_the_words_of_the_spec() {
        let want = whole(&desired(&json!({})), None);
        let observed = whole(
            &desired(
                &json!({"stream": {"maxAge": "1h30m", "maxBytes": "512Mi", "maxMessages": 5}}),
            ),
            None,
        )
        .fields;
        let told: Vec<_> = diff(&want, &observed)
            .into_iter()
            .map(|d| format!("{}: {} {}", d.field, d.desired, d.observed))
            .collect();
        assert_eq!(
            told,
            [
                "spec.stream.maxAge: 24h 1h30m",
                "spec.stream.maxBytes: 1Gi 512Mi",
                "spec.stream.maxMessages: unlimited 5"
            ]
        );
    }

    #[test]
    fn replicas_and_placement_are_never_in_one_update_with_anything_else() {
        let want = whole(
            &desired(
                &json!({"stream": {"replicas": 3, "maxAge": "2h", "placement": {"cluster": "eu"}}}),
            ),
            None,
        );
        let observed = whole(&desired(&json!({})), None).fields;
        let settings = update(&want, &observed, Class::Settings).unwrap();
        assert_eq!(
            (settings["num_replicas"].clone(), settings.get("placement")),
            (json!(1), Some(&Value::Null))
        );
        assert_eq!(settings["max_age"], want.fields["max_age"]);
        let scaled = update(&want, &settings, Class::Replicas).unwrap();
        assert_eq!(
            (scaled["num_replicas"].clone(), scaled.get("placement")),
            (json!(3), Some(&Value::Null))
        );
        let moved = update(&want, &scaled, Class::Placement).unwrap();
        assert_eq!(diff(&want, &moved), []);
        assert_eq!(update(&want, &moved, Class::Settings), None);
    }

    #[test]
    fn an_update_keeps_what_is_not_ours() {
        let want = whole(&desired(&json!({"stream": {"maxAge": "2h"}})), None);
        let mut observed = whole(&desired(&json!({})), None).fields;
        observed.insert("deny_delete".to_owned(), json!(true));
        observed.insert("field_of_a_later_server".to_owned(), json!(5));
        observed["metadata"]["team"] = json!("shop");
        observed["metadata"]["_nats.ver"] = json!("2.15.1");
        observed["metadata"][EPOCH_METADATA] = json!("3");
        let update = update(&want, &observed, Class::Settings).unwrap();
        assert_eq!(
            (&update["deny_delete"], &update["field_of_a_later_server"]),
            (&json!(true), &json!(5))
        );
        assert_eq!(
            (&update["metadata"]["team"], &update["metadata"][EPOCH_METADATA]),
            (&json!("shop"), &json!("3"))
        );
        assert_eq!(update["metadata"].get("_nats.ver"), None);
    }
}
