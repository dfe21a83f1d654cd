//! Two operators, one of which acts.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use sluice_tests::{eventually, kube_api::audit::Entry};

use crate::{
    fixture::{Fixture, LIMIT, RELEASE, SHOP, SYSTEM},
    kubectl::kubectl,
};

/// Name of the operators' user.
pub(crate) fn user() -> String {
    format!("system:serviceaccount:{SYSTEM}:{RELEASE}")
}

async fn lease(fixture: &Fixture) -> Api<Lease> {
    Api::namespaced(fixture.client().await, SYSTEM)
}

/// Name of the lease.
async fn lease_name(fixture: &Fixture) -> String {
    let leases = lease(fixture).await;
    eventually("the operators have a lease", LIMIT, async || {
        let found = leases.list(&kube::api::ListParams::default()).await.ok()?;
        found.items.first().map(ResourceExt::name_any)
    })
    .await
}

async fn holder(fixture: &Fixture, name: &str) -> Option<String> {
    lease(fixture)
        .await
        .get_opt(name)
        .await
        .ok()??
        .spec?
        .holder_identity
        .filter(|holder| !holder.is_empty())
}

/// The operator's pod that holds the lease; waits for one.
pub(crate) async fn leader(fixture: &Fixture) -> Pod {
    let name = lease_name(fixture).await;
    eventually("an operator leads", LIMIT, async || {
        let holder = holder(fixture, &name).await?;
        fixture.operators().await.into_iter().find(|pod| holder.starts_with(&pod.name_any()))
    })
    .await
}

/// Writes to the API server by operators since `since`, but for those to the lease itself.
fn writes(since: Timestamp) -> Vec<Entry> {
    let entries = Fixture::audit().map(|audit| audit.of_user(&user())).unwrap_or_default();
    let is_lease =
        |e: &Entry| e.object_ref.resource == "leases" || e.object_ref.resource == "events";
    entries
        .into_iter()
        .filter(|e| e.request_received_timestamp >= since && e.is_write() && !is_lease(e))
        .collect()
}

/// Of two operators only the leader writes.
pub(crate) async fn one_of_two_acts(fixture: &'static Fixture) {
    let operators = fixture.until_operators_are_ready().await;
    assert_eq!(operators.len(), 2, "the chart installs two");
    let leader = leader(fixture).await.name_any();
    let since = Timestamp::now();
    kubectl(&["annotate", "sse/orders", "-n", SHOP, "test/touched=1"]).await;
    kubectl(&["scale", "sse/orders", "-n", SHOP, "--replicas=1"]).await;
    fixture.until_pods("orders", 1).await;
    if Fixture::audit().is_some() {
        let writers: BTreeSet<Option<String>> =
            writes(since).iter().map(|e| e.pod().map(str::to_owned)).collect();
        assert_eq!(writers, BTreeSet::from([Some(leader)]), "only the leader writes");
    }
}

/// Another process holds the lease: no operator writes any more. It is not renewed: one of them
/// takes over.
pub(crate) async fn a_lost_lease_stops_writes(fixture: &'static Fixture) {
    let name = lease_name(fixture).await;
    leader(fixture).await;
    let leases = lease(fixture).await;
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
    let theft =
        json!({"spec": {"holderIdentity": "somebody-else", "acquireTime": now, "renewTime": now}});
    leases
        .patch(&name, &PatchParams::default(), &Patch::Merge(theft))
        .await
        .expect("the lease is taken");
    let stolen = Instant::now();
    // The leader learns of it at its next renewal, every 2 s.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let since = Timestamp::now();
    kubectl(&["scale", "sse/orders", "-n", SHOP, "--replicas=2"]).await;
    // The lease was taken for 15 s.
    tokio::time::sleep(Duration::from_secs(12).saturating_sub(stolen.elapsed())).await;
    assert_eq!(
        holder(fixture, &name).await.as_deref(),
        Some("somebody-else"),
        "the lease has not run out yet"
    );
    let written: Vec<String> = writes(since).iter().map(Entry::brief).collect();
    assert!(written.is_empty(), "written without the lease: {written:#?}");
    leader(fixture).await;
    fixture.until_pods("orders", 2).await;
    println!("taken over {:.1} s after the theft", stolen.elapsed().as_secs_f64());
}
