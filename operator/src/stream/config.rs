//! A stream's configuration as JetStream's API writes it: built whole, compared field by field.
//!
//! It is JSON and not async-nats' type so that a field that only a newer server knows survives an
//! update.

use serde_json::{Map, Value, json};

use sluice_channel::cursor::EPOCH_METADATA;

use super::{desired::Desired, error::Error};
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

/// Changes that may go into one update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Settings,
    Replicas,
    Placement,
}

impl Class {
    fn of(key: &str) -> Self {
        match key {
            "num_replicas" => Self::Replicas,
            "placement" => Self::Placement,
            _ => Self::Settings,
        }
    }
}

/// The whole configuration. `mark` is a new mark of the epoch; without one the present mark stays.
///
/// What is not in here (mirror, sources, consumer limits, and what later servers bring) is handled
/// by [`update`]: features that would break the channel are listed with their "off" value,
/// everything else stays as it is.
pub(super) fn whole(desired: &Desired, mark: Option<&str>) -> Map<String, Value> {
    let mut metadata: Map<String, Value> =
        desired.owner.metadata().into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
    if let Some(mark) = mark {
        metadata.insert(EPOCH_METADATA.to_owned(), json!(mark));
    }
    let nanos =
        |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let config = json!({
        "name": desired.name.as_str(),
        "description": format!("SSE {}", desired.owner),
        "subjects": desired.subjects,
        "retention": "limits",
        "discard": "old",
        "discard_new_per_subject": false,
        "storage": match desired.storage { Storage::File => "file", Storage::Memory => "memory" },
        "num_replicas": desired.replicas,
        "max_age": nanos(desired.max_age),
        "max_bytes": desired.max_bytes,
        "max_msgs": desired.max_messages.unwrap_or(-1),
        "max_msgs_per_subject": desired.max_messages_per_topic.unwrap_or(-1),
        "max_msg_size": desired.max_message_size,
        "duplicate_window": nanos(desired.duplicate_window),
        "compression": match desired.compression { Compression::None => "none", Compression::S2 => "s2" },
        "placement": placement(&desired.placement),
        // History is read by direct get, from any replica.
        "allow_direct": true,
        "mirror_direct": false,
        // A publisher could wipe a topic by a header.
        "allow_rollup_hdrs": false,
        "no_ack": false,
        "sealed": false,
        "mirror": null,
        "sources": null,
        "republish": null,
        "subject_transform": null,
        "metadata": metadata,
    });
    match config {
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
pub(super) fn diff(want: &Map<String, Value>, observed: &Map<String, Value>) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (key, desired) in want {
        let found = observed.get(key).unwrap_or(&Value::Null);
        if key == "metadata" {
            for (name, desired) in desired.as_object().into_iter().flatten() {
                let found = found.get(name).unwrap_or(&Value::Null);
                if found != desired {
                    differences.push(Difference::new(
                        format!("metadata.{name}"),
                        text(name, desired),
                        text(name, found),
                    ));
                }
            }
        } else if normal(key, desired) != normal(key, found) {
            differences.push(Difference::new(spec_path(key), text(key, desired), text(key, found)));
        }
    }
    differences
}

/// JetStream leaves out what is off, and orders sets as it likes.
pub(super) fn normal(key: &str, value: &Value) -> Value {
    match value {
        Value::Null if key == "compression" => json!("none"),
        Value::Bool(false) | Value::Null => Value::Null,
        Value::String(text) if text.is_empty() => Value::Null,
        Value::Number(number) if number.as_i64() == Some(0) => Value::Null,
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(|item| normal("", item)).collect();
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        Value::Object(map) => {
            let map: Map<_, _> = map
                .iter()
                .map(|(k, v)| (k.clone(), normal(k, v)))
                .filter(|(_, v)| !v.is_null())
                .collect();
            if map.is_empty() { Value::Null } else { Value::Object(map) }
        }
        other => other.clone(),
    }
}

/// The update that brings the fields of `class` from `observed` to `want`, if any differs. Fields
/// of later classes stay as they are, and so does what `want` does not speak of.
pub(super) fn update(
    want: &Map<String, Value>,
    observed: &Map<String, Value>,
    class: Class,
) -> Option<Map<String, Value>> {
    let relevant: Map<_, _> = want
        .iter()
        .filter(|(key, _)| Class::of(key) == class)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if diff(&relevant, observed).is_empty() {
        return None;
    }
    let mut update = observed.clone();
    for (key, value) in relevant {
        if key == "metadata" {
            let entry = update.entry(key).or_insert_with(|| json!({}));
            // The server writes its own `_nats.` entries and refuses foreign ones.
            let mut merged: Map<String, Value> = entry.as_object().cloned().unwrap_or_default();
            merged.retain(|name, _| !name.starts_with("_nats."));
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

/// What nats-server can never change, checked before anything is written.
pub(super) fn immutable(
    want: &Map<String, Value>,
    observed: &Map<String, Value>,
) -> Result<(), Error> {
    let fixed = |key: &str| {
        normal(key, want.get(key).unwrap_or(&Value::Null))
            != normal(key, observed.get(key).unwrap_or(&Value::Null))
    };
    let differs = ["storage", "mirror", "sealed"].into_iter().find(|key| fixed(key));
    let work_queue = (observed.get("retention").and_then(Value::as_str) == Some("workqueue"))
        .then_some("retention");
    match differs.or(work_queue) {
        None => Ok(()),
        Some(key) => Err(Error::ImmutableField {
            field: spec_path(key),
            desired: text(key, want.get(key).unwrap_or(&Value::Null)),
            observed: text(key, observed.get(key).unwrap_or(&Value::Null)),
        }),
    }
}

pub(super) fn spec_path(key: &str) -> String {
    let field = match key {
        "num_replicas" => "replicas",
        "max_age" => "maxAge",
        "max_bytes" => "maxBytes",
        "max_msgs" => "maxMessages",
        "max_msgs_per_subject" => "maxMessagesPerTopic",
        "max_msg_size" => "maxMessageSize",
        "duplicate_window" => "duplicateWindow",
        "subjects" | "storage" | "compression" | "placement" => key,
        other => return other.to_owned(),
    };
    format!("spec.stream.{field}")
}

/// A value as the spec would write it.
pub(super) fn text(key: &str, value: &Value) -> String {
    match (key, value) {
        ("max_age" | "duplicate_window", Value::Number(nanos)) => {
            duration_text(nanos.as_u64().unwrap_or_default() / 1_000_000)
        }
        ("max_bytes" | "max_msg_size", Value::Number(bytes)) if bytes.as_u64().is_some() => {
            size_text(bytes.as_u64().unwrap_or_default())
        }
        (_, Value::Number(number)) if number.as_i64() == Some(-1) => "unlimited".to_owned(),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Null) => "unset".to_owned(),
        (_, other) => other.to_string(),
    }
}

fn duration_text(mut millis: u64) -> String {
    let mut text = String::new();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if millis >= length {
            text += &format!("{}{unit}", millis / length);
            millis %= length;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn size_text(bytes: u64) -> String {
    let fits = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)]
        .into_iter()
        .find(|(_, bits)| bytes >= 1 << bits && bytes.trailing_zeros() >= *bits);
    fits.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
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
        let mut observed = want.clone();
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
        for (key, value) in &want {
            let mut observed = want.clone();
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
        );
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
        let observed = whole(&desired(&json!({})), None);
        let settings = update(&want, &observed, Class::Settings).unwrap();
        assert_eq!(
            (settings["num_replicas"].clone(), settings.get("placement")),
            (json!(1), Some(&Value::Null))
        );
        assert_eq!(settings["max_age"], want["max_age"]);
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
        let mut observed = whole(&desired(&json!({})), None);
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
