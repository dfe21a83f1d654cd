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
    bed::{Bed, IMAGE, LIMIT, test},
    channel::{self, CHANNEL, CHILDREN, CONDITIONS, DEPLOYMENT},
};

#[test]
fn an_empty_spec_becomes_a_channel_that_serves_events() {
    test("create", async |bed| {
        let created = bed.create("orders", json!({})).await;
        let object = bed.ready("orders").await;
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
            let child = bed.child(kind, "orders").await.unwrap_or_else(|| panic!("no {}", kind.2));
            let owner = &child.owner_references()[0];
            assert_eq!(
                (owner.uid.as_str(), owner.kind.as_str(), owner.controller),
                (uid.as_str(), "SseChannel", Some(true)),
                "{}",
                kind.2
            );
        }
        let stream = channel::stream(&object);
        let info = bed.streams().await.info(&stream).await;
        assert_eq!(info.config.subjects, [format!("sse.{}.orders.>", bed.namespace())]);
        assert_eq!(
            (info.config.max_age, info.config.max_bytes, info.config.max_message_size),
            (Duration::from_secs(86_400), 1 << 30, 65_536)
        );
        assert!(info.config.allow_direct, "history is read by direct gets");
        assert!(
            info.config.metadata.values().any(|v| *v == uid),
            "the stream says whose it is: {:?}",
            info.config.metadata
        );

        let (ok, said) =
            bed.kubectl(&["wait", "--for=condition=Ready", "sse/orders", "--timeout=5s"]);
        assert!(ok, "{said}");
        let events = bed.events("orders").await;
        assert!(
            events.iter().any(|(kind, _, note)| kind == "Normal" && note.contains(&stream)),
            "an Event tells of the new stream: {events:?}"
        );

        serves_events(bed, &object).await;
    });
}

/// An event published over NATS arrives through each pod, under the cursor that the status
/// announces.
async fn serves_events(bed: &Bed, object: &Value) {
    let published = bed
        .streams()
        .await
        .publish(&format!("sse.{}.orders.", bed.namespace()), "new.1", "hello")
        .await;
    assert_eq!(published.sequence, 1);
    let epoch = object["status"]["stream"]["epoch"].as_str().unwrap();
    let pods = bed.addresses("orders").await;
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
    test("security", async |bed| {
        // The namespace enforces `restricted`: pods that are made at all have passed it.
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        let pod = serde_json::to_value(&bed.pods("orders").await[0]).unwrap();
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
    test("live", async |bed| {
        bed.create("orders", json!({})).await;
        bed.ready("orders").await;
        let pods = bed.pod_uids("orders").await;
        let address = bed.addresses("orders").await[0].1;
        let mut reader = Reader::open(address, &Request::get("/channels/orders")).await;

        let node = bed.kube_api.node();
        node.freeze_files(bed.namespace(), true);
        bed.change("orders", json!({"delivery": {"heartbeat": "1s"}})).await;
        bed.condition("orders", "Ready", "False", "ConfigPropagating").await;
        // As long as pods serve the old generation, nothing may call the new one ready.
        let (ok, said) =
            bed.kubectl(&["wait", "--for=condition=Ready", "sse/orders", "--timeout=7s"]);
        assert!(!ok && said.contains("timed out"), "{said}");

        node.freeze_files(bed.namespace(), false);
        let object = bed.ready("orders").await;
        assert_eq!(object["metadata"]["generation"], 2);
        for (pod, address) in bed.admin_addresses("orders").await {
            let answer: Value = reqwest::get(format!("http://{address}/readyz"))
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            assert_eq!(answer["channels"][0]["generation"], 2, "{pod}: {answer}");
        }
        assert_eq!(bed.pod_uids("orders").await, pods, "the same pods serve");
        assert_eq!(node.starts(bed.namespace()), 2, "no container was started again");
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
    test("rolling", async |bed| {
        // No subscriber is connected, so nothing has to be drained for long.
        bed.create("orders", json!({"workload": {"terminationGracePeriodSeconds": 10}})).await;
        bed.ready("orders").await;
        let before = bed.pod_uids("orders").await;
        bed.change("orders", json!({"workload": {"image": "sluice.test/dataplane:2", "resources": {"requests": {"cpu": "50m"}}}})).await;
        let object = bed.ready("orders").await;
        let pods: Vec<Value> =
            bed.pods("orders").await.iter().map(|p| serde_json::to_value(p).unwrap()).collect();
        assert_eq!((pods.len(), &object["status"]["workload"]["updatedReplicas"]), (2, &json!(2)));
        for pod in &pods {
            let container = &pod["spec"]["containers"][0];
            assert_eq!(
                container["image"], "sluice.test/dataplane:2",
                "ready means that the new template serves"
            );
            assert_eq!(container["resources"]["requests"]["cpu"], "50m");
        }
        assert!(before.is_disjoint(&bed.pod_uids("orders").await));
    });
}

#[test]
fn scaling_keeps_the_pods_that_stay() {
    test("scale", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        let first = bed.pod_uids("orders").await;
        let (ok, said) = bed.kubectl(&["scale", "sse/orders", "--replicas=2"]);
        assert!(ok, "{said}");
        let object = bed
            .until("orders", "two pods are ready", |o| {
                channel::is_ready(o) && o["status"]["workload"]["readyReplicas"] == 2
            })
            .await;
        assert!(first.is_subset(&bed.pod_uids("orders").await));
        let selector = object["status"]["workload"]["selector"].as_str().unwrap();
        let (ok, said) = bed.kubectl(&["get", "pods", "--selector", selector, "-o", "name"]);
        assert!(
            ok && said.lines().count() == 2,
            "the scale subresource's selector selects the pods: {said}"
        );
        bed.change("orders", json!({"workload": {"replicas": 0}})).await;
        bed.condition("orders", "WorkloadAvailable", "True", "ScaledToZero").await;
    });
}

#[test]
fn a_forbidden_change_is_refused_and_the_channel_serves_on() {
    test("forbidden", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let before = bed.ready("orders").await;
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
            let error = bed
                .try_patch(CHANNEL, "orders", json!({"spec": spec}))
                .await
                .expect_err("it is refused")
                .to_string();
            assert!(error.contains(message), "{error}");
        }
        let after = serde_json::to_value(bed.api(CHANNEL).get("orders").await.unwrap()).unwrap();
        assert_eq!(
            (&after["spec"], &after["metadata"]["generation"]),
            (&before["spec"], &before["metadata"]["generation"])
        );
        assert!(channel::is_ready(&after));
    });
}

#[test]
fn every_live_field_of_the_spec_reaches_stream_and_pods() {
    test("fields", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = bed.ready("orders").await;
        let pods = bed.pod_uids("orders").await;
        bed.change(
            "orders",
            json!({
                "stream": {"maxAge": "48h", "maxBytes": "2Mi", "maxMessages": 1000, "maxMessagesPerTopic": 3, "maxMessageSize": "4Ki", "duplicateWindow": "1m"},
                "delivery": {"cors": {"allowedOrigins": ["https://app.example.com"]}},
                "publish": {"mode": "Http", "allowAnonymous": true},
            }),
        )
        .await;
        bed.ready("orders").await;
        let config = bed.streams().await.info(&channel::stream(&object)).await.config;
        assert_eq!(
            (config.max_age, config.max_bytes, config.max_messages),
            (Duration::from_secs(2 * 86_400), 2 << 20, 1000)
        );
        assert_eq!(
            (config.max_messages_per_subject, config.max_message_size, config.duplicate_window),
            (3, 4096, Duration::from_secs(60))
        );
        let address = bed.addresses("orders").await[0].1;
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
        bed.change(
            "orders",
            json!({"stream": {"maxMessages": null, "maxMessagesPerTopic": null}, "publish": {"mode": "Disabled", "allowAnonymous": null}}),
        )
        .await;
        bed.ready("orders").await;
        let config = bed.streams().await.info(&channel::stream(&object)).await.config;
        assert_eq!((config.max_messages, config.max_messages_per_subject), (-1, -1));
        let answer = reqwest::Client::new()
            .post(format!("http://{address}/channels/orders/new.1"))
            .body("no longer")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 405);
        assert_eq!(bed.pod_uids("orders").await, pods);
        assert!(bed.child(DEPLOYMENT, "orders").await.is_some());
    });
}
