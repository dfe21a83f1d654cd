//! `managementPolicy`: look but do not touch, and hands off.

use std::time::Duration;

use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use sluice_tests::eventually;

use crate::{
    channel::{self, SERVICE},
    fixture::{Fixture, LIMIT, RESYNC, test},
};

/// The stream is altered and a child deleted, from outside.
async fn harm(fixture: &Fixture, object: &Value) {
    let streams = fixture.streams().await;
    let mut config = streams.info(&channel::stream(object)).await.config;
    config.max_age = Duration::from_secs(3600);
    streams.context().update_stream(config).await.unwrap();
    let service = fixture.child(SERVICE, "orders").await.unwrap().name_any();
    fixture.api(SERVICE).delete(&service, &DeleteParams::default()).await.unwrap();
}

/// Neither the stream nor the child has been put back.
async fn assert_untouched(fixture: &Fixture, object: &Value) {
    let config = fixture.streams().await.info(&channel::stream(object)).await.config;
    assert_eq!(config.max_age, Duration::from_secs(3600));
    assert!(fixture.child(SERVICE, "orders").await.is_none());
}

/// Everything is put back once the operator may.
async fn heals(fixture: &Fixture, object: &Value) {
    fixture.change("orders", json!({"managementPolicy": "Enforce"})).await;
    eventually("the Service is made again", LIMIT, async || fixture.child(SERVICE, "orders").await)
        .await;
    fixture.ready("orders").await;
    let config = fixture.streams().await.info(&channel::stream(object)).await.config;
    assert_eq!(config.max_age, Duration::from_secs(86_400));
}

/// Writes of the operator but for statuses and Events.
fn repairs(fixture: &Fixture) -> Vec<String> {
    let others = |e: &&sluice_tests::kube_api::audit::Entry| {
        e.is_write() && e.object_ref.subresource != "status" && e.object_ref.resource != "events"
    };
    fixture
        .requests()
        .iter()
        .filter(others)
        .map(sluice_tests::kube_api::audit::Entry::brief)
        .collect()
}

#[test]
fn observe_reports_differences_and_changes_nothing() {
    test("observe", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.change("orders", json!({"managementPolicy": "Observe"})).await;
        fixture.until("orders", "is observed", |o| o["status"]["observedGeneration"] == 2).await;
        let before = repairs(fixture);
        harm(fixture, &object).await;
        let drifted = fixture.condition("orders", "Drifted", "True", "ServerDiffers").await;
        let drift = &drifted["status"]["drift"];
        let row = drift.as_array().and_then(|rows| {
            rows.iter().find(|row| row["field"].as_str().is_some_and(|f| f.contains("maxAge")))
        });
        assert_eq!(
            (row.unwrap()["desired"].as_str(), row.unwrap()["observed"].as_str()),
            (Some("24h"), Some("1h")),
            "{drift}"
        );
        tokio::time::sleep(RESYNC * 2).await;
        assert_untouched(fixture, &object).await;
        assert_eq!(repairs(fixture), before);
        heals(fixture, &object).await;
    });
}

#[test]
fn observe_makes_nothing() {
    test("observe-new", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"managementPolicy": "Observe", "stream": {"deletionPolicy": "Delete"}}),
            )
            .await;
        let object = fixture
            .until("orders", "is observed", |o| o["status"]["observedGeneration"] == 1)
            .await;
        assert_ne!(channel::condition(&object, "Ready").unwrap()["status"], "True");
        tokio::time::sleep(RESYNC * 2).await;
        for kind in channel::CHILDREN {
            assert!(fixture.child(kind, "orders").await.is_none(), "{}", kind.2);
        }
        assert_eq!(repairs(fixture), Vec::<String>::new());
        fixture.api(channel::CHANNEL).delete("orders", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("orders").await;
    });
}

#[test]
fn paused_is_hands_off() {
    test("paused", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.change("orders", json!({"managementPolicy": "Paused"})).await;
        fixture
            .until("orders", "is paused", |o| {
                ["Stalled", "Reconciling", "Ready"].iter().any(|k| {
                    channel::current_condition(o, k).is_some_and(|c| c["reason"] == "Paused")
                })
            })
            .await;
        let before = repairs(fixture);
        harm(fixture, &object).await;
        tokio::time::sleep(RESYNC * 2).await;
        assert_untouched(fixture, &object).await;
        assert_eq!(repairs(fixture), before);
        heals(fixture, &object).await;
    });
}
