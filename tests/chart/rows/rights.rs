//! What the operator may do, and where.

use serde_json::json;

use super::{Row, row};
use crate::helm::Objects;

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("all namespaces", json!({}), all_namespaces),
        row("some namespaces", json!({"watchNamespaces": ["shop"]}), some_namespaces),
        row("without the definition", json!({"crds": {"enabled": false}}), without_the_definition),
        row("no rights for others", json!({"rbac": {"aggregate": false}}), no_rights_for_others),
    ]
}

fn all_namespaces(o: &Objects) {
    let binding = o.get("ClusterRoleBinding", "sluice-system.sluice");
    assert_eq!(
        binding["roleRef"],
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sluice-system.sluice"})
    );
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "ServiceAccount", "name": "sluice", "namespace": "sluice-system"}])
    );
    assert_eq!(o.names("RoleBinding"), ["sluice-leader"]);
}

fn some_namespaces(o: &Objects) {
    assert_eq!(o.names("ClusterRoleBinding"), [""; 0], "no rights beyond the namespaces");
    assert_eq!(o.get("RoleBinding", "sluice-system.sluice")["metadata"]["namespace"], "shop");
    assert!(o.arguments().contains(&"--namespace=shop"));
    let check = o.get("Pod", "sluice-check")["spec"]["containers"][0]["args"].as_array().unwrap();
    assert!(check.contains(&json!("--namespace=shop")));
}

fn without_the_definition(o: &Objects) {
    assert_eq!(o.names("CustomResourceDefinition"), [""; 0]);
}

fn no_rights_for_others(o: &Objects) {
    assert_eq!(o.names("ClusterRole"), ["sluice-system.sluice"]);
}
