//! Namespaces that share a NATS account are kept apart: each way in which a namespace's editor
//! could reach what is another's is tried on the API server, where the chart's policy refuses it,
//! and on the operator without the policy.

mod grants;
mod policy;
mod quota;

use std::{path::Path, process::Command};

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use sluice_tests::{
    docs::block,
    eventually,
    process::{tool, workspace_program},
};

use crate::{
    channel,
    fixture::{Fixture, LIMIT, TEST_LIMIT},
};

/// Runs a test on an operator that keeps namespaces apart.
fn test(hint: &str, bounds: &[&str], body: impl AsyncFnOnce(&mut Fixture)) {
    sluice_tests::run(TEST_LIMIT, async {
        let mut fixture = Fixture::new(hint).await;
        isolate(&mut fixture, bounds).await;
        body(&mut fixture).await;
        fixture.finish();
    });
}

async fn isolate(fixture: &mut Fixture, bounds: &[&str]) {
    fixture.operator_arguments.push("--tenancy=Isolated".to_owned());
    fixture.operator_arguments.extend(bounds.iter().map(|&bound| bound.to_owned()));
    fixture.start_operator().await;
}

/// Sets annotations of the test's Namespace, or takes those away that are null.
async fn annotate(fixture: &Fixture, annotations: Value) {
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(fixture.client.clone());
    let annotations: serde_json::Map<_, _> = annotations
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (format!("tenancy.sluice.dev/{key}"), value.clone()))
        .collect();
    let patch = json!({"metadata": {"annotations": annotations}});
    namespaces
        .patch(fixture.namespace(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

/// What the condition `Accepted` says.
fn refused(object: &Value) -> String {
    channel::condition(object, "Accepted").unwrap()["message"].as_str().unwrap().to_owned()
}

/// A channel that one namespace's editor may want so as to reach what is another's, and what the
/// refusal says. `NS` stands for the test's namespace.
pub(crate) fn attacks() -> Vec<(&'static str, Value, &'static str)> {
    let subjects = |subjects: &[&str]| json!({"stream": {"subjects": subjects}});
    const GRANT: &str = "nor is granted to the namespace: set the annotation tenancy.sluice.dev/subjects of Namespace NS to grant it";
    const NEVER: &str = "may take events of other namespaces, which no annotation grants";
    vec![
        ("reads requests of others", subjects(&["payments.>"]), GRANT),
        ("reads one subject of others", subjects(&["payments.charge"]), GRANT),
        ("hides it behind its own", subjects(&["sse.NS.a.>", "payments.>"]), GRANT),
        ("takes another namespace's channel", subjects(&["sse.other.orders.>"]), NEVER),
        ("takes every namespace's channel of a name", subjects(&["sse.*.orders.>"]), NEVER),
        ("takes all of them", subjects(&["sse.>"]), NEVER),
        ("has a name that begins as its own", subjects(&["sse.NS2.orders.>"]), NEVER),
        ("takes the word alone", subjects(&["sse"]), NEVER),
        ("takes its own word without a channel", subjects(&["sse.NS"]), NEVER),
        (
            "names another's stream",
            json!({"stream": {"name": "ORDERS"}}),
            "nor is granted to the namespace: set the annotation tenancy.sluice.dev/adopt of Namespace NS to grant it",
        ),
        (
            "names a default name of another namespace",
            json!({"stream": {"name": "sse_other_orders_5f0b1c2d"}}),
            "is the name of another namespace's stream, which may not be adopted",
        ),
        (
            "has a stream name that begins as its own",
            json!({"stream": {"name": "sse_NS2_orders"}}),
            "is the name of another namespace's stream",
        ),
        (
            "adopts another's stream and destroys it",
            json!({"stream": {"name": "ORDERS", "adoption": "IfUnowned", "deletionPolicy": "Delete"}}),
            "set the annotation tenancy.sluice.dev/adopt of Namespace NS to grant it",
        ),
        (
            "adopts by a default name",
            json!({"stream": {"adoption": "IfUnowned"}}),
            "may be adopted, and spec.stream.name \"\" is not among them",
        ),
        (
            "reserves the store",
            json!({"stream": {"maxBytes": "10Ti"}}),
            "spec.stream.maxBytes: 10Ti is more than 10Gi, the most that a channel of the namespace may have: set the annotation tenancy.sluice.dev/max-bytes of Namespace NS to grant it",
        ),
    ]
}

/// `text` or a spec for the test's namespace.
pub(crate) fn here(fixture: &Fixture, text: &str) -> String {
    text.replace("NS", fixture.namespace())
}

fn spec_here(fixture: &Fixture, spec: &Value) -> Value {
    serde_json::from_str(&here(fixture, &spec.to_string())).unwrap()
}

/// Streams of the account.
async fn streams(fixture: &Fixture) -> Vec<String> {
    use futures::TryStreamExt;
    let streams = fixture.streams().await;
    let mut names: Vec<String> = streams.context().stream_names().try_collect().await.unwrap();
    names.sort();
    names
}

#[test]
fn every_attack_is_refused_by_the_operator_alone() {
    test("attacks", &[], async |fixture| {
        // Something that could be reached.
        let foreign = fixture.streams().await;
        let mut config = sluice_tests::nats::stream_config(&sluice_tests::nats::names("unused"));
        (config.name, config.subjects) = ("ORDERS".to_owned(), vec!["orders.>".to_owned()]);
        foreign.create(config).await;
        for (i, (_, spec, _)) in attacks().into_iter().enumerate() {
            fixture.create(&format!("c{i}"), spec_here(fixture, &spec)).await;
        }
        for (i, (what, _, says)) in attacks().into_iter().enumerate() {
            let name = format!("c{i}");
            let object = fixture.condition(&name, "Accepted", "False", "NotGranted").await;
            let (said, says) = (refused(&object), here(fixture, says));
            assert!(said.contains(&says), "{what}: {said} does not say {says}");
            let ready = channel::current_condition(&object, "Ready").unwrap();
            assert_eq!(
                (&ready["status"], &ready["reason"]),
                (&json!("False"), &json!("NotGranted"))
            );
            assert_eq!(channel::condition(&object, "Stalled").unwrap()["status"], "True", "{what}");
            assert!(fixture.child(channel::DEPLOYMENT, &name).await.is_none(), "{what}");
        }
        assert_eq!(streams(fixture).await, ["ORDERS"]);
        let (ok, said) = fixture.kubectl(&["delete", "sse", "--all", "--timeout=30s"]);
        assert!(ok, "{said}");
        assert_eq!(streams(fixture).await, ["ORDERS"], "a channel that is deleted takes nothing");
    });
}

#[test]
fn a_namespace_has_what_is_its_own() {
    test("own", &[], async |fixture| {
        let namespace = fixture.namespace().to_owned();
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let own = json!({"workload": {"replicas": 1}, "stream": {"name": format!("sse_{namespace}_mine"),
            "subjects": [format!("sse.{namespace}.mine.*.>")], "topicPrefix": format!("sse.{namespace}."), "maxBytes": "10Gi"}});
        fixture.create("mine", own).await;
        for name in ["orders", "mine"] {
            let object = fixture.ready(name).await;
            let accepted = channel::current_condition(&object, "Accepted").unwrap();
            assert_eq!(
                (&accepted["status"], &accepted["reason"]),
                (&json!("True"), &json!("Accepted"))
            );
        }
    });
}

/// `sluice-operator tenancy check` as the page has it, for the test's namespace and with further
/// arguments: whether all fit, and what it says.
fn tenancy_check(fixture: &Fixture, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(workspace_program("sluice-operator"));
    let page = block("operator", "tenancy-check").command();
    let words: Vec<_> = page.split_whitespace().skip(1).collect();
    assert_eq!(words[..2], ["tenancy", "check"], "{page}");
    // An argument is given once.
    let is_new = |word: &&&str| {
        let key = word.split('=').next().unwrap();
        !arguments.iter().any(|argument| argument.starts_with(key))
    };
    command.args(words.iter().filter(is_new));
    let kubectl = fixture.kube_api.kubectl();
    let kubeconfig = kubectl.get_envs().find(|(name, _)| *name == "KUBECONFIG").unwrap().1.unwrap();
    command.args(["--namespace", fixture.namespace()]).args(arguments);
    let output = command.env("KUBECONFIG", Path::new(kubeconfig)).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn before_the_upgrade_the_channels_that_would_not_fit_are_listed() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new("tenancy-check").await;
        fixture.create("fine", json!({})).await;
        let (ok, said) = tenancy_check(&fixture, &[]);
        assert!(ok && said.contains("all 1 channels fit"), "{said}");

        annotate(&fixture, json!({"subjects": "known.>"})).await;
        fixture.create("telemetry", json!({"stream": {"subjects": ["telemetry.>"]}})).await;
        fixture
            .create("all", json!({"stream": {"name": "ORDERS", "subjects": ["sse.other.>"], "maxBytes": "20Gi"}}))
            .await;
        fixture.create("third", json!({"stream": {"replicas": 3, "maxBytes": "10Gi"}})).await;
        let (ok, said) = tenancy_check(&fixture, &["--tenancy-quota=30Gi"]);
        assert!(!ok && said.contains("3 of 4 channels would not fit"), "{said}");
        let line = |name: &str| {
            let head = format!("{}/{name}: ", fixture.namespace());
            said.lines().find(|line| line.starts_with(&head)).unwrap_or_else(|| panic!("{said}"))
        };
        let annotated = |name: &str, annotations: &str| {
            let command = format!(
                "kubectl annotate --overwrite namespace {} {annotations}",
                fixture.namespace()
            );
            assert!(line(name).ends_with(&command), "{}: {annotations}", line(name));
        };
        annotated("telemetry", "tenancy.sluice.dev/subjects='known.>,telemetry.>'");
        assert!(line("all").contains("may take events of other namespaces"), "{said}");
        annotated("all", "tenancy.sluice.dev/adopt='ORDERS' tenancy.sluice.dev/max-bytes='20Gi'");
        annotated("third", "tenancy.sluice.dev/quota='52Gi'");
        // What it says helps.
        annotate(
            &fixture,
            json!({"subjects": "known.>,telemetry.>", "quota": "52Gi", "adopt": "ORDERS", "max-bytes": "20Gi"}),
        )
        .await;
        let (ok, said) = tenancy_check(&fixture, &["--tenancy-quota=30Gi"]);
        assert!(!ok && said.contains("1 of 4 channels would not fit"), "{said}");
        // A grant by the release is one, too.
        annotate(&fixture, json!({"quota": "53Gi"})).await;
        let grant = format!("--tenancy-grant={}/subjects=payments.>", fixture.namespace());
        fixture.create("payments", json!({"stream": {"subjects": ["payments.>"]}})).await;
        assert!(tenancy_check(&fixture, &[]).1.contains("2 of 5"));
        assert!(tenancy_check(&fixture, &[&grant]).1.contains("1 of 5"));
    });
}

/// The objects of the chart that hold namespaces apart, for the test's namespace, on the API
/// server.
async fn install_policy(fixture: &Fixture, values: &[&str]) -> String {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sluice");
    let mut helm = Command::new(tool("helm"));
    helm.args(["template", "sluice", chart.to_str().unwrap(), "--set", "natsServer.enabled=true"])
        .args(["--show-only", "templates/tenancy.yaml"])
        // One release for each test.
        .args(["--namespace", fixture.namespace()])
        .arg(format!("--set=watchNamespaces={{{}}}", fixture.namespace()))
        .args(values);
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = String::from_utf8(output.stdout).unwrap();
    let (ok, said) = fixture.kubectl_with(&["apply", "-f", "-"], &rendered);
    assert!(ok, "{said}");
    eventually("the policy is in force", LIMIT, async || {
        let spec = json!({"stream": {"subjects": ["policy.probe"]}});
        let dry = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"name": "probe"}, "spec": spec});
        let (ok, said) =
            fixture.kubectl_with(&["create", "--dry-run=server", "-f", "-"], &dry.to_string());
        (!ok && said.contains("ValidatingAdmissionPolicy")).then_some(())
    })
    .await;
    rendered
}
