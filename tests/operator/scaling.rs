//! How many pods there are when it is not the spec that says so. Streams are real; the autoscaler
//! is Kubernetes' own, which knows no processor use here, but keeps to its bounds all the same.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use serde_json::json;
use sluice_tests::{
    clients::{Connection, Request},
    eventually,
    kube_api::audit::Entry,
};

use crate::{
    channel::{self, AUTOSCALER, DEPLOYMENT, SERVICE},
    fixture::{Fixture, LIMIT, test},
};

async fn replicas(fixture: &Fixture) -> i64 {
    fixture.child(DEPLOYMENT, "orders").await.unwrap().data["spec"]["replicas"].as_i64().unwrap()
}

/// Opens `count` streams on the first pod.
async fn subscribe(fixture: &Fixture, count: usize) -> Vec<Connection> {
    let address = fixture.addresses("orders").await[0].1;
    let mut streams = Vec::new();
    for _ in 0..count {
        let stream = Connection::open(address, &Request::get("/channels/orders")).await.unwrap();
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    streams
}

/// Whether the operator says how many replicas the Deployment has.
async fn operator_decides(fixture: &Fixture) -> bool {
    let deployment = fixture.child(DEPLOYMENT, "orders").await.unwrap();
    deployment.managed_fields().iter().any(|entry| {
        entry.manager.as_deref() == Some("sluice-operator")
            && entry
                .fields_v1
                .as_ref()
                .is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
    })
}

#[test]
fn connections_add_pods_at_once_and_take_none_away_in_a_hurry() {
    test("connections", async |fixture| {
        fixture.create(
            "orders",
            json!({"workload": {"replicas": 7, "autoscaling": {"minReplicas": 1, "maxReplicas": 3, "connectionsPerPod": 2}}}),
        )
        .await;
        fixture.ready("orders").await;
        assert_eq!(replicas(fixture).await, 1, "workload.replicas has no effect");
        let streams = subscribe(fixture, 3).await;
        eventually("a second pod", LIMIT, async || (replicas(fixture).await == 2).then_some(()))
            .await;
        fixture
            .until("orders", "two pods are ready", |o| {
                channel::is_ready(o) && o["status"]["workload"]["readyReplicas"] == 2
            })
            .await;
        let more = subscribe(fixture, 6).await;
        eventually("as many as allowed", LIMIT, async || {
            (replicas(fixture).await == 3).then_some(())
        })
        .await;
        fixture
            .until("orders", "three pods are ready", |o| {
                channel::is_ready(o) && o["status"]["workload"]["readyReplicas"] == 3
            })
            .await;
        drop((streams, more));
        let address = fixture.admin_addresses("orders").await[0].1;
        eventually("the pod tells that no subscriber is connected", LIMIT, async || {
            let answer: serde_json::Value =
                reqwest::get(format!("http://{address}/readyz")).await.ok()?.json().await.ok()?;
            (answer["channels"][0]["connections"] == 0).then_some(())
        })
        .await;
        let before = fixture.requests().len();
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(replicas(fixture).await, 3, "they may come back");
        let writes: Vec<String> = fixture.requests()[before..]
            .iter()
            .filter(|e| e.is_write())
            .map(Entry::brief)
            .collect();
        assert!(writes.is_empty(), "{writes:#?}");
        // Without scaling by load, the spec decides again.
        fixture.change("orders", json!({"workload": {"replicas": 2, "autoscaling": null}})).await;
        eventually("two pods", LIMIT, async || (replicas(fixture).await == 2).then_some(())).await;
    });
}

#[test]
fn the_number_of_pods_is_handed_over_to_an_autoscaler_and_back() {
    test("handover", async |fixture| {
        let three = json!({"workload": {"replicas": 3, "terminationGracePeriodSeconds": 10}});
        fixture.create("orders", three).await;
        fixture.ready("orders").await;
        assert!(operator_decides(fixture).await);
        let pods = fixture.pod_uids("orders").await;
        fixture.change("orders", json!({"workload": {"autoscaling": {"minReplicas": 2, "maxReplicas": 5, "cpuUtilization": 70}}})).await;
        eventually("the operator leaves the number alone", LIMIT, async || {
            (!operator_decides(fixture).await).then_some(())
        })
        .await;
        let scaler = eventually("an autoscaler is made", LIMIT, async || {
            fixture.child(AUTOSCALER, "orders").await
        })
        .await;
        assert_eq!(
            (&scaler.data["spec"]["minReplicas"], &scaler.data["spec"]["maxReplicas"]),
            (&json!(2), &json!(5))
        );
        assert_eq!(
            scaler.data["spec"]["scaleTargetRef"]["name"],
            json!(fixture.child(DEPLOYMENT, "orders").await.unwrap().metadata.name)
        );
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            assert_eq!(replicas(fixture).await, 3, "it never falls to the default of one");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(fixture.pod_uids("orders").await, pods, "no subscriber was disconnected");
        // What the autoscaler, or a user in its place, decides, stays; also over a change of the
        // template.
        let (ok, said) = fixture.kubectl(&["scale", "deployment/orders-sse", "--replicas=4"]);
        assert!(ok, "{said}");
        fixture
            .change("orders", json!({"workload": {"podAnnotations": {"example.com/a": "b"}}}))
            .await;
        fixture
            .until("orders", "four new pods are ready", |o| {
                channel::is_ready(o) && o["status"]["workload"]["updatedReplicas"] == 4
            })
            .await;
        // Beyond its bounds the autoscaler itself steps in, which shows that it is real and has
        // found its target.
        fixture.change("orders", json!({"workload": {"autoscaling": {"maxReplicas": 3}}})).await;
        eventually("the autoscaler keeps to its bounds", LIMIT, async || {
            (replicas(fixture).await == 3).then_some(())
        })
        .await;

        fixture.change("orders", json!({"workload": {"replicas": 2, "autoscaling": null}})).await;
        eventually("the operator decides again", LIMIT, async || {
            (operator_decides(fixture).await && replicas(fixture).await == 2).then_some(())
        })
        .await;
        // It goes once the Deployment is applied.
        eventually("the autoscaler has gone", LIMIT, async || {
            fixture.child(AUTOSCALER, "orders").await.is_none().then_some(())
        })
        .await;
        // An autoscaler leaves what has no pods alone; a channel that had none gets its fewest all
        // the same.
        fixture.change("orders", json!({"workload": {"replicas": 0}})).await;
        fixture.condition("orders", "WorkloadAvailable", "True", "ScaledToZero").await;
        fixture.change("orders", json!({"workload": {"autoscaling": {"minReplicas": 1, "maxReplicas": 2, "cpuUtilization": 70}}})).await;
        fixture
            .until("orders", "has a pod again", |o| {
                channel::is_ready(o) && o["status"]["workload"]["readyReplicas"] == 1
            })
            .await;
        eventually("and leaves the number alone", LIMIT, async || {
            (!operator_decides(fixture).await).then_some(())
        })
        .await;
        assert_eq!(replicas(fixture).await, 1);
    });
}

#[test]
fn with_both_measures_connections_raise_the_autoscalers_least() {
    test("both", async |fixture| {
        fixture.create(
            "orders",
            json!({"workload": {"autoscaling": {"minReplicas": 1, "maxReplicas": 3, "cpuUtilization": 70, "connectionsPerPod": 2}}}),
        )
        .await;
        fixture.ready("orders").await;
        assert_eq!(replicas(fixture).await, 1);
        let _streams = subscribe(fixture, 3).await;
        eventually("connections ask for two", LIMIT, async || {
            let scaler = fixture.child(AUTOSCALER, "orders").await?;
            (scaler.data["spec"]["minReplicas"] == 2).then_some(())
        })
        .await;
        eventually("the autoscaler adds a pod", LIMIT, async || {
            (replicas(fixture).await == 2).then_some(())
        })
        .await;
        assert!(!operator_decides(fixture).await);
        fixture
            .until("orders", "two pods are ready", |o| {
                channel::is_ready(o) && o["status"]["workload"]["readyReplicas"] == 2
            })
            .await;
    });
}

#[test]
fn service_and_spread_are_as_the_spec_says() {
    test("service", async |fixture| {
        fixture.create(
            "orders",
            json!({"workload": {"replicas": 1, "topologySpread": "Required"},
                "service": {"type": "NodePort", "sessionAffinity": "ClientIP", "annotations": {"example.com/a": "b"}}}),
        )
        .await;
        fixture.ready("orders").await;
        let service = fixture.child(SERVICE, "orders").await.unwrap();
        assert_eq!(
            (&service.data["spec"]["type"], &service.data["spec"]["sessionAffinity"]),
            (&json!("NodePort"), &json!("ClientIP"))
        );
        assert_eq!(service.annotations()["example.com/a"], "b");
        let spread = |object: &kube::api::DynamicObject| {
            object.data["spec"]["template"]["spec"]["topologySpreadConstraints"].clone()
        };
        let constraints = spread(&fixture.child(DEPLOYMENT, "orders").await.unwrap());
        assert_eq!(constraints.as_array().map(Vec::len), Some(1));
        let (topology, otherwise) =
            (&constraints[0]["topologyKey"], &constraints[0]["whenUnsatisfiable"]);
        assert_eq!(
            (topology, otherwise),
            (&json!("kubernetes.io/hostname"), &json!("DoNotSchedule"))
        );

        fixture.change(
            "orders",
            json!({"workload": {"topologySpread": "None"}, "service": {"type": "ClusterIP", "sessionAffinity": "None", "annotations": null}}),
        )
        .await;
        fixture.ready("orders").await;
        let now = fixture.child(SERVICE, "orders").await.unwrap();
        assert_eq!(
            (&now.data["spec"]["type"], &now.data["spec"]["sessionAffinity"]),
            (&json!("ClusterIP"), &json!("None"))
        );
        assert!(now.metadata.annotations.as_ref().is_none_or(|a| !a.contains_key("example.com/a")));
        assert_eq!(now.uid(), service.uid());
        assert!(spread(&fixture.child(DEPLOYMENT, "orders").await.unwrap()).is_null());
        // A load balancer is the cloud's to give; the Service asks for it.
        fixture.change("orders", json!({"service": {"type": "LoadBalancer"}})).await;
        eventually("the Service asks for a load balancer", LIMIT, async || {
            (fixture.child(SERVICE, "orders").await?.data["spec"]["type"] == "LoadBalancer")
                .then_some(())
        })
        .await;
    });
}
