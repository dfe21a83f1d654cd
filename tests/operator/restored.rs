//! NATS is set back to an older copy while operator, NATS and pods are all down.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use sluice_tests::{kube_api::audit::Entry, nats::Streams};
use tempfile::TempDir;

use crate::{
    channel::{self, CHANNEL},
    fixture::{Fixture, test},
};

const MARK_INTERVAL: Duration = Duration::from_secs(3);

async fn publish(fixture: &Fixture, count: usize) {
    let streams = fixture.streams().await;
    let prefix = format!("sse.{}.orders.", fixture.namespace());
    for n in 0..count {
        streams.publish(&prefix, "a", format!("{n}")).await;
    }
}

async fn marked(fixture: &Fixture, sequence: i64) -> Value {
    let marked = |object: &Value| object["status"]["mark"]["sequence"] == sequence;
    fixture.until("orders", &format!("remembers event {sequence}"), marked).await
}

/// All down; then only what `change` does to NATS's files, and NATS again.
async fn all_down(fixture: &mut Fixture, change: impl FnOnce(&Path)) {
    fixture.stop_operator().await;
    fixture.nats.stop().await;
    let node = fixture.kube_api.node();
    node.each_process(fixture.namespace(), |_, process| process.kill());
    change(fixture.nats.store());
    fixture.nats.restart().await;
}

#[test]
fn a_stream_that_went_back_while_all_were_down_has_a_new_epoch() {
    test("restored", async |fixture| {
        fixture.stop_operator().await;
        let seconds = MARK_INTERVAL.as_secs();
        fixture.operator_arguments = vec![format!("--mark-interval={seconds}s")];
        fixture.start_operator().await;
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let first = fixture.ready("orders").await;
        let epoch = first["status"]["stream"]["epoch"].clone();
        publish(fixture, 20).await;
        marked(fixture, 20).await;

        let copy = TempDir::new().unwrap();
        all_down(fixture, |store| sluice_tests::copy_tree(store, copy.path())).await;
        fixture.start_operator().await;
        publish(fixture, 30).await;
        let object = marked(fixture, 50).await;
        assert_eq!(object["status"]["stream"]["epoch"], epoch, "a restart is no new epoch");

        all_down(fixture, |store| {
            std::fs::remove_dir_all(store).unwrap();
            sluice_tests::copy_tree(copy.path(), store);
        })
        .await;
        // Past all that was there: the numbers alone show nothing.
        publish(fixture, 40).await;
        fixture.start_operator().await;
        let object = fixture
            .until("orders", "has a new epoch", |o| o["status"]["stream"]["epoch"] != epoch)
            .await;
        let told = fixture.events("orders").await;
        assert!(told.iter().any(|(_, reason, _)| reason == "StreamRestored"), "{told:?}");
        let marked_anew = &object["status"]["mark"];
        assert_eq!((&marked_anew["sequence"], &marked_anew["epochs"]), (&json!(60), &json!(1)));
        let second = object["status"]["stream"]["epoch"].clone();
        fixture.ready("orders").await;

        // Once: also for the operator after this one.
        fixture.stop_operator().await;
        fixture.start_operator().await;
        tokio::time::sleep(MARK_INTERVAL * 2).await;
        let object = fixture.ready("orders").await;
        assert_eq!(object["status"]["stream"]["epoch"], second);
    });
}

#[test]
fn a_mark_is_the_one_write_that_events_cause_and_seldom() {
    test("marks", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let streams = fixture.streams().await;
        let prefix = format!("sse.{}.orders.", fixture.namespace());
        let writes_while_publishing = async |fixture: &Fixture, streams: &Streams| {
            let before = fixture.requests().len();
            for n in 0..150 {
                streams.publish(&prefix, "a", format!("{n}")).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let entries = fixture.requests();
            let writes = entries[before..].iter().filter(|e| e.is_write()).map(Entry::brief);
            writes.collect::<Vec<_>>()
        };
        // An interval of ten minutes, which is not over.
        let writes = writes_while_publishing(fixture, &streams).await;
        assert!(writes.is_empty(), "{writes:#?}");
        fixture.stop_operator().await;
        fixture.operator_arguments = vec!["--mark-interval=6s".to_owned()];
        fixture.start_operator().await;
        fixture
            .until("orders", "has a mark", |o| o["status"]["mark"]["sequence"].is_number())
            .await;
        let writes = writes_while_publishing(fixture, &streams).await;
        assert!((1..=3).contains(&writes.len()), "{writes:#?}");
        assert!(writes.iter().all(|write| write.contains("status")), "{writes:#?}");
        let object = fixture.api(CHANNEL).get("orders").await.unwrap();
        let object = serde_json::to_value(object).unwrap();
        assert_eq!(channel::condition(&object, "Ready").unwrap()["status"], "True");
    });
}
