//! An operator of several namespaces.

use sluice_tests::{eventually, kube_api::KubeApi};

use crate::fixture::{Fixture, LIMIT, TEST_LIMIT};

#[test]
fn it_is_ready_when_it_knows_the_channels_of_all_its_namespaces() {
    sluice_tests::run(TEST_LIMIT, async {
        let mut fixture = Fixture::new("scopes").await;
        let other = KubeApi::shared().namespace("scopes-denied").await;
        // After its rights were given for the first alone.
        fixture.namespaces.push(other.clone());
        fixture.start_operator().await;
        let known =
            format!("sluice_operator_scope_followed{{namespace=\"{}\"}} 1", fixture.namespace());
        let missing = format!("sluice_operator_scope_followed{{namespace=\"{other}\"}} 0");
        eventually("one of the two is followed", LIMIT, async || {
            let (_, metrics) = fixture.get("/metrics").await?;
            (metrics.contains(&known) && metrics.contains(&missing)).then_some(())
        })
        .await;
        let (status, text) = fixture.get("/readyz").await.expect("it answers");
        assert_eq!(status, 503, "{text}");
        assert!(text.starts_with(&format!("channels are not known yet in {other}\n")), "{text}");
        crate::rbac::grant_in(&fixture.client, &other, fixture.namespace()).await;
        eventually("it is ready", LIMIT, async || {
            fixture.get("/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
        fixture.stop_operator().await;
    });
}
