//! Every field of a stream's configuration, each with what a channel needs of it, what nats-server
//! lets change, and what becomes of it when a stream is taken over.
//!
//! A field that is not here is one of a later server: a channel's own stream keeps it as it is, and
//! a stream where it is switched on is not taken over, since what it would do is not known.

use serde_json::{Map, Value, json};

/// One field of JetStream's `StreamConfig`.
#[derive(Debug)]
pub(super) struct Field {
    /// Its name in JetStream's API.
    pub(super) nats: &'static str,
    /// Its path in the channel's spec, where it is a field of it.
    pub(super) spec: Option<&'static str>,
    pub(super) needs: Needs,
    pub(super) class: Class,
    pub(super) mutability: Mutability,
    pub(super) adoption: Adoption,
    pub(super) show: Show,
}

/// What a channel's own stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// What spec and owner say.
    Spec,
    /// This word.
    Word(&'static str),
    On,
    /// Off, empty or without a limit.
    Off,
    /// Whatever it is: the channel does not depend on it.
    Any,
}

/// Changes that may go into one update: nats-server refuses to move and to scale a stream at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Settings,
    Replicas,
    Placement,
}

/// What nats-server lets change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutability {
    Free,
    Fixed,
    /// Once it is on it stays on.
    OnForEver,
    /// Not from this value.
    NotFrom(&'static str),
}

/// What becomes of the field of a stream that is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adoption {
    /// It has to be as a channel needs it already; else this is why not, `{}` being what it is.
    Equal(&'static str),
    /// The wider of what is there and what the spec leaves at its default. What the spec says
    /// is done where it drops nothing.
    Widen(Order),
    /// It becomes as a channel needs it, which takes nothing from the present users.
    Write,
    /// It stays as it is, where it is set.
    Stays,
}

/// Which of two values is wider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The greater limit; none is the greatest.
    Limit,
    /// The greater number.
    Number,
    /// All that are in either; one that would go is a reason against.
    Set,
    /// Neither is: what is there stays.
    Either,
}

/// How a value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Plain,
    /// Nanoseconds.
    Duration,
    /// Bytes.
    Size,
}

impl Field {
    /// A field, for which each of these has to be said.
    const fn new(
        nats: &'static str,
        needs: Needs,
        mutability: Mutability,
        adoption: Adoption,
    ) -> Self {
        let (class, show) = (Class::Settings, Show::Plain);
        Self { nats, spec: None, needs, class, mutability, adoption, show }
    }

    const fn of_spec(self, path: &'static str) -> Self {
        Self { spec: Some(path), ..self }
    }

    const fn by_itself(self, class: Class) -> Self {
        Self { class, ..self }
    }

    const fn shown(self, show: Show) -> Self {
        Self { show, ..self }
    }

    /// What a channel needs, where neither spec nor owner says it; `None` where any value does.
    pub(super) fn needed(&self) -> Option<Value> {
        match self.needs {
            Needs::Word(word) => Some(json!(word)),
            Needs::On => Some(json!(true)),
            Needs::Off => Some(Value::Null),
            Needs::Spec | Needs::Any => None,
        }
    }

    /// A value of it without what says the same in several ways: JetStream leaves out what is off,
    /// writes "no limit" as -1 or 0, and orders sets as it likes.
    pub(super) fn normal(&self, value: &Value) -> Value {
        match (self.nats, value) {
            ("compression", Value::Null) => json!("none"),
            ("persist_mode", Value::String(mode)) if mode == "default" => Value::Null,
            _ => normal(value),
        }
    }
}

/// A value of a field that may be unknown.
pub(super) fn normal_of(nats: &str, value: &Value) -> Value {
    field(nats).map_or_else(|| normal(value), |field| field.normal(value))
}

fn normal(value: &Value) -> Value {
    match value {
        Value::Bool(false) | Value::Null => Value::Null,
        Value::String(text) if text.is_empty() => Value::Null,
        Value::Number(number) if number.as_i64().is_some_and(|n| n <= 0) => Value::Null,
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(normal).collect();
            items.sort_by_key(ToString::to_string);
            if items.is_empty() { Value::Null } else { Value::Array(items) }
        }
        Value::Object(map) => {
            let map: Map<_, _> = map
                .iter()
                .map(|(key, value)| (key.clone(), normal(value)))
                .filter(|(_, value)| !value.is_null())
                .collect();
            if map.is_empty() { Value::Null } else { Value::Object(map) }
        }
        other => other.clone(),
    }
}

/// The field of this name in JetStream's API.
pub(super) fn field(nats: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.nats == nats)
}

/// Every field that nats-server 2.11 to 2.15 has.
pub(super) const FIELDS: &[Field] = &{
    use Adoption::{Equal, Stays, Widen, Write};
    use Mutability::{Fixed, Free, NotFrom, OnForEver};
    use Needs::{Any, Off, On, Spec, Word};
    use Order::{Either, Limit, Number, Set};
    [
        Field::new("name", Spec, Fixed, Equal("its name is {}")),
        // One that its users wrote stays.
        Field::new("description", Spec, Free, Stays),
        Field::new("metadata", Spec, Free, Write),
        Field::new("subjects", Spec, Free, Widen(Set)).of_spec("spec.stream.subjects"),
        Field::new(
            "storage",
            Spec,
            Fixed,
            Equal("its storage is {}, and nats-server cannot move it"),
        )
        .of_spec("spec.stream.storage"),
        Field::new(
            "retention",
            Word("limits"),
            NotFrom("workqueue"),
            Equal("its retention is {}: a channel's events stay until a limit drops them"),
        ),
        Field::new("max_age", Spec, Free, Widen(Limit))
            .of_spec("spec.stream.maxAge")
            .shown(Show::Duration),
        Field::new("max_bytes", Spec, Free, Widen(Limit))
            .of_spec("spec.stream.maxBytes")
            .shown(Show::Size),
        Field::new("max_msgs", Spec, Free, Widen(Limit)).of_spec("spec.stream.maxMessages"),
        Field::new("max_msgs_per_subject", Spec, Free, Widen(Limit))
            .of_spec("spec.stream.maxMessagesPerTopic"),
        Field::new("max_msg_size", Spec, Free, Widen(Limit))
            .of_spec("spec.stream.maxMessageSize")
            .shown(Show::Size),
        Field::new("duplicate_window", Spec, Free, Widen(Number))
            .of_spec("spec.stream.duplicateWindow")
            .shown(Show::Duration),
        Field::new("num_replicas", Spec, Free, Widen(Number))
            .of_spec("spec.stream.replicas")
            .by_itself(Class::Replicas),
        Field::new("placement", Spec, Free, Widen(Either))
            .of_spec("spec.stream.placement")
            .by_itself(Class::Placement),
        Field::new("compression", Spec, Free, Widen(Either)).of_spec("spec.stream.compression"),
        // History is read by direct get, from any replica.
        Field::new("allow_direct", On, Free, Write),
        Field::new("mirror_direct", Off, Free, Stays),
        Field::new(
            "discard_new_per_subject",
            Off,
            Free,
            Equal(
                "it has discard_new_per_subject: a channel's stream drops the oldest events and refuses none",
            ),
        ),
        Field::new(
            "discard",
            Word("old"),
            Free,
            Equal("it discards {} events when it is full, a channel's stream drops the oldest"),
        ),
        Field::new(
            "max_consumers",
            Off,
            Free,
            Equal("it takes {} consumers at most, and each pod of a channel needs several"),
        ),
        Field::new(
            "consumer_limits",
            Off,
            Free,
            Equal("it has consumer_limits: the pods' consumers may be outside of them"),
        ),
        Field::new(
            "no_ack",
            Off,
            Free,
            Equal(
                "it has no_ack: a channel acknowledges its events, and requests on these subjects would be answered by it",
            ),
        ),
        Field::new(
            "sealed",
            Off,
            OnForEver,
            Equal("it is sealed: it takes no more events, and nats-server cannot unseal it"),
        ),
        Field::new("deny_delete", Any, OnForEver, Stays),
        Field::new("deny_purge", Any, OnForEver, Stays),
        Field::new(
            "mirror",
            Off,
            Fixed,
            Equal("it has mirror: a channel's stream takes its events from its own subjects"),
        ),
        Field::new(
            "sources",
            Off,
            Free,
            Equal("it has sources: a channel's stream takes its events from its own subjects"),
        ),
        Field::new(
            "republish",
            Off,
            Free,
            Equal("it has republish: a channel's events go to its subscribers alone"),
        ),
        Field::new(
            "subject_transform",
            Off,
            Free,
            Equal(
                "it has subject_transform: a topic of a channel is the subject that was published to",
            ),
        ),
        Field::new(
            "subject_delete_marker_ttl",
            Off,
            Free,
            Equal(
                "it has subject_delete_marker_ttl: it needs roll-up headers, by which a topic can be wiped",
            ),
        ),
        Field::new(
            "allow_msg_schedules",
            Off,
            OnForEver,
            Equal(
                "it has allow_msg_schedules: it needs roll-up headers, by which a topic can be wiped",
            ),
        ),
        // A publisher could wipe a topic by a header.
        Field::new(
            "allow_rollup_hdrs",
            Off,
            Free,
            Equal(
                "it has allow_rollup_hdrs: a publisher could wipe a topic of the channel by a header",
            ),
        ),
        Field::new(
            "allow_msg_counter",
            Off,
            Fixed,
            Equal(
                "it has allow_msg_counter: an event that is published over HTTP would be refused",
            ),
        ),
        Field::new("allow_msg_ttl", Any, OnForEver, Stays),
        Field::new("allow_atomic", Any, Free, Stays),
        Field::new("allow_batched", Any, Free, Stays),
        // Only of a stream that is not made yet.
        Field::new("first_seq", Any, Fixed, Stays),
        Field::new(
            "persist_mode",
            Any,
            Fixed,
            Equal("its persist_mode is {}: events that were acknowledged could be lost"),
        ),
        // Of servers before 2.12.
        Field::new(
            "template_owner",
            Any,
            Fixed,
            Equal("it has template_owner: its template would undo what the channel needs"),
        ),
    ]
};
