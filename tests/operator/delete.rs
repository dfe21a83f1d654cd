//! A channel is deleted: what becomes of its stream, its children and its finalizer.

use std::time::Duration;

use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use sluice_tests::eventually;

use crate::{
    bed::{Bed, LIMIT, test},
    channel::{self, CHANNEL, CHILDREN},
};

/// Sends the delete; the object may live on for its finalizer.
async fn delete(bed: &Bed, name: &str) {
    bed.api(CHANNEL).delete(name, &DeleteParams::background()).await.unwrap();
}

async fn exists(bed: &Bed, stream: &str) -> bool {
    bed.streams().await.context().get_stream(stream).await.is_ok()
}

#[test]
fn retain_leaves_the_stream_and_its_events_and_needs_no_finalizer() {
    test("retain", async |bed| {
        bed.create(
            "orders",
            json!({"workload": {"replicas": 1, "terminationGracePeriodSeconds": 10}}),
        )
        .await;
        let object = bed.ready("orders").await;
        let stream = channel::stream(&object);
        assert!(object["metadata"]["finalizers"].is_null(), "{}", object["metadata"]);
        bed.streams().await.publish(&format!("sse.{}.orders.", bed.namespace()), "a", "kept").await;
        delete(bed, "orders").await;
        bed.until_gone("orders").await;
        eventually("the children have gone", LIMIT, async || {
            for kind in CHILDREN {
                if bed.child(kind, "orders").await.is_some() {
                    return None;
                }
            }
            bed.pods("orders").await.is_empty().then_some(())
        })
        .await;
        assert_eq!(bed.streams().await.info(&stream).await.state.messages, 1);
    });
}

#[test]
fn a_retained_stream_is_found_again_by_a_channel_of_the_same_name() {
    test("again", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let first = bed.ready("orders").await;
        bed.streams().await.publish(&format!("sse.{}.orders.", bed.namespace()), "a", "kept").await;
        delete(bed, "orders").await;
        bed.until_gone("orders").await;
        bed.create(
            "orders",
            json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let second = bed.ready("orders").await;
        assert_eq!(
            first["status"]["stream"]["epoch"], second["status"]["stream"]["epoch"],
            "cursors of before stay good"
        );
        let stream = channel::stream(&second);
        assert_eq!(bed.streams().await.info(&stream).await.state.messages, 1);
        // It is the second's now, so that its delete works.
        delete(bed, "orders").await;
        bed.until_gone("orders").await;
        assert!(!exists(bed, &stream).await);
    });
}

#[test]
fn delete_takes_the_stream_along() {
    test("delete", async |bed| {
        bed.create(
            "orders",
            json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let object = bed.ready("orders").await;
        assert_eq!(object["metadata"]["finalizers"], json!(["sluice.dev/delete-stream"]));
        delete(bed, "orders").await;
        bed.until_gone("orders").await;
        assert!(!exists(bed, &channel::stream(&object)).await);
    });
}

#[test]
fn delete_is_done_when_the_stream_has_gone_already() {
    test("gone", async |bed| {
        bed.create(
            "orders",
            json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let object = bed.ready("orders").await;
        // The operator must not have the time to make it again.
        bed.stop_operator().await;
        bed.streams().await.context().delete_stream(channel::stream(&object)).await.unwrap();
        delete(bed, "orders").await;
        bed.start_operator().await;
        bed.until_gone("orders").await;
        assert!(!exists(bed, &channel::stream(&object)).await);
    });
}

#[test]
fn delete_spares_a_stream_that_names_another_owner() {
    test("spared", async |bed| {
        let created = bed
            .create(
                "orders",
                json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
            )
            .await;
        let object = bed.ready("orders").await;
        let (name, uid) = (channel::stream(&object), created.uid().unwrap());
        let streams = bed.streams().await;
        // Until the delete is there, the operator would put its name back.
        bed.stop_operator().await;
        let mut config = streams.info(&name).await.config;
        let other = "00000000-0000-4000-8000-000000000000";
        for value in config.metadata.values_mut().filter(|v| **v == uid) {
            other.clone_into(value);
        }
        streams.context().update_stream(config).await.unwrap();
        delete(bed, "orders").await;
        bed.start_operator().await;
        bed.until_gone("orders").await;
        assert!(
            streams.info(&name).await.config.metadata.values().any(|v| v == other),
            "it stays, and is not written to"
        );
    });
}

#[test]
fn the_policy_can_be_changed_both_ways() {
    test("switch", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        bed.change("orders", json!({"stream": {"deletionPolicy": "Delete"}})).await;
        bed.until("orders", "has the finalizer", |o| {
            channel::is_ready(o)
                && o["metadata"]["finalizers"].as_array().is_some_and(|f| f.len() == 1)
        })
        .await;
        bed.change("orders", json!({"stream": {"deletionPolicy": "Retain"}})).await;
        let object = bed
            .until("orders", "has no finalizer", |o| {
                channel::is_ready(o) && o["metadata"]["finalizers"].is_null()
            })
            .await;
        delete(bed, "orders").await;
        bed.until_gone("orders").await;
        assert!(exists(bed, &channel::stream(&object)).await);
    });
}

#[test]
fn others_finalizers_are_left_alone() {
    test("foreign", async |bed| {
        bed.create(
            "orders",
            json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let object = bed.ready("orders").await;
        bed.patch(
            CHANNEL,
            "orders",
            json!({"metadata": {"finalizers": ["example.com/theirs", "sluice.dev/delete-stream"]}}),
        )
        .await;
        delete(bed, "orders").await;
        let left = bed
            .until("orders", "only the other finalizer is left", |o| {
                o["metadata"]["finalizers"] == json!(["example.com/theirs"])
            })
            .await;
        assert!(!exists(bed, &channel::stream(&object)).await);
        // Nothing of the channel is made again while it waits for others.
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(!exists(bed, &channel::stream(&left)).await);
        bed.patch(CHANNEL, "orders", json!({"metadata": {"finalizers": Value::Null}})).await;
        bed.until_gone("orders").await;
    });
}

#[test]
fn with_nats_down_retain_is_done_at_once() {
    test("down-retain", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = bed.ready("orders").await;
        bed.nats.stop().await;
        delete(bed, "orders").await;
        eventually("it is gone at once", Duration::from_secs(5), async || {
            bed.api(CHANNEL).get_opt("orders").await.unwrap().is_none().then_some(())
        })
        .await;
        bed.nats.restart().await;
        assert!(exists(bed, &channel::stream(&object)).await);
    });
}

#[test]
fn with_nats_down_delete_stalls_and_says_so_and_is_done_later() {
    test("down-delete", async |bed| {
        bed.create(
            "orders",
            json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let object = bed.ready("orders").await;
        bed.nats.stop().await;
        delete(bed, "orders").await;
        let stalled = bed
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
        assert!(bed.api(CHANNEL).get_opt("orders").await.unwrap().is_some(), "it waits for NATS");
        bed.nats.restart().await;
        bed.until_gone("orders").await;
        assert!(!exists(bed, &channel::stream(&object)).await);
    });
}

#[test]
fn the_break_glass_annotation_lets_go_of_the_stream() {
    test("abandon", async |bed| {
        bed.create(
            "orders",
            json!({"stream": {"deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let object = bed.ready("orders").await;
        let stream = channel::stream(&object);
        bed.nats.stop().await;
        delete(bed, "orders").await;
        bed.until("orders", "is stalled", |o| {
            channel::condition(o, "Stalled").is_some_and(|c| c["status"] == "True")
        })
        .await;
        let annotate = |value: &str| json!({"metadata": {"annotations": {"sluice.dev/abandon-stream": value}}});
        bed.patch(CHANNEL, "orders", annotate("a-typing-error")).await;
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(
            bed.api(CHANNEL).get_opt("orders").await.unwrap().is_some(),
            "only the stream's own name lets go of it"
        );
        bed.patch(CHANNEL, "orders", annotate(&stream)).await;
        bed.until_gone("orders").await;
        bed.nats.restart().await;
        assert!(exists(bed, &stream).await);
    });
}
