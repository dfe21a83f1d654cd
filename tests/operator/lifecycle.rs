//! A channel is made and changed: what users do all day.

use std::{collections::BTreeSet, time::Duration};

use kube::ResourceExt;
use serde_json::{Value, json};
use sluice_tests::{
    clients::{Reader, Request},
    eventually,
    sse::Item,
};

use crate::{
    channel::{self, CHANNEL, CHILDREN, CONDITIONS, DEPLOYMENT},
    fixture::{Fixture, IMAGE, LIMIT, test},
};

#[test]
fn an_empty_spec_becomes_a_channel_that_serves_events() {
    test("create", async |fixture| {
        let created = fixture.create("orders", json!({})).await;
        let object = fixture.ready("orders").await;
        let uid = created.uid().unwrap();

        let types: BTreeSet<&str> = object["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, BTreeSet::from(CONDITIONS), "every condition is always there");
        for (kind, status) in [
            ("StreamReady", "True"),
            ("WorkloadAvailable", "True"),
            ("Drifted", "False"),
            ("Reconciling", "False"),
            ("Stalled", "False"),
        ] {
            assert_eq!(
                channel::current_condition(&object, kind).unwrap()["status"],
                status,
                "{kind}: {:#}",
                object["status"]
            );
        }
        assert_eq!(object["status"]["observedGeneration"], 1);
        assert_eq!(object["status"]["workload"]["readyReplicas"], 2);
        assert!(object["metadata"]["finalizers"].is_null(), "Retain needs no finalizer");

        for kind in CHILDREN {
            let child =
                fixture.child(kind, "orders").await.unwrap_or_else(|| panic!("no {}", kind.2));
            let owner = &child.owner_references()[0];
            assert_eq!(
                (owner.uid.as_str(), owner.kind.as_str(), owner.controller),
                (uid.as_str(), "SseChannel", Some(true)),
                "{}",
                kind.2
            );
        }
        let stream = channel::stream(&object);
        let info = fixture.streams().await.info(&stream).await;
        assert_eq!(info.config.subjects, [format!("sse.{}.orders.>", fixture.namespace())]);
        assert_eq!(
            (info.config.max_age, info.config.max_bytes, info.config.max_message_size),
            (Duration::from_secs(86_400), 1 << 30, 65_536)
        );
        assert!(info.config.allow_direct, "history is read by direct gets");
        assert!(
            info.config.metadata.values().any(|v| *v == uid),
            "the stream names its channel: {:?}",
            info.config.metadata
        );

        let (ok, said) =
            fixture.kubectl(&["wait", "--for=condition=Ready", "sse/orders", "--timeout=5s"]);
        assert!(ok, "{said}");
        let events = fixture.events("orders").await;
        assert!(
            events.iter().any(|(kind, _, note)| kind == "Normal" && note.contains(&stream)),
            "an Event tells of the new stream: {events:?}"
        );

        serves_events(fixture, &object).await;
    });
}

/// An event published over NATS arrives through each pod, under the cursor that the status
/// announces.
async fn serves_events(fixture: &Fixture, object: &Value) {
    let published = fixture
        .streams()
        .await
        .publish(&format!("sse.{}.orders.", fixture.namespace()), "new.1", "hello")
        .await;
    assert_eq!(published.sequence, 1);
    let epoch = object["status"]["stream"]["epoch"].as_str().unwrap();
    let pods = fixture.addresses("orders").await;
    assert_eq!(pods.len(), 2);
    for (pod, address) in pods {
        let mut reader =
            Reader::open(address, &Request::get("/channels/orders?from=earliest")).await;
        let event = reader.event(LIMIT).await.expect("an event");
        assert_eq!(
            (event.data.as_str(), event.last_event_id),
            ("hello", format!("{epoch}-1")),
            "{pod}"
        );
    }
}

#[test]
fn pods_pass_the_strictest_pod_security_and_hold_no_token() {
    test("security", async |fixture| {
        // The namespace enforces `restricted`: pods that are made at all have passed it.
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let pod = serde_json::to_value(&fixture.pods("orders").await[0]).unwrap();
        let spec = &pod["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert!(
            !spec["volumes"].to_string().contains("serviceAccountToken"),
            "{}",
            spec["volumes"]
        );
        let container = &spec["containers"][0];
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert!(
            container["readinessProbe"]["httpGet"]["path"] == "/readyz"
                && container["livenessProbe"]["httpGet"]["path"] == "/livez"
        );
        assert!(
            container["resources"]["requests"]["cpu"].is_string()
                && container["resources"]["limits"]["memory"].is_string()
        );
        assert_eq!(container["image"], IMAGE);
    });
}

#[test]
fn a_live_change_reaches_the_pods_without_a_restart_and_ready_waits_for_it() {
    test("live", async |fixture| {
        fixture.create("orders", json!({})).await;
        fixture.ready("orders").await;
        let pods = fixture.pod_uids("orders").await;
        let address = fixture.addresses("orders").await[0].1;
        let mut reader = Reader::open(address, &Request::get("/channels/orders")).await;

        let node = fixture.kube_api.node();
        node.freeze_files(fixture.namespace(), true);
        fixture.change("orders", json!({"delivery": {"heartbeat": "1s"}})).await;
        let object = fixture.condition("orders", "Reconciling", "True", "Progressing").await;
        let reconciling = channel::condition(&object, "Reconciling").unwrap();
        let message = reconciling["message"].as_str().unwrap();
        assert!(message.contains("load the new configuration (generation 2)"), "{message}");
        let ready = channel::condition(&object, "Ready").unwrap();
        assert_eq!(
            (&ready["status"], &ready["observedGeneration"]),
            (&json!("True"), &json!(1)),
            "what was asked for before is served"
        );
        // As long as pods serve the old generation, nothing may call the new one ready.
        let (ok, said) =
            fixture.kubectl(&["wait", "--for=condition=Ready", "sse/orders", "--timeout=7s"]);
        assert!(!ok && said.contains("timed out"), "{said}");

        node.freeze_files(fixture.namespace(), false);
        let object = fixture.ready("orders").await;
        assert_eq!(object["metadata"]["generation"], 2);
        for (pod, address) in fixture.admin_addresses("orders").await {
            let answer: Value = reqwest::get(format!("http://{address}/readyz"))
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            assert_eq!(answer["channels"][0]["generation"], 2, "{pod}: {answer}");
        }
        assert_eq!(fixture.pod_uids("orders").await, pods, "the same pods serve");
        assert_eq!(node.starts(fixture.namespace()), 2, "no container was started again");
        // The stream that was open before the change beats at the new rate.
        let beat = eventually("a heartbeat", Duration::from_secs(5), async || {
            let item = reader.item(Duration::from_secs(5)).await.expect("the stream stays open");
            matches!(&item, Item::Comment(_)).then_some(()).or_else(|| {
                matches!(&item, Item::Event(e) if e.name == "channel.cursor").then_some(())
            })
        });
        beat.await;
    });
}

#[test]
fn a_rolling_change_replaces_the_pods() {
    test("rolling", async |fixture| {
        // No subscriber is connected, so nothing has to be drained for long.
        fixture.create("orders", json!({"workload": {"terminationGracePeriodSeconds": 10}})).await;
        fixture.ready("orders").await;
        let before = fixture.pod_uids("orders").await;
        fixture.change("orders", json!({"workload": {"image": "sluice.test/dataplane:2", "resources": {"requests": {"cpu": "50m"}}}})).await;
        let object = fixture.ready("orders").await;
        let pods: Vec<Value> =
            fixture.pods("orders").await.iter().map(|p| serde_json::to_value(p).unwrap()).collect();
        assert_eq!((pods.len(), &object["status"]["workload"]["updatedReplicas"]), (2, &json!(2)));
        for pod in &pods {
            let container = &pod["spec"]["containers"][0];
            assert_eq!(
                container["image"], "sluice.test/dataplane:2",
                "ready means that the new template serves"
            );
            assert_eq!(container["resources"]["requests"]["cpu"], "50m");
        }
        assert!(before.is_disjoint(&fixture.pod_uids("orders").await));
    });
}

#[test]
fn scaling_keeps_the_pods_that_stay() {
    test("scale", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let first = fixture.pod_uids("orders").await;
        let (ok, said) = fixture.kubectl(&["scale", "sse/orders", "--replicas=2"]);
        assert!(ok, "{said}");
        let object = fixture
            .until("orders", "two pods are ready", |o| {
                channel::is_ready(o) && o["status"]["workload"]["readyReplicas"] == 2
            })
            .await;
        assert!(first.is_subset(&fixture.pod_uids("orders").await));
        let selector = object["status"]["workload"]["selector"].as_str().unwrap();
        let (ok, said) = fixture.kubectl(&["get", "pods", "--selector", selector, "-o", "name"]);
        assert!(
            ok && said.lines().count() == 2,
            "the scale subresource's selector selects the pods: {said}"
        );
        fixture.change("orders", json!({"workload": {"replicas": 0}})).await;
        fixture.condition("orders", "WorkloadAvailable", "True", "ScaledToZero").await;
    });
}

#[test]
fn a_forbidden_change_is_refused_and_the_channel_serves_on() {
    test("forbidden", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let before = fixture.ready("orders").await;
        for (spec, message) in [
            (
                json!({"stream": {"storage": "Memory"}}),
                "nats-server cannot move a stream between file and memory. Create another channel instead",
            ),
            (
                json!({"stream": {"name": "other"}}),
                "the events would stay behind in the old stream. Create another channel instead",
            ),
        ] {
            let error = fixture
                .try_patch(CHANNEL, "orders", json!({"spec": spec}))
                .await
                .expect_err("it is refused")
                .to_string();
            assert!(error.contains(message), "{error}");
        }
        let after =
            serde_json::to_value(fixture.api(CHANNEL).get("orders").await.unwrap()).unwrap();
        assert_eq!(
            (&after["spec"], &after["metadata"]["generation"]),
            (&before["spec"], &before["metadata"]["generation"])
        );
        assert!(channel::is_ready(&after));
    });
}

#[test]
fn every_live_field_of_the_spec_reaches_stream_and_pods() {
    test("fields", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        let pods = fixture.pod_uids("orders").await;
        fixture.change(
            "orders",
            json!({
                "stream": {"maxAge": "48h", "maxBytes": "2Mi", "maxMessages": 1000, "maxMessagesPerTopic": 3, "maxMessageSize": "4Ki", "duplicateWindow": "1m"},
                "delivery": {"cors": {"allowedOrigins": ["https://app.example.com"]}},
                "publish": {"mode": "Http", "allowAnonymous": true},
            }),
        )
        .await;
        fixture.ready("orders").await;
        let config = fixture.streams().await.info(&channel::stream(&object)).await.config;
        assert_eq!(
            (config.max_age, config.max_bytes, config.max_messages),
            (Duration::from_secs(2 * 86_400), 2 << 20, 1000)
        );
        assert_eq!(
            (config.max_messages_per_subject, config.max_message_size, config.duplicate_window),
            (3, 4096, Duration::from_secs(60))
        );
        let address = fixture.addresses("orders").await[0].1;
        let url = format!("http://{address}/channels/orders/new.1");
        let answer = reqwest::Client::new()
            .post(url)
            .header("Origin", "https://app.example.com")
            .body("over HTTP")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 201);
        assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");
        // What is taken back goes back to the default: unset means the default, the same every
        // time.
        fixture.change(
            "orders",
            json!({"stream": {"maxMessages": null, "maxMessagesPerTopic": null}, "publish": {"mode": "Disabled", "allowAnonymous": null}}),
        )
        .await;
        fixture.ready("orders").await;
        let config = fixture.streams().await.info(&channel::stream(&object)).await.config;
        assert_eq!((config.max_messages, config.max_messages_per_subject), (-1, -1));
        let answer = reqwest::Client::new()
            .post(format!("http://{address}/channels/orders/new.1"))
            .body("no longer")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 405);
        assert_eq!(fixture.pod_uids("orders").await, pods);
        assert!(fixture.child(DEPLOYMENT, "orders").await.is_some());
    });
}
