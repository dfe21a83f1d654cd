//! NATS away when a channel is made, changed or when the operator starts; deletes are in `delete`.

use std::time::Duration;

use serde_json::json;
use sluice_tests::kube_api::audit::Entry;

use crate::{
    channel,
    fixture::{Fixture, RESYNC, test},
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
        let object = fixture.condition("orders", "StreamReady", "Unknown", "NatsUnreachable").await;
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
        let down = fixture.condition("orders", "StreamReady", "Unknown", "NatsUnreachable").await;
        let ready = channel::condition(&down, "Ready").unwrap();
        assert_eq!(
            (&ready["status"], &ready["observedGeneration"]),
            (&json!("True"), &json!(1)),
            "pods serve what was asked for before, and nothing says that the change is in force"
        );
        let reconciling = channel::current_condition(&down, "Reconciling").unwrap();
        assert_eq!(reconciling["status"], "True");
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
        let down = fixture.condition("orders", "StreamReady", "Unknown", "NatsUnreachable").await;
        let ready = channel::current_condition(&down, "Ready").unwrap();
        assert_eq!(ready["status"], "True", "the pods go on");
        assert!(ready["message"].as_str().unwrap().contains("cannot be reached"), "{ready}");
        assert_eq!(channel::condition(&down, "Stalled").unwrap()["status"], "False");
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
        fixture.condition("orders", "StreamReady", "Unknown", "NatsUnreachable").await;
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

/// Channels of the test of a short outage; `SLUICE_TEST_CHANNELS` sets another number.
const CHANNELS: usize = 40;

#[test]
fn nats_away_for_a_second_changes_nothing() {
    sluice_tests::run(Duration::from_secs(600), async {
        let mut fixture = Fixture::new("down-second").await;
        fixture.operator_arguments = vec!["--nats-grace=30s".to_owned()];
        fixture.start_operator().await;
        let number = std::env::var("SLUICE_TEST_CHANNELS").ok().and_then(|n| n.parse().ok());
        let names: Vec<_> = (0..number.unwrap_or(CHANNELS)).map(|i| format!("c{i}")).collect();
        for name in &names {
            // No pods: it is the operator that is under test.
            let spec = json!({"workload": {"replicas": 0}, "stream": {"maxBytes": "1Mi"}});
            fixture.create(name, spec).await;
        }
        for name in &names {
            fixture.ready(name).await;
        }
        tokio::time::sleep(RESYNC * 2).await;
        let before = fixture.requests().len();
        for _ in 0..2 {
            fixture.nats.stop().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            fixture.nats.restart().await;
            tokio::time::sleep(RESYNC * 2).await;
        }
        let entries = fixture.requests();
        let writes: Vec<&Entry> = entries[before..].iter().filter(|e| e.is_write()).collect();
        if let Some(first) = writes.first() {
            panic!("{} writes, as {} {:#}", writes.len(), first.brief(), first.request_object);
        }
        // It is there, and not asleep.
        fixture.change(&names[0], json!({"delivery": {"heartbeat": "9s"}})).await;
        fixture.ready(&names[0]).await;
        fixture.finish();
    });
}
