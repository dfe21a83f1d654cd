//! The whole life of channels on a NATS with TLS and accounts of operator mode, where operator,
//! pods and publishers may do exactly what `sluice-operator permissions` prints for them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use async_nats::jetstream;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use sluice_tests::{
    clients::{Reader, Request},
    eventually,
    nats::{
        permitted::{nsc, printed},
        secured::{Account, Authority, Permissions, SecuredServer},
    },
};

use crate::{
    channel::{self, CHANNEL},
    fixture::{Fixture, LIMIT, TEST_LIMIT},
};

/// The two channels of the test: one makes its stream, one takes a stream over.
fn specs() -> [(&'static str, serde_json::Value); 2] {
    let workload = json!({"replicas": 1});
    [
        (
            "orders",
            json!({"workload": workload, "publish": {"mode": "Http", "allowAnonymous": true},
                "stream": {"deletionPolicy": "Delete"}}),
        ),
        (
            "legacy",
            json!({"workload": workload, "stream": {"name": "LEGACY", "subjects": ["legacy.>"],
                "topicPrefix": "legacy.", "adoption": "IfUnowned"}}),
        ),
    ]
}

async fn secret(fixture: &Fixture, name: &str, key: &str, text: &str) {
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.data = Some(BTreeMap::from([(key.to_owned(), ByteString(text.as_bytes().to_vec()))]));
    let api: Api<Secret> = Api::namespaced(fixture.client.clone(), fixture.namespace());
    api.create(&PostParams::default(), &secret).await.unwrap();
}

/// Starts the operator with users that may do what is printed for the channels' manifests.
async fn start(fixture: &mut Fixture, server: &SecuredServer, account: &Account, ca: &str) {
    let namespace = fixture.namespace().to_owned();
    let manifests = specs().map(|(name, spec)| {
        json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec})
        .to_string()
    });
    let file = server.file("channels.yaml", &manifests.join("\n---\n"));
    let of = |role: &str| nsc(&printed(&["-f", file.to_str().unwrap(), "--role", role]));
    let operator = account.user("operator", &of("operator"), None);
    let operator = server.file("operator.creds", &operator);
    secret(fixture, "nats", "nats.creds", &account.user("pod", &of("pod"), None)).await;
    secret(fixture, "nats-ca", "ca.crt", &std::fs::read_to_string(ca).unwrap()).await;
    fixture.other_nats = Some(server.url());
    fixture.operator_arguments = vec![
        format!("--nats-credentials={}", operator.display()),
        format!("--nats-ca={ca}"),
        "--dataplane-credentials-secret=nats".to_owned(),
        "--dataplane-ca-secret=nats-ca".to_owned(),
    ];
    fixture.start_operator().await;
}

#[test]
fn a_whole_life_needs_nothing_but_what_is_printed() {
    sluice_tests::run(TEST_LIMIT, async {
        let (authority, account) = (Authority::default(), Account::default());
        let server = SecuredServer::of_production(&authority, &account).await;
        let ca = server.file("ca.pem", &authority.pem());
        let admin = account.user("admin", &Permissions::all(), None);
        let admin = jetstream::new(server.client(&admin, &ca).await);
        let mut fixture = Fixture::new("permitted").await;
        start(&mut fixture, &server, &account, ca.to_str().unwrap()).await;

        let legacy = jetstream::stream::Config {
            name: "LEGACY".to_owned(),
            subjects: vec!["legacy.>".to_owned()],
            ..Default::default()
        };
        admin.create_stream(legacy).await.unwrap();
        admin.publish("legacy.a", "old".into()).await.unwrap().await.unwrap();
        for (name, spec) in specs() {
            fixture.create(name, spec).await;
        }
        serve(&fixture, &server, &account, &ca).await;
        // Its stream is changed, and its memory goes with the pod: history comes from the store.
        fixture.change("orders", json!({"stream": {"maxAge": "48h"}})).await;
        fixture.ready("orders").await;
        let pod = fixture.pods("orders").await.remove(0).metadata.name.unwrap();
        fixture.api(channel::POD).delete(&pod, &DeleteParams::default()).await.unwrap();
        let address = eventually("another pod is ready", LIMIT, async || {
            let pods = fixture.pods("orders").await;
            let other = pods.iter().find(|p| p.metadata.name.as_ref() != Some(&pod))?;
            let ip: IpAddr = other.data["status"]["podIP"].as_str()?.parse().ok()?;
            let answer = reqwest::get(format!("http://{ip}:9090/readyz")).await.ok()?;
            answer.status().is_success().then_some(SocketAddr::new(ip, 8080))
        })
        .await;
        let mut reader =
            Reader::open(address, &Request::get("/channels/orders?from=earliest")).await;
        for expected in ["over NATS", "over HTTP"] {
            assert_eq!(reader.event(LIMIT).await.unwrap().data, expected);
        }
        let object = fixture.ready("legacy").await;
        let (_, address) = fixture.addresses("legacy").await.remove(0);
        let mut reader =
            Reader::open(address, &Request::get("/channels/legacy?from=earliest")).await;
        assert_eq!(reader.event(LIMIT).await.unwrap().data, "old");
        assert_eq!(channel::stream(&object), "LEGACY");

        fixture.api(CHANNEL).delete("orders", &DeleteParams::default()).await.unwrap();
        fixture.until_gone("orders").await;
        let streams = eventually("the stream has gone", LIMIT, async || {
            use futures::TryStreamExt;
            let names: Vec<String> = admin.stream_names().try_collect().await.ok()?;
            (names.len() == 1).then_some(names)
        })
        .await;
        assert_eq!(streams, ["LEGACY"]);
        let log = server.log();
        assert!(!log.contains("Violation"), "{log}");
        fixture.finish();
    });
}

/// Events come in both ways.
async fn serve(fixture: &Fixture, server: &SecuredServer, account: &Account, ca: &std::path::Path) {
    fixture.ready("orders").await;
    let namespace = fixture.namespace();
    let of_publisher = printed_for_publisher(fixture);
    let credentials = account.user("publisher", &of_publisher, None);
    let client = async_nats::ConnectOptions::with_credentials(&credentials)
        .unwrap()
        .add_root_certificates(ca.to_path_buf())
        .custom_inbox_prefix(format!("_INBOX.sluice.publishers.{namespace}.orders"))
        .connect(server.url())
        .await
        .unwrap();
    let subject = format!("sse.{namespace}.orders.a");
    let context = jetstream::new(client);
    let publish = context.publish(subject, "over NATS".into());
    publish.await.unwrap().await.unwrap();
    let (_, address) = fixture.addresses("orders").await.remove(0);
    let url = format!("http://{address}/channels/orders/a");
    let answer = reqwest::Client::new().post(url).body("over HTTP").send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
}

/// By the channel in the cluster, as an administrator asks.
fn printed_for_publisher(fixture: &Fixture) -> Permissions {
    let mut command =
        std::process::Command::new(sluice_tests::process::workspace_program("sluice-operator"));
    let channel = format!("{}/orders", fixture.namespace());
    command.args(["permissions", &channel, "--role", "publisher"]);
    let output = command.env("KUBECONFIG", fixture.kubeconfig()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    nsc(&String::from_utf8(output.stdout).unwrap())
}
