//! What reaches the pods, and what reads their metrics.

use serde_json::json;

use super::{Row, row};
use crate::helm::{Objects, RELEASE};

pub(super) fn rows() -> Vec<Row> {
    vec![row(
        "metrics and who may read them",
        json!({
            "podMonitor": {"enabled": true, "interval": "10s", "labels": {"release": "prometheus"}},
            "networkPolicy": {"enabled": true, "from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]},
        }),
        metrics_and_their_readers,
    )]
}

fn metrics_and_their_readers(o: &Objects) {
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
        (&policy["podSelector"]["matchLabels"], &monitor["spec"]["selector"]["matchLabels"]),
        (pods, pods)
    );
}
