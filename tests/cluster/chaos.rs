//! Things go wrong while 200 subscribers read through the Service. After each case every one of
//! them must have every event once.

use std::{collections::HashSet, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;
use sluice_channel::{ChannelName, name};
use sluice_tests::{docs::block, eventually};

use crate::{
    fixture::{Fixture, LIMIT, LIVE, SHOP, SYSTEM, node_of, restarts, uids},
    fleet::Fleet,
    kubectl::{Said, kubectl, kubectl_with},
    nodes, operators,
    pages::{typed, typed_for},
};

/// Short times, so that the cases are short: clients notice a dead node after three heartbeats, and
/// a rollout takes a grace period for each pod.
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
pub(crate) async fn case<T>(fixture: &Fixture, name: &str, body: impl Future<Output = T>) -> T {
    let mut fleet = fixture.fleet.lock().await;
    let fleet = fleet.as_mut().expect("subscribers are connected");
    let (row, result) = fleet.case(name, body).await;
    fixture.note(row);
    result
}

/// 200 subscribers on three pods on three nodes.
pub(crate) async fn subscribers_connect(fixture: &'static Fixture) {
    let said = kubectl_with(&["apply", "-n", SHOP, "-f", "-"], MANIFEST).await;
    assert!(said.ok, "{}", said.err);
    let pods = fixture.until_pods(LIVE, 3).await;
    let spread: HashSet<&str> = pods.iter().map(node_of).collect();
    println!("pods on {spread:?}");
    let address = fixture.address(SHOP, "live-sse", "http").await;
    let prefix = name::default_topic_prefix(SHOP, &ChannelName::new(LIVE).expect("a name"));
    let fleet = Fleet::start(address, "/channels/live", &fixture.nats_url().await, prefix).await;
    *fixture.fleet.lock().await = Some(fleet);
    case(fixture, "nothing happens", tokio::time::sleep(Duration::from_secs(5))).await;
}

/// A node is gone without a word; its pods come up elsewhere, and then it is back.
pub(crate) async fn a_node_loses_power(fixture: &'static Fixture) {
    // The tests reach Services through the first node, and a single NATS server cannot be in two
    // places.
    let nats = fixture.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await;
    let spared = ["node-1", nats.first().map_or("", node_of)];
    let victim = populated_node(fixture, &spared).await;
    case(fixture, "a node loses power", async {
        nodes::power_off(&victim).await;
        nodes::until_node(fixture, &victim, false).await;
        eventually("three ready pods on the other nodes", LIMIT, async || {
            let pods = fixture.channel_pods(LIVE).await;
            let elsewhere =
                pods.iter().filter(|pod| crate::fixture::is_ready(pod) && node_of(pod) != victim);
            (elsewhere.count() == 3).then_some(())
        })
        .await;
    })
    .await;
    case(fixture, "the node is back", async {
        nodes::power_on(&victim).await;
        nodes::until_node(fixture, &victim, true).await;
        fixture.until_pods(LIVE, 3).await;
    })
    .await;
}

/// A node that is none of `spared` and runs a pod of the channel. Spreading is a preference of the
/// scheduler and not a promise, so a pod may have to be moved there first.
async fn populated_node(fixture: &Fixture, spared: &[&str]) -> String {
    let nodes: Api<Node> = Api::all(fixture.client().await);
    let all = nodes.list(&ListParams::default()).await.expect("the nodes").items;
    let node = all
        .iter()
        .map(ResourceExt::name_any)
        .find(|name| !spared.contains(&name.as_str()))
        .expect("a node that can be spared");
    let pods = fixture.until_pods(LIVE, 3).await;
    if !pods.iter().any(|pod| node_of(pod) == node) {
        for other in spared {
            kubectl(&["cordon", other]).await;
        }
        kubectl(&["delete", "pod", &pods[0].name_any(), "-n", SHOP, "--timeout=90s"]).await;
        fixture.until_pods(LIVE, 3).await;
        for other in spared {
            kubectl(&["uncordon", other]).await;
        }
    }
    node
}

/// The pod of the channel with the most subscribers.
async fn busiest(fixture: &Fixture) -> Pod {
    let mut counted = Vec::new();
    for pod in fixture.until_pods(LIVE, 3).await {
        counted.push((subscribers(&pod).await.expect("a ready pod lists its subscribers"), pod));
    }
    let (count, pod) = counted.into_iter().max_by_key(|(count, _)| *count).expect("three pods");
    assert!(count > 0, "no pod has subscribers");
    println!("{} has {count} subscribers", pod.name_any());
    pod
}

/// How many subscribers a pod has, as its admin port says to everything in the cluster.
async fn subscribers(pod: &Pod) -> Option<usize> {
    let ip = pod.status.as_ref()?.pod_ip.clone()?;
    let request = reqwest::Client::new()
        .get(format!("http://{ip}:9090/readyz"))
        .timeout(Duration::from_secs(5));
    let open = request.send().await.ok()?.json::<Value>().await.ok()?;
    let channels = open["channels"].as_array()?;
    let counts = channels.iter().filter_map(|channel| channel["connections"].as_u64());
    usize::try_from(counts.sum::<u64>()).ok()
}

/// `kubectl delete pod`.
pub(crate) async fn a_pod_is_deleted(fixture: &'static Fixture) {
    let victim = busiest(fixture).await.name_any();
    case(fixture, "a pod is deleted", async {
        kubectl(&["delete", "pod", &victim, "-n", SHOP, "--timeout=90s"]).await;
        fixture.until_pods(LIVE, 3).await;
    })
    .await;
}

/// The program of a pod gets SIGKILL; the kubelet starts it again.
pub(crate) async fn a_pod_is_killed(fixture: &'static Fixture) {
    let victim = busiest(fixture).await;
    let before = restarts(&victim);
    case(fixture, "a pod's program gets SIGKILL", async {
        nodes::kill(&victim, "sluice-dataplane");
        eventually("its program was started again", LIMIT, async || {
            let pods = fixture.channel_pods(LIVE).await;
            pods.iter().any(|pod| pod.uid() == victim.uid() && restarts(pod) > before).then_some(())
        })
        .await;
        fixture.until_pods(LIVE, 3).await;
    })
    .await;
}

/// `kubectl rollout restart`: all pods are replaced, one after the other.
pub(crate) async fn the_channel_is_restarted(fixture: &'static Fixture) {
    let before = uids(&fixture.until_pods(LIVE, 3).await);
    case(fixture, "kubectl rollout restart", async {
        typed_for(fixture, &block("cluster", "restart"), LIVE).await;
        let after = uids(&fixture.until_pods(LIVE, 3).await);
        assert!(
            before.iter().all(|uid| !after.contains(uid)),
            "a pod was not replaced: {before:?}, {after:?}"
        );
    })
    .await;
}

/// `kubectl scale` of the channel.
pub(crate) async fn it_is_scaled_from_one_to_four_to_one(fixture: &'static Fixture) {
    for (name, replicas) in
        [("scaled 3 → 1", 1), ("scaled 1 → 4", 4), ("scaled 4 → 1", 1), ("scaled 1 → 3", 3)]
    {
        case(fixture, name, async {
            if replicas == 3 {
                typed_for(fixture, &block("cluster", "scale"), LIVE).await;
            } else {
                kubectl(&["scale", "sse/live", "-n", SHOP, &format!("--replicas={replicas}")])
                    .await;
            }
            fixture.until_pods(LIVE, replicas).await;
        })
        .await;
        if replicas > 1 {
            subscribers_move(fixture).await;
        }
    }
}

/// Every subscriber comes back anew, as when people reload their pages: so that new pods have some
/// too.
async fn subscribers_move(fixture: &Fixture) {
    if let Some(fleet) = fixture.fleet.lock().await.as_ref() {
        fleet.reconnect();
    }
    case(fixture, "all subscribers reconnect at once", async {}).await;
}

/// The eviction API, which `kubectl drain` uses: one pod may go at a time, the second is refused
/// with 429.
pub(crate) async fn evictions_respect_the_budget(fixture: &'static Fixture) {
    let mut victims = fixture.until_pods(LIVE, 3).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(fixture.client().await, SHOP);
    eventually("the budget allows one disruption", LIMIT, async || {
        let budgets =
            budgets.list(&ListParams::default().labels("sluice.dev/channel=live")).await.ok()?;
        (budgets.items.first()?.status.as_ref()?.disruptions_allowed == 1).then_some(())
    })
    .await;
    let (first, second) = (victims.remove(0).name_any(), victims.remove(0).name_any());
    let pods: Api<Pod> = Api::namespaced(fixture.client().await, SHOP);
    case(fixture, "a pod is evicted", async {
        let taken = evict(&first).await;
        assert!(taken.ok, "the first may go: {}", taken.err);
        let refused = evict(&second).await;
        let is_429 =
            refused.err.contains("TooManyRequests") && refused.err.contains("disruption budget");
        assert!(!refused.ok && is_429, "the second must wait: {}{}", refused.out, refused.err);
        eventually("the evicted pod is gone", LIMIT, async || {
            pods.get_opt(&first).await.ok().filter(Option::is_none).map(drop)
        })
        .await;
        fixture.until_pods(LIVE, 3).await;
    })
    .await;
}

/// `kubectl drain`: all pods of a node go, one of the channel at a time, and come up elsewhere.
pub(crate) async fn a_node_is_drained(fixture: &'static Fixture) {
    let nats = fixture.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await;
    let node = populated_node(
        fixture,
        &["node-1", "sluice-control-plane", nats.first().map_or("", node_of)],
    )
    .await;
    let [drain, uncordon] =
        <[String; 2]>::try_from(block("cluster", "drain").commands()).expect("two commands");
    case(fixture, "kubectl drain of a node", async {
        typed(fixture, &drain.replace("NODE", &node)).await;
        let pods = fixture.until_pods(LIVE, 3).await;
        assert!(
            pods.iter().all(|pod| node_of(pod) != node),
            "a pod is on {node} again: {:?}",
            pods.iter().map(node_of).collect::<Vec<_>>()
        );
        typed(fixture, &uncordon.replace("NODE", &node)).await;
    })
    .await;
}

/// Asks once, as it is: the client library would ask again until it is allowed.
async fn evict(pod: &str) -> Said {
    let eviction = format!(
        r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"{SHOP}"}}}}"#
    );
    kubectl_with(
        &["create", "--raw", &format!("/api/v1/namespaces/{SHOP}/pods/{pod}/eviction"), "-f", "-"],
        &eviction,
    )
    .await
}

/// The operator that acts gets SIGKILL; the other takes over. Subscribers notice nothing.
pub(crate) async fn the_operators_leader_is_killed(fixture: &'static Fixture) {
    let before = uids(&fixture.until_pods(LIVE, 3).await);
    fixture.until_operators_are_ready().await;
    let leader = operators::leader(fixture).await;
    case(fixture, "the operator's leader is killed", async {
        nodes::kill(&leader, "sluice-operator");
        // Something for the next leader to do.
        kubectl(&[
            "patch",
            "sse/live",
            "-n",
            SHOP,
            "--type=merge",
            "-p",
            r#"{"spec":{"delivery":{"writeTimeout":"11s"}}}"#,
        ])
        .await;
        fixture.until_ready(SHOP, LIVE).await;
        fixture.until_operators_are_ready().await;
    })
    .await;
    assert_eq!(
        before,
        uids(&fixture.until_pods(LIVE, 3).await),
        "the channel's pods are the same ones"
    );
}

/// `helm upgrade` to another setting of the operator: its pods are replaced, the channels' are not.
pub(crate) async fn the_operator_is_upgraded(fixture: &'static Fixture) {
    let pods_before = fixture.until_pods(LIVE, 3).await;
    let operators_before = uids(&fixture.until_operators_are_ready().await);
    case(fixture, "helm upgrade of the operator", async {
        typed(fixture, &block("cluster", "upgrade").command()).await;
        let operators_after = uids(&fixture.until_operators_are_ready().await);
        assert!(
            operators_before.iter().all(|uid| !operators_after.contains(uid)),
            "the operators were not replaced"
        );
        // The new ones act.
        kubectl(&[
            "patch",
            "sse/live",
            "-n",
            SHOP,
            "--type=merge",
            "-p",
            r#"{"spec":{"delivery":{"writeTimeout":"12s"}}}"#,
        ])
        .await;
        fixture.until_ready(SHOP, LIVE).await;
    })
    .await;
    let pods_after = fixture.until_pods(LIVE, 3).await;
    assert_eq!(
        uids(&pods_before),
        uids(&pods_after),
        "an upgrade of the operator restarts no channel"
    );
    let count = |pods: &[Pod]| pods.iter().map(restarts).sum::<i32>();
    assert_eq!(count(&pods_before), count(&pods_after), "nor any of its containers");
}

/// nats-server gets SIGKILL and comes back with what it had on its disk.
pub(crate) async fn nats_is_killed(fixture: &'static Fixture) {
    let pods = fixture.until_pods(LIVE, 3).await;
    let nats =
        fixture.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await.remove(0);
    let before = restarts(&nats);
    case(fixture, "nats-server gets SIGKILL", async {
        nodes::kill(&nats, "nats-server");
        eventually("nats-server was started again", LIMIT, async || {
            let nats =
                fixture.pods(SYSTEM, "statefulset.kubernetes.io/pod-name=sluice-nats-0").await;
            nats.first()
                .filter(|pod| restarts(pod) > before && crate::fixture::is_ready(pod))
                .map(drop)
        })
        .await;
        fixture.until_ready(SHOP, LIVE).await;
    })
    .await;
    assert_eq!(
        uids(&pods),
        uids(&fixture.until_pods(LIVE, 3).await),
        "the channel's pods are the same ones"
    );
}

/// The end of the chaos.
pub(crate) async fn subscribers_leave(fixture: &'static Fixture) {
    let fleet = fixture.fleet.lock().await.take().expect("subscribers are connected");
    println!("every subscriber has had every event up to {}", fleet.reckoned());
    drop(fleet);
    // The pods see that they are gone: their places are free again.
    for pod in fixture.channel_pods(LIVE).await {
        eventually("no subscriber is left", LIMIT, async || {
            subscribers(&pod).await.filter(|count| *count == 0)
        })
        .await;
    }
}
