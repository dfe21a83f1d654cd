//! The operator's rights: the rules of the chart, bound as the chart binds them.

use std::path::Path;

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleBinding, RoleRef, Subject},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::bed::ACCOUNT;

/// Makes the operator's service account in the first namespace, and lets it work in all of them, as the chart
/// does with `watchNamespaces`.
pub(crate) async fn grant(client: &Client, namespaces: &[String]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sluice/files/rbac-rules.yaml");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let rules: Vec<PolicyRule> = serde_saphyr::from_str(&text).expect("the chart's rules");
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": ACCOUNT}, "rules": rules});
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch(ACCOUNT, &PatchParams::apply("tests").force(), &Patch::Apply(role)).await.expect("the role");

    let account = ServiceAccount { metadata: named(), ..ServiceAccount::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespaces[0]);
    accounts.create(&PostParams::default(), &account).await.expect("the service account");
    for namespace in namespaces {
        let binding = RoleBinding { metadata: named(), role_ref: role_ref(), subjects: Some(vec![subject(&namespaces[0])]) };
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
        bindings.create(&PostParams::default(), &binding).await.expect("the role binding");
    }
}

/// Lets the operator of `namespace` work in all namespaces, as the chart does by default.
pub(crate) async fn grant_everywhere(client: &Client, namespace: &str) {
    let binding = ClusterRoleBinding { metadata: named(), role_ref: role_ref(), subjects: Some(vec![subject(namespace)]) };
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&PostParams::default(), &binding).await.expect("the cluster role binding");
}

fn named() -> ObjectMeta {
    ObjectMeta { name: Some(ACCOUNT.to_owned()), ..ObjectMeta::default() }
}

fn role_ref() -> RoleRef {
    RoleRef { api_group: "rbac.authorization.k8s.io".to_owned(), kind: "ClusterRole".to_owned(), name: ACCOUNT.to_owned() }
}

fn subject(namespace: &str) -> Subject {
    Subject { kind: "ServiceAccount".to_owned(), name: ACCOUNT.to_owned(), namespace: Some(namespace.to_owned()), ..Subject::default() }
}
