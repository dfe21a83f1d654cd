//! What the README says: install, apply, wait, curl.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use sluice_channel::{ChannelName, name};
use sluice_tests::nats::Streams;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::{
    bed::{Bed, LIMIT, RELEASE, SHOP, SYSTEM},
    kubectl::{helm, kubectl},
};

/// Settings of the chart that differ from its defaults: images of a registry that is not there are on the nodes already.
pub(crate) const SETTINGS: &[&str] = &["--set", "natsServer.enabled=true"];

/// `helm install` on a cluster that has nothing but nodes, DNS and a class of volumes.
pub(crate) async fn install(bed: &'static Bed) {
    install_release(bed).await;
    kubectl(&["wait", "--for=condition=Established", "crd/ssechannels.sluice.dev", "--timeout=30s"]).await;
    bed.until_operators_are_ready().await;
    let tested = helm(&["test", RELEASE, "--namespace", SYSTEM, "--timeout", "60s"]).await;
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");
}

/// The same for a release that was there before.
pub(crate) async fn install_release(_bed: &'static Bed) {
    let chart = Bed::root().join("charts/sluice").display().to_string();
    let mut arguments = vec!["install", RELEASE, &chart, "--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "180s"];
    arguments.extend(SETTINGS);
    helm(&arguments).await;
    // All that is in these namespaces must be admitted by the strictest of the Pod Security Standards, the release included.
    kubectl(&["label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted", "--overwrite"]).await;
}

/// Apply an example, wait for it, subscribe with curl through the Service; what is published over NATS arrives.
pub(crate) async fn first_steps(bed: &'static Bed) {
    kubectl(&["create", "namespace", SHOP]).await;
    kubectl(&["label", "namespace", SHOP, "pod-security.kubernetes.io/enforce=restricted"]).await;
    let example = Bed::root().join("examples/orders.yaml").display().to_string();
    kubectl(&["apply", "-n", SHOP, "-f", &example]).await;
    let started = Instant::now();
    kubectl(&["wait", "--for=condition=Ready", "sse/orders", "-n", SHOP, "--timeout=120s"]).await;
    println!("Ready {:.1} s after apply", started.elapsed().as_secs_f64());
    let listed = kubectl(&["get", "sse", "-n", SHOP]).await;
    assert!(listed.lines().nth(1).is_some_and(|line| line.contains("True")), "{listed}");

    let address = bed.address(SHOP, "orders-sse", "http").await;
    let mut curl = Command::new("curl")
        .args(["-sN", "--max-time", "60", &format!("http://{address}/channels/orders?from=earliest")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("curl is there: it is what the README uses");
    let mut lines = BufReader::new(curl.stdout.take().expect("its output")).lines();
    let streams = Streams::connect(&bed.nats_url().await).await;
    let prefix = name::default_topic_prefix(SHOP, &ChannelName::new("orders").expect("a name"));
    let published = streams.publish(&prefix, "created", r#"{"order":1}"#).await;
    let mut seen = Vec::new();
    let arrives = async {
        while let Some(line) = lines.next_line().await.expect("curl's output") {
            let is_it = line == r#"data: {"order":1}"#;
            seen.push(line);
            if is_it {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), arrives).await.ok();
    assert!(seen.iter().any(|line| line == r#"data: {"order":1}"#), "{seen:#?}");
    assert!(seen.iter().any(|line| line.starts_with("id: ") && line.ends_with(&format!("-{}", published.sequence))), "{seen:#?}");

    // The other way in: over HTTP, through the Service.
    let answer = reqwest::Client::new().post(format!("http://{address}/channels/orders/created")).body(r#"{"order":2}"#).timeout(LIMIT);
    assert_eq!(answer.send().await.expect("an answer").status(), 201);
}
