//! The node stand-in itself: what the other tests believe of it.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Event, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    kube_api::KubeApi,
    nats::{NatsServer, Streams, names, stream_config},
};

use crate::fixture::LIMIT;

fn config(generation: i64) -> String {
    let names = names("orders");
    json!({
        "version": 1, "name": "orders", "namespace": "test", "generation": generation,
        "stream": {"name": names.stream, "subjects": [names.subject], "topicPrefix": names.prefix},
    })
    .to_string()
}

fn deployment(nats: &str) -> Deployment {
    let probe = json!({"httpGet": {"path": "/readyz", "port": "admin"}, "periodSeconds": 1, "failureThreshold": 1});
    let container = json!({
        "name": "dataplane", "image": "any:1",
        "args": ["--config-dir=/etc/sluice/channels", "--listen=0.0.0.0:8080", "--admin=0.0.0.0:9090", format!("--nats={nats}"), "--drain-delay=0s", "--drain-period=1s"],
        "env": [{"name": "SLUICE_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9090}],
        "readinessProbe": probe,
        "volumeMounts": [{"name": "config", "mountPath": "/etc/sluice/channels"}],
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    serde_json::from_value(json!({
        "metadata": {"name": "d"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {
                "containers": [container], "terminationGracePeriodSeconds": 10,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "config", "configMap": {"name": "c"}}],
            }},
        },
    }))
    .unwrap()
}

async fn waits_for_config(pods: &Api<Pod>, events: &Api<Event>) -> Option<()> {
    let pod = pods.list(&Default::default()).await.unwrap().items.into_iter().next()?;
    let state = pod.status?.container_statuses?.into_iter().next()?.state?.waiting?;
    let events = events.list(&Default::default()).await.unwrap().items;
    let mut told = events.iter().filter_map(|event| event.message.as_deref());
    let is_told = told.any(|message| message.contains("configmap \"c\" not found"));
    (state.reason? == "ContainerCreating" && is_told).then_some(())
}

#[test]
fn it_runs_pods_as_a_node_does() {
    sluice_tests::run(Duration::from_secs(120), async {
        let (kube_api, nats) = (KubeApi::shared(), NatsServer::start().await);
        let (namespace, client) = (kube_api.namespace("node").await, kube_api.client().await);
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let pods: Api<Pod> = Api::namespaced(client, &namespace);
        Streams::connect(&nats.url()).await.create(stream_config(&names("orders"))).await;
        let ready = async |wanted: i32| {
            let deployment = deployments.get("d").await.unwrap();
            (deployment.status.and_then(|s| s.ready_replicas).unwrap_or_default() == wanted)
                .then_some(())
        };

        deployments.create(&PostParams::default(), &deployment(&nats.url())).await.unwrap();
        // Without its ConfigMap no container starts.
        let waiting = async || waits_for_config(&pods, &events).await;
        eventually("the pod waits for its ConfigMap", LIMIT, waiting).await;
        let map = serde_json::from_value(
            json!({"metadata": {"name": "c"}, "data": {"orders.json": config(1)}}),
        )
        .unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
        eventually("both pods are ready", LIMIT, async || ready(2).await).await;

        let list = pods.list(&Default::default()).await.unwrap().items;
        let ips: Vec<String> = list.iter().filter_map(|p| p.status.clone()?.pod_ip).collect();
        assert!(ips.len() == 2 && ips[0] != ips[1], "{ips:?}");
        let generation = async |ip: &str| {
            let answer: Value = reqwest::get(format!("http://{ip}:9090/readyz"))
                .await
                .unwrap()
                .json()
                .await
                .unwrap();
            answer["channels"][0]["generation"].as_i64()
        };
        assert_eq!(generation(&ips[0]).await, Some(1));

        // Files follow the ConfigMap, unless held back.
        kube_api.node().freeze_files(&namespace, true);
        let change = json!({"data": {"orders.json": config(2)}});
        maps.patch("c", &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(generation(&ips[0]).await, Some(1));
        kube_api.node().freeze_files(&namespace, false);
        eventually("the change is served", LIMIT, async || {
            (generation(&ips[1]).await == Some(2)).then_some(())
        })
        .await;

        // The readiness probe decides; a process that dies comes back.
        kube_api.node().each_process(&namespace, |_, process| process.pause());
        eventually("hung pods are not ready", LIMIT, async || ready(0).await).await;
        kube_api.node().each_process(&namespace, |_, process| process.resume());
        eventually("they are ready again", LIMIT, async || ready(2).await).await;
        kube_api.node().each_process(&namespace, |_, process| process.kill());
        eventually("dead pods are not ready", LIMIT, async || ready(0).await).await;
        eventually("they are started again", LIMIT, async || ready(2).await).await;
        assert_eq!(kube_api.node().starts(&namespace), 4);

        // A deleted pod ends in order, and its object goes once the process has ended.
        let name = list[0].name_any();
        let mut running = 0;
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        eventually("the pod's object has gone", LIMIT, async || {
            pods.get_opt(&name).await.unwrap().is_none().then_some(())
        })
        .await;
        kube_api.node().each_process(&namespace, |pod, _| running += usize::from(pod == name));
        assert_eq!(running, 0, "its process has ended");
        kube_api.node().forget(&namespace);
        kube_api.node().each_process(&namespace, |pod, _| panic!("{pod} still runs"));
    });
}
