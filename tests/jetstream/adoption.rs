//! An adoption only widens, field by field, and one that fails leaves no trace.

use std::collections::BTreeSet;

use futures::StreamExt;
use serde_json::{Map, Value, json};
use sluice_operator::stream::{Change, Error, Mode, Streams as Ensured, known_fields};
use sluice_tests::nats::{NatsCluster, Streams};

use crate::{Fixture, LIMIT, adopting, desired, old_stream, raw_config, test};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3_600 * SECOND;

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Widened,
    Refused,
}
use End::{Refused, Widened};

/// Of each field values that a stream may have, with what they need beside them; the first
/// nats-server that knows the field, minor version of 2; and what becomes of the stream.
fn cases() -> Vec<(&'static str, Value, u32, End)> {
    let field = |field: &'static str, settings, end| (field, settings, 11, end);
    vec![
        field("description", json!({"description": "of the billing team"}), Widened),
        field("metadata", json!({"metadata": {"team": "billing"}}), Widened),
        field("subjects", json!({"subjects": ["old.>", "more.>"]}), Refused),
        field("subjects", json!({"subjects": ["old.a", "old.b"]}), Refused),
        field("storage", json!({"storage": "memory"}), Refused),
        field("retention", json!({"retention": "interest"}), Refused),
        field("retention", json!({"retention": "workqueue"}), Refused),
        field("max_age", json!({"max_age": 90 * 24 * HOUR}), Widened),
        field("max_age", json!({"max_age": HOUR}), Widened),
        field("max_bytes", json!({"max_bytes": 5_i64 << 30}), Widened),
        field("max_bytes", json!({"max_bytes": 1 << 20}), Widened),
        field("max_msgs", json!({"max_msgs": 50}), Widened),
        field("max_msgs_per_subject", json!({"max_msgs_per_subject": 7}), Widened),
        field("max_msg_size", json!({"max_msg_size": 1 << 19}), Widened),
        field("max_msg_size", json!({"max_msg_size": 2048}), Widened),
        field("duplicate_window", json!({"duplicate_window": 36 * HOUR}), Widened),
        field("duplicate_window", json!({"duplicate_window": SECOND}), Widened),
        field("placement", json!({"placement": {"tags": ["ssd"]}}), Widened),
        field("compression", json!({"compression": "s2"}), Widened),
        field("allow_direct", json!({"allow_direct": true}), Widened),
        field("discard", json!({"discard": "new", "max_msgs": 9}), Refused),
        field(
            "discard_new_per_subject",
            json!({"discard": "new", "max_msgs_per_subject": 3, "discard_new_per_subject": true}),
            Refused,
        ),
        field("max_consumers", json!({"max_consumers": 3}), Refused),
        field("consumer_limits", json!({"consumer_limits": {"max_ack_pending": 9}}), Refused),
        field("no_ack", json!({"no_ack": true}), Refused),
        field("sealed", json!({"sealed": true}), Refused),
        field("deny_delete", json!({"deny_delete": true}), Widened),
        field("deny_purge", json!({"deny_purge": true}), Widened),
        field("mirror", json!({"subjects": null, "mirror": {"name": "ELSEWHERE"}}), Refused),
        // Of mirrors alone.
        field(
            "mirror_direct",
            json!({"subjects": null, "mirror": {"name": "ELSEWHERE"}, "mirror_direct": true}),
            Refused,
        ),
        field("sources", json!({"sources": [{"name": "ELSEWHERE"}]}), Refused),
        field("sources", json!({"subjects": null, "sources": [{"name": "ELSEWHERE"}]}), Refused),
        field("republish", json!({"republish": {"src": "old.>", "dest": "copy.>"}}), Refused),
        field(
            "subject_transform",
            json!({"subject_transform": {"src": "old.>", "dest": "new.>"}}),
            Refused,
        ),
        field("allow_rollup_hdrs", json!({"allow_rollup_hdrs": true}), Refused),
        field("allow_msg_ttl", json!({"allow_msg_ttl": true}), Widened),
        field("subject_delete_marker_ttl", json!({"subject_delete_marker_ttl": SECOND}), Refused),
        field("first_seq", json!({"first_seq": 1000}), Widened),
        ("allow_atomic", json!({"allow_atomic": true}), 12, Widened),
        ("allow_msg_counter", json!({"allow_msg_counter": true}), 12, Refused),
        ("allow_msg_schedules", json!({"allow_msg_schedules": true}), 12, Refused),
        ("persist_mode", json!({"persist_mode": "async"}), 12, Refused),
        ("allow_batched", json!({"allow_batched": true}), 14, Widened),
    ]
}

/// Fields of every stream, with a case each in which its copies stay as they are, or that a server
/// of today no longer has.
const ELSEWHERE: [&str; 3] = ["name", "num_replicas", "template_owner"];

/// Makes OLD with these settings and, where it takes any, three events of two topics.
async fn make(fixture: &Fixture, settings: &Value) {
    let mut at_first = settings.clone();
    let sealed = at_first.as_object_mut().unwrap().remove("sealed").is_some();
    // A counter takes numbers alone; others take nothing, refuse some, or acknowledge nothing.
    let takes_none = ["allow_msg_counter", "discard_new_per_subject", "mirror", "no_ack"]
        .iter()
        .any(|key| settings.get(key).is_some());
    let events: &[&str] =
        if takes_none || settings["subjects"].is_null() && settings.get("subjects").is_some() {
            &[]
        } else {
            &["a", "b", "a"]
        };
    old_stream(fixture, &at_first, events).await;
    if sealed {
        let mut config = raw_config(fixture).await;
        config["sealed"] = json!(true);
        let sealed: Value =
            fixture.seen.context().request("STREAM.UPDATE.OLD", &config).await.unwrap();
        assert!(sealed["error"].is_null(), "{sealed}");
    }
}

/// What was taken from the stream's users, if anything. Written down here once more, and not read
/// from the operator's table: it says what must hold.
fn lost(before: &Map<String, Value>, after: &Map<String, Value>) -> Option<String> {
    let limit = |value: &Value| value.as_u64().filter(|n| *n > 0).unwrap_or(u64::MAX);
    let no = &Value::Null;
    for key in before.keys().chain(after.keys()) {
        let (was, is) = (before.get(key).unwrap_or(no), after.get(key).unwrap_or(no));
        let kept = match key.as_str() {
            "max_age" | "max_bytes" | "max_msgs" | "max_msgs_per_subject" | "max_msg_size" => {
                limit(is) >= limit(was)
            }
            "duplicate_window" | "num_replicas" => is.as_u64() >= was.as_u64(),
            "allow_direct" => *is == json!(true),
            "description" => was.is_null() || is == was,
            "metadata" => was.as_object().is_none_or(|was| {
                was.iter().all(|(key, value)| key.starts_with("_nats.") || is[key] == *value)
            }),
            _ => is == was,
        };
        if !kept {
            return Some(format!("{key} was {was} and is {is}"));
        }
    }
    None
}

/// Whether `found` has what was asked for, perhaps with what the server adds.
fn is_within(asked: &Value, found: &Value) -> bool {
    match asked {
        Value::Object(asked) => asked.iter().all(|(key, value)| is_within(value, &found[key])),
        Value::Array(asked) => {
            asked.iter().zip(found.as_array().unwrap()).all(|(a, f)| is_within(a, f))
        }
        _ => asked == found,
    }
}

fn minor(fixture: &Fixture) -> u32 {
    let version = fixture.seen.context().client().server_info().version;
    version.split('.').nth(1).unwrap().parse().unwrap()
}

#[test]
fn each_field_of_a_stream_is_widened_or_the_stream_is_left_as_it_is() {
    test(async |fixture| {
        let minor = minor(&fixture);
        for (field, settings, since, end) in cases() {
            if minor < since {
                continue;
            }
            make(&fixture, &settings).await;
            let before = raw_config(&fixture).await;
            assert!(is_within(&settings[field], &before[field]), "{settings} of {before}");
            let events = fixture.seen.info("OLD").await.state.messages;
            let outcome = fixture.ensure(&adopting(&json!({}))).await;
            let after = raw_config(&fixture).await;
            match (end, &outcome) {
                (Widened, Ok(report)) => {
                    assert_eq!(report.change, Change::Adopted, "{settings}");
                    let lost = lost(before.as_object().unwrap(), after.as_object().unwrap());
                    assert_eq!(lost, None, "{settings}");
                    let again = fixture.ensure(&adopting(&json!({}))).await.unwrap();
                    assert_eq!((again.change, again.drift), (Change::None, vec![]), "{settings}");
                }
                (Refused, Err(Error::Incompatible { .. })) => {
                    assert_eq!(after, before, "{settings}");
                }
                _ => panic!("{settings}: {end:?} expected, not {outcome:?}"),
            }
            assert_eq!(fixture.seen.info("OLD").await.state.messages, events, "{settings}");
            fixture.seen.context().delete_stream("OLD").await.unwrap();
        }
    });
}

#[test]
fn every_field_that_nats_server_has_is_one_that_the_operator_has_a_rule_for() {
    test(async |fixture| {
        let minor = minor(&fixture);
        let known: BTreeSet<_> = known_fields().collect();
        let (mut has, mut tried) = (BTreeSet::new(), BTreeSet::from(ELSEWHERE));
        for (field, settings, since, _) in cases() {
            tried.insert(field);
            if minor < since {
                continue;
            }
            make(&fixture, &settings).await;
            has.extend(raw_config(&fixture).await.as_object().unwrap().keys().cloned());
            fixture.seen.context().delete_stream("OLD").await.unwrap();
        }
        let without: Vec<_> = has.iter().filter(|field| !known.contains(field.as_str())).collect();
        assert!(without.is_empty(), "add to the operator's table of fields: {without:?}");
        let untried: Vec<_> = known.difference(&tried).collect();
        assert!(untried.is_empty(), "add a case for {untried:?}");
    });
}

#[test]
fn copies_and_place_of_an_adopted_stream_stay() {
    sluice_tests::run(LIMIT, async {
        let cluster = NatsCluster::start(3).await;
        let seen = Streams::connect(&cluster.urls()).await;
        let ensured = Ensured::new(seen.context().clone(), &cluster.urls());
        let config = json!({"name": "OLD", "subjects": ["old.>"], "num_replicas": 3,
            "placement": {"cluster": "test"}});
        let made: Value = seen.context().request("STREAM.CREATE.OLD", &config).await.unwrap();
        assert!(made["error"].is_null(), "{made}");
        let report = ensured.ensure(&adopting(&json!({})), Mode::Enforce).await.unwrap();
        assert_eq!(report.change, Change::Adopted);
        let config = seen.info("OLD").await.config;
        assert_eq!(config.num_replicas, 3);
        assert_eq!(config.placement.unwrap().cluster.as_deref(), Some("test"));
    });
}

/// Requests to write the stream OLD, as they pass by.
async fn writes(client: &async_nats::Client) -> async_nats::Subscriber {
    let writes = client.subscribe("$JS.API.STREAM.UPDATE.OLD").await.unwrap();
    client.flush().await.unwrap();
    writes
}

/// How many there were since the last call.
async fn count(writes: &mut async_nats::Subscriber) -> usize {
    let pause = std::time::Duration::from_millis(300);
    let mut count = 0;
    while tokio::time::timeout(pause, writes.next()).await.is_ok() {
        count += 1;
    }
    count
}

#[test]
fn an_adoption_that_was_put_back_is_not_tried_again_until_either_side_changes() {
    sluice_tests::run(LIMIT, async {
        let cluster = NatsCluster::start(3).await;
        let seen = Streams::connect(&cluster.urls()).await;
        let ensured = Ensured::new(seen.context().clone(), &cluster.urls());
        let config =
            json!({"name": "OLD", "subjects": ["old.>"], "num_replicas": 1, "max_age": HOUR});
        let made: Value = seen.context().request("STREAM.CREATE.OLD", &config).await.unwrap();
        assert!(made["error"].is_null(), "{made}");
        let raw = async || -> Value {
            let mut info: Value =
                seen.context().request("STREAM.INFO.OLD", &json!({})).await.unwrap();
            info["config"].take()
        };
        let before = raw().await;
        let client = seen.context().client();
        let mut writes = writes(&client).await;
        // The settings are written, and then there is no such place.
        let nowhere = adopting(&json!({"placement": {"cluster": "nowhere"}}));
        let first = ensured.ensure(&nowhere, Mode::Enforce).await.unwrap_err();
        assert_eq!(raw().await, before, "{first}");
        assert!(count(&mut writes).await > 1, "it was written and put back: {first}");
        for _ in 0..3 {
            assert_eq!(ensured.ensure(&nowhere, Mode::Enforce).await.unwrap_err(), first);
        }
        // Nor by an operator that has lost the lease and has it again.
        ensured.forget_all();
        assert_eq!(ensured.ensure(&nowhere, Mode::Enforce).await.unwrap_err(), first);
        assert_eq!(count(&mut writes).await, 0, "nothing is written again");
        // The stream changes, and then the spec.
        let mut config = before.clone();
        (config["max_age"], config["metadata"]) = (json!(2 * HOUR), json!({"team": "billing"}));
        let _: Value = seen.context().request("STREAM.UPDATE.OLD", &config).await.unwrap();
        count(&mut writes).await;
        ensured.ensure(&nowhere, Mode::Enforce).await.unwrap_err();
        assert!(count(&mut writes).await > 1, "another stream is another attempt");
        let report = ensured.ensure(&adopting(&json!({})), Mode::Enforce).await.unwrap();
        assert_eq!(report.change, Change::Adopted);
    });
}

#[test]
fn an_adoption_that_the_server_refuses_at_once_is_asked_for_once() {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "jetstream { limits { duplicate_window: \"1m\" } }\n").unwrap();
    sluice_tests::run(LIMIT, async {
        let arguments = ["--config", config.path().to_str().unwrap()];
        let nats = sluice_tests::nats::NatsServer::start_with(&arguments).await;
        let fixture = Fixture::of(nats).await;
        old_stream(&fixture, &json!({"duplicate_window": SECOND}), &["a"]).await;
        let before = raw_config(&fixture).await;
        let client = fixture.seen.context().client();
        let mut writes = writes(&client).await;
        for _ in 0..3 {
            let error = fixture.ensure(&adopting(&json!({}))).await.unwrap_err();
            assert!(matches!(&error, Error::Incompatible { .. }), "{error}");
        }
        assert_eq!(count(&mut writes).await, 1);
        assert_eq!(raw_config(&fixture).await, before);
        let within = adopting(&json!({"duplicateWindow": "30s"}));
        assert_eq!(fixture.ensure(&within).await.unwrap().change, Change::Adopted);
    });
}

#[test]
fn a_default_in_other_words_is_one_and_messages_have_the_words_of_the_spec() {
    test(async |fixture| {
        old_stream(&fixture, &json!({}), &["a"]).await;
        // 24h and 1Gi, the defaults.
        let same = adopting(&json!({"maxAge": "1440m", "maxBytes": "1024Mi"}));
        fixture.ensure(&same).await.unwrap();
        let config = raw_config(&fixture).await;
        assert_eq!((&config["max_age"], &config["max_bytes"]), (&json!(0), &json!(-1)));
        let own = desired(&json!({}));
        fixture.ensure(&own).await.unwrap();
        let said = desired(&json!({"maxAge": "120m", "maxMessageSize": "131072"}));
        let observed = fixture.ensured.ensure(&said, Mode::Observe).await.unwrap();
        let told: Vec<_> = observed.drift.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "spec.stream.maxAge is 24h instead of 120m",
                "spec.stream.maxMessageSize is 64Ki instead of 131072"
            ]
        );
    });
}
