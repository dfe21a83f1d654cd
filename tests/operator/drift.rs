//! What is altered or deleted behind the operator's back is put back.

use std::time::Duration;

use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use sluice_tests::{
    clients::{Reader, Request},
    eventually,
};

use crate::{
    channel::{
        self, BUDGET, CONFIG_MAP, DEPLOYMENT, INGRESS, Kind, MORE_CHILDREN, NETWORK_POLICY,
        SERVICE, SERVICE_ACCOUNT,
    },
    fixture::{LIMIT, test},
};

/// A channel with an object of each kind of [`MORE_CHILDREN`].
fn surrounded() -> Value {
    json!({"workload": {"replicas": 1, "terminationGracePeriodSeconds": 10}, "exposure": {"ingress": {"host": "events.example.com"}},
        "networkPolicy": {"mode": "Restrict"}})
}

/// A change of each child that does harm.
fn harm(kind: Kind) -> Value {
    match kind {
        SERVICE_ACCOUNT => {
            json!({"automountServiceAccountToken": true, "metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}})
        }
        CONFIG_MAP => json!({"data": {"orders.json": "{}"}}),
        DEPLOYMENT => {
            json!({"spec": {"replicas": 0, "template": {"spec": {"terminationGracePeriodSeconds": 1}}}})
        }
        SERVICE => json!({"spec": {"selector": {"app.kubernetes.io/name": "somebody-else"}}}),
        BUDGET => json!({"spec": {"maxUnavailable": 100}}),
        INGRESS => json!({"spec": {"rules": [{"host": "elsewhere.example"}]}}),
        NETWORK_POLICY => json!({"spec": {"ingress": [{}]}}),
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn every_altered_child_is_put_back() {
    test("altered", async |fixture| {
        fixture.create("orders", surrounded()).await;
        fixture.ready("orders").await;
        for kind in MORE_CHILDREN {
            let before = fixture.child(kind, "orders").await.unwrap();
            fixture.patch(kind, &before.name_any(), harm(kind)).await;
            eventually(&format!("{} is put back", kind.2), LIMIT, async || {
                let now = fixture.child(kind, "orders").await?;
                (channel::essence(&now) == channel::essence(&before)).then_some(())
            })
            .await;
            assert_eq!(
                fixture.child(kind, "orders").await.unwrap().uid(),
                before.uid(),
                "{} was mended, not replaced",
                kind.2
            );
        }
        fixture.ready("orders").await;
    });
}

#[test]
fn every_deleted_child_is_made_again() {
    test("deleted", async |fixture| {
        fixture.create("orders", surrounded()).await;
        fixture.ready("orders").await;
        for kind in MORE_CHILDREN {
            let before = fixture.child(kind, "orders").await.unwrap();
            fixture
                .api(kind)
                .delete(&before.name_any(), &DeleteParams::background())
                .await
                .unwrap();
            eventually(&format!("{} is made again", kind.2), LIMIT, async || {
                let now =
                    fixture.child(kind, "orders").await.filter(|now| now.uid() != before.uid())?;
                (channel::essence(&now) == channel::essence(&before)).then_some(())
            })
            .await;
        }
        fixture.ready("orders").await;
    });
}

#[test]
fn a_child_that_lost_its_labels_and_owner_is_taken_back() {
    test("stripped", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let before = fixture.child(SERVICE, "orders").await.unwrap();
        fixture
            .patch(
                SERVICE,
                &before.name_any(),
                json!({"metadata": {"labels": null, "ownerReferences": null}}),
            )
            .await;
        eventually("the Service is the channel's again", LIMIT, async || {
            let now = fixture.child(SERVICE, "orders").await?;
            (channel::essence(&now) == channel::essence(&before)).then_some(())
        })
        .await;
    });
}

#[test]
fn what_others_add_is_left_alone() {
    test("added", async |fixture| {
        fixture.create("orders", surrounded()).await;
        fixture.ready("orders").await;
        for kind in MORE_CHILDREN {
            let name = fixture.child(kind, "orders").await.unwrap().name_any();
            fixture.patch(kind, &name, json!({"metadata": {"labels": {"team": "shop"}, "annotations": {"example.com/note": "ours"}}})).await;
        }
        fixture.change("orders", json!({"delivery": {"heartbeat": "20s"}})).await;
        fixture.ready("orders").await;
        for kind in MORE_CHILDREN {
            let child = fixture.child(kind, "orders").await.unwrap();
            assert_eq!(
                (child.labels()["team"].as_str(), child.annotations()["example.com/note"].as_str()),
                ("shop", "ours"),
                "{}",
                kind.2
            );
        }
    });
}

#[test]
fn an_altered_stream_is_put_back_with_its_events() {
    test("stream", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        let name = channel::stream(&object);
        let streams = fixture.streams().await;
        streams.publish(&format!("sse.{}.orders.", fixture.namespace()), "a", "kept").await;
        let before = streams.info(&name).await.config;
        let mut config = before.clone();
        config.max_age = Duration::from_secs(3600);
        config.max_messages = 5;
        config.allow_direct = false;
        config.subjects = vec!["somewhere.else".to_owned()];
        streams.context().update_stream(config).await.expect("the stream can be altered");
        eventually("the stream is put back", LIMIT, async || {
            let config = streams.info(&name).await.config;
            let same = (config.max_age, config.max_messages, config.allow_direct)
                == (before.max_age, before.max_messages, before.allow_direct);
            (same && config.subjects == before.subjects).then_some(())
        })
        .await;
        let info = streams.info(&name).await;
        assert_eq!(info.state.messages, 1);
        let object = fixture.ready("orders").await;
        assert_eq!(object["status"]["drift"].as_array().map_or(0, Vec::len), 0);
    });
}

#[test]
fn a_deleted_stream_is_made_again_and_everybody_is_told() {
    test("gone", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        let (name, prefix) =
            (channel::stream(&object), format!("sse.{}.orders.", fixture.namespace()));
        let streams = fixture.streams().await;
        streams.publish(&prefix, "a", "first").await;
        let address = fixture.addresses("orders").await[0].1;
        let mut reader =
            Reader::open(address, &Request::get("/channels/orders?from=earliest")).await;
        assert_eq!(reader.event(LIMIT).await.unwrap().data, "first");

        streams.context().delete_stream(&name).await.expect("the stream can be deleted");
        let epoch = object["status"]["stream"]["epoch"].clone();
        let object = fixture
            .until("orders", "has a new epoch", |o| {
                channel::is_ready(o) && o["status"]["stream"]["epoch"] != epoch
            })
            .await;
        let events = fixture.events("orders").await;
        assert!(
            events.iter().any(|(kind, _, note)| kind == "Warning" && note.contains(&name)),
            "a Warning tells of it: {events:?}"
        );

        streams.publish(&prefix, "a", "second").await;
        let mut gap = reader.event(LIMIT).await.expect("the stream stays open");
        // While there is no stream, subscribers may be told so; that is no event of the channel.
        while matches!(gap.name.as_str(), "channel.degraded" | "channel.recovered") {
            gap = reader.event(LIMIT).await.expect("the stream stays open");
        }
        assert!(gap.name == "channel.gap" && gap.data.contains("epoch"), "{gap:?}");
        let mut event = reader.event(LIMIT).await.unwrap();
        while event.name == "channel.recovered" {
            event = reader.event(LIMIT).await.unwrap();
        }
        let id = format!("{}-1", object["status"]["stream"]["epoch"].as_str().unwrap());
        assert_eq!((event.data.as_str(), event.last_event_id), ("second", id));
    });
}
