//! Streams as owned resources, on real nats-servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adoption;
mod identity;
mod permissions;
mod trouble;
mod unavailable;

use std::time::Duration;

use async_nats::jetstream::{
    self,
    stream::{Compression, Config, RetentionPolicy, StorageType},
};
use serde_json::{Value, json};
use sluice_channel::{Epoch, cursor::EPOCH_METADATA};
use sluice_operator::{
    controller::validate::validate,
    crd::{manifest, status::Mark},
    stream::{Change, Deletion, Desired, Error, Mode, Streams as Ensured, UID},
};
use sluice_tests::nats::{NatsCluster, NatsServer, Streams};

const LIMIT: Duration = Duration::from_secs(90);

/// What the channel `orders` of namespace `shop` with that spec wants of its stream.
fn desired(stream: &Value) -> Desired {
    desired_by("orders", "u1", stream)
}

fn desired_by(name: &str, uid: &str, stream: &Value) -> Desired {
    let manifest = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "generation": 1}, "spec": {"stream": stream}});
    validate(&manifest::read(&manifest).unwrap(), "c1").unwrap().stream
}

struct Fixture {
    nats: NatsServer,
    seen: Streams,
    ensured: Ensured,
}

impl Fixture {
    async fn start() -> Self {
        Self::of(NatsServer::start().await).await
    }

    async fn of(nats: NatsServer) -> Self {
        let seen = Streams::connect(&nats.url()).await;
        let ensured = Ensured::new(seen.context().clone(), &nats.url());
        Self { nats, seen, ensured }
    }

    async fn ensure(&self, desired: &Desired) -> Result<sluice_operator::stream::Report, Error> {
        self.ensured.ensure(desired, Mode::Enforce).await
    }

    async fn config(&self, desired: &Desired) -> Config {
        self.seen.info(desired.name.as_str()).await.config
    }

    async fn alter(&self, desired: &Desired, change: impl FnOnce(&mut Config)) {
        let mut config = self.config(desired).await;
        change(&mut config);
        self.seen.context().update_stream(config).await.unwrap();
    }
}

fn test(body: impl AsyncFnOnce(Fixture)) {
    sluice_tests::run(LIMIT, async { body(Fixture::start().await).await });
}

#[test]
fn a_default_channels_stream_is_made_as_promised_and_then_left_alone() {
    test(async |fixture| {
        let want = desired(&json!({}));
        let report = fixture.ensure(&want).await.unwrap();
        assert_eq!((report.change, report.drift), (Change::Created, vec![]));
        let info = fixture.seen.info(want.name.as_str()).await;
        let config = &info.config;
        assert_eq!(config.subjects, ["sse.shop.orders.>"]);
        assert_eq!(
            (config.storage, config.retention, config.num_replicas),
            (StorageType::File, RetentionPolicy::Limits, 1)
        );
        assert_eq!(
            (config.max_age, config.duplicate_window),
            (Duration::from_secs(86_400), Duration::from_secs(120))
        );
        assert_eq!((config.max_bytes, config.max_message_size), (1 << 30, 65_536));
        assert_eq!((config.max_messages, config.max_messages_per_subject), (-1, -1));
        assert!(config.allow_direct && !config.allow_rollup && !config.no_ack);
        assert_eq!(config.metadata[UID], "u1");
        let facts = report.stream.unwrap();
        assert_eq!(facts.epoch, Epoch::of_stream(info.created.unix_timestamp_nanos(), ""));
        assert!(facts.owned);
        for _ in 0..2 {
            let again = fixture.ensure(&want).await.unwrap();
            assert_eq!((again.change, again.drift), (Change::None, vec![]));
        }
    });
}

#[test]
fn every_field_that_can_change_is_changed_both_ways() {
    test(async |fixture| {
        let (first, second) = (
            json!({}),
            json!({"subjects": ["a.>", "b.*"], "maxAge": "1h", "maxBytes": "2Mi", "maxMessages": 10, "maxMessagesPerTopic": 1,
                "maxMessageSize": "2Ki", "duplicateWindow": "1m", "compression": "S2"}),
        );
        fixture.ensure(&desired(&first)).await.unwrap();
        let Change::Updated(changes) = fixture.ensure(&desired(&second)).await.unwrap().change
        else {
            panic!("no update")
        };
        assert_eq!(changes.len(), 8, "{changes:?}");
        let config = fixture.config(&desired(&second)).await;
        assert_eq!(config.subjects, ["a.>", "b.*"]);
        assert_eq!((config.max_messages, config.max_messages_per_subject), (10, 1));
        assert_eq!(config.compression, Some(Compression::S2));
        assert!(matches!(
            fixture.ensure(&desired(&first)).await.unwrap().change,
            Change::Updated(_)
        ));
        assert_eq!(
            fixture.config(&desired(&first)).await.max_messages,
            -1,
            "a limit that is no longer asked for is lifted"
        );
        assert_eq!(fixture.ensure(&desired(&first)).await.unwrap().change, Change::None);
    });
}

#[test]
fn what_others_alter_is_seen_and_put_back_with_the_events_kept() {
    test(async |fixture| {
        let want = desired(&json!({}));
        fixture.ensure(&want).await.unwrap();
        fixture.seen.publish("sse.shop.orders.", "a", "kept").await;
        fixture
            .alter(&want, |c| {
                (c.max_age, c.allow_direct, c.allow_rollup) =
                    (Duration::from_secs(3600), false, true);
                c.metadata.insert("team".to_owned(), "shop".to_owned());
            })
            .await;
        let observed = fixture.ensured.ensure(&want, Mode::Observe).await.unwrap();
        let fields: Vec<_> = observed.drift.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(
            (observed.change, fields),
            (Change::None, vec!["allow_direct", "allow_rollup_hdrs", "spec.stream.maxAge"])
        );
        assert!(!fixture.config(&want).await.allow_direct, "observing changes nothing");
        assert!(matches!(fixture.ensure(&want).await.unwrap().change, Change::Updated(_)));
        let info = fixture.seen.info(want.name.as_str()).await;
        assert!(info.config.allow_direct && !info.config.allow_rollup);
        assert_eq!(
            (info.config.metadata["team"].as_str(), info.state.messages),
            ("shop", 1),
            "what others added stays"
        );
    });
}

#[test]
fn a_stream_whose_marks_were_wiped_is_known_by_its_creation_time() {
    test(async |fixture| {
        let want = desired(&json!({}));
        let created = fixture.ensure(&want).await.unwrap().stream.unwrap().created;
        fixture.alter(&want, |c| c.metadata.clear()).await;
        assert!(matches!(fixture.ensure(&want).await.unwrap().change, Change::Updated(_)));
        assert_eq!(fixture.config(&want).await.metadata[UID], "u1");
        // Another process does not know it, unless it is told.
        fixture.alter(&want, |c| c.metadata.clear()).await;
        let other = Ensured::new(fixture.seen.context().clone(), "");
        assert!(matches!(other.ensure(&want, Mode::Enforce).await, Err(Error::Unowned { .. })));
        other.remember(want.name.as_str(), &want.owner, &created);
        assert!(matches!(
            other.ensure(&want, Mode::Enforce).await.unwrap().change,
            Change::Updated(_)
        ));
    });
}

#[test]
fn a_stream_of_another_channel_is_never_written_or_deleted() {
    test(async |fixture| {
        let mine = desired_by("mine", "u1", &json!({"name": "SHARED", "subjects": ["a.>"]}));
        let theirs = desired_by(
            "theirs",
            "u2",
            &json!({"name": "SHARED", "subjects": ["b.>"], "adoption": "IfUnowned"}),
        );
        fixture.ensure(&mine).await.unwrap();
        let before = fixture.config(&mine).await;
        let error = fixture.ensure(&theirs).await.unwrap_err();
        assert!(
            matches!(&error, Error::OwnedByOther { owner, .. } if owner.contains("shop/mine")),
            "{error}"
        );
        assert_eq!(
            fixture.ensured.delete(&theirs.name, &theirs.owner).await.unwrap(),
            Deletion::NotOurs
        );
        assert_eq!(fixture.config(&mine).await, before);
        assert_eq!(
            fixture.ensured.delete(&mine.name, &mine.owner).await.unwrap(),
            Deletion::Deleted
        );
        assert_eq!(
            fixture.ensured.delete(&mine.name, &mine.owner).await.unwrap(),
            Deletion::NotFound
        );
    });
}

#[test]
fn a_channel_made_again_under_its_name_finds_its_events() {
    test(async |fixture| {
        let want = desired(&json!({}));
        fixture.ensure(&want).await.unwrap();
        fixture.seen.publish("sse.shop.orders.", "a", "kept").await;
        let again = desired_by("orders", "u2", &json!({}));
        assert!(matches!(fixture.ensure(&again).await.unwrap().change, Change::Updated(_)));
        let info = fixture.seen.info(want.name.as_str()).await;
        assert_eq!((info.config.metadata[UID].as_str(), info.state.messages), ("u2", 1));
        assert_eq!(
            fixture.ensured.delete(&want.name, &want.owner).await.unwrap(),
            Deletion::NotOurs,
            "the first life may not delete it"
        );
    });
}

#[test]
fn adoption_takes_what_is_unowned_and_compatible_and_nothing_else() {
    test(async |fixture| {
        let stream = |change: fn(&mut Config)| {
            let mut config = Config {
                name: "OLD".to_owned(),
                subjects: vec!["old.>".to_owned()],
                ..Config::default()
            };
            change(&mut config);
            config
        };
        let adopt = |more: Value| {
            let mut spec = json!({"name": "OLD", "subjects": ["old.>"], "adoption": "IfUnowned"});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            desired(&spec)
        };
        for (change, more, why) in [
            (
                (|c| c.storage = StorageType::Memory) as fn(&mut Config),
                json!({}),
                "storage is memory",
            ),
            (|c| c.retention = RetentionPolicy::WorkQueue, json!({}), "retention is workqueue"),
            (|c| c.subjects.push("more.>".to_owned()), json!({}), "takes the subject more.>"),
        ] {
            let config = stream(change);
            fixture.seen.context().create_stream(config.clone()).await.unwrap();
            let before = fixture.seen.info("OLD").await.config;
            let error = fixture.ensure(&adopt(more)).await.unwrap_err();
            assert!(
                matches!(&error, Error::Incompatible { why: w, .. } if w.contains(why)),
                "{error}"
            );
            assert_eq!(fixture.seen.info("OLD").await.config, before);
            fixture.seen.context().delete_stream("OLD").await.unwrap();
        }
        fixture.seen.context().create_stream(stream(|_| ())).await.unwrap();
        for n in 0..3 {
            fixture.seen.publish("old.", "a", format!("{n}")).await;
        }
        let error = fixture
            .ensure(&desired(&json!({"name": "OLD", "subjects": ["old.>"]})))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Unowned { .. }), "{error}");
        let error = fixture.ensure(&adopt(json!({"maxMessages": 2}))).await.unwrap_err();
        assert!(matches!(error, Error::Incompatible { .. }), "adoption drops no event: {error}");
        assert_eq!(fixture.ensure(&adopt(json!({}))).await.unwrap().change, Change::Adopted);
        assert_eq!(fixture.seen.info("OLD").await.state.messages, 3);
        assert_eq!(fixture.ensure(&adopt(json!({}))).await.unwrap().change, Change::None);
    });
}

/// The stream OLD, made by its users with these settings beside the least, and what is in it.
async fn old_stream(fixture: &Fixture, settings: &Value, events: &[&str]) {
    let mut config = json!({"name": "OLD", "subjects": ["old.>"], "num_replicas": 1,
        "retention": "limits", "storage": "file", "discard": "old"});
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let made: Value = fixture.seen.context().request("STREAM.CREATE.OLD", &config).await.unwrap();
    assert!(made["error"].is_null(), "{settings}: {made}");
    for (n, topic) in events.iter().enumerate() {
        fixture.seen.publish("old.", topic, format!("{n}")).await;
    }
}

fn adopting(more: &Value) -> Desired {
    let mut spec = json!({"name": "OLD", "subjects": ["old.>"], "adoption": "IfUnowned"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    desired(&spec)
}

/// The configuration as the server has it, fields that this client does not know included.
async fn raw_config(fixture: &Fixture) -> Value {
    let mut info: Value =
        fixture.seen.context().request("STREAM.INFO.OLD", &json!({})).await.unwrap();
    info["config"].take()
}

#[test]
fn a_stream_that_cannot_be_served_is_left_as_it_is() {
    test(async |fixture| {
        let seconds = 1_000_000_000_u64;
        for (settings, more, why) in [
            (
                json!({"subject_delete_marker_ttl": seconds, "allow_msg_ttl": true, "allow_rollup_hdrs": true}),
                json!({}),
                "roll",
            ),
            (json!({"allow_rollup_hdrs": true}), json!({}), "allow_rollup_hdrs"),
            (json!({"discard": "new", "max_msgs": 9}), json!({}), "discards new"),
            (
                json!({"discard": "new", "max_msgs": 9, "max_msgs_per_subject": 3, "discard_new_per_subject": true}),
                json!({}),
                "discard_new_per_subject",
            ),
            (
                json!({"sealed": false, "retention": "workqueue"}),
                json!({}),
                "retention is workqueue",
            ),
            (json!({"subjects": null, "mirror": {"name": "ELSEWHERE"}}), json!({}), "mirror"),
            (json!({"sources": [{"name": "ELSEWHERE"}]}), json!({}), "sources"),
            (json!({"republish": {"src": "old.>", "dest": "copy.>"}}), json!({}), "republish"),
            (
                json!({"subject_transform": {"src": "old.>", "dest": "new.>"}}),
                json!({}),
                "subject_transform",
            ),
            (
                json!({"consumer_limits": {"inactive_threshold": seconds}}),
                json!({}),
                "consumer_limits",
            ),
            (json!({"max_consumers": 1}), json!({}), "1 consumers at most"),
            (
                json!({"allow_msg_schedules": true, "allow_msg_ttl": true, "allow_rollup_hdrs": true}),
                json!({}),
                "roll",
            ),
            (json!({}), json!({"maxMessages": 2}), "it has 3 events"),
            (json!({}), json!({"maxMessagesPerTopic": 1}), "one of its subjects may have 2"),
        ] {
            let counts = settings.get("allow_msg_counter").is_some();
            let mirrors = settings.get("mirror").is_some();
            let events: &[&str] = if counts || mirrors { &[] } else { &["a", "b", "a"] };
            old_stream(&fixture, &settings, events).await;
            let before = raw_config(&fixture).await;
            for _ in 0..2 {
                let error = fixture.ensure(&adopting(&more)).await.unwrap_err();
                assert!(
                    matches!(&error, Error::Incompatible { why: w, .. } if w.contains(why)),
                    "{settings}: {error}"
                );
            }
            assert_eq!(raw_config(&fixture).await, before, "{settings}");
            let info = fixture.seen.info("OLD").await;
            assert_eq!(info.state.messages, events.len() as u64, "{settings}");
            fixture.seen.context().delete_stream("OLD").await.unwrap();
        }
    });
}

#[test]
fn an_adoption_only_widens() {
    test(async |fixture| {
        let (hour, day) = (3_600_000_000_000_u64, 86_400_000_000_000_u64);
        // As NATS makes streams: without limits. And wider than the defaults, and narrower.
        for (settings, stays) in [
            (json!({}), json!({"max_age": 0, "max_bytes": -1, "max_msgs": -1, "max_msg_size": -1})),
            (
                json!({"max_age": 90 * day, "max_bytes": 5_i64 << 30, "max_msg_size": 1 << 19, "duplicate_window": hour,
                    "compression": "s2", "deny_delete": true, "deny_purge": true, "allow_msg_ttl": true, "max_msgs_per_subject": 7}),
                json!({"max_age": 90 * day, "max_bytes": 5_i64 << 30, "max_msg_size": 1 << 19, "duplicate_window": hour,
                    "compression": "s2", "deny_delete": true, "deny_purge": true, "allow_msg_ttl": true, "max_msgs_per_subject": -1}),
            ),
            (
                json!({"max_age": hour, "max_bytes": 1 << 20, "max_msgs": 50, "max_msg_size": 2048, "duplicate_window": 1_000_000_000}),
                json!({"max_age": day, "max_bytes": 1 << 30, "max_msgs": -1, "max_msg_size": 65_536, "duplicate_window": 120_000_000_000_u64}),
            ),
        ] {
            old_stream(&fixture, &settings, &["a", "b", "a"]).await;
            let report = fixture.ensure(&adopting(&json!({}))).await.unwrap();
            assert_eq!((report.change, report.drift), (Change::Adopted, vec![]), "{settings}");
            // Also in the passes after, of this operator and of one that remembers nothing.
            let other = Ensured::new(fixture.seen.context().clone(), &fixture.nats.url());
            for ensured in [&fixture.ensured, &other] {
                let again = ensured.ensure(&adopting(&json!({})), Mode::Enforce).await.unwrap();
                assert_eq!((again.change, again.drift), (Change::None, vec![]), "{settings}");
            }
            let config = raw_config(&fixture).await;
            for (key, value) in stays.as_object().unwrap() {
                let found = match (key.as_str(), &config[key]) {
                    (_, Value::Null) => json!(0),
                    (_, found) => found.clone(),
                };
                assert_eq!(found, *value, "{settings}: {key} of {config}");
            }
            assert_eq!(fixture.seen.info("OLD").await.state.messages, 3);
            // What the manifest says is done.
            let said = adopting(&json!({"maxAge": "2h", "maxBytes": "2Gi", "maxMessages": 100}));
            assert!(matches!(fixture.ensure(&said).await.unwrap().change, Change::Updated(_)));
            let config = raw_config(&fixture).await;
            assert_eq!((&config["max_age"], &config["max_msgs"]), (&json!(2 * hour), &json!(100)));
            assert_eq!(config["max_bytes"], json!(2_i64 << 30));
            fixture.seen.context().delete_stream("OLD").await.unwrap();
        }
    });
}

#[test]
fn marks_that_were_wiped_do_not_narrow_an_adopted_stream() {
    test(async |fixture| {
        old_stream(&fixture, &json!({}), &["a"]).await;
        let want = adopting(&json!({}));
        fixture.ensure(&want).await.unwrap();
        let created = fixture.ensure(&want).await.unwrap().stream.unwrap().created;
        // An operator that was started anew knows the stream by the channel's status alone.
        let other = Ensured::new(fixture.seen.context().clone(), &fixture.nats.url());
        other.remember(want.name.as_str(), &want.owner, &created);
        for ensured in [&fixture.ensured, &other] {
            fixture.alter(&want, |config| config.metadata.clear()).await;
            ensured.ensure(&want, Mode::Enforce).await.unwrap();
            let config = fixture.config(&want).await;
            assert_eq!((config.max_age, config.max_bytes), (Duration::ZERO, -1));
            assert_eq!(config.metadata[UID], "u1");
        }
    });
}

#[test]
fn an_adoption_drops_no_event_that_is_older_than_the_spec_keeps() {
    test(async |fixture| {
        old_stream(&fixture, &json!({}), &["a", "b", "c"]).await;
        tokio::time::sleep(Duration::from_millis(10_500)).await;
        let before = raw_config(&fixture).await;
        let said = adopting(&json!({"maxAge": "10s", "duplicateWindow": "1s"}));
        let error = fixture.ensure(&said).await.unwrap_err();
        assert!(error.to_string().contains("its oldest event is 1"), "{error}");
        assert_eq!(raw_config(&fixture).await, before);
        assert_eq!(fixture.seen.info("OLD").await.state.messages, 3);
    });
}

#[test]
fn what_cannot_be_changed_is_named_and_not_tried() {
    test(async |fixture| {
        fixture.ensure(&desired(&json!({"name": "S"}))).await.unwrap();
        let before = fixture.config(&desired(&json!({"name": "S"}))).await;
        let error = fixture
            .ensure(&desired(&json!({"name": "S", "storage": "Memory", "maxAge": "1h"})))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::ImmutableField { field, .. } if field == "spec.stream.storage"),
            "{error}"
        );
        assert_eq!(fixture.config(&desired(&json!({"name": "S"}))).await, before);
    });
}

#[test]
fn refusals_of_the_server_are_explained() {
    test(async |fixture| {
        fixture.ensure(&desired_by("first", "u1", &json!({"subjects": ["a.>"]}))).await.unwrap();
        let error = fixture
            .ensure(&desired_by("second", "u2", &json!({"subjects": ["a.b"]})))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::SubjectOverlap { subjects, .. } if subjects.contains("a.b")),
            "{error}"
        );
        let error =
            fixture.ensure(&desired_by("third", "u3", &json!({"replicas": 3}))).await.unwrap_err();
        assert!(matches!(error, Error::NotEnoughServers { replicas: 3, .. }), "{error}");
        let error = fixture
            .ensure(&desired_by("fourth", "u4", &json!({"maxBytes": "10Ti", "storage": "Memory"})))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::QuotaExceeded(_)), "{error}");
    });
}

#[test]
fn a_stream_that_went_away_is_made_again_in_a_new_epoch() {
    test(async |fixture| {
        let want = desired(&json!({}));
        let first = fixture.ensure(&want).await.unwrap().stream.unwrap();
        fixture.seen.context().delete_stream(want.name.as_str()).await.unwrap();
        let report = fixture.ensure(&want).await.unwrap();
        assert_eq!(report.change, Change::Recreated);
        assert_ne!(report.stream.unwrap().epoch, first.epoch);
    });
}

#[test]
fn a_store_set_back_to_an_older_state_gets_a_new_epoch() {
    test(async |mut fixture| {
        let want = desired(&json!({}));
        fixture.ensure(&want).await.unwrap();
        for n in 0..5 {
            fixture.seen.publish("sse.shop.orders.", "a", format!("{n}")).await;
        }
        let first = fixture.ensure(&want).await.unwrap().stream.unwrap();
        assert_eq!(first.last_sequence, 5);
        fixture.nats.stop().await;
        let copy = tempfile::TempDir::new().unwrap();
        sluice_tests::copy_tree(fixture.nats.store(), copy.path());
        fixture.nats.restart().await;
        for n in 5..9 {
            fixture.seen.publish("sse.shop.orders.", "a", format!("{n}")).await;
        }
        assert_eq!(
            fixture.ensure(&want).await.unwrap().stream.unwrap().epoch,
            first.epoch,
            "a restart alone is no new epoch"
        );
        fixture.nats.stop().await;
        std::fs::remove_dir_all(fixture.nats.store()).unwrap();
        sluice_tests::copy_tree(copy.path(), fixture.nats.store());
        fixture.nats.restart().await;
        let report = sluice_tests::eventually("connected again", LIMIT, async || {
            fixture.ensure(&want).await.ok()
        })
        .await;
        assert_eq!(report.change, Change::Restored);
        let facts = report.stream.unwrap();
        assert_eq!((facts.created.clone(), facts.last_sequence), (first.created, 5));
        assert_ne!(facts.epoch, first.epoch);
        assert_eq!(fixture.config(&want).await.metadata[EPOCH_METADATA], "1");
        let again = fixture.ensure(&want).await.unwrap();
        assert_eq!(
            (again.change, again.stream.unwrap().epoch),
            (Change::None, facts.epoch),
            "once"
        );
    });
}

/// Sets the store back to `copy` with all programs down; an operator that remembers nothing but the
/// channel's status comes up after it.
#[test]
fn a_store_set_back_while_all_were_down_gets_a_new_epoch_by_its_mark() {
    test(async |mut fixture| {
        let want = desired(&json!({}));
        let name = want.name.as_str();
        fixture.ensure(&want).await.unwrap();
        let publish = async |fixture: &Fixture, count: usize| {
            for n in 0..count {
                fixture.seen.publish("sse.shop.orders.", "a", format!("{n}")).await;
            }
        };
        publish(&fixture, 50).await;
        fixture.nats.stop().await;
        let copy = tempfile::TempDir::new().unwrap();
        sluice_tests::copy_tree(fixture.nats.store(), copy.path());
        fixture.nats.restart().await;
        publish(&fixture, 30).await;
        let facts = fixture.ensure(&want).await.unwrap().stream.unwrap();
        let mark = fixture.ensured.mark(&facts).await.unwrap();
        assert_eq!((mark.sequence, mark.epochs), (80, 0));

        let fresh = async |fixture: &Fixture, mark: &Mark| {
            let operator = Ensured::new(fixture.seen.context().clone(), &fixture.nats.url());
            operator.remember_mark(name, &want.owner, &facts.created, mark);
            let report = sluice_tests::eventually("connected", LIMIT, async || {
                operator.ensure(&want, Mode::Enforce).await.ok()
            })
            .await;
            (report.change, report.stream.unwrap())
        };
        let restored = async |fixture: &mut Fixture| {
            fixture.nats.stop().await;
            std::fs::remove_dir_all(fixture.nats.store()).unwrap();
            sluice_tests::copy_tree(copy.path(), fixture.nats.store());
            fixture.nats.restart().await;
        };
        // A restart alone is none, nor is what takes events away.
        fixture.nats.stop().await;
        fixture.nats.restart().await;
        assert_eq!(fresh(&fixture, &mark).await.1.epoch, facts.epoch);

        // Below the mark, and past it: another event has its place.
        restored(&mut fixture).await;
        let (change, below) = fresh(&fixture, &mark).await;
        assert_eq!((change, below.last_sequence, below.epochs), (Change::Restored, 50, 1));
        assert_ne!(below.epoch, facts.epoch);
        // The status was not written any more: the same mark again is no second one.
        assert_eq!(fresh(&fixture, &mark).await.1.epoch, below.epoch);

        let second = fixture.ensured.mark(&below).await.unwrap();
        restored(&mut fixture).await;
        publish(&fixture, 40).await;
        let (change, past) = fresh(&fixture, &second).await;
        assert_eq!((change, past.last_sequence), (Change::Restored, 90));
        assert_eq!(past.epochs, 2, "no number that was in use comes back");
        assert!(past.epoch != below.epoch && past.epoch != facts.epoch);

        let third = fixture.ensured.mark(&past).await.unwrap();
        let stream = fixture.seen.context().get_stream(name).await.unwrap();
        stream.delete_message(90).await.unwrap();
        assert_eq!(fresh(&fixture, &third).await.1.epoch, past.epoch, "deleted");
        assert_eq!(fixture.ensured.mark(&past).await.unwrap().sequence, 89);
        stream.purge().await.unwrap();
        assert_eq!(fresh(&fixture, &third).await.1.epoch, past.epoch, "purged");
        assert_eq!(fixture.ensured.mark(&past).await.unwrap().sequence, 0);
        // Marks that were wiped come back, that of the epoch too.
        fixture.alter(&want, |config| config.metadata.clear()).await;
        let (change, wiped) = fresh(&fixture, &third).await;
        assert_eq!(wiped.epoch, past.epoch);
        assert!(matches!(change, Change::Updated(_)), "{change:?}");
    });
}

#[test]
fn without_nats_the_answer_comes_at_once() {
    test(async |mut fixture| {
        let want = desired(&json!({}));
        fixture.ensure(&want).await.unwrap();
        fixture.nats.stop().await;
        sluice_tests::eventually("the client has noticed", LIMIT, async || {
            matches!(fixture.ensure(&want).await, Err(Error::Unreachable { .. })).then_some(())
        })
        .await;
        let started = std::time::Instant::now();
        assert!(matches!(fixture.ensure(&want).await, Err(Error::Unreachable { .. })));
        assert!(started.elapsed() < Duration::from_millis(500));
    });
}

#[test]
fn replicas_follow_the_size_of_the_cluster() {
    sluice_tests::run(LIMIT, async {
        let cluster = NatsCluster::start(3).await;
        let seen = Streams::connect(&cluster.urls()).await;
        let ensured = Ensured::new(jetstream::new(seen.context().client()), "the cluster");
        let ensure = async |replicas: i32, age: &str| {
            ensured
                .ensure(&desired(&json!({"replicas": replicas, "maxAge": age})), Mode::Enforce)
                .await
        };
        ensure(1, "1h").await.unwrap();
        let error = ensure(5, "1h").await.unwrap_err();
        assert!(
            matches!(error, Error::NotEnoughServers { replicas: 5, known: Some(3) }),
            "{error}"
        );
        assert!(
            matches!(ensure(3, "2h").await.unwrap().change, Change::Updated(_)),
            "scaled and changed in two steps"
        );
        let name = desired(&json!({})).name;
        let config = seen.info(name.as_str()).await.config;
        assert_eq!((config.num_replicas, config.max_age), (3, Duration::from_secs(7200)));
        assert!(matches!(ensure(1, "2h").await.unwrap().change, Change::Updated(_)));
        assert_eq!(ensure(1, "2h").await.unwrap().change, Change::None);
    });
}
