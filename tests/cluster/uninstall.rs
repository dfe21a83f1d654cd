//! The release goes and comes back; channels, pods and events stay.

use std::{sync::OnceLock, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use sluice_tests::{docs::block, eventually};

use crate::{
    first_steps::install_release,
    fixture::{Fixture, LIMIT, LIVE, SHOP, SYSTEM, uids},
    kubectl::{kubectl, kubectl_with, try_kubectl},
    pages::typed,
};

/// Between these there was no release: Helm takes the rights away before the operators have ended.
pub(crate) static GONE: OnceLock<(Timestamp, Timestamp)> = OnceLock::new();

/// `helm uninstall` keeps the definition, the channels, their pods and the events; `helm install`
/// picks them up again.
pub(crate) async fn channels_and_events_outlive_the_release(fixture: &'static Fixture) {
    let pods = uids(&fixture.until_pods(LIVE, 3).await);
    let before = fixture.until_ready(SHOP, "orders").await;
    let events = history(fixture).await;
    assert!(events.len() >= 2, "{events:?}");

    let from = Timestamp::now();
    typed(fixture, &block("cluster", "uninstall").command()).await;
    // The pod of `helm test` has ended long ago and is kept for its log.
    kubectl(&[
        "wait",
        "--for=delete",
        "pod",
        "--selector=app.kubernetes.io/component!=check",
        "-n",
        SYSTEM,
        "--timeout=90s",
    ])
    .await;
    kubectl(&["get", "crd/ssechannels.sluice.dev"]).await;
    assert_eq!(uids(&fixture.channel_pods(LIVE).await), pods, "the pods go on without an operator");
    GONE.get_or_init(|| (from, Timestamp::now()));
    // NATS went with the release, but not its volume; and what the pods have in memory is still
    // served.
    kubectl(&["get", "pvc", "-n", SYSTEM]).await;

    // With a NATS of one's own, as far as that goes without one.
    let dry =
        typed(fixture, &format!("{} --dry-run=server", block("cluster", "own-nats").command()))
            .await;
    assert!(
        dry.contains("nats://nats.nats.svc:4222") && !dry.contains("kind: StatefulSet"),
        "{dry}"
    );

    install_release(fixture).await;
    let after = fixture.until_ready(SHOP, "orders").await;
    assert_eq!(
        before["status"]["stream"]["epoch"], after["status"]["stream"]["epoch"],
        "it is the same stream"
    );
    assert_eq!(uids(&fixture.until_pods(LIVE, 3).await), pods, "and the same pods");
    assert_eq!(history(fixture).await, events, "with the same events");

    // It works as on the first day.
    let said = kubectl_with(
        &["apply", "-n", SHOP, "-f", "-"],
        "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: late}\nspec: {workload: {replicas: 1}}\n",
    );
    assert!(said.await.ok);
    fixture.until_ready(SHOP, "late").await;
    kubectl(&["delete", "sse/late", "-n", SHOP, "--timeout=60s"]).await;
}

/// "To remove everything": no channel, workload, definition, release or volume is left.
pub(crate) async fn nothing_is_left(fixture: &'static Fixture) {
    for command in block("cluster", "remove-everything").commands() {
        typed(fixture, &command).await;
    }
    assert!(!try_kubectl(&["get", "sse", "-A"]).await.ok, "the definition is gone");
    eventually("all that belonged to channels and release has gone", LIMIT, async || {
        let kinds =
            "deployment,statefulset,service,configmap,pdb,persistentvolumeclaim,serviceaccount";
        let left = |namespace: &'static str, labels: &'static str| async move {
            kubectl(&["get", kinds, "-n", namespace, "-l", labels, "-o", "name"]).await
        };
        let (shop, system) = (
            left(SHOP, "sluice.dev/channel").await,
            left(SYSTEM, "app.kubernetes.io/part-of=sluice").await,
        );
        (shop.is_empty() && system.is_empty()).then_some(())
    })
    .await;
}

/// All events of `orders` that are kept, as a client reads them. A pod whose store is away says so
/// by 503, and the client comes again.
async fn history(fixture: &Fixture) -> Vec<(String, String)> {
    let address = fixture.address(SHOP, "orders-sse", "http").await;
    let url = format!("http://{address}/channels/orders?from=earliest&limit=1000");
    let page: Value = eventually("a page of history", LIMIT, async || {
        let request = reqwest::Client::new()
            .get(&url)
            .header("Accept", "application/json")
            .timeout(Duration::from_secs(20));
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
    page["events"]
        .as_array()
        .map(|events| events.iter().map(|e| (text(&e["id"]), text(&e["data"]))).collect())
        .unwrap_or_default()
}
