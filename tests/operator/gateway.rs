//! HTTPRoute and PodMonitor, whose definitions come from other projects: without them at first, on
//! an API server of its own. Their controllers' part, the status of a route, is written by the
//! test.

use std::time::Duration;

use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice_tests::{eventually, kube_api::KubeApi};

use crate::{
    channel::{self, HTTP_ROUTE, INGRESS, POD_MONITOR},
    fixture::{Fixture, LIMIT, RESYNC, TEST_LIMIT, install_definitions, install_resource},
};

fn external(object: &Value) -> Vec<&str> {
    let endpoints = object["status"]["endpoints"].as_array().into_iter().flatten();
    endpoints.filter(|e| e["type"] == "External").filter_map(|e| e["url"].as_str()).collect()
}

/// Says, as a gateway controller does, whether Gateway `web` takes the route in its present
/// generation.
async fn answer(fixture: &Fixture, status: &str, reason: &str) {
    let route = fixture.api(HTTP_ROUTE).get("orders-sse").await.unwrap();
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "as the gateway says", "observedGeneration": route.metadata.generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let parent = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "infra", "name": "web", "sectionName": "https"});
    let patch = json!({"status": {"parents": [{"parentRef": parent, "controllerName": "example.com/gateways",
        "conditions": [condition("Accepted", status, reason), condition("ResolvedRefs", "True", "ResolvedRefs")]}]}});
    fixture
        .api(HTTP_ROUTE)
        .patch_status("orders-sse", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

#[test]
fn routes_and_monitors_are_made_once_the_cluster_knows_them() {
    sluice_tests::run(TEST_LIMIT, async {
        let kube_api = KubeApi::another();
        let namespace = kube_api.namespace("gateway").await;
        let mut fixture = Fixture::bare(kube_api, vec![namespace]).await;
        install_resource(kube_api).await;
        fixture.start_operator().await;
        fixture.create(
            "orders",
            json!({"workload": {"replicas": 1}, "monitoring": {"podMonitor": "Enabled"}, "exposure": {"httpRoute": {"path": "/live",
                "hostnames": ["events.example.com", "*.example.org"], "parentRefs": [{"name": "web", "namespace": "infra", "sectionName": "https"}]}}}),
        )
        .await;
        without_definitions(&fixture).await;
        install_definitions(kube_api, &["httproutes", "podmonitors"]);
        with_definitions(&fixture).await;
        switched_over(&fixture).await;
        fixture.finish();
        kube_api.end();
    });
}

async fn without_definitions(fixture: &Fixture) {
    fixture.condition("orders", "Exposed", "False", "GatewayApiMissing").await;
    let object = fixture.ready("orders").await;
    let message = channel::condition(&object, "Ready").unwrap()["message"].as_str().unwrap();
    assert!(message.contains("no PodMonitor"), "Ready, and says what is missing: {message}");
    let events = fixture.events("orders").await;
    for reason in ["GatewayApiMissing", "NotMonitored"] {
        assert!(
            events.iter().any(|(kind, r, _)| kind == "Warning" && r == reason),
            "{reason}: {events:?}"
        );
    }
    // It waits without a hurry and without a write.
    tokio::time::sleep(RESYNC).await;
    let before = fixture.requests().len();
    tokio::time::sleep(RESYNC * 2).await;
    let requests = fixture.requests().split_off(before);
    let writes: Vec<_> = requests
        .iter()
        .filter(|e| e.is_write())
        .map(sluice_tests::kube_api::audit::Entry::brief)
        .collect();
    assert!(writes.is_empty(), "{writes:#?}");
    assert!(requests.len() <= 3 * 12, "{} requests in two looks", requests.len());
}

async fn with_definitions(fixture: &Fixture) {
    fixture.condition("orders", "Exposed", "False", "NotAccepted").await;
    let monitor = eventually("a PodMonitor is made", LIMIT, async || {
        fixture.child(POD_MONITOR, "orders").await
    })
    .await;
    assert_eq!(monitor.data["spec"]["podMetricsEndpoints"][0]["port"], "admin");
    fixture
        .until("orders", "says nothing of monitors", |o| {
            channel::current_condition(o, "Ready").is_some_and(|c| {
                c["status"] == "True" && !c["message"].to_string().contains("PodMonitor")
            })
        })
        .await;
    let route = fixture.child(HTTP_ROUTE, "orders").await.unwrap();
    let rule = &route.data["spec"]["rules"][0];
    assert_eq!(
        (&rule["matches"][0]["path"]["value"], &rule["timeouts"]["request"]),
        (&json!("/live"), &json!("0s"))
    );
    assert_eq!(rule["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"], "/channels/orders");

    answer(fixture, "False", "NotAllowedByListeners").await;
    let object = fixture
        .until("orders", "says what the gateway says", |o| {
            channel::condition(o, "Exposed").unwrap()["message"]
                .to_string()
                .contains("NotAllowedByListeners")
        })
        .await;
    assert!(external(&object).is_empty());
    answer(fixture, "True", "Accepted").await;
    let object = fixture.condition("orders", "Exposed", "True", "Accepted").await;
    assert_eq!(external(&object), ["https://events.example.com/live"], "a wildcard is no address");

    // A change that the gateway has not seen is not exposed yet. The default of the API server is
    // no difference.
    fixture.change("orders", json!({"exposure": {"httpRoute": {"path": null}}})).await;
    fixture.condition("orders", "Exposed", "False", "NotAccepted").await;
    answer(fixture, "True", "Accepted").await;
    let object = fixture.condition("orders", "Exposed", "True", "Accepted").await;
    assert_eq!(external(&object), ["https://events.example.com/channels/orders"]);
    let route = fixture.child(HTTP_ROUTE, "orders").await.unwrap();
    assert!(route.data["spec"]["rules"][0].get("filters").is_none());
    tokio::time::sleep(RESYNC * 2).await;
    assert_eq!(
        fixture.child(HTTP_ROUTE, "orders").await.unwrap().resource_version(),
        route.resource_version(),
        "written once"
    );
}

async fn switched_over(fixture: &Fixture) {
    // Nothing watches it, and it is mended all the same.
    let path = json!([{"op": "replace", "path": "/spec/rules/0/matches/0/path/value", "value": "/elsewhere"}]);
    let patch: kube::api::Patch<()> = kube::api::Patch::Json(serde_json::from_value(path).unwrap());
    fixture.api(HTTP_ROUTE).patch("orders-sse", &PatchParams::default(), &patch).await.unwrap();
    eventually("the route is put back", LIMIT, async || {
        let route = fixture.child(HTTP_ROUTE, "orders").await?;
        (route.data["spec"]["rules"][0]["matches"][0]["path"]["value"] == "/channels/orders")
            .then_some(())
    })
    .await;

    fixture.change(
        "orders",
        json!({"exposure": {"httpRoute": null, "ingress": {"host": "events.example.com"}}, "monitoring": {"podMonitor": "Disabled"}}),
    )
    .await;
    fixture.condition("orders", "Exposed", "False", "NoAddress").await;
    assert!(fixture.child(HTTP_ROUTE, "orders").await.is_none(), "one way at a time");
    eventually("the PodMonitor has gone", LIMIT, async || {
        fixture.child(POD_MONITOR, "orders").await.is_none().then_some(())
    })
    .await;

    // A route of the same name that is not the channel's.
    let foreign = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "orders-sse"},
        "spec": {"hostnames": ["mine.example.com"]}});
    let before = fixture
        .api(HTTP_ROUTE)
        .create(&PostParams::default(), &serde_json::from_value(foreign).unwrap())
        .await
        .unwrap();
    fixture
        .change(
            "orders",
            json!({"exposure": {"httpRoute": {"parentRefs": [{"name": "web"}]}, "ingress": null}}),
        )
        .await;
    fixture.condition("orders", "Exposed", "False", "NameTaken").await;
    assert!(fixture.child(INGRESS, "orders").await.is_none());
    fixture.change("orders", json!({"exposure": {"httpRoute": null}})).await;
    fixture.condition("orders", "Exposed", "True", "NotRequested").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        fixture.api(HTTP_ROUTE).get("orders-sse").await.unwrap().resource_version(),
        before.resource_version()
    );
}
