//! `Ready` never lies, and says why not.

use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::json;

use crate::{
    bed::{Bed, test},
    channel::{self, CHANNEL},
};

#[test]
fn an_image_that_is_not_there() {
    test("image", async |bed| {
        bed.create(
            "orders",
            json!({"workload": {"replicas": 1, "image": "sluice.test/dataplane:missing"}}),
        )
        .await;
        let object = bed.condition("orders", "WorkloadAvailable", "False", "ImagePullFailed").await;
        let message =
            channel::condition(&object, "WorkloadAvailable").unwrap()["message"].as_str().unwrap();
        assert!(message.contains("sluice.test/dataplane:missing"), "{message}");
        assert_eq!(channel::current_condition(&object, "Ready").unwrap()["status"], "False");
        assert_eq!(
            channel::current_condition(&object, "StreamReady").unwrap()["status"],
            "True",
            "the stream does not wait for pods"
        );
        bed.change("orders", json!({"workload": {"image": "sluice.test/dataplane:1"}})).await;
        bed.ready("orders").await;
    });
}

#[test]
fn a_bad_image_in_a_rollout_leaves_the_old_pods_serving() {
    test("rollout", async |bed| {
        bed.create("orders", json!({})).await;
        bed.ready("orders").await;
        let before = bed.pod_uids("orders").await;
        bed.change("orders", json!({"workload": {"image": "sluice.test/dataplane:missing"}})).await;
        bed.until("orders", "says that the image is missing", |o| {
            channel::current_condition(o, "Ready").is_some_and(|c| c["status"] == "False")
                && o["status"]["conditions"].to_string().contains("dataplane:missing")
        })
        .await;
        assert!(
            before.is_subset(&bed.pod_uids("orders").await),
            "no pod was given up for one that cannot run"
        );
        bed.change("orders", json!({"workload": {"image": ""}})).await;
        bed.ready("orders").await;
    });
}

#[test]
fn pods_that_hang_and_come_back() {
    test("hang", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        let node = bed.kube_api.node();
        node.each_process(bed.namespace(), |_, process| process.pause());
        let object = bed
            .until("orders", "is not ready", |o| {
                channel::condition(o, "Ready").is_some_and(|c| c["status"] == "False")
            })
            .await;
        assert_eq!(channel::condition(&object, "WorkloadAvailable").unwrap()["status"], "False");
        assert_eq!(object["status"]["workload"]["readyReplicas"].as_i64().unwrap_or(0), 0);
        node.each_process(bed.namespace(), |_, process| process.resume());
        bed.ready("orders").await;
    });
}

#[test]
fn a_pod_that_dies_is_started_again() {
    test("crash", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        let node = bed.kube_api.node();
        node.each_process(bed.namespace(), |_, process| process.kill());
        bed.until("orders", "is not ready", |o| {
            channel::condition(o, "Ready").is_some_and(|c| c["status"] == "False")
        })
        .await;
        bed.ready("orders").await;
        assert_eq!(node.starts(bed.namespace()), 2);
    });
}

#[test]
fn ready_is_taken_back_for_the_stream_too() {
    test("stream", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        bed.nats.stop().await;
        let (ok, said) =
            bed.kubectl(&["wait", "--for=condition=Ready=False", "sse/orders", "--timeout=30s"]);
        assert!(ok, "{said}");
        let (ok, said) = bed.kubectl(&["get", "sse/orders"]);
        assert!(
            ok && said.contains("False") && said.contains("NatsUnreachable"),
            "the columns say why: {said}"
        );
        bed.nats.restart().await;
        let (ok, said) =
            bed.kubectl(&["wait", "--for=condition=Ready", "sse/orders", "--timeout=30s"]);
        assert!(ok, "{said}");
    });
}

#[test]
fn one_object_that_does_not_decode_does_not_stop_the_others() {
    test("undecodable", async |bed| {
        bed.create("victim", json!({"managementPolicy": "Paused"})).await;
        // As another version of the definition may have let it through: the API server would refuse
        // it today.
        let etcd = bed.kube_api.etcd();
        let mut object = etcd.get("sluice.dev", "ssechannels", bed.namespace(), "victim").await;
        object["spec"]["workload"]["replicas"] = json!("many");
        object["spec"]["stream"]["subjects"] = json!({"not": "a list"});
        etcd.put("sluice.dev", "ssechannels", bed.namespace(), "victim", &object).await;
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        bed.ready("orders").await;
        // Also when the whole list is read anew, with the bad object in it.
        bed.stop_operator().await;
        bed.start_operator().await;
        bed.change("orders", json!({"delivery": {"heartbeat": "3s"}})).await;
        bed.ready("orders").await;
        let log = bed.operator_log();
        assert!(log.contains("victim"), "the log names the object: {log}");
        let told: Vec<_> = bed
            .events("victim")
            .await
            .into_iter()
            .filter(|(kind, reason, _)| kind == "Warning" && reason == "Undecodable")
            .collect();
        assert!(
            !told.is_empty() && told[0].2.contains("Expected a sequence"),
            "an Event says what is wrong: {told:?}"
        );
        bed.api(CHANNEL).delete("victim", &DeleteParams::background()).await.unwrap();
    });
}

#[test]
fn many_channels_at_once() {
    test("many", async |bed| {
        let names: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
        for name in &names {
            // No pods: it is the operator that is under test, on a machine that need not run
            // twenty.
            bed.create(name, json!({"workload": {"replicas": 0}, "stream": {"deletionPolicy": "Delete", "maxBytes": "1Mi"}})).await;
        }
        for name in &names {
            bed.condition(name, "StreamReady", "True", "InSync").await;
        }
        for name in &names {
            bed.api(CHANNEL).delete(name, &DeleteParams::background()).await.unwrap();
        }
        for name in &names {
            bed.until_gone(name).await;
        }
        assert_eq!(stream_count(bed).await, 0);
    });
}

async fn stream_count(bed: &Bed) -> usize {
    use futures::TryStreamExt;
    let streams = bed.streams().await;
    let names: Vec<String> = streams.context().stream_names().try_collect().await.unwrap();
    names.len()
}

#[test]
fn the_operator_that_restarts_changes_nothing() {
    test("restart", async |bed| {
        bed.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = bed.ready("orders").await;
        bed.stop_operator().await;
        let before = bed.requests().len();
        bed.start_operator().await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let writes: Vec<String> = bed.requests()[before..]
            .iter()
            .filter(|e| e.is_write())
            .map(sluice_tests::kube_api::audit::Entry::brief)
            .collect();
        let now = serde_json::to_value(bed.api(CHANNEL).get("orders").await.unwrap()).unwrap();
        assert_eq!(
            now["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"],
            "{writes:#?}"
        );
        // A new process cannot know that its objects are as it would make them, so it may apply
        // them; nothing may change by it.
        assert_eq!(bed.kube_api.node().starts(bed.namespace()), 1);
    });
}
