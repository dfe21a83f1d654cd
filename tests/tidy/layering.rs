//! What may depend on what. What is *absent* from a crate is as much its design as what is there.

use std::process::Command;

use crate::tree;

/// Names of all crates that `package` is built from, itself left out.
fn dependencies(package: &str) -> Vec<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "tree",
            "--locked",
            "--prefix",
            "none",
            "--edges",
            "normal,build",
            "--format",
            "{p}",
            "--package",
            package,
        ])
        .current_dir(tree::root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let names: Vec<String> =
        text.lines().skip(1).filter_map(|l| l.split(' ').next()).map(str::to_owned).collect();
    assert!(names.iter().any(|n| n == "serde"), "{package} should be seen to use serde: {names:?}");
    names
}

fn assert_absent(package: &str, absent: &[&str], why: &str) {
    let all = dependencies(package);
    let is_absent = |name: &str| {
        absent
            .iter()
            .any(|a| name == *a || a.strip_suffix('*').is_some_and(|head| name.starts_with(head)))
    };
    let mut findings: Vec<_> = all
        .into_iter()
        .filter(|name| is_absent(name))
        .map(|name| format!("{package} → {name}"))
        .collect();
    findings.dedup();
    tree::report(why, &findings);
}

#[test]
fn the_agreement_between_operator_and_pods_needs_no_runtime() {
    assert_absent(
        "sluice-channel",
        &[
            "tokio*",
            "kube*",
            "k8s-openapi",
            "async-nats",
            "hyper*",
            "axum*",
            "sluice-operator",
            "sluice-dataplane",
        ],
        "`channel` is values and rules only: no async runtime, no I/O, no Kubernetes, none of the other crates.",
    );
}

#[test]
fn the_data_plane_does_not_know_kubernetes() {
    assert_absent(
        "sluice-dataplane",
        &["kube*", "k8s-openapi", "sluice-operator"],
        "`dataplane` reads files and NATS; it must run where there is no cluster.",
    );
}

#[test]
fn the_operator_does_not_know_the_data_plane() {
    assert_absent(
        "sluice-operator",
        &["sluice-dataplane"],
        "What both must know belongs to `channel`.",
    );
}

#[test]
fn one_crypto_provider() {
    for package in ["sluice-dataplane", "sluice-operator"] {
        assert_absent(
            package,
            &["ring", "openssl", "openssl-sys", "native-tls"],
            "TLS and keys are rustls with aws-lc-rs only.",
        );
    }
}

/// Modules that must not do something themselves: `(path prefix, words that would do it, why)`.
const ABSENCES: &[(&str, &[&str], &str)] = &[
    (
        "dataplane/src/log",
        &["tokio::net", "tokio::fs", "std::fs", "std::net", "async_nats", "hyper::", "axum::"],
        "the log reads only through `Source`, so that its rules can be tested without a server",
    ),
    (
        "dataplane/src/frame",
        &["tokio::", "std::fs", "std::net", "async_nats", "hyper::", "axum::"],
        "a frame is made from an event by computation alone",
    ),
    (
        "operator/src/controller/desired",
        &[
            "kube::Client",
            "Client::",
            "&Client",
            "async_nats",
            "tokio::",
            "SystemTime",
            "Timestamp::now",
            "Api::",
        ],
        "`desired` is a function of the spec: no client, no clock, so a snapshot test shows all it does",
    ),
    (
        "operator/src/controller/validate",
        &["kube::Client", "async_nats", "tokio::", "Api::"],
        "validation is a function of the spec",
    ),
];

#[test]
fn pure_modules_stay_pure() {
    let product = tree::product();
    let mut findings = Vec::new();
    for (prefix, words, why) in ABSENCES {
        let covered: Vec<_> = product.iter().filter(|f| f.path.starts_with(prefix)).collect();
        if covered.is_empty() {
            findings.push(format!("{prefix}: no such module; did it move?"));
        }
        for file in covered {
            for (number, line) in file.product_code() {
                for word in words.iter().filter(|w| line.contains(**w)) {
                    findings.push(format!("{}:{number}: `{word}` ({why})", file.path));
                }
            }
        }
    }
    tree::report("A module that is meant to be pure does I/O.", &findings);
}
