//! Why pods are not there is told in the words of what keeps them away.

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice_tests::eventually;

use crate::{
    channel::{self, DEPLOYMENT},
    fixture::{Fixture, LIMIT, test},
};

/// What `Ready` says, once it says it for this reason.
async fn not_ready(fixture: &Fixture, name: &str, reason: &str) -> (Value, String) {
    let object = fixture.condition(name, "Ready", "False", reason).await;
    let message = channel::condition(&object, "Ready").unwrap()["message"].as_str().unwrap();
    let message = message.to_owned();
    (object, message)
}

#[test]
fn a_quota_without_room_for_pods() {
    test("quota", async |fixture| {
        let quotas: Api<ResourceQuota> =
            Api::namespaced(fixture.client.clone(), fixture.namespace());
        let quota = json!({"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}});
        let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
        quotas.create(&PostParams::default(), &quota).await.unwrap();
        // What its controller would write.
        let status = json!({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}});
        quotas.patch_status("full", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        fixture.create("orders", json!({})).await;
        let (object, message) = not_ready(fixture, "orders", "QuotaExceeded").await;
        assert!(message.contains("exceeded quota: full, requested: pods=1"), "{message}");
        for (kind, status) in
            [("WorkloadAvailable", "False"), ("Stalled", "True"), ("Reconciling", "False")]
        {
            let condition = channel::condition(&object, kind).unwrap();
            assert_eq!(condition["status"], status, "{condition}");
        }
        eventually("an Event says so", LIMIT, async || {
            let events = fixture.events("orders").await;
            events
                .iter()
                .any(|(kind, why, _)| kind == "Warning" && why == "QuotaExceeded")
                .then_some(())
        })
        .await;
    });
}

#[test]
fn a_service_account_that_is_not_there() {
    test("account", async |fixture| {
        let spec = json!({"workload": {"replicas": 1, "serviceAccountName": "ghost"}});
        fixture.create("orders", spec).await;
        let (_, message) = not_ready(fixture, "orders", "PodsRefused").await;
        assert!(message.contains("serviceaccount \"ghost\" not found"), "{message}");
    });
}

#[test]
fn a_priority_class_that_is_not_there() {
    test("priority", async |fixture| {
        let spec = json!({"workload": {"replicas": 1, "priorityClassName": "ghost"}});
        fixture.create("orders", spec).await;
        let (_, message) = not_ready(fixture, "orders", "PodsRefused").await;
        assert!(message.contains("no PriorityClass with name ghost was found"), "{message}");
    });
}

#[test]
fn a_secret_that_the_namespace_does_not_have() {
    sluice_tests::run(crate::fixture::TEST_LIMIT, async {
        let mut fixture = Fixture::new("secret").await;
        fixture.operator_arguments = vec!["--dataplane-ca-secret=ghost".to_owned()];
        fixture.start_operator().await;
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let (_, message) = not_ready(&fixture, "orders", "SecretNotFound").await;
        let namespace = fixture.namespace();
        assert!(
            message.contains("secret \"ghost\" not found")
                && message.contains(&format!("namespace {namespace}")),
            "{message}"
        );
        fixture.finish();
    });
}

#[test]
fn pods_that_are_too_late_stall_the_channel() {
    test("deadline", async |fixture| {
        let spec = json!({"workload": {"replicas": 1, "image": "sluice.test/dataplane:missing"}});
        fixture.create("orders", spec).await;
        fixture.condition("orders", "Ready", "False", "ImagePullFailed").await;
        let deployment = fixture.child(DEPLOYMENT, "orders").await.unwrap().metadata.name.unwrap();
        // Not the operator's field; 10 minutes by default.
        let deadline = json!({"spec": {"progressDeadlineSeconds": 2}});
        fixture.patch(DEPLOYMENT, &deployment, deadline).await;
        fixture.condition("orders", "Stalled", "True", "ImagePullFailed").await;
        fixture.change("orders", json!({"workload": {"image": ""}})).await;
        fixture.ready("orders").await;
        let log = fixture.operator_log();
        for step in ["channel created", "was created", "the stream is in sync"] {
            assert!(log.contains(step), "{step:?} is not in the log:\n{log}");
        }
    });
}

#[test]
fn what_does_not_concern_the_pods_makes_no_new_file_and_takes_no_readiness_back() {
    test("content", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let file = async || {
            let map = fixture.child(channel::CONFIG_MAP, "orders").await.unwrap();
            (map.metadata.resource_version.clone(), map.data["data"]["orders.json"].clone())
        };
        let before = file().await;
        let node = fixture.kube_api.node();
        node.freeze_files(fixture.namespace(), true);
        for spec in [
            json!({"workload": {"replicas": 2}}),
            json!({"workload": {"replicas": 1}}),
            json!({"stream": {"maxAge": "48h"}}),
            json!({"service": {"annotations": {"example.com/team": "shop"}}}),
            json!({"managementPolicy": "Observe"}),
            json!({"managementPolicy": "Paused"}),
            json!({"managementPolicy": "Enforce"}),
        ] {
            let object = fixture.change("orders", spec.clone()).await;
            let paused = spec["managementPolicy"] == "Paused";
            fixture
                .until("orders", "serves the newest generation, and always did", |o| {
                    let ready = channel::condition(o, "Ready").unwrap();
                    assert_eq!(ready["status"], "True", "{spec}: {ready}");
                    let is_current = channel::is_ready(o)
                        && o["metadata"]["generation"].as_i64() >= object.metadata.generation;
                    let settled = channel::condition(o, "Reconciling").unwrap();
                    is_current
                        && settled["status"] == "False"
                        && (!paused || ready["reason"] == "Paused")
                })
                .await;
            assert_eq!(file().await, before, "{spec}");
        }
        node.freeze_files(fixture.namespace(), false);
        let told = fixture.events("orders").await;
        let of = |what: &str| told.iter().filter(|(_, why, _)| why == what).count();
        assert_eq!((of("NotReady"), of("Scaled")), (0, 2), "{told:?}");
    });
}
