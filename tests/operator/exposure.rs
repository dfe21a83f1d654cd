//! The way in by an Ingress. There is no ingress controller here: its part, an address in the
//! status, is written by the test.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sluice_tests::eventually;

use crate::{
    channel::{self, INGRESS, SERVICE},
    fixture::{Fixture, LIMIT, RESYNC, test},
};

/// Says, as an ingress controller does, where the Ingress is reached.
async fn give_address(fixture: &Fixture, name: &str, points: Value) {
    let patch = json!({"status": {"loadBalancer": {"ingress": points}}});
    fixture
        .api(INGRESS)
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

fn external(object: &Value) -> Vec<&str> {
    let endpoints = object["status"]["endpoints"].as_array().into_iter().flatten();
    endpoints.filter(|e| e["type"] == "External").filter_map(|e| e["url"].as_str()).collect()
}

#[test]
fn an_ingress_is_made_followed_and_taken_away() {
    test("ingress", async |fixture| {
        fixture.create(
            "orders",
            json!({"workload": {"replicas": 1}, "exposure": {"ingress": {"className": "nginx", "host": "events.example.com",
                "tlsSecretName": "events-tls", "annotations": {"example.com/rate": "10"}}}}),
        )
        .await;
        let object = fixture.condition("orders", "Exposed", "False", "NoAddress").await;
        assert!(
            channel::condition(&object, "Exposed").unwrap()["message"]
                .as_str()
                .unwrap()
                .contains("class nginx")
        );
        let object = fixture.ready("orders").await;
        assert!(external(&object).is_empty(), "no address is told that does not work yet");
        let ingress = fixture.child(INGRESS, "orders").await.unwrap();
        let rule = &ingress.data["spec"]["rules"][0];
        assert_eq!(
            (&rule["host"], &rule["http"]["paths"][0]["path"]),
            (&json!("events.example.com"), &json!("/channels/orders"))
        );
        // The backend is a port that the Service has.
        let backend = &rule["http"]["paths"][0]["backend"]["service"];
        let service = fixture.child(SERVICE, "orders").await.unwrap();
        assert_eq!(backend["name"], json!(service.metadata.name));
        assert_eq!(backend["port"]["name"], service.data["spec"]["ports"][0]["name"]);

        give_address(fixture, "orders-sse", json!([{"ip": "192.0.2.1"}])).await;
        let object = fixture.condition("orders", "Exposed", "True", "Accepted").await;
        assert_eq!(external(&object), ["https://events.example.com/channels/orders"]);
        // What is changed is changed in place; what is no longer asked for goes from the object.
        fixture.change(
            "orders",
            json!({"exposure": {"ingress": {"host": "live.example.com", "path": "/", "tlsSecretName": null, "annotations": null}}}),
        )
        .await;
        let object = fixture
            .until("orders", "is at the other host", |o| {
                external(o) == ["http://live.example.com/channels/orders"]
            })
            .await;
        assert_eq!(channel::current_condition(&object, "Exposed").unwrap()["status"], "True");
        let now = fixture.child(INGRESS, "orders").await.unwrap();
        assert_eq!(
            (now.metadata.uid.as_ref(), now.data["spec"].get("tls")),
            (ingress.metadata.uid.as_ref(), None)
        );
        assert!(!now.metadata.annotations.unwrap().contains_key("example.com/rate"));

        give_address(fixture, "orders-sse", json!([])).await;
        fixture.condition("orders", "Exposed", "False", "NoAddress").await;
        fixture.change("orders", json!({"managementPolicy": "Paused"})).await;
        fixture.condition("orders", "Exposed", "Unknown", "Paused").await;
        fixture
            .change("orders", json!({"managementPolicy": "Enforce", "exposure": {"ingress": null}}))
            .await;
        fixture.condition("orders", "Exposed", "True", "NotRequested").await;
        assert!(fixture.child(INGRESS, "orders").await.is_none());
        fixture.ready("orders").await;
    });
}

#[test]
fn an_ingress_of_somebody_else_is_never_touched() {
    test("foreign", async |fixture| {
        let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "orders-sse"},
            "spec": {"defaultBackend": {"service": {"name": "mine", "port": {"number": 80}}}}});
        let before = fixture
            .api(INGRESS)
            .create(&PostParams::default(), &serde_json::from_value(foreign).unwrap())
            .await
            .unwrap();
        fixture.create("orders", json!({"workload": {"replicas": 1}, "exposure": {"ingress": {"host": "events.example.com"}}})).await;
        fixture.condition("orders", "Exposed", "False", "NameTaken").await;
        // The channel itself works, and an event says what is wrong.
        fixture.ready("orders").await;
        let events = fixture.events("orders").await;
        assert!(
            events.iter().any(|(kind, reason, note)| kind == "Warning"
                && reason == "NameTaken"
                && note.contains("orders-sse")),
            "{events:?}"
        );
        fixture.change("orders", json!({"exposure": {"ingress": null}})).await;
        fixture.condition("orders", "Exposed", "True", "NotRequested").await;
        let after = fixture.api(INGRESS).get("orders-sse").await.unwrap();
        assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
        // Out of the way, it is made; foreign again afterwards, it is left again.
        fixture.api(INGRESS).delete("orders-sse", &DeleteParams::default()).await.unwrap();
        fixture
            .change("orders", json!({"exposure": {"ingress": {"host": "events.example.com"}}}))
            .await;
        fixture.condition("orders", "Exposed", "False", "NoAddress").await;
    });
}

#[test]
fn what_the_api_server_refuses_is_told_and_the_channel_serves() {
    test("refused-ingress", async |fixture| {
        // The keys of annotations are the API server's to judge.
        fixture.create("orders", json!({"workload": {"replicas": 1}, "exposure": {"ingress": {"host": "a.example", "annotations": {"No Such": "x"}}}}))
            .await;
        let object = fixture.condition("orders", "Exposed", "False", "ApiRejected").await;
        assert!(
            channel::condition(&object, "Exposed").unwrap()["message"]
                .as_str()
                .unwrap()
                .contains("No Such")
        );
        fixture.ready("orders").await;
        let before = fixture
            .requests()
            .iter()
            .filter(|e| e.is_write() && e.object_ref.resource == "ingresses")
            .count();
        tokio::time::sleep(RESYNC * 2).await;
        let after = fixture
            .requests()
            .iter()
            .filter(|e| e.is_write() && e.object_ref.resource == "ingresses")
            .count();
        assert!(after - before <= 3, "{} attempts in two looks", after - before);
        let mended = json!({"className": "nginx", "annotations": {"No Such": null}});
        fixture.change("orders", json!({"exposure": {"ingress": mended}})).await;
        fixture.condition("orders", "Exposed", "False", "NoAddress").await;
    });
}

#[test]
fn an_ingress_is_not_made_for_a_service_of_somebody_else() {
    test("foreign-service", async |fixture| {
        let foreign = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders-sse"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        fixture
            .api(SERVICE)
            .create(&PostParams::default(), &serde_json::from_value(foreign).unwrap())
            .await
            .unwrap();
        fixture.create("orders", json!({"workload": {"replicas": 1}, "exposure": {"ingress": {"host": "events.example.com"}}})).await;
        fixture.condition("orders", "WorkloadAvailable", "False", "NameTaken").await;
        fixture.condition("orders", "Exposed", "False", "Pending").await;
        assert!(fixture.child(INGRESS, "orders").await.is_none());
        fixture.api(SERVICE).delete("orders-sse", &DeleteParams::default()).await.unwrap();
        fixture.ready("orders").await;
        eventually("the Ingress is made", LIMIT, async || fixture.child(INGRESS, "orders").await)
            .await;
    });
}
