//! A grant that is given, used and withdrawn.

use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use sluice_tests::{eventually, nats};

use super::{annotate, install_policy, isolate, refused, test};
use crate::{
    channel::{self, CHANNEL},
    fixture::{Fixture, LIMIT, RESYNC, TEST_LIMIT},
    rbac,
};

fn telemetry() -> Value {
    json!({"workload": {"replicas": 1}, "stream": {"subjects": ["telemetry.>"], "deletionPolicy": "Delete"}})
}

/// The operator knows what a Namespace grants for half a minute; a test does not wait for that.
async fn restart(fixture: &mut Fixture) {
    fixture.stop_operator().await;
    fixture.start_operator().await;
}

#[test]
fn a_channel_whose_grant_is_withdrawn_goes_on_as_it_is_and_can_be_deleted() {
    sluice_tests::run(TEST_LIMIT * 2, async {
        let mut fixture = Fixture::new("withdrawn").await;
        isolate(&mut fixture, &[]).await;
        install_policy(&fixture, &[]).await;
        annotate(&fixture, json!({"subjects": "telemetry.>"})).await;
        eventually("the grant is known", LIMIT, async || {
            fixture.try_create(fixture.namespace(), "orders", telemetry()).await.ok()
        })
        .await;
        let object = fixture.ready("orders").await;
        let stream = channel::stream(&object);
        let before = fixture.streams().await.info(&stream).await.config;
        let ready = channel::condition(&object, "Ready").unwrap().clone();
        let deployment = fixture.child(channel::DEPLOYMENT, "orders").await.unwrap();

        annotate(&fixture, json!({"subjects": null})).await;
        restart(&mut fixture).await;
        let object = fixture.condition("orders", "Accepted", "False", "NotGranted").await;
        let said = refused(&object);
        assert!(said.contains("set the annotation tenancy.sluice.dev/subjects"), "{said}");
        assert_eq!(channel::condition(&object, "Ready").unwrap(), &ready);
        let (ok, said) = fixture.kubectl(&["label", "sse/orders", "team=shop"]);
        assert!(ok, "what does not touch the spec is taken: {said}");
        let error = fixture
            .try_patch(CHANNEL, "orders", json!({"spec": {"stream": {"maxAge": "1h"}}}))
            .await
            .expect_err("it asks for what is not granted");
        assert!(error.to_string().contains("nor is granted to the namespace"), "{error}");

        // Beyond the policy's sight: a spec that was changed is not applied.
        remove_binding(&fixture).await;
        fixture
            .change(
                "orders",
                json!({"stream": {"maxAge": "1h", "subjects": ["telemetry.>", "payments.>"]}}),
            )
            .await;
        fixture
            .until("orders", "names the new subject", |o| {
                channel::condition(o, "Accepted").is_some_and(|c| {
                    c["message"].as_str().is_some_and(|text| text.contains("payments"))
                })
            })
            .await;
        tokio::time::sleep(RESYNC).await;
        assert_eq!(fixture.streams().await.info(&stream).await.config, before);
        let after = fixture.child(channel::DEPLOYMENT, "orders").await.unwrap();
        assert_eq!(after.data["spec"], deployment.data["spec"]);

        // Granted again: what is granted is applied.
        annotate(&fixture, json!({"subjects": "telemetry.>,payments.>"})).await;
        restart(&mut fixture).await;
        fixture.ready("orders").await;
        let object = fixture.condition("orders", "Accepted", "True", "Accepted").await;
        assert_eq!(channel::stream(&object), stream);
        assert_eq!(fixture.streams().await.info(&stream).await.config.subjects.len(), 2);

        // Withdrawn and deleted: with its finalizer, and the stream that bears its mark.
        install_policy(&fixture, &[]).await;
        annotate(&fixture, json!({"subjects": null})).await;
        restart(&mut fixture).await;
        fixture.condition("orders", "Accepted", "False", "NotGranted").await;
        assert_eq!(fixture.api(CHANNEL).get("orders").await.unwrap().finalizers().len(), 1);
        fixture.api(CHANNEL).delete("orders", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("orders").await;
        assert_eq!(super::streams(&fixture).await, [""; 0]);
        fixture.finish();
    });
}

/// Takes the policy out of force.
async fn remove_binding(fixture: &Fixture) {
    let name = format!("{}.sluice-tenancy", fixture.namespace());
    let (ok, said) = fixture.kubectl(&["delete", "validatingadmissionpolicybinding", &name]);
    assert!(ok, "{said}");
    eventually("the policy is out of force", LIMIT, async || {
        let spec = json!({"stream": {"subjects": ["policy.probe"]}});
        let dry = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"name": "probe"}, "spec": spec});
        let dry = dry.to_string();
        fixture.kubectl_with(&["create", "--dry-run=server", "-f", "-"], &dry).0.then_some(())
    })
    .await;
}

#[test]
fn an_upgrade_ends_no_channel() {
    sluice_tests::run(TEST_LIMIT, async {
        let mut fixture = Fixture::new("upgrade").await;
        fixture.start_operator().await;
        fixture.create("orders", telemetry()).await;
        fixture.create("own", json!({"workload": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.create("waits", json!({"stream": {"subjects": ["telemetry.a"]}})).await;
        let stream = fixture.streams().await.info(&channel::stream(&object)).await;
        fixture.ready("own").await;
        fixture.condition("waits", "StreamReady", "False", "SubjectOverlap").await;
        fixture.stop_operator().await;

        isolate(&mut fixture, &[]).await;
        let after = fixture.condition("orders", "Accepted", "False", "NotGranted").await;
        assert_eq!(channel::condition(&after, "Ready"), channel::condition(&object, "Ready"));
        let now = fixture.streams().await.info(&channel::stream(&object)).await;
        assert_eq!((now.created, now.config), (stream.created, stream.config));
        fixture.condition("own", "Accepted", "True", "Accepted").await;
        fixture.ready("own").await;
        // One that was never served is not.
        let waits = fixture.condition("waits", "Ready", "False", "NotGranted").await;
        assert!(channel::condition(&waits, "Accepted").unwrap()["status"] == "False");
        fixture.finish();
    });
}

#[test]
fn adoption_is_granted_by_the_stream_s_name() {
    test("adopt-grant", &[], async |fixture| {
        annotate(fixture, json!({"subjects": "orders.>,others.>", "adopt": "ORDERS"})).await;
        let streams = fixture.streams().await;
        for (name, subject) in [("ORDERS", "orders.>"), ("OTHERS", "others.>")] {
            let mut config = nats::stream_config(&nats::names("unused"));
            (config.name, config.subjects) = (name.to_owned(), vec![subject.to_owned()]);
            streams.create(config).await;
        }
        let spec = |name: &str, subject: &str| json!({"workload": {"replicas": 1}, "stream": {"name": name, "subjects": [subject], "adoption": "IfUnowned"}});
        fixture.create("orders", spec("ORDERS", "orders.>")).await;
        fixture.create("others", spec("OTHERS", "others.>")).await;
        fixture.ready("orders").await;
        let others = fixture.condition("others", "Accepted", "False", "NotGranted").await;
        assert!(refused(&others).contains("\"OTHERS\""), "{}", refused(&others));
        let info = streams.info("OTHERS").await;
        assert!(!info.config.metadata.keys().any(|key| key.starts_with("sluice.dev/")));
    });
}

#[test]
fn marks_of_others_and_subjects_of_a_neighbour_are_the_operator_s_to_refuse() {
    test("marks", &[], async |fixture| {
        let namespace = fixture.namespace().to_owned();
        let name = format!("sse_{namespace}_shared");
        let spec = |subject: &str| json!({"workload": {"replicas": 1}, "stream": {"name": name, "subjects": [format!("sse.{namespace}.{subject}.>")]}});
        fixture.create("first", spec("first")).await;
        fixture.ready("first").await;
        fixture.create("second", spec("second")).await;
        fixture.condition("second", "StreamReady", "False", "OwnedByOther").await;
        fixture
            .create("third", json!({"stream": {"subjects": [format!("sse.{namespace}.>")]}}))
            .await;
        fixture.condition("third", "StreamReady", "False", "SubjectOverlap").await;
        fixture.ready("first").await;
    });
}

#[test]
fn an_operator_of_all_namespaces_follows_what_they_grant() {
    sluice_tests::run(TEST_LIMIT, async {
        let kube_api = sluice_tests::kube_api::KubeApi::another();
        kube_api.create_namespace("team").await;
        crate::fixture::install_resource(kube_api).await;
        let mut fixture = Fixture::bare(kube_api, vec!["team".to_owned()]).await;
        rbac::grant_everywhere(&fixture.client, "team").await;
        fixture.everywhere = true;
        isolate(&mut fixture, &[]).await;
        fixture.create("orders", telemetry()).await;
        fixture.condition("orders", "Accepted", "False", "NotGranted").await;
        annotate(&fixture, json!({"subjects": "telemetry.>"})).await;
        fixture.condition("orders", "Accepted", "True", "Accepted").await;
        fixture.ready("orders").await;
        annotate(&fixture, json!({"subjects": null})).await;
        let object = fixture.condition("orders", "Accepted", "False", "NotGranted").await;
        assert!(channel::is_ready(&object));
        // It learned of both by its watch, which the log has when it ends.
        let asked = fixture.requests();
        let asked = asked.iter().filter(|entry| entry.object_ref.resource == "namespaces");
        let asked: Vec<_> = asked.map(|entry| entry.verb.as_str()).collect();
        assert!(!asked.contains(&"get"), "{asked:?}");
        fixture.finish();
        kube_api.end();
    });
}
