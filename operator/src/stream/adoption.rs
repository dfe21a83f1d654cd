//! Taking over a stream that was not made for its channel: what excludes it, and what of it stays.
//!
//! An adoption only widens. Nothing that the stream's present users rely on is taken away, no event
//! is dropped, and no copy of one. A limit that the spec leaves at its default is no wish to
//! shorten what is there, so the wider one stays, for as long as the channel has the stream.

use serde_json::{Map, Value, json};

use super::{
    config::{immutable, normal, spec_path, text},
    desired::{ADOPTED, Desired},
    error::Error,
    server::Observed,
};

/// Settings that exclude a stream, each with what it means for a channel. Those that
/// [`immutable`] knows are not repeated here.
const EXCLUDED: [(&str, &str); 10] = [
    ("sources", "a channel's stream takes its events from its own subjects alone"),
    ("republish", "a channel's stream must not have it"),
    ("subject_transform", "a channel's stream must not have it"),
    ("discard_new_per_subject", "a channel's stream drops the oldest events and refuses none"),
    ("allow_rollup_hdrs", "a publisher could wipe a topic of the channel by a header"),
    ("subject_delete_marker_ttl", "it needs roll-up headers, by which a topic can be wiped"),
    ("allow_msg_schedules", "it needs roll-up headers, by which a topic can be wiped"),
    ("allow_msg_counter", "an event that is published over HTTP would be refused"),
    ("consumer_limits", "the pods' consumers may be outside of them"),
    ("template_owner", "its template would undo what the channel needs"),
];

/// The configuration `want` as it is for a stream that was taken over: what the spec leaves at its
/// default stays where it is wider.
pub(super) fn widened(
    mut want: Map<String, Value>,
    desired: &Desired,
    observed: &Map<String, Value>,
) -> Map<String, Value> {
    for key in &desired.unsaid {
        let found = of(observed, key);
        let keeps = match *key {
            "compression" | "placement" => true,
            "max_age" | "max_bytes" | "max_msg_size" => limit(found) > limit(of(&want, key)),
            _ => found.as_u64() > of(&want, key).as_u64(),
        };
        if keeps && *key == "compression" && found.is_null() {
            want.insert((*key).to_owned(), json!("none"));
        } else if keeps {
            want.insert((*key).to_owned(), found.clone());
        }
    }
    // nats-server takes no window that is longer than what is kept.
    if let (Some(age), Some(window)) =
        (of(&want, "max_age").as_u64(), of(&want, "duplicate_window").as_u64())
        && age > 0
    {
        want.insert("duplicate_window".to_owned(), json!(window.min(age)));
    }
    if let Some(metadata) = want.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(ADOPTED.to_owned(), json!("true"));
    }
    want
}

fn of<'m>(config: &'m Map<String, Value>, key: &str) -> &'m Value {
    config.get(key).unwrap_or(&Value::Null)
}

/// A limit as a number: none at all is the greatest.
fn limit(value: &Value) -> u64 {
    value.as_u64().filter(|limit| *limit > 0).unwrap_or(u64::MAX)
}

/// Whether a stream without an owner may be taken over and become `want`.
pub(super) fn check(
    desired: &Desired,
    want: &Map<String, Value>,
    observed: &Observed,
) -> Result<(), Error> {
    let why = excluded(want, observed).or_else(|| dropped(want, observed));
    why.map_or(Ok(()), |why| Err(Error::Incompatible { stream: desired.name.to_string(), why }))
}

/// What the channel cannot live with, or the stream's users cannot live without.
fn excluded(want: &Map<String, Value>, observed: &Observed) -> Option<String> {
    let config = &observed.config;
    if let Err(Error::ImmutableField { field, desired, observed }) = immutable(want, config) {
        return Some(format!("its {field} is {observed}, not {desired}, and cannot be changed"));
    }
    for (key, why) in EXCLUDED {
        if !normal(key, of(config, key)).is_null() {
            return Some(format!("it has {key}: {why}"));
        }
    }
    if of(config, "discard") == "new" {
        return Some(
            "it discards new events when it is full, a channel's stream drops the oldest"
                .to_owned(),
        );
    }
    if let Some(most) = of(config, "max_consumers").as_i64().filter(|most| *most > 0) {
        return Some(format!(
            "it takes {most} consumers at most, and each pod of a channel needs several"
        ));
    }
    let subjects = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let kept = subjects(of(want, "subjects"));
    let lost =
        subjects(of(config, "subjects")).into_iter().find(|subject| !kept.contains(subject))?;
    Some(format!(
        "it takes the subject {}, which spec.stream.subjects does not name",
        text("subjects", &lost)
    ))
}

/// Which of its events a limit would drop.
fn dropped(want: &Map<String, Value>, observed: &Observed) -> Option<String> {
    let told = |key: &str, has: String| {
        let field = spec_path(key);
        let keeps = text(key, of(want, key));
        Some(format!(
            "{has}, more than {field} keeps ({keeps}): raise it, or shorten the stream first"
        ))
    };
    if observed.bytes > limit(of(want, "max_bytes")) {
        return told("max_bytes", format!("it has {} bytes of events", observed.bytes));
    }
    if observed.messages > limit(of(want, "max_msgs")) {
        return told("max_msgs", format!("it has {} events", observed.messages));
    }
    let oldest = observed.oldest_age;
    if u64::try_from(oldest.as_nanos()).unwrap_or(u64::MAX) > limit(of(want, "max_age")) {
        return told("max_age", format!("its oldest event is {} s old", oldest.as_secs()));
    }
    // Not observed: how many each subject has. One has them all but one of each other, at most.
    let before = limit(of(&observed.config, "max_msgs_per_subject"));
    let most = observed.messages.saturating_sub(observed.subjects.saturating_sub(1)).min(before);
    if most > limit(of(want, "max_msgs_per_subject")) {
        let has = format!("one of its subjects may have {most} events");
        return told("max_msgs_per_subject", has);
    }
    let copies = |config| of(config, "num_replicas").as_u64();
    if copies(&observed.config) > copies(want) {
        let has = format!("it has {} copies", copies(&observed.config).unwrap_or_default());
        return told("num_replicas", has);
    }
    None
}
