//! What surrounds the pods, as objects. Of what acts on them in a real cluster, there is an Ingress
//! controller here.

use sluice_tests::eventually;

use crate::{
    fixture::{Fixture, LIMIT, SHOP, current_condition},
    ingress,
    kubectl::{kubectl, kubectl_with},
    pages,
};

const MANIFESTS: &str = "
apiVersion: sluice.dev/v1alpha1
kind: SseChannel
metadata: {name: outside}
spec:
  stream: {maxBytes: 64Mi}
  exposure: {ingress: {host: events.example.com}}
  networkPolicy: {mode: Restrict}
  workload: {terminationGracePeriodSeconds: 10, autoscaling: {minReplicas: 1, maxReplicas: 2, cpuUtilization: 80}}
---
apiVersion: sluice.dev/v1alpha1
kind: SseChannel
metadata: {name: routed}
spec:
  stream: {maxBytes: 64Mi}
  exposure: {httpRoute: {parentRefs: [{name: gateway}]}}
  monitoring: {podMonitor: Enabled}
  workload: {replicas: 1, terminationGracePeriodSeconds: 10}
";

/// An Ingress, a NetworkPolicy and an autoscaler are there and belong to the channel; what has no
/// definition in this cluster is told of, and keeps no channel from being ready. With a controller
/// an Ingress leads to the pods.
pub(crate) async fn objects_around_the_pods(fixture: &'static Fixture) {
    let said = kubectl_with(&["apply", "-n", SHOP, "-f", "-"], MANIFESTS).await;
    assert!(said.ok, "{}", said.err);
    for (channel, reason) in [("outside", "NoAddress"), ("routed", "GatewayApiMissing")] {
        fixture.until_ready(SHOP, channel).await;
        let what = format!("Exposed of {channel} is False: {reason}");
        eventually(&what, LIMIT, async || {
            let channel = fixture.channel(SHOP, channel).await;
            let exposed = current_condition(&channel, "Exposed")?;
            (exposed["status"] == "False" && exposed["reason"] == reason).then_some(())
        })
        .await;
    }
    for kind in ["ingress", "networkpolicy", "hpa"] {
        let owner = r"-o=jsonpath={.items[*].metadata.ownerReferences[0].name}";
        let owners =
            kubectl(&["get", kind, "-n", SHOP, "-l", "sluice.dev/channel=outside", owner]).await;
        assert_eq!(owners, "outside", "the owner of the {kind}");
    }
    pages::ingresses_are_as_on_the_page(fixture).await;
    if Fixture::has_nodes() {
        ingress::traefik_serves_it(fixture).await;
    } else {
        println!(
            "not run here: an Ingress behind Traefik, whose program is fetched for this project's own cluster"
        );
    }
    kubectl(&["delete", "sse/outside", "sse/routed", "-n", SHOP, "--timeout=60s"]).await;
    eventually("they go with the channel", LIMIT, async || {
        let left = kubectl(&[
            "get",
            "ingress,networkpolicy,hpa",
            "-n",
            SHOP,
            "-l",
            "sluice.dev/channel=outside",
            "-o",
            "name",
        ])
        .await;
        left.is_empty().then_some(())
    })
    .await;
}
