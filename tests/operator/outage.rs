//! NATS away when a channel is made, changed or when the operator starts; deletes are in `delete`.

use std::time::Duration;

use serde_json::json;

use crate::{
    channel,
    fixture::{Fixture, test},
};

/// Writes by the operator while `time` passes.
async fn writes_within(fixture: &Fixture, time: Duration) -> usize {
    let before = fixture.requests().iter().filter(|e| e.is_write()).count();
    tokio::time::sleep(time).await;
    fixture.requests().iter().filter(|e| e.is_write()).count() - before
}

#[test]
fn at_create() {
    test("down-create", async |fixture| {
        fixture.nats.stop().await;
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        assert_eq!(channel::condition(&object, "Ready").unwrap()["status"], "False");
        let message =
            channel::condition(&object, "StreamReady").unwrap()["message"].as_str().unwrap();
        assert!(
            message.contains(&fixture.nats.url()["nats://".len()..]),
            "it says which server: {message}"
        );
        // No hot loop: nothing changes, so nothing is written.
        assert_eq!(writes_within(fixture, Duration::from_secs(8)).await, 0);
        fixture.nats.restart().await;
        let object = fixture.ready("orders").await;
        fixture.streams().await.info(&channel::stream(&object)).await;
    });
}

#[test]
fn at_change() {
    test("down-change", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        let pods = fixture.pod_uids("orders").await;
        let epoch = &object["status"]["stream"]["epoch"];
        fixture.nats.stop().await;
        fixture
            .change("orders", json!({"stream": {"maxAge": "48h"}, "delivery": {"heartbeat": "2s"}}))
            .await;
        let down = fixture.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        assert_eq!(channel::current_condition(&down, "Ready").unwrap()["status"], "False");
        assert_eq!(
            &down["status"]["stream"]["epoch"], epoch,
            "what is known of the stream is not forgotten"
        );
        fixture.nats.restart().await;
        let up = fixture.ready("orders").await;
        assert_eq!(&up["status"]["stream"]["epoch"], epoch, "the same stream");
        let config = fixture.streams().await.info(&channel::stream(&up)).await.config;
        assert_eq!(config.max_age, Duration::from_secs(48 * 3600));
        assert_eq!(fixture.pod_uids("orders").await, pods, "pods serve on through an outage");
        assert_eq!(fixture.kube_api.node().starts(fixture.namespace()), 1);
    });
}

#[test]
fn in_between_without_a_change() {
    test("down-idle", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let pods = fixture.pod_uids("orders").await;
        fixture.nats.stop().await;
        fixture.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        assert!(
            writes_within(fixture, Duration::from_secs(8)).await <= 1,
            "an outage is no reason to write again and again"
        );
        fixture.nats.restart().await;
        fixture.ready("orders").await;
        assert_eq!(fixture.pod_uids("orders").await, pods);
    });
}

#[test]
fn at_the_operators_start() {
    test("down-start", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        fixture.stop_operator().await;
        fixture.nats.stop().await;
        // It is alive without NATS, and says what is missing.
        fixture.start_operator().await;
        fixture.condition("orders", "StreamReady", "False", "NatsUnreachable").await;
        fixture.nats.restart().await;
        fixture.ready("orders").await;
    });
}

#[test]
fn a_store_that_comes_back_empty_is_a_new_stream() {
    test("down-empty", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.nats.stop().await;
        fixture.nats.restart_empty().await;
        let epoch = &object["status"]["stream"]["epoch"];
        let object = fixture
            .until("orders", "has a new epoch", |o| {
                channel::is_ready(o) && o["status"]["stream"]["epoch"] != *epoch
            })
            .await;
        assert!(fixture.events("orders").await.iter().any(|(kind, ..)| kind == "Warning"));
        fixture.streams().await.info(&channel::stream(&object)).await;
    });
}
