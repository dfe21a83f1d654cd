//! The release goes and comes back; channels, pods and events stay.

use std::{sync::OnceLock, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use sluice_tests::eventually;

use crate::{
    bed::{Bed, LIMIT, LIVE, RELEASE, SHOP, SYSTEM, uids},
    first_steps::install_release,
    kubectl::{helm, kubectl, kubectl_with},
};

/// Between these there was no release: Helm takes the rights away before the operators have ended.
pub(crate) static GONE: OnceLock<(Timestamp, Timestamp)> = OnceLock::new();

/// `helm uninstall` keeps the definition, the channels, their pods and the events; `helm install` picks them up again.
pub(crate) async fn channels_and_events_outlive_the_release(bed: &'static Bed) {
    let pods = uids(&bed.until_pods(LIVE, 3).await);
    let before = bed.until_ready(SHOP, "orders").await;
    let events = history(bed).await;
    assert!(events.len() >= 2, "{events:?}");

    let from = Timestamp::now();
    helm(&["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "120s"]).await;
    // The pod of `helm test` has ended long ago and is kept for its log.
    kubectl(&["wait", "--for=delete", "pod", "--selector=app.kubernetes.io/component!=check", "-n", SYSTEM, "--timeout=90s"]).await;
    kubectl(&["get", "crd/ssechannels.sluice.dev"]).await;
    assert_eq!(uids(&bed.channel_pods(LIVE).await), pods, "the pods go on without an operator");
    GONE.get_or_init(|| (from, Timestamp::now()));
    // NATS went with the release, but not its volume; and what the pods have in memory is still served.
    kubectl(&["get", "pvc", "-n", SYSTEM]).await;

    install_release(bed).await;
    let after = bed.until_ready(SHOP, "orders").await;
    assert_eq!(before["status"]["stream"]["epoch"], after["status"]["stream"]["epoch"], "it is the same stream");
    assert_eq!(uids(&bed.until_pods(LIVE, 3).await), pods, "and the same pods");
    assert_eq!(history(bed).await, events, "with the same events");

    // It works as on the first day.
    let said = kubectl_with(
        &["apply", "-n", SHOP, "-f", "-"],
        "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: late}\nspec: {workload: {replicas: 1}}\n",
    );
    assert!(said.await.ok);
    bed.until_ready(SHOP, "late").await;
    kubectl(&["delete", "sse/late", "-n", SHOP, "--timeout=60s"]).await;
}

/// All events of `orders` that are kept, as a client reads them. A pod whose store is away says so by 503, and the client
/// comes again.
async fn history(bed: &Bed) -> Vec<(String, String)> {
    let address = bed.address(SHOP, "orders-sse", "http").await;
    let url = format!("http://{address}/channels/orders?from=earliest&limit=1000");
    let page: Value = eventually("a page of history", LIMIT, async || {
        let request = reqwest::Client::new().get(&url).header("Accept", "application/json").timeout(Duration::from_secs(20));
        let answer = request.send().await.ok()?;
        let status = answer.status();
        let body = answer.text().await.ok()?;
        if status == 503 {
            println!("503: {body}");
            return None;
        }
        assert_eq!(status, 200, "{body}");
        Some(serde_json::from_str(&body).expect("a page is JSON"))
    })
    .await;
    assert!(page["gap"].is_null(), "{page:#}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    page["events"].as_array().map(|events| events.iter().map(|e| (text(&e["id"]), text(&e["data"]))).collect()).unwrap_or_default()
}
