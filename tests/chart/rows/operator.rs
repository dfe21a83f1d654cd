//! The operator's own pods: how many, under which name, with what.

use serde_json::json;

use super::{Row, row};
use crate::helm::{Objects, RELEASE};

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("two operators and a lease", json!({}), two_operators_and_a_lease),
        row("only what is asked for", json!({}), only_what_is_asked_for),
        row("one operator", json!({"replicaCount": 1}), one_operator),
        row(
            "a release of another name",
            json!({"fullnameOverride": "sse"}),
            a_release_of_another_name,
        ),
        row(
            "everything about the operator's pods",
            json!({
                "image": {"repository": "registry.example/op", "tag": "1", "pullPolicy": "Always"},
                "imagePullSecrets": [{"name": "pull"}],
                "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
                "terminationGracePeriodSeconds": 45,
                "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"d": "e"}}}],
                "affinity": {"nodeAffinity": {}},
                "podAnnotations": {"a/b": "c"}, "podLabels": {"d": "e"},
                "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "k", "operator": "Exists"}],
                "priorityClassName": "high", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
                "logFormat": "text", "logLevel": "debug", "resync": "10s", "concurrency": 48, "maxRolling": 3, "cluster": {"name": "east", "domain": "c.local"},
                "serviceAccount": {"name": "robot", "annotations": {"f/g": "h"}},
            }),
            everything_about_the_pods,
        ),
    ]
}

fn two_operators_and_a_lease(o: &Objects) {
    let deployment = &o.get("Deployment", RELEASE)["spec"];
    assert_eq!(deployment["replicas"], 2);
    assert_eq!(deployment["strategy"]["type"], "RollingUpdate");
    for flag in
        ["--lease-name=sluice", "--lease-duration=15s", "--renew-deadline=10s", "--retry-period=2s"]
    {
        assert!(o.arguments().contains(&flag), "{flag}: {:?}", o.arguments());
    }
    let environment = &o.operator()["containers"][0]["env"];
    for (name, path) in [("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace")] {
        let variable = environment.as_array().unwrap().iter().find(|v| v["name"] == name).unwrap();
        assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"], path);
    }
    assert_eq!(o.get("PodDisruptionBudget", RELEASE)["spec"]["maxUnavailable"], 1);
    assert_eq!(o.get("Role", "sluice-leader")["metadata"]["namespace"], "sluice-system");
    let spread = o.operator()["topologySpreadConstraints"].as_array().unwrap();
    assert!(
        spread.len() == 1 && spread[0]["topologyKey"] == "kubernetes.io/hostname",
        "{spread:?}"
    );
    assert_eq!(spread[0]["whenUnsatisfiable"], "ScheduleAnyway");
    let apart = &o.operator()["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        [0];
    assert_eq!(apart["podAffinityTerm"]["topologyKey"], "topology.kubernetes.io/zone");
}

fn only_what_is_asked_for(o: &Objects) {
    for kind in [
        "StatefulSet",
        "NetworkPolicy",
        "PodMonitor",
        "ConfigMap",
        "PersistentVolumeClaim",
        "Secret",
    ] {
        assert_eq!(o.names(kind), [""; 0], "{kind}");
    }
    assert_eq!(o.arguments().iter().filter(|a| a.starts_with("--namespace")).count(), 0);
    assert!(o.operator().get("volumes").is_none());
}

fn one_operator(o: &Objects) {
    assert_eq!(o.get("Deployment", RELEASE)["spec"]["replicas"], 1);
    assert_eq!(
        o.names("PodDisruptionBudget"),
        [""; 0],
        "a budget of one pod would only block node drains"
    );
}

fn a_release_of_another_name(o: &Objects) {
    for kind in ["Deployment", "Service", "ServiceAccount"] {
        assert_eq!(o.names(kind), ["sse"]);
    }
    assert!(o.arguments().contains(&"--lease-name=sse"));
    assert_eq!(o.names("ClusterRoleBinding"), ["sluice-system.sse"]);
}

fn everything_about_the_pods(o: &Objects) {
    let (pod, metadata) =
        (o.operator(), &o.get("Deployment", RELEASE)["spec"]["template"]["metadata"]);
    let container = &pod["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!("registry.example/op:1"), &json!("Always"))
    );
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"memory": "1Gi"}})
    );
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(pod["terminationGracePeriodSeconds"], 45);
    assert_eq!(pod["topologySpreadConstraints"][0]["topologyKey"], "rack");
    assert_eq!(pod["topologySpreadConstraints"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&pod["priorityClassName"], &pod["nodeSelector"]["disk"]),
        (&json!("high"), &json!("ssd"))
    );
    assert_eq!(
        (&pod["affinity"], &pod["tolerations"][0]["key"]),
        (&json!({"nodeAffinity": {}}), &json!("k"))
    );
    assert_eq!(
        (&metadata["annotations"]["a/b"], &metadata["labels"]["d"]),
        (&json!("c"), &json!("e"))
    );
    assert!(
        container["env"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "HTTPS_PROXY", "value": "http://proxy"}))
    );
    assert!(
        container["env"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "RUST_LOG", "value": "debug"}))
    );
    for flag in [
        "--log-format=text",
        "--resync=10s",
        "--concurrency=48",
        "--max-rolling=3",
        "--cluster=east",
        "--cluster-domain=c.local",
    ] {
        assert!(o.arguments().contains(&flag), "{flag}");
    }
    assert_eq!(
        (&pod["serviceAccountName"], o.names("ServiceAccount")),
        (&json!("robot"), vec!["robot"])
    );
    assert_eq!(o.get("ServiceAccount", "robot")["metadata"]["annotations"]["f/g"], "h");
    assert_eq!(o.get("Pod", "sluice-check")["spec"]["serviceAccountName"], "robot");
}
