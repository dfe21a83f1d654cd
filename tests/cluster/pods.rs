//! How the pods are made.

use kube::ResourceExt;

use crate::fixture::{Fixture, SHOP, SYSTEM, node_of};

/// Every container of ours runs as a numbered user on a read-only root without capabilities or a
/// service account's token it does not need; that the namespaces enforce the `restricted` standard
/// proves the rest.
pub(crate) async fn pods_meet_the_restricted_standard(fixture: &'static Fixture) {
    let mut pods = fixture.pods(SHOP, "").await;
    pods.extend(fixture.pods(SYSTEM, "").await);
    assert!(pods.len() >= 3, "only {} pods", pods.len());
    for pod in &pods {
        let name = pod.name_any();
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        for container in &spec.containers {
            let context = container
                .security_context
                .as_ref()
                .unwrap_or_else(|| panic!("{name} has no security context"));
            assert_eq!(context.read_only_root_filesystem, Some(true), "{name}: read-only root");
            assert_eq!(
                context.allow_privilege_escalation,
                Some(false),
                "{name}: privilege escalation"
            );
            let dropped =
                context.capabilities.as_ref().and_then(|c| c.drop.clone()).unwrap_or_default();
            assert_eq!(dropped, ["ALL"], "{name}: capabilities");
        }
        let user = spec.security_context.as_ref().and_then(|c| c.run_as_user);
        assert!(user.is_some_and(|user| user > 0), "{name}: user {user:?}");
        let is_operators = spec.service_account_name.as_deref() == Some("sluice");
        assert!(
            is_operators || spec.automount_service_account_token == Some(false),
            "{name} gets a token that it has no use for"
        );
        println!("{name} on {}", node_of(pod));
    }
}
