//! The operator's rights: the rules of the chart, bound as the chart binds them.

use std::path::Path;

use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::fixture::ACCOUNT;

/// Name of the role that lets an operator take part in the election.
const LEADER: &str = "sluice-operator-leader";

/// Makes the operator's service account in the first namespace, and lets it work in all of them, as
/// the chart does with `watchNamespaces`.
pub(crate) async fn grant(client: &Client, namespaces: &[String]) {
    grant_to(client, namespaces, ACCOUNT).await;
}

/// The same for a service account of that name.
pub(crate) async fn grant_to(client: &Client, namespaces: &[String], account: &str) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": ACCOUNT}, "rules": rules("rbac-rules.yaml")});
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles
        .patch(ACCOUNT, &PatchParams::apply("tests").force(), &Patch::Apply(role))
        .await
        .expect("the role");
    // Its own namespace.
    let leader = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": LEADER}, "rules": rules("leader-rules.yaml")});
    let roles: Api<Role> = Api::namespaced(client.clone(), &namespaces[0]);
    roles
        .patch(LEADER, &PatchParams::apply("tests").force(), &Patch::Apply(leader))
        .await
        .expect("the leader's role");

    let object = ServiceAccount { metadata: named(account), ..ServiceAccount::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespaces[0]);
    accounts.create(&PostParams::default(), &object).await.expect("the service account");
    for namespace in namespaces {
        bind(
            client,
            namespace,
            account,
            role_ref("ClusterRole", ACCOUNT),
            subject(&namespaces[0], account),
        )
        .await;
    }
    bind(
        client,
        &namespaces[0],
        &leader_binding(account),
        role_ref("Role", LEADER),
        subject(&namespaces[0], account),
    )
    .await;
}

/// Lets the operator of namespace `home` work in `namespace`, too.
pub(crate) async fn grant_in(client: &Client, namespace: &str, home: &str) {
    bind(client, namespace, ACCOUNT, role_ref("ClusterRole", ACCOUNT), subject(home, ACCOUNT))
        .await;
}

/// Name of the binding that lets `account` hold the lease.
pub(crate) fn leader_binding(account: &str) -> String {
    format!("{account}-leader")
}

async fn bind(client: &Client, namespace: &str, name: &str, role_ref: RoleRef, subject: Subject) {
    let binding = RoleBinding { metadata: named(name), role_ref, subjects: Some(vec![subject]) };
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), namespace);
    bindings.create(&PostParams::default(), &binding).await.expect("the role binding");
}

fn rules(file: &str) -> Vec<PolicyRule> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sluice/files").join(file);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_saphyr::from_str(&text).expect("the chart's rules")
}

/// Lets the operator of `namespace` work in all namespaces, as the chart does by default.
pub(crate) async fn grant_everywhere(client: &Client, namespace: &str) {
    let binding = ClusterRoleBinding {
        metadata: named(ACCOUNT),
        role_ref: role_ref("ClusterRole", ACCOUNT),
        subjects: Some(vec![subject(namespace, ACCOUNT)]),
    };
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&PostParams::default(), &binding).await.expect("the cluster role binding");
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: "rbac.authorization.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

fn subject(namespace: &str, account: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".to_owned(),
        name: account.to_owned(),
        namespace: Some(namespace.to_owned()),
        ..Subject::default()
    }
}
