//! The number of pods follows the number of subscribers.

use std::time::{Duration, Instant};

use sluice_tests::{
    clients::{Connection, Request},
    eventually,
};

use crate::{
    fixture::{Fixture, LIMIT, SHOP, is_ready},
    kubectl::{kubectl, kubectl_with},
};

/// Streams opened at once: with 25 for each pod, three pods are needed.
const STREAMS: usize = 60;
const MANIFEST: &str = "
apiVersion: sluice.dev/v1alpha1
kind: SseChannel
metadata: {name: crowd}
spec:
  stream: {maxBytes: 64Mi}
  delivery: {heartbeat: 3s}
  workload: {terminationGracePeriodSeconds: 10, autoscaling: {minReplicas: 1, maxReplicas: 4, connectionsPerPod: 25}}
";

/// One pod; sixty subscribers come through the Service; three pods. When they leave, the pods stay
/// for a while.
pub(crate) async fn pods_follow_connections(fixture: &'static Fixture) {
    let said = kubectl_with(&["apply", "-n", SHOP, "-f", "-"], MANIFEST).await;
    assert!(said.ok, "{}", said.err);
    fixture.until_pods("crowd", 1).await;
    let address = fixture.address(SHOP, "crowd-sse", "http").await;
    let started = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let stream =
            Connection::open(address, &Request::get("/channels/crowd")).await.expect("a stream");
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    eventually("three ready pods", LIMIT, async || {
        let pods = fixture.channel_pods("crowd").await;
        (pods.len() == 3 && pods.iter().all(is_ready)).then_some(())
    })
    .await;
    println!(
        "three pods {:.1} s after {STREAMS} subscribers came",
        started.elapsed().as_secs_f64()
    );
    drop(streams);
    // Longer than the pods are counted apart: they may come back.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(fixture.channel_pods("crowd").await.len(), 3, "none is taken away in a hurry");
    fixture.until_ready(SHOP, "crowd").await;
    kubectl(&["delete", "sse/crowd", "-n", SHOP, "--timeout=60s"]).await;
}
