//! The sum of what a namespace's channels reserve.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::{annotate, refused, test};
use crate::{
    channel::{self, CHANNEL},
    fixture::{Fixture, RESYNC},
};

fn of_size(max_bytes: &str) -> Value {
    json!({"workload": {"replicas": 1}, "stream": {"maxBytes": max_bytes, "deletionPolicy": "Delete"}})
}

async fn size(fixture: &Fixture, object: &Value) -> i64 {
    fixture.streams().await.info(&channel::stream(object)).await.config.max_bytes
}

const QUOTA: &str = "--tenancy-quota=10Mi";

#[test]
fn a_namespace_reserves_no_more_than_its_quota() {
    test("quota", &[QUOTA], async |fixture| {
        fixture.create("first", of_size("6Mi")).await;
        fixture.ready("first").await;
        fixture.create("second", of_size("6Mi")).await;
        let second = fixture.condition("second", "Accepted", "False", "QuotaExceeded").await;
        let said = refused(&second);
        assert!(
            said.contains("is 6Mi, and the namespace's streams reserve 6Mi of 10Mi already")
                && said.contains("tenancy.sluice.dev/quota"),
            "{said}"
        );
        fixture.condition("second", "Ready", "False", "QuotaExceeded").await;
        assert_eq!(super::streams(fixture).await.len(), 1);
        fixture.create("third", of_size("4Mi")).await;
        fixture.ready("third").await;
        // Room that is given up is taken by the next in turn.
        fixture.api(CHANNEL).delete("first", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("first").await;
        fixture.ready("second").await;
        fixture.condition("second", "Accepted", "True", "Accepted").await;
    });
}

#[test]
fn a_raise_that_does_not_fit_keeps_the_former_size() {
    test("quota-raise", &[QUOTA], async |fixture| {
        fixture.create("first", of_size("6Mi")).await;
        fixture.create("second", of_size("3Mi")).await;
        let second = fixture.ready("second").await;
        let first = fixture.ready("first").await;
        fixture.change("second", json!({"stream": {"maxBytes": "5Mi", "maxAge": "48h"}})).await;
        let raised = fixture.condition("second", "Accepted", "False", "QuotaExceeded").await;
        assert!(refused(&raised).contains("keeps its size"), "{}", refused(&raised));
        fixture.ready("second").await;
        // Not what else was changed.
        let config = fixture.streams().await.info(&channel::stream(&second)).await.config;
        assert_eq!((config.max_bytes, config.max_age.as_secs()), (3 << 20, 48 * 3600));
        // A copy counts as much as its first.
        fixture.change("first", json!({"stream": {"replicas": 3}})).await;
        fixture.condition("first", "Accepted", "False", "QuotaExceeded").await;
        fixture.change("first", json!({"stream": {"replicas": 1, "maxBytes": "5Mi"}})).await;
        fixture.condition("first", "Accepted", "True", "Accepted").await;
        fixture.condition("second", "Accepted", "True", "Accepted").await;
        fixture.ready("second").await;
        assert_eq!(size(fixture, &second).await, 5 << 20);
        assert_eq!(size(fixture, &first).await, 5 << 20);
    });
}

#[test]
fn streams_that_channels_leave_behind_count() {
    test("quota-retained", &[QUOTA], async |fixture| {
        let mut retained = of_size("6Mi");
        retained["stream"]["deletionPolicy"] = json!("Retain");
        fixture.create("first", retained).await;
        fixture.ready("first").await;
        fixture.api(CHANNEL).delete("first", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("first").await;
        fixture.create("second", of_size("6Mi")).await;
        fixture.condition("second", "Accepted", "False", "QuotaExceeded").await;
        // The same channel finds its stream, whose room is its own.
        fixture.create("first", of_size("6Mi")).await;
        fixture.ready("first").await;
    });
}

#[test]
fn what_exists_stays_when_the_quota_falls() {
    test("quota-falls", &["--tenancy-quota=20Mi"], async |fixture| {
        fixture.create("first", of_size("6Mi")).await;
        fixture.create("second", of_size("6Mi")).await;
        fixture.ready("first").await;
        let second = fixture.ready("second").await;
        fixture.stop_operator().await;
        fixture.operator_arguments.retain(|argument| !argument.starts_with("--tenancy-quota"));
        fixture.operator_arguments.push("--tenancy-quota=7Mi".to_owned());
        fixture.start_operator().await;
        tokio::time::sleep(RESYNC).await;
        for name in ["first", "second"] {
            let object = fixture.ready(name).await;
            assert_eq!(channel::condition(&object, "Accepted").unwrap()["status"], "True");
        }
        fixture.create("third", of_size("1Mi")).await;
        fixture.condition("third", "Accepted", "False", "QuotaExceeded").await;
        // A grant of the Namespace goes before the release's quota.
        annotate(fixture, json!({"quota": "13Mi"})).await;
        fixture.stop_operator().await;
        fixture.start_operator().await;
        fixture.ready("third").await;
        assert_eq!(size(fixture, &second).await, 6 << 20);
    });
}

#[test]
fn the_last_room_is_given_once() {
    test("quota-race", &[QUOTA], async |fixture| {
        let names = ["a", "b", "c", "d", "e"];
        for name in names {
            fixture.create(name, of_size("6Mi")).await;
        }
        // Those of one second go by their names.
        let mut ready = 0;
        for name in names {
            let object = fixture
                .until(name, "is judged", |o| {
                    channel::is_ready(o)
                        || channel::condition(o, "Accepted").is_some_and(|c| c["status"] == "False")
                })
                .await;
            ready += i32::from(channel::is_ready(&object));
        }
        assert_eq!(ready, 1);
        assert_eq!(super::streams(fixture).await.len(), 1);
    });
}
