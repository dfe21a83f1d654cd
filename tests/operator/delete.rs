//! A channel is deleted: what becomes of its stream, its children and its finalizer.

use std::time::Duration;

use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use sluice_tests::eventually;

use crate::{
    channel::{self, CHANNEL, CHILDREN},
    fixture::{Fixture, LIMIT, test},
};

/// Sends the delete; the object may live on for its finalizer.
async fn delete(fixture: &Fixture, name: &str) {
    fixture.api(CHANNEL).delete(name, &DeleteParams::background()).await.unwrap();
}

async fn exists(fixture: &Fixture, stream: &str) -> bool {
    fixture.streams().await.context().get_stream(stream).await.is_ok()
}

#[test]
fn retain_leaves_the_stream_and_its_events_and_needs_no_finalizer() {
    test("retain", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"workload": {"replicas": 1, "terminationGracePeriodSeconds": 10}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        let stream = channel::stream(&object);
        assert!(object["metadata"]["finalizers"].is_null(), "{}", object["metadata"]);
        fixture
            .streams()
            .await
            .publish(&format!("sse.{}.orders.", fixture.namespace()), "a", "kept")
            .await;
        delete(fixture, "orders").await;
        fixture.until_gone("orders").await;
        eventually("the children have gone", LIMIT, async || {
            for kind in CHILDREN {
                if fixture.child(kind, "orders").await.is_some() {
                    return None;
                }
            }
            fixture.pods("orders").await.is_empty().then_some(())
        })
        .await;
        assert_eq!(fixture.streams().await.info(&stream).await.state.messages, 1);
    });
}

#[test]
fn a_retained_stream_is_found_again_by_a_channel_of_the_same_name() {
    test("again", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let first = fixture.ready("orders").await;
        fixture
            .streams()
            .await
            .publish(&format!("sse.{}.orders.", fixture.namespace()), "a", "kept")
            .await;
        delete(fixture, "orders").await;
        fixture.until_gone("orders").await;
        fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let second = fixture.ready("orders").await;
        assert_eq!(
            first["status"]["stream"]["epoch"], second["status"]["stream"]["epoch"],
            "cursors of before stay good"
        );
        let stream = channel::stream(&second);
        assert_eq!(fixture.streams().await.info(&stream).await.state.messages, 1);
        // It is the second's now, so that its delete works.
        delete(fixture, "orders").await;
        fixture.until_gone("orders").await;
        assert!(!exists(fixture, &stream).await);
    });
}

#[test]
fn delete_takes_the_stream_along() {
    test("delete", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        assert_eq!(object["metadata"]["finalizers"], json!(["sluice.dev/delete-stream"]));
        delete(fixture, "orders").await;
        fixture.until_gone("orders").await;
        assert!(!exists(fixture, &channel::stream(&object)).await);
    });
}

#[test]
fn delete_is_done_when_the_stream_has_gone_already() {
    test("gone", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        // The operator must not have the time to make it again.
        fixture.stop_operator().await;
        fixture.streams().await.context().delete_stream(channel::stream(&object)).await.unwrap();
        delete(fixture, "orders").await;
        fixture.start_operator().await;
        fixture.until_gone("orders").await;
        assert!(!exists(fixture, &channel::stream(&object)).await);
    });
}

#[test]
fn delete_spares_a_stream_that_names_another_owner() {
    test("spared", async |fixture| {
        let created = fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        let (name, uid) = (channel::stream(&object), created.uid().unwrap());
        let streams = fixture.streams().await;
        // Until the delete is there, the operator would put its name back.
        fixture.stop_operator().await;
        let mut config = streams.info(&name).await.config;
        let other = "00000000-0000-4000-8000-000000000000";
        for value in config.metadata.values_mut().filter(|v| **v == uid) {
            other.clone_into(value);
        }
        streams.context().update_stream(config).await.unwrap();
        delete(fixture, "orders").await;
        fixture.start_operator().await;
        fixture.until_gone("orders").await;
        assert!(
            streams.info(&name).await.config.metadata.values().any(|v| v == other),
            "it stays, and is not written to"
        );
    });
}

#[test]
fn the_policy_can_be_changed_both_ways() {
    test("switch", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        fixture.change("orders", json!({"stream": {"deletionPolicy": "Delete"}})).await;
        fixture
            .until("orders", "has the finalizer", |o| {
                channel::is_ready(o)
                    && o["metadata"]["finalizers"].as_array().is_some_and(|f| f.len() == 1)
            })
            .await;
        fixture.change("orders", json!({"stream": {"deletionPolicy": "Retain"}})).await;
        let object = fixture
            .until("orders", "has no finalizer", |o| {
                channel::is_ready(o) && o["metadata"]["finalizers"].is_null()
            })
            .await;
        delete(fixture, "orders").await;
        fixture.until_gone("orders").await;
        assert!(exists(fixture, &channel::stream(&object)).await);
    });
}

#[test]
fn others_finalizers_are_left_alone() {
    test("foreign", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        fixture.patch(
            CHANNEL,
            "orders",
            json!({"metadata": {"finalizers": ["example.com/theirs", "sluice.dev/delete-stream"]}}),
        )
        .await;
        delete(fixture, "orders").await;
        let left = fixture
            .until("orders", "only the other finalizer is left", |o| {
                o["metadata"]["finalizers"] == json!(["example.com/theirs"])
            })
            .await;
        assert!(!exists(fixture, &channel::stream(&object)).await);
        // Nothing of the channel is made again while it waits for others.
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(!exists(fixture, &channel::stream(&left)).await);
        fixture.patch(CHANNEL, "orders", json!({"metadata": {"finalizers": Value::Null}})).await;
        fixture.until_gone("orders").await;
    });
}

#[test]
fn with_nats_down_retain_is_done_at_once() {
    test("down-retain", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.nats.stop().await;
        delete(fixture, "orders").await;
        eventually("it is gone at once", Duration::from_secs(5), async || {
            fixture.api(CHANNEL).get_opt("orders").await.unwrap().is_none().then_some(())
        })
        .await;
        fixture.nats.restart().await;
        assert!(exists(fixture, &channel::stream(&object)).await);
    });
}

#[test]
fn with_nats_down_delete_stalls_and_says_so_and_is_done_later() {
    test("down-delete", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        fixture.nats.stop().await;
        delete(fixture, "orders").await;
        let stalled = fixture
            .until("orders", "is stalled", |o| {
                channel::condition(o, "Stalled").is_some_and(|c| c["status"] == "True")
            })
            .await;
        let message = channel::condition(&stalled, "Stalled").unwrap()["message"].as_str().unwrap();
        assert!(
            message.contains("sluice.dev/abandon-stream")
                && message.contains(&channel::stream(&object)),
            "it says what is awaited and the way out: {message}"
        );
        assert_eq!(channel::condition(&stalled, "Ready").unwrap()["status"], "False");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(
            fixture.api(CHANNEL).get_opt("orders").await.unwrap().is_some(),
            "it waits for NATS"
        );
        fixture.nats.restart().await;
        fixture.until_gone("orders").await;
        assert!(!exists(fixture, &channel::stream(&object)).await);
    });
}

#[test]
fn the_break_glass_annotation_lets_go_of_the_stream() {
    test("abandon", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = fixture.ready("orders").await;
        let stream = channel::stream(&object);
        fixture.nats.stop().await;
        delete(fixture, "orders").await;
        fixture
            .until("orders", "is stalled", |o| {
                channel::condition(o, "Stalled").is_some_and(|c| c["status"] == "True")
            })
            .await;
        let annotate = |value: &str| json!({"metadata": {"annotations": {"sluice.dev/abandon-stream": value}}});
        fixture.patch(CHANNEL, "orders", annotate("a-typing-error")).await;
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(
            fixture.api(CHANNEL).get_opt("orders").await.unwrap().is_some(),
            "only the stream's own name lets go of it"
        );
        fixture.patch(CHANNEL, "orders", annotate(&stream)).await;
        fixture.until_gone("orders").await;
        fixture.nats.restart().await;
        assert!(exists(fixture, &stream).await);
    });
}
