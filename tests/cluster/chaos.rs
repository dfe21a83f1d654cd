//! Things go wrong while 200 subscribers read through the Service. After each case every one of them must have every
//! event once.

use std::{collections::HashSet, time::Duration};

use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{Api, ResourceExt, api::EvictParams};
use sluice_channel::{ChannelName, name};
use sluice_tests::eventually;

use crate::{
    bed::{Bed, LIMIT, LIVE, RELEASE, SHOP, SYSTEM, node_of, restarts, uids},
    first_steps::SETTINGS,
    fleet::Fleet,
    kubectl::{helm, kubectl, kubectl_with},
    nodes, operators,
};

/// Short times, so that the cases are short: clients notice a dead node after three heartbeats, and a rollout takes a
/// grace period for each pod.
const MANIFEST: &str = "
apiVersion: sluice.dev/v1alpha1
kind: SseChannel
metadata: {name: live}
spec:
  stream: {maxBytes: 256Mi}
  delivery: {heartbeat: 3s, retry: {min: 500ms, max: 2s}}
  workload: {replicas: 3, terminationGracePeriodSeconds: 20}
";

/// Runs one case with the subscribers connected, and notes its row.
pub(crate) async fn case<T>(bed: &Bed, name: &str, body: impl Future<Output = T>) -> T {
    let mut fleet = bed.fleet.lock().await;
    let fleet = fleet.as_mut().expect("subscribers are connected");
    let (row, result) = fleet.case(name, body).await;
    bed.note(row);
    result
}

/// 200 subscribers on three pods on three nodes.
pub(crate) async fn subscribers_connect(bed: &'static Bed) {
    let said = kubectl_with(&["apply", "-n", SHOP, "-f", "-"], MANIFEST).await;
    assert!(said.ok, "{}", said.err);
    let pods = bed.until_pods(LIVE, 3).await;
    let spread: HashSet<&str> = pods.iter().map(node_of).collect();
    println!("pods on {spread:?}");
    let address = bed.address(SHOP, "live-sse", "http").await;
    let prefix = name::default_topic_prefix(SHOP, &ChannelName::new(LIVE).expect("a name"));
    let fleet = Fleet::start(address, "/channels/live", &bed.nats_url().await, prefix).await;
    *bed.fleet.lock().await = Some(fleet);
    case(bed, "nothing happens", tokio::time::sleep(Duration::from_secs(5))).await;
}

/// A node is gone without a word; its pods come up elsewhere, and then it is back.
pub(crate) async fn a_node_loses_power(bed: &'static Bed) {
    // The tests reach Services through the first node, and a single NATS server cannot be in two places.
    let nats = bed.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await;
    let spared = ["node-1", nats.first().map_or("", node_of)];
    let pods = bed.until_pods(LIVE, 3).await;
    let victim = pods.iter().map(node_of).find(|node| !spared.contains(node)).expect("a pod on a node that can be spared").to_owned();
    case(bed, "a node loses power", async {
        nodes::power_off(&victim).await;
        nodes::until_node(bed, &victim, false).await;
        eventually("three ready pods on the other nodes", LIMIT, async || {
            let pods = bed.channel_pods(LIVE).await;
            let elsewhere = pods.iter().filter(|pod| crate::bed::is_ready(pod) && node_of(pod) != victim);
            (elsewhere.count() == 3).then_some(())
        })
        .await;
    })
    .await;
    case(bed, "the node is back", async {
        nodes::power_on(&victim).await;
        nodes::until_node(bed, &victim, true).await;
        bed.until_pods(LIVE, 3).await;
    })
    .await;
}

/// `kubectl delete pod`.
pub(crate) async fn a_pod_is_deleted(bed: &'static Bed) {
    let victim = bed.until_pods(LIVE, 3).await.remove(0).name_any();
    case(bed, "a pod is deleted", async {
        kubectl(&["delete", "pod", &victim, "-n", SHOP, "--timeout=90s"]).await;
        bed.until_pods(LIVE, 3).await;
    })
    .await;
}

/// The program of a pod gets SIGKILL; the kubelet starts it again.
pub(crate) async fn a_pod_is_killed(bed: &'static Bed) {
    let victim = bed.until_pods(LIVE, 3).await.remove(0);
    let before = restarts(&victim);
    case(bed, "a pod's program gets SIGKILL", async {
        nodes::kill(&victim, "sluice-dataplane");
        eventually("its program was started again", LIMIT, async || {
            let pods = bed.channel_pods(LIVE).await;
            pods.iter().any(|pod| pod.uid() == victim.uid() && restarts(pod) > before).then_some(())
        })
        .await;
        bed.until_pods(LIVE, 3).await;
    })
    .await;
}

/// `kubectl rollout restart`: all pods are replaced, one after the other.
pub(crate) async fn the_channel_is_restarted(bed: &'static Bed) {
    let before = uids(&bed.until_pods(LIVE, 3).await);
    case(bed, "kubectl rollout restart", async {
        kubectl(&["rollout", "restart", "deployment/live-sse", "-n", SHOP]).await;
        kubectl(&["rollout", "status", "deployment/live-sse", "-n", SHOP, "--timeout=200s"]).await;
        let after = uids(&bed.until_pods(LIVE, 3).await);
        assert!(before.iter().all(|uid| !after.contains(uid)), "a pod was not replaced: {before:?}, {after:?}");
    })
    .await;
}

/// `kubectl scale` of the channel.
pub(crate) async fn it_is_scaled_from_one_to_four_to_one(bed: &'static Bed) {
    for (name, replicas) in [("scaled 3 → 1", 1), ("scaled 1 → 4", 4), ("scaled 4 → 1", 1), ("scaled 1 → 3", 3)] {
        case(bed, name, async {
            kubectl(&["scale", "sse/live", "-n", SHOP, &format!("--replicas={replicas}")]).await;
            bed.until_pods(LIVE, replicas).await;
        })
        .await;
    }
}

/// The eviction API, which `kubectl drain` uses: one pod may go at a time, the second is refused with 429.
pub(crate) async fn evictions_respect_the_budget(bed: &'static Bed) {
    let mut victims = bed.until_pods(LIVE, 3).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(bed.client().await, SHOP);
    eventually("the budget allows one disruption", LIMIT, async || {
        let budgets = budgets.list(&kube::api::ListParams::default().labels("sluice.dev/channel=live")).await.ok()?;
        (budgets.items.first()?.status.as_ref()?.disruptions_allowed == 1).then_some(())
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(bed.client().await, SHOP);
    let (first, second) = (victims.remove(0).name_any(), victims.remove(0).name_any());
    case(bed, "a pod is evicted", async {
        pods.evict(&first, &EvictParams::default()).await.expect("the first may go");
        let refused = pods.evict(&second, &EvictParams::default()).await.expect_err("the second must wait");
        let is_429 = matches!(&refused, kube::Error::Api(status) if status.code == 429);
        assert!(is_429, "{refused}");
        eventually("the evicted pod is gone", LIMIT, async || pods.get_opt(&first).await.ok().filter(Option::is_none).map(drop)).await;
        bed.until_pods(LIVE, 3).await;
    })
    .await;
}

/// The operator that acts gets SIGKILL; the other takes over. Subscribers notice nothing.
pub(crate) async fn the_operators_leader_is_killed(bed: &'static Bed) {
    let before = uids(&bed.until_pods(LIVE, 3).await);
    bed.until_operators_are_ready().await;
    let leader = operators::leader(bed).await;
    case(bed, "the operator's leader is killed", async {
        nodes::kill(&leader, "sluice-operator");
        // Something for the next leader to do.
        kubectl(&["patch", "sse/live", "-n", SHOP, "--type=merge", "-p", r#"{"spec":{"delivery":{"writeTimeout":"11s"}}}"#]).await;
        bed.until_ready(SHOP, LIVE).await;
        bed.until_operators_are_ready().await;
    })
    .await;
    assert_eq!(before, uids(&bed.until_pods(LIVE, 3).await), "the channel's pods are the same ones");
}

/// `helm upgrade` to another setting of the operator: its pods are replaced, the channels' are not.
pub(crate) async fn the_operator_is_upgraded(bed: &'static Bed) {
    let pods_before = bed.until_pods(LIVE, 3).await;
    let operators_before = uids(&bed.until_operators_are_ready().await);
    let chart = Bed::root().join("charts/sluice").display().to_string();
    case(bed, "helm upgrade of the operator", async {
        let mut arguments = vec!["upgrade", RELEASE, &chart, "-n", SYSTEM, "--wait", "--timeout", "200s", "--set", "resync=20s"];
        arguments.extend(SETTINGS);
        helm(&arguments).await;
        let operators_after = uids(&bed.until_operators_are_ready().await);
        assert!(operators_before.iter().all(|uid| !operators_after.contains(uid)), "the operators were not replaced");
        // The new ones act.
        kubectl(&["patch", "sse/live", "-n", SHOP, "--type=merge", "-p", r#"{"spec":{"delivery":{"writeTimeout":"12s"}}}"#]).await;
        bed.until_ready(SHOP, LIVE).await;
    })
    .await;
    let pods_after = bed.until_pods(LIVE, 3).await;
    assert_eq!(uids(&pods_before), uids(&pods_after), "an upgrade of the operator restarts no channel");
    let count = |pods: &[Pod]| pods.iter().map(restarts).sum::<i32>();
    assert_eq!(count(&pods_before), count(&pods_after), "nor any of its containers");
}

/// nats-server gets SIGKILL and comes back with what it had on its disk.
pub(crate) async fn nats_is_killed(bed: &'static Bed) {
    let pods = bed.until_pods(LIVE, 3).await;
    let nats = bed.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await.remove(0);
    let before = restarts(&nats);
    case(bed, "nats-server gets SIGKILL", async {
        nodes::kill(&nats, "nats-server");
        eventually("nats-server was started again", LIMIT, async || {
            let nats = bed.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await;
            nats.first().filter(|pod| restarts(pod) > before && crate::bed::is_ready(pod)).map(drop)
        })
        .await;
        bed.until_ready(SHOP, LIVE).await;
    })
    .await;
    assert_eq!(uids(&pods), uids(&bed.until_pods(LIVE, 3).await), "the channel's pods are the same ones");
}

/// The end of the chaos.
pub(crate) async fn subscribers_leave(bed: &'static Bed) {
    let fleet = bed.fleet.lock().await.take().expect("subscribers are connected");
    println!("every subscriber has had every event up to {}", fleet.reckoned());
    drop(fleet);
    // The pods see that they are gone: their places are free again.
    for pod in bed.channel_pods(LIVE).await {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).expect("a pod has an address");
        eventually("no subscriber is left", LIMIT, async || {
            let open = reqwest::get(format!("http://{ip}:9090/debug/subscribers")).await.ok()?.json::<serde_json::Value>().await.ok()?;
            open.as_array().is_some_and(Vec::is_empty).then_some(())
        })
        .await;
    }
}
