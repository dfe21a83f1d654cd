//! `Ready` never lies, and says why not.

use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::json;

use crate::{
    channel::{self, CHANNEL},
    fixture::{Fixture, test},
};

#[test]
fn an_image_that_is_not_there() {
    test("image", async |fixture| {
        fixture
            .create(
                "orders",
                json!({"workload": {"replicas": 1, "image": "sluice.test/dataplane:missing"}}),
            )
            .await;
        let object =
            fixture.condition("orders", "WorkloadAvailable", "False", "ImagePullFailed").await;
        let message =
            channel::condition(&object, "WorkloadAvailable").unwrap()["message"].as_str().unwrap();
        assert!(message.contains("sluice.test/dataplane:missing"), "{message}");
        assert_eq!(channel::current_condition(&object, "Ready").unwrap()["status"], "False");
        assert_eq!(
            channel::current_condition(&object, "StreamReady").unwrap()["status"],
            "True",
            "the stream does not wait for pods"
        );
        fixture.change("orders", json!({"workload": {"image": "sluice.test/dataplane:1"}})).await;
        fixture.ready("orders").await;
    });
}

#[test]
fn a_bad_image_in_a_rollout_leaves_the_old_pods_serving() {
    test("rollout", async |fixture| {
        fixture.create("orders", json!({})).await;
        fixture.ready("orders").await;
        let before = fixture.pod_uids("orders").await;
        fixture
            .change("orders", json!({"workload": {"image": "sluice.test/dataplane:missing"}}))
            .await;
        fixture
            .until("orders", "says that the image is missing", |o| {
                channel::current_condition(o, "Ready").is_some_and(|c| c["status"] == "False")
                    && o["status"]["conditions"].to_string().contains("dataplane:missing")
            })
            .await;
        assert!(
            before.is_subset(&fixture.pod_uids("orders").await),
            "no pod was given up for one that cannot run"
        );
        fixture.change("orders", json!({"workload": {"image": ""}})).await;
        fixture.ready("orders").await;
    });
}

#[test]
fn pods_that_hang_and_come_back() {
    test("hang", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let node = fixture.kube_api.node();
        node.each_process(fixture.namespace(), |_, process| process.pause());
        let object = fixture
            .until("orders", "is not ready", |o| {
                channel::condition(o, "Ready").is_some_and(|c| c["status"] == "False")
            })
            .await;
        assert_eq!(channel::condition(&object, "WorkloadAvailable").unwrap()["status"], "False");
        assert_eq!(object["status"]["workload"]["readyReplicas"].as_i64().unwrap_or(0), 0);
        node.each_process(fixture.namespace(), |_, process| process.resume());
        fixture.ready("orders").await;
    });
}

#[test]
fn a_pod_that_dies_is_started_again() {
    test("crash", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let node = fixture.kube_api.node();
        node.each_process(fixture.namespace(), |_, process| process.kill());
        fixture
            .until("orders", "is not ready", |o| {
                channel::condition(o, "Ready").is_some_and(|c| c["status"] == "False")
            })
            .await;
        fixture.ready("orders").await;
        assert_eq!(node.starts(fixture.namespace()), 2);
    });
}

#[test]
fn the_stream_that_is_not_seen_is_told_and_ready_follows_the_pods() {
    test("stream", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        fixture.nats.stop().await;
        let (ok, said) = fixture.kubectl(&[
            "wait",
            "--for=condition=StreamReady=Unknown",
            "sse/orders",
            "--timeout=30s",
        ]);
        assert!(ok, "{said}");
        let (ok, said) = fixture.kubectl(&["get", "sse/orders", "-o", "wide"]);
        assert!(
            ok && said.contains("True") && said.contains("cannot be reached"),
            "the columns say what is not known: {said}"
        );
        // A pod that starts needs NATS.
        fixture.kube_api.node().each_process(fixture.namespace(), |_, process| process.kill());
        let (ok, said) = fixture.kubectl(&[
            "wait",
            "--for=condition=Ready=False",
            "sse/orders",
            "--timeout=30s",
        ]);
        assert!(ok, "{said}");
        fixture.nats.restart().await;
        let (ok, said) =
            fixture.kubectl(&["wait", "--for=condition=Ready", "sse/orders", "--timeout=30s"]);
        assert!(ok, "{said}");
    });
}

#[test]
fn one_object_that_does_not_decode_does_not_stop_the_others() {
    test("undecodable", async |fixture| {
        fixture.create("victim", json!({"managementPolicy": "Paused"})).await;
        // As another version of the definition may have let it through: the API server would refuse
        // it today.
        let etcd = fixture.kube_api.etcd();
        let mut object = etcd.get("sluice.dev", "ssechannels", fixture.namespace(), "victim").await;
        object["spec"]["workload"]["replicas"] = json!("many");
        object["spec"]["stream"]["subjects"] = json!({"not": "a list"});
        etcd.put("sluice.dev", "ssechannels", fixture.namespace(), "victim", &object).await;
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        // Also when the whole list is read anew, with the bad object in it.
        fixture.stop_operator().await;
        fixture.start_operator().await;
        fixture.change("orders", json!({"delivery": {"heartbeat": "3s"}})).await;
        fixture.ready("orders").await;
        let log = fixture.operator_log();
        assert!(log.contains("victim"), "the log names the object: {log}");
        let told: Vec<_> = fixture
            .events("victim")
            .await
            .into_iter()
            .filter(|(kind, reason, _)| kind == "Warning" && reason == "Undecodable")
            .collect();
        assert!(
            !told.is_empty() && told[0].2.contains("Expected a sequence"),
            "an Event says what is wrong: {told:?}"
        );
        fixture.api(CHANNEL).delete("victim", &DeleteParams::background()).await.unwrap();
    });
}

#[test]
fn many_channels_at_once() {
    test("many", async |fixture| {
        let names: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
        for name in &names {
            // No pods: it is the operator that is under test, on a machine that need not run
            // twenty.
            fixture.create(name, json!({"workload": {"replicas": 0}, "stream": {"deletionPolicy": "Delete", "maxBytes": "1Mi"}})).await;
        }
        for name in &names {
            fixture.condition(name, "StreamReady", "True", "InSync").await;
        }
        for name in &names {
            fixture.api(CHANNEL).delete(name, &DeleteParams::background()).await.unwrap();
        }
        for name in &names {
            fixture.until_gone(name).await;
        }
        assert_eq!(stream_count(fixture).await, 0);
    });
}

async fn stream_count(fixture: &Fixture) -> usize {
    use futures::TryStreamExt;
    let streams = fixture.streams().await;
    let names: Vec<String> = streams.context().stream_names().try_collect().await.unwrap();
    names.len()
}

#[test]
fn the_operator_that_restarts_changes_nothing() {
    test("restart", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.stop_operator().await;
        let before = fixture.requests().len();
        fixture.start_operator().await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let writes: Vec<String> = fixture.requests()[before..]
            .iter()
            .filter(|e| e.is_write())
            .map(sluice_tests::kube_api::audit::Entry::brief)
            .collect();
        let now = serde_json::to_value(fixture.api(CHANNEL).get("orders").await.unwrap()).unwrap();
        assert_eq!(
            now["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"],
            "{writes:#?}"
        );
        // A new process cannot know that its objects are as it would make them, so it may apply
        // them; nothing may change by it.
        assert_eq!(fixture.kube_api.node().starts(fixture.namespace()), 1);
    });
}
