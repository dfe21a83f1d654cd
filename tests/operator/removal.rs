//! Made first, removed last: what pods may still need stays until they have gone, and what is about
//! to go is waited for.

use std::{collections::BTreeSet, time::Instant};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use sluice_tests::{eventually, kube_api::audit::Entry};

use crate::{
    channel::{self, BUDGET, CONFIG_MAP, INGRESS, Kind, NETWORK_POLICY, POD, SERVICE_ACCOUNT},
    fixture::{Fixture, LIMIT, RESYNC, test},
};

/// What a channel may do without.
const OPTIONAL: [Kind; 4] = [SERVICE_ACCOUNT, BUDGET, NETWORK_POLICY, INGRESS];
/// A finalizer of no controller.
const HELD: &str = "example.com/held";

/// A spec that has every object of [`OPTIONAL`].
fn surrounded() -> Value {
    json!({"workload": {"replicas": 1, "terminationGracePeriodSeconds": 10},
        "exposure": {"ingress": {"host": "events.example.com"}}, "networkPolicy": {"mode": "Restrict"}})
}

/// A change that takes all of them away.
fn bare() -> Value {
    json!({"workload": {"serviceAccountName": "own", "disruptionBudget": "Disabled"},
        "exposure": {"ingress": null}, "networkPolicy": null})
}

async fn own_account(fixture: &Fixture) {
    let api: Api<ServiceAccount> = Api::namespaced(fixture.client.clone(), fixture.namespace());
    let metadata = ObjectMeta { name: Some("own".to_owned()), ..ObjectMeta::default() };
    let own = ServiceAccount { metadata, ..ServiceAccount::default() };
    api.create(&PostParams::default(), &own).await.unwrap();
}

async fn uids(fixture: &Fixture) -> Vec<Option<String>> {
    let mut uids = Vec::new();
    for kind in OPTIONAL {
        uids.push(fixture.child(kind, "orders").await.and_then(|object| object.uid()));
    }
    uids
}

/// Writes of the operator to objects of that name, which is the resource's in requests.
fn writes(fixture: &Fixture, resource: &str) -> Vec<String> {
    let entries = fixture.requests();
    let to = |e: &&Entry| e.is_write() && e.object_ref.resource == resource;
    entries.iter().filter(to).map(Entry::brief).collect()
}

fn message<'a>(object: &'a Value, kind: &str) -> &'a str {
    channel::current_condition(object, kind).and_then(|c| c["message"].as_str()).unwrap_or_default()
}

async fn release(fixture: &Fixture, kind: Kind) {
    fixture.patch(kind, "orders-sse", json!({"metadata": {"finalizers": null}})).await;
}

async fn hold(fixture: &Fixture, kind: Kind) {
    fixture.patch(kind, "orders-sse", json!({"metadata": {"finalizers": [HELD]}})).await;
}

#[test]
fn a_refused_deployment_takes_nothing_from_the_pods_that_serve() {
    test("refused", async |fixture| {
        own_account(fixture).await;
        fixture.create("orders", surrounded()).await;
        fixture.ready("orders").await;
        let before = uids(fixture).await;
        assert!(before.iter().all(Option::is_some), "{before:?}");

        let mut change = bare();
        change["workload"]["nodeSelector"] = json!({"bad key!": "x"});
        fixture.change("orders", change).await;
        fixture.condition("orders", "WorkloadAvailable", "False", "ApiRejected").await;
        tokio::time::sleep(RESYNC * 2).await;
        assert_eq!(uids(fixture).await, before, "nothing that the pods need has gone");
        // A pod that dies now is replaced by one that can start.
        let pods = fixture.pod_uids("orders").await;
        for pod in fixture.pods("orders").await {
            let now = DeleteParams::default().grace_period(0);
            fixture.api(POD).delete(&pod.name_any(), &now).await.unwrap();
        }
        eventually("another pod is ready", LIMIT, async || {
            let now = fixture.pods("orders").await;
            let ready = |pod: &kube::api::DynamicObject| {
                let conditions = pod.data["status"]["conditions"].as_array().cloned();
                conditions
                    .into_iter()
                    .flatten()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            let is_new = |pod: &kube::api::DynamicObject| !pods.contains(&pod.uid().unwrap());
            now.iter().any(|pod| is_new(pod) && ready(pod)).then_some(())
        })
        .await;

        fixture.change("orders", json!({"workload": {"nodeSelector": null}})).await;
        fixture.ready("orders").await;
        eventually("what is not asked for has gone", LIMIT, async || {
            uids(fixture).await.iter().all(Option::is_none).then_some(())
        })
        .await;
        fixture.condition("orders", "Drifted", "False", "InSync").await;
    });
}

#[test]
fn what_pods_may_need_stays_until_the_last_of_them_has_gone() {
    test("last", async |fixture| {
        own_account(fixture).await;
        fixture.create("orders", surrounded()).await;
        fixture.ready("orders").await;
        let old = fixture.pod_uids("orders").await;
        fixture.change("orders", bare()).await;
        let until = Instant::now() + LIMIT;
        loop {
            let left = uids(fixture).await;
            // Read after the objects, with those that are ending.
            let pods = fixture.api(POD).list(&ListParams::default()).await.unwrap().items;
            let now: BTreeSet<_> = pods.iter().filter_map(ResourceExt::uid).collect();
            if !old.is_disjoint(&now) {
                assert!(
                    left.iter().all(Option::is_some),
                    "an old pod runs, and of {OPTIONAL:?}: {left:?}"
                );
            } else if left.iter().all(Option::is_none) {
                break;
            }
            assert!(Instant::now() < until, "{left:?} are still there");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        fixture.ready("orders").await;
        fixture.condition("orders", "Drifted", "False", "InSync").await;
    });
}

#[test]
fn objects_of_a_former_channel_are_waited_for() {
    test("former", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let former = fixture.ready("orders").await;
        hold(fixture, SERVICE_ACCOUNT).await;
        hold(fixture, CONFIG_MAP).await;
        let again = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"name": "orders"},
            "spec": {"workload": {"replicas": 1}}});
        let (ok, said) =
            fixture.kubectl_with(&["replace", "--force", "-f", "-"], &again.to_string());
        assert!(ok, "{said}");
        for held in [SERVICE_ACCOUNT, CONFIG_MAP] {
            let object = fixture
                .until("orders", "waits for what is being removed", |o| {
                    message(o, "WorkloadAvailable").contains(held.2)
                })
                .await;
            assert_ne!(object["metadata"]["uid"], former["metadata"]["uid"]);
            let said = message(&object, "Reconciling");
            assert!(said.contains("the former channel's objects are being removed"), "{said}");
            for (kind, status) in
                [("Reconciling", "True"), ("Stalled", "False"), ("Ready", "False")]
            {
                let is = &channel::current_condition(&object, kind).unwrap()["status"];
                assert_eq!(is, status, "{kind}: {:#}", object["status"]);
            }
            release(fixture, held).await;
        }
        fixture.ready("orders").await;
    });
}

#[test]
fn an_object_that_is_about_to_go_takes_no_name() {
    test("leaving", async |fixture| {
        let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "orders-sse", "finalizers": [HELD]}, "data": {"theirs": "yes"}});
        let api = fixture.api(CONFIG_MAP);
        api.create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
        api.delete("orders-sse", &DeleteParams::default()).await.unwrap();
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.condition("orders", "WorkloadAvailable", "False", "Progressing").await;
        let said = message(&object, "WorkloadAvailable");
        assert!(said.contains("being deleted, held by finalizers example.com/held"), "{said}");
        assert_eq!(channel::current_condition(&object, "Stalled").unwrap()["status"], "False");
        assert_eq!(api.get("orders-sse").await.unwrap().data["data"], json!({"theirs": "yes"}));
        release(fixture, CONFIG_MAP).await;
        fixture.ready("orders").await;
    });
}

#[test]
fn what_is_about_to_go_is_told_and_not_written_again() {
    test("going", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let first = fixture.child(BUDGET, "orders").await.unwrap();
        hold(fixture, BUDGET).await;
        let told = "is being deleted, held by finalizers example.com/held";
        // No longer wanted, and then wanted again.
        for switch in ["Disabled", "Enabled"] {
            fixture.change("orders", json!({"workload": {"disruptionBudget": switch}})).await;
            let object = fixture
                .until("orders", "tells what is going", |o| {
                    ["Drifted", "Reconciling"].iter().all(|kind| {
                        message(o, kind).contains(told)
                            && channel::condition(o, kind).unwrap()["status"] == "True"
                    })
                })
                .await;
            assert_eq!(object["status"]["drift"][0]["field"], "PodDisruptionBudget/orders-sse");
            fixture.ready("orders").await;
            tokio::time::sleep(RESYNC).await;
            let (all, before) = (fixture.requests().len(), writes(fixture, "poddisruptionbudgets"));
            tokio::time::sleep(RESYNC * 2).await;
            let later = fixture.requests();
            let new: Vec<_> =
                later[all..].iter().filter(|e| e.is_write()).map(Entry::brief).collect();
            assert!(new.is_empty(), "at rest nothing is written: {new:#?}");
            assert_eq!(
                before.iter().filter(|write| write.contains("delete")).count(),
                1,
                "one deletion is enough: {before:#?}"
            );
        }
        release(fixture, BUDGET).await;
        eventually("another is made", LIMIT, async || {
            let now = fixture.child(BUDGET, "orders").await?;
            (now.uid() != first.uid()).then_some(())
        })
        .await;
        fixture.condition("orders", "Drifted", "False", "InSync").await;
        fixture.condition("orders", "Reconciling", "False", "Idle").await;
    });
}
