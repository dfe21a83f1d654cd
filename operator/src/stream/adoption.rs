//! Taking over a stream that was not made for its channel: what excludes it, and what of it stays.
//!
//! An adoption only widens. Nothing that the stream's present users rely on is taken away, no event
//! is dropped, and no copy of one. A limit that the spec leaves at its default is no wish to
//! shorten what is there, so the wider one stays, for as long as the channel has the stream. The
//! [table] says for each field which of this applies.

use serde_json::{Map, Value, json};

use super::{
    config::Want,
    desired::{ADOPTED, Desired, Owner},
    error::Error,
    server::Observed,
    table::{self, Adoption, FIELDS, Order},
    text,
};

/// The configuration `want` as it is for a stream that was taken over: what the spec leaves at its
/// default stays where it is wider.
pub(super) fn widened(mut want: Want, desired: &Desired, observed: &Map<String, Value>) -> Want {
    for field in FIELDS {
        let found = of(observed, field.nats);
        let unsaid = desired.unsaid.contains(field.nats);
        let stays = match field.adoption {
            Adoption::Equal(_) | Adoption::Write | Adoption::Widen(Order::Set) => false,
            Adoption::Widen(Order::Limit) => unsaid && limit(found) > limit(want.get(field.nats)),
            Adoption::Widen(Order::Number) => {
                unsaid && found.as_u64() > want.get(field.nats).as_u64()
            }
            Adoption::Widen(Order::Either) => unsaid,
            Adoption::Stays => stays(field.nats, found),
        };
        if stays && want.fields.contains_key(field.nats) {
            want.set(field.nats, field.normal(found));
        }
    }
    // nats-server takes no window that is longer than what is kept.
    if let (Some(age), Some(window)) =
        (want.get("max_age").as_u64(), want.get("duplicate_window").as_u64())
        && age > 0
        && window > age
    {
        want.set("duplicate_window", json!(age));
    }
    if let Some(metadata) = want.fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(ADOPTED.to_owned(), json!("true"));
    }
    want
}

/// Whether a setting that no channel depends on is set: then it is the stream's users'.
fn stays(nats: &str, found: &Value) -> bool {
    let is_ours = nats == "description" && found.as_str().is_some_and(Owner::wrote);
    !is_ours && !table::normal_of(nats, found).is_null()
}

fn of<'m>(config: &'m Map<String, Value>, key: &str) -> &'m Value {
    config.get(key).unwrap_or(&Value::Null)
}

/// A limit as a number: none at all is the greatest.
fn limit(value: &Value) -> u64 {
    value.as_u64().filter(|limit| *limit > 0).unwrap_or(u64::MAX)
}

/// Whether a stream without an owner may be taken over and become `want`.
pub(super) fn check(desired: &Desired, want: &Want, observed: &Observed) -> Result<(), Error> {
    refused(desired, excluded(want, &observed.config).or_else(|| dropped(want, observed)))
}

/// Whether a stream may become `want` without the loss of an event or a copy.
pub(super) fn check_kept(desired: &Desired, want: &Want, observed: &Observed) -> Result<(), Error> {
    refused(desired, dropped(want, observed))
}

fn refused(desired: &Desired, why: Option<String>) -> Result<(), Error> {
    why.map_or(Ok(()), |why| Err(Error::Incompatible { stream: desired.name.to_string(), why }))
}

/// What the channel cannot live with, or the stream's users cannot live without.
fn excluded(want: &Want, config: &Map<String, Value>) -> Option<String> {
    for field in FIELDS {
        let Adoption::Equal(why) = field.adoption else { continue };
        let found = of(config, field.nats);
        if field.normal(found) != field.normal(want.get(field.nats)) {
            return Some(why.replace("{}", &text::of(field.nats, found)));
        }
    }
    let is_on = |(key, value): &(&String, &Value)| {
        table::field(key).is_none() && !table::normal_of(key, value).is_null()
    };
    if let Some((key, _)) = config.iter().find(is_on) {
        return Some(format!("it has {key}, which this version of the operator does not know"));
    }
    let subjects = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let kept = subjects(want.get("subjects"));
    let lost =
        subjects(of(config, "subjects")).into_iter().find(|subject| !kept.contains(subject))?;
    Some(format!(
        "it takes the subject {}, which spec.stream.subjects does not name",
        text::of("subjects", &lost)
    ))
}

/// Which of its events a limit would drop.
fn dropped(want: &Want, observed: &Observed) -> Option<String> {
    let told = |key: &str, has: String| {
        let (field, keeps) = (text::path(key), want.text(key));
        Some(format!(
            "{has}, more than {field} keeps ({keeps}): raise it, or shorten the stream first"
        ))
    };
    if observed.bytes > limit(want.get("max_bytes")) {
        return told("max_bytes", format!("it has {} bytes of events", observed.bytes));
    }
    if observed.messages > limit(want.get("max_msgs")) {
        return told("max_msgs", format!("it has {} events", observed.messages));
    }
    let oldest = observed.oldest_age;
    if u64::try_from(oldest.as_nanos()).unwrap_or(u64::MAX) > limit(want.get("max_age")) {
        return told("max_age", format!("its oldest event is {} s old", oldest.as_secs()));
    }
    // Not observed: how many each subject has. One has them all but one of each other, at most.
    let before = limit(of(&observed.config, "max_msgs_per_subject"));
    let most = observed.messages.saturating_sub(observed.subjects.saturating_sub(1)).min(before);
    if most > limit(want.get("max_msgs_per_subject")) {
        let has = format!("one of its subjects may have {most} events");
        return told("max_msgs_per_subject", has);
    }
    let copies = of(&observed.config, "num_replicas").as_u64();
    if copies > want.get("num_replicas").as_u64() {
        let has = format!("it has {} copies", copies.unwrap_or_default());
        return told("num_replicas", has);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::validate::{self, tests::channel},
        stream::config,
    };

    fn desired() -> Desired {
        validate::validate(&channel("orders", &json!({})), "c").unwrap().stream
    }

    #[test]
    fn a_setting_of_a_later_server_excludes_a_stream_where_it_is_on() {
        let want = config::whole(&desired(), None);
        let with = |value: Value| {
            let mut config = want.fields.clone();
            config.insert("of_a_later_server".to_owned(), value);
            excluded(&want, &config)
        };
        for off in [json!(null), json!(false), json!(0), json!(""), json!([]), json!({"a": 0})] {
            assert_eq!(with(off.clone()), None, "{off}");
        }
        for on in [json!(true), json!(7), json!("fast"), json!(["x"]), json!({"a": 1})] {
            let why = with(on.clone()).unwrap_or_default();
            assert!(why.contains("of_a_later_server"), "{on}: {why}");
        }
    }

    #[test]
    fn what_a_spec_may_leave_at_its_default_is_what_the_table_widens() {
        let limits = ["max_msgs", "max_msgs_per_subject"];
        let widens = FIELDS.iter().filter(|field| {
            matches!(field.adoption, Adoption::Widen(order) if order != Order::Set)
                // No limit at all is the default of these, and is not to be written in any words.
                && !limits.contains(&field.nats)
        });
        let mut widens: Vec<_> = widens.map(|field| field.nats).collect();
        widens.sort_unstable();
        assert_eq!(desired().unsaid.into_iter().collect::<Vec<_>>(), widens);
    }
}
