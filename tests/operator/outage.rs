//! NATS away when a channel is made, changed or when the operator starts; deletes are in `delete`.

use std::time::Duration;

use serde_json::json;

use crate::{
    bed::{Bed, test},
    channel,
};

/// Writes by the operator while `time` passes.
async fn writes_within(bed: &Bed, time: Duration) -> usize {
    let before = bed.requests().iter().filter(|e| e.is_write()).count();
    tokio::time::sleep(time).await;
    bed.requests().iter().filter(|e| e.is_write()).count() - before
}

#[test]
fn at_create() {
    test("down-create", async |bed| {
        bed.nats.stop().await;
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = bed.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        assert_eq!(channel::condition(&object, "Ready").unwrap()["status"], "False");
        let message =
            channel::condition(&object, "StreamReady").unwrap()["message"].as_str().unwrap();
        assert!(
            message.contains(&bed.nats.url()["nats://".len()..]),
            "it says which server: {message}"
        );
        // No hot loop: nothing changes, so nothing is written.
        assert_eq!(writes_within(bed, Duration::from_secs(8)).await, 0);
        bed.nats.restart().await;
        let object = bed.ready("orders").await;
        bed.streams().await.info(&channel::stream(&object)).await;
    });
}

#[test]
fn at_change() {
    test("down-change", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = bed.ready("orders").await;
        let pods = bed.pod_uids("orders").await;
        let epoch = &object["status"]["stream"]["epoch"];
        bed.nats.stop().await;
        bed.change("orders", json!({"stream": {"maxAge": "48h"}, "delivery": {"heartbeat": "2s"}}))
            .await;
        let down = bed.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        assert_eq!(channel::current_condition(&down, "Ready").unwrap()["status"], "False");
        assert_eq!(
            &down["status"]["stream"]["epoch"], epoch,
            "what is known of the stream is not forgotten"
        );
        bed.nats.restart().await;
        let up = bed.ready("orders").await;
        assert_eq!(&up["status"]["stream"]["epoch"], epoch, "the same stream");
        let config = bed.streams().await.info(&channel::stream(&up)).await.config;
        assert_eq!(config.max_age, Duration::from_secs(48 * 3600));
        assert_eq!(bed.pod_uids("orders").await, pods, "pods serve on through an outage");
        assert_eq!(bed.kube_api.node().starts(bed.namespace()), 1);
    });
}

#[test]
fn in_between_without_a_change() {
    test("down-idle", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        let pods = bed.pod_uids("orders").await;
        bed.nats.stop().await;
        bed.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        assert!(
            writes_within(bed, Duration::from_secs(8)).await <= 1,
            "an outage is no reason to write again and again"
        );
        bed.nats.restart().await;
        bed.ready("orders").await;
        assert_eq!(bed.pod_uids("orders").await, pods);
    });
}

#[test]
fn at_the_operators_start() {
    test("down-start", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        bed.stop_operator().await;
        bed.nats.stop().await;
        // It is alive without NATS, and says what is missing.
        bed.start_operator().await;
        bed.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        bed.nats.restart().await;
        bed.ready("orders").await;
    });
}

#[test]
fn a_store_that_comes_back_empty_is_a_new_stream() {
    test("down-empty", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = bed.ready("orders").await;
        bed.nats.stop().await;
        bed.nats.restart_empty().await;
        let epoch = &object["status"]["stream"]["epoch"];
        let object = bed
            .until("orders", "has a new epoch", |o| {
                channel::is_ready(o) && o["status"]["stream"]["epoch"] != *epoch
            })
            .await;
        assert!(bed.events("orders").await.iter().any(|(kind, ..)| kind == "Warning"));
        bed.streams().await.info(&channel::stream(&object)).await;
    });
}
