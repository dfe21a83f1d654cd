//! The operator's rights: the rules of the chart, bound as the chart binds them when it is told its namespaces.

use std::path::Path;

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, PolicyRule, RoleBinding, RoleRef, Subject},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Makes the operator's service account in the first namespace, and lets it work in all of them.
pub(crate) async fn grant(client: &Client, namespaces: &[String]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sluice/files/rbac-rules.yaml");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let rules: Vec<PolicyRule> = serde_saphyr::from_str(&text).expect("the chart's rules");
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": crate::bed::ACCOUNT}, "rules": rules});
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch(crate::bed::ACCOUNT, &PatchParams::apply("tests").force(), &Patch::Apply(role)).await.expect("the role");

    let named = || ObjectMeta { name: Some(crate::bed::ACCOUNT.to_owned()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata: named(), ..ServiceAccount::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespaces[0]);
    accounts.create(&PostParams::default(), &account).await.expect("the service account");
    for namespace in namespaces {
        let binding = RoleBinding {
            metadata: named(),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "ClusterRole".to_owned(),
                name: crate::bed::ACCOUNT.to_owned(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: crate::bed::ACCOUNT.to_owned(),
                namespace: Some(namespaces[0].clone()),
                ..Subject::default()
            }]),
        };
        let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
        bindings.create(&PostParams::default(), &binding).await.expect("the role binding");
    }
}
