//! What the API server's audit log says of all of it.

use std::collections::BTreeMap;

use sluice_tests::kube_api::audit::Entry;

use crate::{fixture::Fixture, operators, uninstall};

/// No request of ours was refused for want of rights, and no Secret was read.
pub(crate) async fn the_operator_stays_within_its_rights(_bed: &'static Fixture) {
    let Some(audit) = Fixture::audit() else {
        println!("the audit log cannot be read here");
        return;
    };
    let entries = audit.of_user(&operators::user());
    assert!(
        entries.len() > 100,
        "only {} requests of the operator: is this its user?",
        entries.len()
    );
    let is_installed = |e: &&Entry| {
        !uninstall::GONE
            .get()
            .is_some_and(|(from, to)| (*from..*to).contains(&e.request_received_timestamp))
    };
    let denied: Vec<String> =
        entries.iter().filter(is_installed).filter(|e| e.is_denied()).map(Entry::brief).collect();
    assert!(denied.is_empty(), "{denied:#?}");
    let secrets: Vec<String> =
        entries.iter().filter(|e| e.object_ref.resource == "secrets").map(Entry::brief).collect();
    assert!(secrets.is_empty(), "{secrets:#?}");
    // The pods of channels have no token, so none of them can ask anything.
    let pods = audit.of_user("system:serviceaccount:shop:live-sse");
    assert!(pods.is_empty(), "{:?}", pods.iter().map(Entry::brief).collect::<Vec<_>>());
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &entries {
        *calls.entry(format!("{} {}", entry.verb, entry.object_ref.resource)).or_default() += 1;
    }
    println!("{} requests of the operators: {calls:?}", entries.len());
}
