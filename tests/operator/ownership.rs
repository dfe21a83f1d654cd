//! A channel's stream is its own: never another channel's, never one that sluice did not make.

use kube::{ResourceExt, api::DeleteParams};
use rand::Rng;
use serde_json::json;
use sluice_tests::{eventually, kube_api::KubeApi, nats};

use crate::{
    channel::{self, CHANNEL},
    fixture::{Fixture, LIMIT, TEST_LIMIT, test},
};

#[test]
fn names_that_could_collide_do_not() {
    sluice_tests::run(TEST_LIMIT, async {
        // a-<x>/b-c and a-<x>-b/c: joined by '-' they are the same.
        let (kube_api, unique) =
            (KubeApi::shared(), format!("a-{:05x}", rand::rng().random_range(0..0x10_0000)));
        let namespaces = vec![unique.clone(), format!("{unique}-b")];
        for namespace in &namespaces {
            kube_api.create_namespace(namespace).await;
        }
        let mut fixture = Fixture::in_namespaces(kube_api, namespaces.clone()).await;
        fixture.start_operator().await;
        let mut streams = Vec::new();
        for (namespace, name) in namespaces.iter().zip(["b-c", "c"]) {
            fixture
                .try_create(namespace, name, json!({"workload": {"replicas": 1}}))
                .await
                .unwrap();
        }
        for (namespace, name) in namespaces.iter().zip(["b-c", "c"]) {
            streams.push(channel::stream(
                &fixture.until_in(namespace, name, "is ready", channel::is_ready).await,
            ));
        }
        assert_ne!(streams[0], streams[1]);
        let server = fixture.streams().await;
        server.publish(&format!("sse.{}.b-c.", namespaces[0]), "x", "for the first").await;
        assert_eq!(server.info(&streams[0]).await.state.messages, 1);
        assert_eq!(server.info(&streams[1]).await.state.messages, 0);
        fixture.finish();
    });
}

#[test]
fn two_channels_of_one_stream_name_do_not_fight() {
    test("same-name", async |fixture| {
        fixture.create("first", json!({"stream": {"name": "SHARED", "subjects": ["shared.>"]}, "workload": {"replicas": 1}})).await;
        fixture.ready("first").await;
        let before = fixture.streams().await.info("SHARED").await;
        fixture.create(
            "second",
            json!({"stream": {"name": "SHARED", "subjects": ["others.>"], "deletionPolicy": "Delete"}, "workload": {"replicas": 1}}),
        )
        .await;
        let second = fixture.condition("second", "StreamReady", "False", "OwnedByOther").await;
        let message =
            channel::condition(&second, "StreamReady").unwrap()["message"].as_str().unwrap();
        assert!(message.contains("first"), "it names the owner: {message}");
        fixture.api(CHANNEL).delete("second", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("second").await;
        let after = fixture.streams().await.info("SHARED").await;
        assert_eq!((after.created, after.config), (before.created, before.config));
        fixture.ready("first").await;
    });
}

/// A stream made by hand, with an event.
async fn foreign_stream(
    fixture: &Fixture,
    name: &str,
    subject: &str,
) -> async_nats::jetstream::stream::Info {
    let streams = fixture.streams().await;
    let names = nats::names("unused");
    let mut config = nats::stream_config(&names);
    (config.name, config.subjects) = (name.to_owned(), vec![subject.to_owned()]);
    streams.create(config).await;
    streams.publish("", &subject.replace('>', "1"), "theirs").await;
    streams.info(name).await
}

#[test]
fn a_foreign_stream_is_never_touched() {
    test("foreign", async |fixture| {
        let before = foreign_stream(fixture, "THEIRS", "theirs.>").await;
        fixture.create("orders", json!({"stream": {"name": "THEIRS", "subjects": ["theirs.>"], "maxAge": "1h", "deletionPolicy": "Delete"}}))
            .await;
        let object = fixture.condition("orders", "StreamReady", "False", "OwnedByOther").await;
        assert_eq!(channel::condition(&object, "Ready").unwrap()["status"], "False");
        let message =
            channel::condition(&object, "StreamReady").unwrap()["message"].as_str().unwrap();
        assert!(
            message.contains("THEIRS") && message.contains("adoption: IfUnowned"),
            "it names the stream and the way: {message}"
        );
        fixture.api(CHANNEL).delete("orders", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("orders").await;
        let after = fixture.streams().await.info("THEIRS").await;
        assert_eq!(
            (after.created, after.config, after.state.messages),
            (before.created, before.config, 1)
        );
    });
}

#[test]
fn an_unowned_stream_is_adopted_when_asked_and_keeps_its_events() {
    test("adopt", async |fixture| {
        let before = foreign_stream(fixture, "THEIRS", "theirs.>").await;
        let spec = json!({"stream": {"name": "THEIRS", "subjects": ["theirs.>"], "topicPrefix": "theirs.", "adoption": "IfUnowned"}, "workload": {"replicas": 1}});
        let uid = fixture.create("orders", spec.clone()).await.uid().unwrap();
        fixture.ready("orders").await;
        let after = fixture.streams().await.info("THEIRS").await;
        assert_eq!((after.created, after.state.messages), (before.created, 1));
        assert!(after.config.metadata.values().any(|v| *v == uid));
        // It is owned now: another channel cannot adopt it.
        fixture.create("thief", spec).await;
        fixture.condition("thief", "StreamReady", "False", "OwnedByOther").await;
        fixture.ready("orders").await;
    });
}

#[test]
fn subjects_that_another_stream_takes_are_named() {
    test("overlap", async |fixture| {
        let before = foreign_stream(fixture, "THEIRS", "theirs.>").await;
        fixture
            .create(
                "orders",
                json!({"stream": {"subjects": ["theirs.1"]}, "workload": {"replicas": 1}}),
            )
            .await;
        fixture.condition("orders", "StreamReady", "False", "SubjectOverlap").await;
        assert_eq!(fixture.streams().await.info("THEIRS").await.config, before.config);
        fixture.change("orders", json!({"stream": {"subjects": ["ours.>"]}})).await;
        fixture.ready("orders").await;
    });
}

#[test]
fn more_copies_than_servers_are_not_asked_for() {
    test("servers", async |fixture| {
        fixture
            .create("orders", json!({"stream": {"replicas": 3}, "workload": {"replicas": 1}}))
            .await;
        fixture.condition("orders", "StreamReady", "False", "NotEnoughServers").await;
        fixture.change("orders", json!({"stream": {"replicas": 1}})).await;
        let object = fixture.ready("orders").await;
        fixture.change("orders", json!({"stream": {"replicas": 3}})).await;
        fixture.condition("orders", "StreamReady", "False", "NotEnoughServers").await;
        assert_eq!(
            fixture.streams().await.info(&channel::stream(&object)).await.config.num_replicas,
            1
        );
    });
}

#[test]
fn a_childs_name_that_is_taken_is_not_taken_over() {
    test("taken", async |fixture| {
        // Which name it is, is learned from a first channel of the same name.
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let name = fixture.child(channel::CONFIG_MAP, "orders").await.unwrap().name_any();
        fixture.api(CHANNEL).delete("orders", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("orders").await;
        eventually("the ConfigMap has gone", LIMIT, async || {
            fixture.api(channel::CONFIG_MAP).get_opt(&name).await.unwrap().is_none().then_some(())
        })
        .await;
        let theirs =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"theirs": "yes"}}))
                .unwrap();
        fixture
            .api(channel::CONFIG_MAP)
            .create(&kube::api::PostParams::default(), &theirs)
            .await
            .unwrap();
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        let object = fixture
            .until("orders", "names the object in its way", |o| {
                channel::current_condition(o, "WorkloadAvailable")
                    .is_some_and(|c| c["status"] == "False" && c["reason"] == "NameTaken")
            })
            .await;
        assert!(
            channel::condition(&object, "WorkloadAvailable").unwrap()["message"]
                .as_str()
                .unwrap()
                .contains(&name)
        );
        let left = fixture.api(channel::CONFIG_MAP).get(&name).await.unwrap();
        assert_eq!(left.data["data"], json!({"theirs": "yes"}));
        fixture.api(channel::CONFIG_MAP).delete(&name, &DeleteParams::default()).await.unwrap();
        fixture.ready("orders").await;
    });
}
