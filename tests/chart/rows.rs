//! Values, and what must be true of what they render.

use serde_json::{Value, json};

use crate::helm::{Objects, RELEASE};

/// One set of values.
pub(crate) struct Row {
    /// What it is about.
    pub(crate) what: &'static str,
    /// The values.
    pub(crate) values: Value,
    /// What must be true.
    pub(crate) facts: fn(&Objects),
}

/// The table.
pub(crate) fn table() -> Vec<Row> {
    let row = |what, mut values: Value, facts| {
        // Somewhere events must be kept.
        if values.get("natsServer").is_none() && values.get("nats").is_none() {
            values["nats"] = json!({"servers": ["nats://nats.nats.svc:4222"]});
        }
        Row { what, values, facts }
    };
    vec![
        row("two operators and a lease", json!({}), |o| {
            let deployment = &o.get("Deployment", RELEASE)["spec"];
            assert_eq!(deployment["replicas"], 2);
            assert_eq!(deployment["strategy"]["type"], "RollingUpdate");
            for flag in [
                "--lease-name=sluice",
                "--lease-duration=15s",
                "--renew-deadline=10s",
                "--retry-period=2s",
            ] {
                assert!(o.arguments().contains(&flag), "{flag}: {:?}", o.arguments());
            }
            let environment = &o.operator()["containers"][0]["env"];
            for (name, path) in
                [("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace")]
            {
                let variable =
                    environment.as_array().unwrap().iter().find(|v| v["name"] == name).unwrap();
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
        }),
        row("only what is asked for", json!({}), |o| {
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
        }),
        row("one operator", json!({"replicaCount": 1}), |o| {
            assert_eq!(o.get("Deployment", RELEASE)["spec"]["replicas"], 1);
            assert_eq!(
                o.names("PodDisruptionBudget"),
                [""; 0],
                "a budget of one pod would only block node drains"
            );
        }),
        row("a release of another name", json!({"fullnameOverride": "sse"}), |o| {
            for kind in ["Deployment", "Service", "ServiceAccount"] {
                assert_eq!(o.names(kind), ["sse"]);
            }
            assert!(o.arguments().contains(&"--lease-name=sse"));
            assert_eq!(o.names("ClusterRoleBinding"), ["sluice-system-sse"]);
        }),
        row("all namespaces", json!({}), |o| {
            let binding = o.get("ClusterRoleBinding", "sluice-system-sluice");
            assert_eq!(
                binding["roleRef"],
                json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sluice-system-sluice"})
            );
            assert_eq!(
                binding["subjects"],
                json!([{"kind": "ServiceAccount", "name": "sluice", "namespace": "sluice-system"}])
            );
            assert_eq!(o.names("RoleBinding"), ["sluice-leader"]);
        }),
        row("some namespaces", json!({"watchNamespaces": ["shop"]}), |o| {
            assert_eq!(o.names("ClusterRoleBinding"), [""; 0], "no rights beyond the namespaces");
            assert_eq!(
                o.get("RoleBinding", "sluice-system-sluice")["metadata"]["namespace"],
                "shop"
            );
            assert!(o.arguments().contains(&"--namespace=shop"));
            let check =
                o.get("Pod", "sluice-check")["spec"]["containers"][0]["args"].as_array().unwrap();
            assert!(check.contains(&json!("--namespace=shop")));
        }),
        row(
            "a NATS of one's own, secured",
            json!({
                "nats": {
                    "servers": ["tls://a.example:4222", "tls://b.example:4222"],
                    "credentialsSecret": {"name": "creds", "key": "op.creds"}, "caSecret": {"name": "ca"}, "clientCertSecret": {"name": "cert"},
                    "jetStreamDomain": "hub",
                },
                "dataplane": {
                    "natsServers": ["tls://c.example:4222"],
                    "credentialsSecretName": "pods", "caSecretName": "podsca", "clientCertSecretName": "podscert",
                },
            }),
            |o| {
                let nats = [
                    "--nats=tls://a.example:4222,tls://b.example:4222",
                    "--nats-credentials=/var/run/sluice/credentials/op.creds",
                    "--nats-ca=/var/run/sluice/ca/ca.crt",
                    "--nats-client-cert=/var/run/sluice/client/tls.crt",
                    "--nats-client-key=/var/run/sluice/client/tls.key",
                    "--jetstream-domain=hub",
                ];
                let pods = [
                    "--dataplane-nats=tls://c.example:4222",
                    "--dataplane-credentials-secret=pods",
                    "--dataplane-ca-secret=podsca",
                    "--dataplane-client-cert-secret=podscert",
                ];
                for flag in nats.iter().chain(&pods) {
                    assert!(o.arguments().contains(flag), "{flag}: {:?}", o.arguments());
                }
                let check = o.get("Pod", "sluice-check");
                for flag in nats {
                    assert!(
                        check["spec"]["containers"][0]["args"]
                            .as_array()
                            .unwrap()
                            .contains(&json!(flag)),
                        "{flag}: {check:#}"
                    );
                }
                for pod in [o.operator(), &check["spec"]] {
                    let secrets: Vec<_> = pod["volumes"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|v| &v["secret"]["secretName"])
                        .collect();
                    assert_eq!(secrets, ["creds", "ca", "cert"]);
                    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
                    assert!(
                        mounts.len() == 3 && mounts.iter().all(|m| m["readOnly"] == true),
                        "{mounts:?}"
                    );
                }
            },
        ),
        row("a NATS for evaluation", json!({"natsServer": {"enabled": true}}), |o| {
            assert!(
                o.arguments().contains(&"--nats=nats://sluice-nats.sluice-system.svc:4222"),
                "{:?}",
                o.arguments()
            );
            let set = &o.get("StatefulSet", "sluice-nats")["spec"];
            assert_eq!(
                set["persistentVolumeClaimRetentionPolicy"],
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
            );
            let claim = &set["volumeClaimTemplates"][0]["spec"];
            assert_eq!(
                claim,
                &json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}})
            );
            let container = &o.nats()["containers"][0];
            assert_eq!(container["image"], "nats:2.15.1");
            assert!(
                container["volumeMounts"]
                    .as_array()
                    .unwrap()
                    .contains(&json!({"name": "data", "mountPath": "/data"}))
            );
            assert_eq!(o.nats()["automountServiceAccountToken"], false);
            for (probe, path) in
                [("startupProbe", "/healthz"), ("readinessProbe", "/healthz?js-server-only=true")]
            {
                assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "monitor"}));
            }
            let selector = &o.get("Service", "sluice-nats")["spec"]["selector"];
            assert_eq!(&set["template"]["metadata"]["labels"], selector);
            assert_ne!(&o.get("Service", RELEASE)["spec"]["selector"], selector);
        }),
        row(
            "a NATS for evaluation, on a class, of another image",
            json!({"natsServer": {
                "enabled": true,
                "image": {"repository": "registry.example/nats", "tag": "2.12-scratch"},
                "persistence": {"storageClass": "fast", "size": "50Gi"},
                "maxFileStore": "40GB",
            }}),
            |o| {
                assert_eq!(
                    o.nats()["containers"][0]["image"],
                    "registry.example/nats:2.12-scratch"
                );
                let claim =
                    &o.get("StatefulSet", "sluice-nats")["spec"]["volumeClaimTemplates"][0]["spec"];
                assert_eq!(
                    (&claim["storageClassName"], &claim["resources"]["requests"]["storage"]),
                    (&json!("fast"), &json!("50Gi"))
                );
                let conf = o.get("ConfigMap", "sluice-nats")["data"]["nats.conf"].as_str().unwrap();
                assert!(conf.contains("max_file_store: 40GB"), "{conf}");
            },
        ),
        row(
            "a NATS for evaluation, that forgets",
            json!({"natsServer": {"enabled": true, "persistence": {"enabled": false}}}),
            |o| {
                assert!(
                    o.get("StatefulSet", "sluice-nats")["spec"]
                        .get("volumeClaimTemplates")
                        .is_none()
                );
                assert!(
                    o.nats()["volumes"]
                        .as_array()
                        .unwrap()
                        .contains(&json!({"name": "data", "emptyDir": {}}))
                );
            },
        ),
        row(
            "one's own servers go before the one for evaluation",
            json!({"natsServer": {"enabled": true}, "nats": {"servers": ["nats://mine:4222"]}}),
            |o| assert!(o.arguments().contains(&"--nats=nats://mine:4222")),
        ),
        row("without the definition", json!({"crds": {"enabled": false}}), |o| {
            assert_eq!(o.names("CustomResourceDefinition"), [""; 0]);
        }),
        row("no rights for others", json!({"rbac": {"aggregate": false}}), |o| {
            assert_eq!(o.names("ClusterRole"), ["sluice-system-sluice"]);
        }),
        row(
            "metrics and who may read them",
            json!({
                "podMonitor": {"enabled": true, "interval": "10s", "labels": {"release": "prometheus"}},
                "networkPolicy": {"enabled": true, "from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]},
            }),
            |o| {
                let monitor = o.get("PodMonitor", RELEASE);
                assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
                assert_eq!(
                    monitor["spec"]["podMetricsEndpoints"],
                    json!([{"port": "admin", "path": "/metrics", "interval": "10s"}])
                );
                let policy = &o.get("NetworkPolicy", RELEASE)["spec"];
                assert_eq!(policy["policyTypes"], json!(["Ingress"]));
                assert_eq!(
                    policy["ingress"][0]["from"],
                    json!([{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"team": "ops"}}}])
                );
                let pods = &o.get("Deployment", RELEASE)["spec"]["selector"]["matchLabels"];
                assert_eq!(
                    (
                        &policy["podSelector"]["matchLabels"],
                        &monitor["spec"]["selector"]["matchLabels"]
                    ),
                    (pods, pods)
                );
            },
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
                "logFormat": "text", "logLevel": "debug", "resync": "10s", "cluster": {"name": "east", "domain": "c.local"},
                "serviceAccount": {"name": "robot", "annotations": {"f/g": "h"}},
            }),
            |o| {
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
            },
        ),
    ]
}
