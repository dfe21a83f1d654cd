//! What the chart renders.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    kube_api::KubeApi,
    process::{Process, free_port, tool},
};
use tempfile::TempDir;

use crate::{
    helm::{Objects, Said, admin_conf, chart, helm, pod, read, template},
    rows::table,
};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn lint_finds_nothing() {
    for row in table() {
        let said = helm(&["lint", "--strict", chart().to_str().unwrap()], &row.values, None);
        assert!(
            said.ok && !said.out.contains("[WARNING]") && !said.out.contains("[ERROR]"),
            "{}: {}{}",
            row.what,
            said.out,
            said.err
        );
    }
}

#[test]
fn values_lead_to_what_they_say() {
    for row in table() {
        println!("{}", row.what);
        (row.facts)(&Objects::rendered(&row.values));
    }
}

/// The strictest of the Pod Security Standards, field by field; the API server judges the same
/// elsewhere.
#[test]
fn every_pod_is_restricted() {
    let mut seen = 0;
    for row in table() {
        let objects = Objects::rendered(&row.values);
        for pod in objects.all().filter_map(pod) {
            seen += 1;
            let of_pod = &pod["securityContext"];
            assert_eq!(
                (&of_pod["runAsNonRoot"], &of_pod["runAsUser"], &of_pod["runAsGroup"]),
                (&json!(true), &json!(65532), &json!(65532))
            );
            assert_eq!(of_pod["seccompProfile"], json!({"type": "RuntimeDefault"}));
            for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.get(forbidden).is_none());
            }
            for container in pod["containers"].as_array().unwrap() {
                let security = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
                assert_eq!(container["securityContext"], security, "{}", row.what);
                assert!(
                    !container["resources"]["requests"].is_null()
                        && !container["resources"]["limits"]["memory"].is_null()
                );
            }
        }
    }
    assert!(seen > 30, "only {seen} pods");
}

#[test]
fn every_object_is_labelled_and_in_the_release_s_namespace() {
    const CLUSTER_WIDE: [&str; 5] = [
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    for row in table() {
        for object in Objects::rendered(&row.values).all() {
            let (kind, metadata) = (object["kind"].as_str().unwrap(), &object["metadata"]);
            let what = format!("{}: {kind} {}", row.what, metadata["name"]);
            for label in [
                "app.kubernetes.io/name",
                "app.kubernetes.io/instance",
                "app.kubernetes.io/component",
                "helm.sh/chart",
            ] {
                assert!(metadata["labels"][label].is_string(), "{what} has no label {label}");
            }
            match metadata["namespace"].as_str() {
                None => assert!(CLUSTER_WIDE.contains(&kind), "{what} has no namespace"),
                Some(namespace) => assert!(
                    ["sluice-system", "shop"].contains(&namespace),
                    "{what} is in {namespace}"
                ),
            }
        }
    }
}

#[test]
fn the_operator_s_rights_are_those_of_the_files() {
    let rules = |file: &str| serde_saphyr::from_str::<Value>(&read(file)).unwrap();
    for row in table() {
        let objects = Objects::rendered(&row.values);
        let own = objects
            .names("ClusterRole")
            .into_iter()
            .find(|name| !name.ends_with("-view") && !name.ends_with("-edit"))
            .unwrap();
        assert_eq!(
            objects.get("ClusterRole", own)["rules"],
            rules("charts/sluice/files/rbac-rules.yaml"),
            "{}",
            row.what
        );
        let leader = objects.names("Role");
        assert_eq!(leader.len(), 1);
        assert_eq!(
            objects.get("Role", leader[0])["rules"],
            rules("charts/sluice/files/leader-rules.yaml"),
            "{}",
            row.what
        );
    }
}

#[test]
fn the_definition_is_the_generated_one_and_is_kept() {
    let objects = Objects::rendered(&json!({"natsServer": {"enabled": true}}));
    let installed = objects.get("CustomResourceDefinition", "ssechannels.sluice.dev");
    let generated: Value = serde_saphyr::from_str(&read("crds/ssechannels.yaml")).unwrap();
    // Helm writes 1 where the generator writes 1.0.
    assert_eq!(plain(&installed["spec"]), plain(&generated["spec"]));
    assert_eq!(installed["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
}

/// The same with every number as a floating-point number.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(members) => Value::Object(
            members.iter().map(|(name, member)| (name.clone(), plain(member))).collect(),
        ),
        other => other.clone(),
    }
}

#[test]
fn versions_are_the_workspace_s() {
    let version = env!("CARGO_PKG_VERSION");
    let chart: Value = serde_saphyr::from_str(&read("charts/sluice/Chart.yaml")).unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    let objects = Objects::rendered(&json!({"natsServer": {"enabled": true}}));
    assert_eq!(objects.operator()["containers"][0]["image"], format!("sluice-operator:{version}"));
    assert!(
        objects
            .arguments()
            .contains(&format!("--dataplane-image=sluice-dataplane:{version}").as_str())
    );
    let file = read("Dockerfile");
    for stage in ["operator", "dataplane"] {
        // An argument of the build, as the head of the file shows: it is not written there again.
        let label = format!(
            "ARG VERSION\nLABEL org.opencontainers.image.title=\"sluice-{stage}\" org.opencontainers.image.version=\"$VERSION\""
        );
        assert!(file.contains(&label), "Dockerfile: {label}");
    }
}

#[test]
fn the_notes_say_what_to_do_next() {
    let kubeconfig = admin_conf(KubeApi::shared());
    let notes = |mut values: Value| {
        // Another test has the definition of its own release on this API server.
        values["crds"] = json!({"enabled": false});
        let path = chart();
        let said = helm(
            &["install", "sse", path.to_str().unwrap(), "-n", "ops", "--dry-run=client"],
            &values,
            Some(&kubeconfig),
        )
        .expect("a dry run");
        said.split_once("\nNOTES:\n").expect("notes").1.to_owned()
    };
    let text = notes(json!({"natsServer": {"enabled": true}}));
    for command in [
        "kubectl rollout status -n ops deploy/sse-sluice",
        "helm test sse -n ops --logs",
        "kubectl wait -n default --for=condition=Ready sse/orders",
        "kubectl port-forward -n default svc/orders-sse 8080:80",
    ] {
        assert!(text.contains(command), "{command}:\n{text}");
    }
    assert!(text.contains("for evaluation") && !text.contains("WARNING"), "{text}");
    let forgets =
        notes(json!({"natsServer": {"enabled": true, "persistence": {"enabled": false}}}));
    assert!(forgets.contains("ALL EVENTS ARE LOST"), "{forgets}");
    let own =
        notes(json!({"nats": {"servers": ["nats://mine:4222"]}, "watchNamespaces": ["shop"]}));
    assert!(
        own.contains("nats://mine:4222")
            && !own.contains("for evaluation")
            && own.contains("-n shop"),
        "{own}"
    );
}

#[test]
fn without_a_nats_it_says_how_to_name_one() {
    let said = template(&json!({}));
    assert!(
        !said.ok
            && said.err.contains("--set natsServer.enabled=true")
            && said.err.contains("nats.servers"),
        "{said:?}"
    );
}

#[test]
fn nats_server_takes_its_configuration() {
    let files = TempDir::new().unwrap();
    let mut seen = 0;
    for row in table() {
        let objects = Objects::rendered(&row.values);
        let Some(map) = objects.find("ConfigMap", "sluice-nats") else { continue };
        seen += 1;
        let file = files.path().join("nats.conf");
        std::fs::write(&file, map["data"]["nats.conf"].as_str().unwrap()).unwrap();
        let said = Said::of(Command::new(tool("nats-server")).arg("-t").arg("-c").arg(&file));
        assert!(said.ok && said.err.contains("is valid"), "{}: {said:?}", row.what);
    }
    assert!(seen >= 3, "only {seen}");
}

#[test]
fn nats_server_listens_on_every_address_of_both_families() {
    let objects = Objects::rendered(&json!({"natsServer": {"enabled": true}}));
    let config = objects.get("ConfigMap", "sluice-nats")["data"]["nats.conf"].as_str().unwrap();
    let files = TempDir::new().unwrap();
    let (port, monitor) = (free_port(), free_port());
    let config = config
        .replacen(":4222", &format!(":{port}"), 1)
        .replacen(":8222", &format!(":{monitor}"), 1)
        .replacen("/data", files.path().join("data").to_str().unwrap(), 1);
    let file = files.path().join("nats.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(tool("nats-server"));
    command.arg("--config").arg(&file);
    let _server = Process::spawn("nats-server", command);
    sluice_tests::run(LIMIT, async {
        for host in ["127.0.0.1", "::1"] {
            for port in [port, monitor] {
                eventually("nats-server listens", LIMIT, async || {
                    tokio::net::TcpStream::connect((host, port)).await.ok()
                })
                .await;
            }
        }
    });
}

#[test]
fn releases_of_different_namespaces_have_nothing_in_common() {
    let values = json!({"nats": {"servers": ["nats://nats:4222"]}});
    let of = |release: &str, namespace: &str| {
        let path = chart();
        let arguments = ["template", release, path.to_str().unwrap(), "-n", namespace];
        Objects::parsed(&helm(&arguments, &values, None).expect("helm template"))
    };
    let one = of("sluice", "a-b");
    for (release, namespace) in [("b-sluice", "a"), ("sluice", "a"), ("b-sluice", "a-b")] {
        let other = of(release, namespace);
        for kind in ["ClusterRole", "ClusterRoleBinding"] {
            for name in one.names(kind) {
                assert!(other.find(kind, name).is_none(), "{kind} {name} is {namespace}'s too");
            }
        }
    }
}

#[test]
fn listeners_and_services_are_for_both_families() {
    for row in table() {
        let objects = Objects::rendered(&row.values);
        for name in objects.names("Service") {
            let policy = &objects.get("Service", name)["spec"]["ipFamilyPolicy"];
            assert_eq!(policy, "PreferDualStack", "{}: {name}", row.what);
        }
        assert!(objects.arguments().contains(&"--admin=[::]:9091"), "{:?}", objects.arguments());
    }
}
