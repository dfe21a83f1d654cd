//! Whose a stream is: its mark alone says it, and it changes hands on purpose or not at all.

use serde_json::{Value, json};
use sluice_operator::stream::{Change, Desired, Error, Mode, Owner, Streams as Ensured, UID};

use crate::{Fixture, adopting, desired_by, old_stream, raw_config, test};

fn hist(name: &str, uid: &str, more: &Value) -> Desired {
    let mut spec = json!({"name": "HIST", "subjects": ["hist.>"]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    desired_by(name, uid, &spec)
}

async fn config(fixture: &Fixture) -> async_nats::jetstream::stream::Config {
    fixture.seen.info("HIST").await.config
}

/// Takes the stream from its channel, as an administrator does.
async fn freed(fixture: &Fixture, desired: &Desired) {
    fixture
        .alter(desired, |config| {
            config.metadata.clear();
            config.description = Some("mine now".to_owned());
        })
        .await;
}

#[test]
fn a_stream_that_was_freed_is_not_another_channels_because_of_its_name() {
    test(async |fixture| {
        let first = hist("first", "u1", &json!({}));
        fixture.ensure(&first).await.unwrap();
        fixture.seen.publish("hist.", "a", "kept").await;
        freed(&fixture, &first).await;
        let before = config(&fixture).await;
        for thief in [hist("thief", "u2", &json!({})), hist("first", "u3", &json!({}))] {
            for _ in 0..2 {
                let error = fixture.ensure(&thief).await.unwrap_err();
                assert!(matches!(error, Error::Unowned { .. }), "{error}");
            }
        }
        assert_eq!(config(&fixture).await, before);
        // Nor is it its own channel's once that was forgotten.
        fixture.ensured.forget(&first.owner);
        let error = fixture.ensure(&first).await.unwrap_err();
        assert!(matches!(error, Error::Unowned { .. }), "{error}");
        assert_eq!(config(&fixture).await, before);
    });
}

#[test]
fn what_was_seen_of_a_channel_that_is_gone_is_not_told_to_the_next_of_its_name() {
    test(async |fixture| {
        fixture.ensure(&hist("again", "u1", &json!({}))).await.unwrap();
        fixture.seen.context().delete_stream("HIST").await.unwrap();
        let report = fixture.ensure(&hist("again", "u2", &json!({}))).await.unwrap();
        assert_eq!(report.change, Change::Created, "its own events are not lost: it had none");
    });
}

#[test]
fn a_channel_whose_stream_was_handed_over_does_not_take_it_back() {
    test(async |fixture| {
        let old = hist("old", "u1", &json!({}));
        fixture.ensure(&old).await.unwrap();
        let mut new = hist("new", "u2", &json!({}));
        new.take_over = Some("u1".to_owned());
        fixture.ensure(&new).await.unwrap();
        assert!(matches!(fixture.ensure(&old).await, Err(Error::OwnedByOther { .. })));
        fixture.alter(&new, |config| config.metadata.clear()).await;
        assert!(matches!(fixture.ensure(&old).await, Err(Error::Unowned { .. })));
        assert!(matches!(fixture.ensure(&new).await.unwrap().change, Change::Updated(_)));
        assert_eq!(config(&fixture).await.metadata[UID], "u2");
    });
}

#[test]
fn a_mark_is_handed_over_on_purpose_once() {
    test(async |fixture| {
        let old = hist("old", "u1", &json!({"maxAge": "90h", "maxMessages": 100}));
        fixture.ensure(&old).await.unwrap();
        for n in 0..3 {
            fixture.seen.publish("hist.", "a", format!("{n}")).await;
        }
        let epoch = fixture.ensure(&old).await.unwrap().stream.unwrap().epoch;
        let mut new = hist("new", "u2", &json!({}));
        // Another mark than that of the stream fits nothing, nor does none.
        for uid in [None, Some(""), Some("u9"), Some("u2")] {
            new.take_over = uid.map(str::to_owned);
            let error = fixture.ensure(&new).await.unwrap_err();
            assert!(
                matches!(&error, Error::OwnedByOther { owner, .. } if owner.contains("u1")),
                "the mark to name is told: {error}"
            );
        }
        new.take_over = Some("u1".to_owned());
        let observed = fixture.ensured.ensure(&new, Mode::Observe).await.unwrap();
        assert_eq!(observed.change, Change::None);
        assert!(observed.drift.iter().any(|d| d.field == format!("metadata.{UID}")));
        assert_eq!(config(&fixture).await.metadata[UID], "u1", "observing changes nothing");
        let report = fixture.ensure(&new).await.unwrap();
        assert!(
            matches!(&report.change, Change::TakenOver(Owner { name, uid, .. }) if name == "old" && uid == "u1"),
            "{report:?}"
        );
        let facts = report.stream.unwrap();
        assert_eq!((facts.owned, facts.last_sequence, facts.epoch), (true, 3, epoch));
        let after = config(&fixture).await;
        assert_eq!(after.metadata[UID], "u2");
        assert_eq!(after.max_age.as_secs(), 90 * 3600, "what the spec leaves at its default");
        assert!(after.description.unwrap().contains("shop/new"));
        assert_eq!(fixture.ensure(&new).await.unwrap().change, Change::None);
        // The annotation may stay: it fits no other channel's mark.
        let mut third = hist("third", "u3", &json!({}));
        third.take_over = Some("u1".to_owned());
        assert!(matches!(fixture.ensure(&third).await, Err(Error::OwnedByOther { .. })));
    });
}

#[test]
fn a_hand_over_drops_no_event() {
    test(async |fixture| {
        fixture.ensure(&hist("old", "u1", &json!({}))).await.unwrap();
        for n in 0..3 {
            fixture.seen.publish("hist.", "a", format!("{n}")).await;
        }
        let before = config(&fixture).await;
        let mut new = hist("new", "u2", &json!({"maxMessages": 2}));
        new.take_over = Some("u1".to_owned());
        let error = fixture.ensure(&new).await.unwrap_err();
        assert!(matches!(error, Error::Incompatible { .. }), "{error}");
        assert_eq!(config(&fixture).await, before);
        assert_eq!(fixture.seen.info("HIST").await.state.messages, 3);
    });
}

#[test]
fn a_rebuilt_cluster_gets_its_stream_by_its_mark() {
    test(async |fixture| {
        let mut lost = hist("orders", "u1", &json!({}));
        lost.owner.cluster = "the-lost-one".to_owned();
        fixture.ensure(&lost).await.unwrap();
        fixture.seen.publish("hist.", "a", "kept").await;
        let mut rebuilt = hist("orders", "u2", &json!({}));
        let fresh = Ensured::new(fixture.seen.context().clone(), &fixture.nats.url());
        let error = fresh.ensure(&rebuilt, Mode::Enforce).await.unwrap_err();
        assert!(matches!(error, Error::OwnedByOther { .. }), "{error}");
        let mark = fresh.owner(&rebuilt.name).await.unwrap().unwrap();
        assert_eq!(mark, lost.owner);
        rebuilt.take_over = Some(mark.uid);
        let report = fresh.ensure(&rebuilt, Mode::Enforce).await.unwrap();
        assert!(matches!(report.change, Change::TakenOver(_)), "{report:?}");
        assert_eq!(fixture.seen.info("HIST").await.state.messages, 1);
    });
}

#[test]
fn the_description_that_a_streams_users_wrote_stays_theirs() {
    test(async |fixture| {
        old_stream(&fixture, &json!({"description": "of the billing team"}), &["a"]).await;
        fixture.ensure(&adopting(&json!({}))).await.unwrap();
        fixture.ensure(&adopting(&json!({"maxAge": "48h"}))).await.unwrap();
        assert_eq!(raw_config(&fixture).await["description"], "of the billing team");
    });
}
