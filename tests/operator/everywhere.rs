//! An operator for all namespaces, on an API server of its own that has no `SseChannel` yet.

use std::time::Duration;

use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use sluice_tests::kube_api::KubeApi;

use crate::{
    channel,
    fixture::{Fixture, TEST_LIMIT, install_resource},
    rbac,
};

#[test]
fn it_waits_for_the_definition_and_then_serves_every_namespace() {
    sluice_tests::run(TEST_LIMIT, async {
        let kube_api = KubeApi::another();
        for namespace in ["sluice-system", "one", "two"] {
            kube_api.create_namespace(namespace).await;
        }
        let mut fixture = Fixture::bare(kube_api, vec!["sluice-system".to_owned()]).await;
        rbac::grant_everywhere(&fixture.client, "sluice-system").await;
        fixture.everywhere = true;
        fixture.start_operator().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let early = fixture.requests().len();
        assert!(early < 40, "{early} requests in 3 s for a resource that is not there");

        install_resource(kube_api).await;
        for namespace in ["one", "two"] {
            fixture
                .try_create(namespace, "orders", json!({"workload": {"replicas": 1}}))
                .await
                .unwrap();
        }
        for namespace in ["one", "two"] {
            fixture.until_in(namespace, "orders", "is ready", channel::is_ready).await;
        }
        // A namespace that is deleted takes its channels along: nothing of ours holds it up.
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> =
            Api::all(fixture.client.clone());
        namespaces.delete("one", &DeleteParams::background()).await.unwrap();
        sluice_tests::eventually("the namespace has gone", crate::fixture::LIMIT, async || {
            namespaces.get_opt("one").await.unwrap().is_none().then_some(())
        })
        .await;
        let left =
            fixture.api_in(channel::DEPLOYMENT, "two").list(&ListParams::default()).await.unwrap();
        assert_eq!(left.items.len(), 1);
        fixture.finish();
        kube_api.end();
    });
}
