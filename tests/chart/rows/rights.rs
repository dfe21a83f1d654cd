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
        row("isolated namespaces", json!({}), isolated),
        row("some isolated namespaces", json!({"watchNamespaces": ["shop"]}), some_isolated),
        row("open namespaces", json!({"tenancy": {"mode": "Open"}}), open),
        row(
            "grants",
            json!({"tenancy": {"maxBytes": "1Gi", "quota": "2Gi",
                "grants": {"shop": {"subjects": "a.>, b.\"c", "max-bytes": "5Gi"}}}}),
            grants,
        ),
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

const POLICIES: [&str; 2] = ["sluice-system.sluice-tenancy", "sluice-system.sluice-tenancy-grants"];

fn isolated(o: &Objects) {
    assert!(o.arguments().contains(&"--tenancy=Isolated"));
    assert!(o.arguments().contains(&"--tenancy-max-bytes=10Gi"));
    assert!(o.arguments().contains(&"--tenancy-quota=50Gi"));
    assert_eq!(o.names("ValidatingAdmissionPolicy"), POLICIES);
    assert_eq!(o.names("ValidatingAdmissionPolicyBinding"), POLICIES);
    for name in POLICIES {
        let binding = o.get("ValidatingAdmissionPolicyBinding", name);
        assert_eq!(binding["spec"], json!({"policyName": name, "validationActions": ["Deny"]}));
        assert_eq!(o.get("ValidatingAdmissionPolicy", name)["spec"]["failurePolicy"], "Fail");
    }
}

/// Another release may serve the other namespaces, and keep them apart or not; grants are for all.
fn some_isolated(o: &Objects) {
    let binding = o.get("ValidatingAdmissionPolicyBinding", POLICIES[0]);
    let shop = json!({"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["shop"]}]}});
    assert_eq!(binding["spec"]["matchResources"], shop);
    let grants = o.get("ValidatingAdmissionPolicyBinding", POLICIES[1]);
    assert!(grants["spec"].get("matchResources").is_none());
}

fn open(o: &Objects) {
    assert!(o.arguments().contains(&"--tenancy=Open"));
    for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
        assert_eq!(o.names(kind), [""; 0]);
    }
}

fn grants(o: &Objects) {
    for argument in [
        "--tenancy-max-bytes=1Gi",
        "--tenancy-quota=2Gi",
        "--tenancy-grant=shop/subjects=a.>, b.\"c",
        "--tenancy-grant=shop/max-bytes=5Gi",
    ] {
        assert!(o.arguments().contains(&argument), "{argument}: {:?}", o.arguments());
    }
}
