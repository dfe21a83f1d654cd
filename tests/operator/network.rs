//! NetworkPolicies as the API server holds them; whether packets follow them is for a cluster with
//! a network to show.

use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use sluice_tests::eventually;

use crate::{
    channel::{self, DEPLOYMENT, NETWORK_POLICY},
    fixture::{LIMIT, test},
};

#[test]
fn a_policy_names_who_may_reach_which_port_of_the_pods() {
    test("policy", async |fixture| {
        let from = json!([{"namespaceLabels": {"kubernetes.io/metadata.name": "web"}, "podLabels": {"app": "nginx"}}, {"cidr": "10.0.0.0/8"}]);
        fixture.create("orders", json!({"workload": {"replicas": 1}, "networkPolicy": {"mode": "Restrict", "from": from}})).await;
        fixture.ready("orders").await;
        let policy = fixture.child(NETWORK_POLICY, "orders").await.unwrap();
        let rules = policy.data["spec"]["ingress"].as_array().unwrap();
        assert_eq!(
            (&rules[0]["ports"][0]["port"], rules[0]["from"].as_array().unwrap().len()),
            (&json!("http"), 2)
        );
        // The operator asks the pods at the admin port, from its own namespace.
        let operator = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": fixture.namespace()}}}]);
        assert_eq!(
            (&rules[1]["ports"][0]["port"], &rules[1]["from"]),
            (&json!("admin"), &operator)
        );
        // It selects these pods, and its ports are theirs.
        let selector = policy.data["spec"]["podSelector"]["matchLabels"].as_object().unwrap();
        let pod = &fixture.pods("orders").await[0];
        let labels = pod.metadata.labels.clone().unwrap();
        assert!(
            !selector.is_empty()
                && selector
                    .iter()
                    .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
        );
        let ports = pod.data["spec"]["containers"][0]["ports"].to_string();
        assert!(ports.contains("\"http\"") && ports.contains("\"admin\""), "{ports}");

        fixture.change("orders", json!({"networkPolicy": {"from": null}})).await;
        eventually("any pod may subscribe", LIMIT, async || {
            let policy = fixture.child(NETWORK_POLICY, "orders").await?;
            policy.data["spec"]["ingress"][0].get("from").is_none().then_some(())
        })
        .await;
        fixture.change("orders", json!({"networkPolicy": {"mode": "Disabled"}})).await;
        eventually("the policy has gone", LIMIT, async || {
            fixture.child(NETWORK_POLICY, "orders").await.is_none().then_some(())
        })
        .await;
        fixture.ready("orders").await;
    });
}

#[test]
fn no_pod_runs_unprotected_where_protection_was_asked_for() {
    test("unprotected", async |fixture| {
        let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "orders-sse"}, "spec": {"podSelector": {}}});
        fixture
            .api(NETWORK_POLICY)
            .create(&PostParams::default(), &serde_json::from_value(foreign).unwrap())
            .await
            .unwrap();
        fixture
            .create(
                "orders",
                json!({"workload": {"replicas": 1}, "networkPolicy": {"mode": "Restrict"}}),
            )
            .await;
        fixture.condition("orders", "WorkloadAvailable", "False", "NameTaken").await;
        assert!(fixture.child(DEPLOYMENT, "orders").await.is_none());
        fixture.api(NETWORK_POLICY).delete("orders-sse", &DeleteParams::default()).await.unwrap();
        fixture.ready("orders").await;
        assert!(fixture.child(NETWORK_POLICY, "orders").await.is_some());
    });
}

#[test]
fn a_range_that_is_none_is_told_before_anything_is_made() {
    test("range", async |fixture| {
        fixture
            // The rule of the definition knows the form only.
            .create(
                "orders",
                json!({"networkPolicy": {"mode": "Restrict", "from": [{"cidr": "1::2::3/99"}]}}),
            )
            .await;
        let object = fixture.condition("orders", "Ready", "False", "InvalidSpec").await;
        let message = channel::condition(&object, "Ready").unwrap()["message"].as_str().unwrap();
        assert!(message.contains("spec.networkPolicy.from[0].cidr"), "{message}");
        fixture.change("orders", json!({"workload": {"replicas": 1}, "networkPolicy": {"from": [{"cidr": "10.0.0.0/9"}]}})).await;
        fixture.ready("orders").await;
    });
}
