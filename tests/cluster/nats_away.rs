//! NATS is away for a while, on purpose.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use sluice_tests::eventually;

use crate::{
    chaos::case,
    fixture::{Fixture, LIMIT, LIVE, SHOP, SYSTEM, current_condition, is_ready, restarts, uids},
    kubectl::kubectl,
};

/// Pods that lose NATS stay ready and are not restarted; one that starts without NATS is not ready,
/// and the channel says why. When NATS is back, everything goes on where it stopped.
pub(crate) async fn nats_is_away(fixture: &'static Fixture) {
    let before = fixture.until_pods(LIVE, 3).await;
    let outcome = AssertUnwindSafe(away(fixture, &before)).catch_unwind().await;
    // The cases after this one need NATS, whatever came of it.
    kubectl(&["scale", "statefulset/sluice-nats", "-n", SYSTEM, "--replicas=1"]).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn away(fixture: &Fixture, before: &[Pod]) {
    let restarts_before: i32 = before.iter().map(restarts).sum();
    let doomed = before[0].name_any();
    case(fixture, "NATS is away, a pod starts meanwhile", async {
        kubectl(&["scale", "statefulset/sluice-nats", "-n", SYSTEM, "--replicas=0"]).await;
        kubectl(&["wait", "--for=delete", "pod/sluice-nats-0", "-n", SYSTEM, "--timeout=90s"])
            .await;
        kubectl(&["delete", "pod", &doomed, "-n", SHOP, "--wait=false"]).await;
        let channel = eventually("the channel says why it is not ready", LIMIT, async || {
            let channel = fixture.channel(SHOP, LIVE).await;
            let stream = current_condition(&channel, "StreamReady")?;
            let workload = current_condition(&channel, "WorkloadAvailable")?;
            let names_nats = workload["message"].as_str().unwrap_or("").contains("NATS");
            let says = stream["reason"] == "NatsUnreachable"
                && workload["reason"] == "PodsNotReady"
                && names_nats;
            says.then(|| channel.clone())
        });
        let channel = channel.await;
        for kind in ["Ready", "StreamReady", "WorkloadAvailable"] {
            println!("{kind}: {}", current_condition(&channel, kind).expect("the condition"));
        }
        let pods = fixture.channel_pods(LIVE).await;
        let (old, new): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| before.iter().any(|b| b.uid() == pod.uid()));
        assert_eq!(old.len(), 2);
        assert!(
            old.iter().all(is_ready),
            "pods that lose NATS stay ready: they have what they have"
        );
        assert!(
            !new.is_empty() && !new.iter().any(is_ready),
            "a pod that has never seen NATS has nothing to serve"
        );
        // Longer than any liveness probe needs to lose patience (3 × 10 s).
        tokio::time::sleep(std::time::Duration::from_secs(35)).await;
        let pods = fixture.channel_pods(LIVE).await;
        assert_eq!(
            pods.iter().map(restarts).sum::<i32>(),
            restarts_before - restarts(&before[0]),
            "no pod is restarted for it"
        );
        assert!(pods.iter().filter(|pod| is_ready(pod)).count() == 2, "two are ready, one is not");
        kubectl(&["scale", "statefulset/sluice-nats", "-n", SYSTEM, "--replicas=1"]).await;
        let after = fixture.until_pods(LIVE, 3).await;
        assert!(
            old.iter().all(|pod| uids(&after).contains(&pod.uid().unwrap_or_default())),
            "the old pods are the same ones"
        );
    })
    .await;
}
