//! What passes by itself is told as such, and what a channel's stream needs is asked where it is.

use std::time::Duration;

use async_nats::jetstream;
use serde_json::json;
use sluice_operator::stream::{Class, Error, Mode, Streams as Ensured};
use sluice_tests::{
    eventually,
    nats::{NatsCluster, NatsServer, Streams},
    process::free_port,
};

use crate::{LIMIT, desired, desired_by, test};

/// A cluster, and a server of it that does not hold the stream of the default channel.
async fn with_a_stream_elsewhere(cluster: &NatsCluster) -> (Ensured, usize) {
    let seen = Streams::connect(&cluster.urls()).await;
    let want = desired(&json!({}));
    let ensured = Ensured::new(seen.context().clone(), "the cluster");
    ensured.ensure(&want, Mode::Enforce).await.unwrap();
    let holder = cluster.leader_of(&seen, want.name.as_str()).await;
    let other = Streams::connect(&cluster.servers[(holder + 1) % 3].url()).await;
    let mut context = jetstream::new(other.context().client());
    context.set_timeout(Duration::from_secs(5));
    (Ensured::new(context, "the cluster"), holder)
}

fn passes(error: &Error) -> bool {
    (error.class(), error.reason()) == (Class::Retry, "StreamUnavailable")
}

#[test]
fn a_stream_whose_server_is_down_is_unavailable_and_waits_for_no_change() {
    sluice_tests::run(LIMIT, async {
        let mut cluster = NatsCluster::start(3).await;
        let (ensured, holder) = with_a_stream_elsewhere(&cluster).await;
        cluster.servers[holder].stop().await;
        let want = desired(&json!({}));
        // Until the others have noticed it takes them a while.
        eventually("the stream is offline", LIMIT, async || {
            let error = ensured.ensure(&want, Mode::Enforce).await.err()?;
            assert!(passes(&error), "{error}");
            error.to_string().contains("offline").then_some(())
        })
        .await;
        cluster.servers[holder].restart().await;
        eventually("it is back", LIMIT, async || {
            match ensured.ensure(&want, Mode::Enforce).await {
                Ok(report) => Some(report),
                Err(error) => {
                    assert!(passes(&error), "{error}");
                    None
                }
            }
        })
        .await;
    });
}

#[test]
fn a_stream_whose_server_is_silent_is_unavailable_while_nats_is_reached() {
    sluice_tests::run(LIMIT, async {
        let mut cluster = NatsCluster::start(3).await;
        let (ensured, holder) = with_a_stream_elsewhere(&cluster).await;
        cluster.servers[holder].process().pause();
        let error = ensured.ensure(&desired(&json!({})), Mode::Enforce).await.unwrap_err();
        cluster.servers[holder].process().resume();
        assert_eq!(error, Error::TimedOut);
        assert!(passes(&error), "{error}");
    });
}

#[test]
fn without_jetstreams_api_the_answer_may_change_by_itself() {
    test(async |fixture| {
        let client = fixture.seen.context().client();
        let nowhere = Ensured::new(jetstream::with_domain(client, "behind-a-cut-link"), "");
        let error = nowhere.ensure(&desired(&json!({})), Mode::Enforce).await.unwrap_err();
        assert_eq!((&error, error.class()), (&Error::NoResponders, Class::Retry));
    });
}

#[test]
fn the_stream_that_takes_the_subjects_is_named() {
    test(async |fixture| {
        fixture
            .ensure(&desired_by("a", "u1", &json!({"name": "FIRST", "subjects": ["a.>"]})))
            .await
            .unwrap();
        fixture
            .ensure(&desired_by("b", "u2", &json!({"name": "SECOND", "subjects": ["b.>"]})))
            .await
            .unwrap();
        let third = |subjects: serde_json::Value| {
            desired_by("c", "u3", &json!({"name": "THIRD", "subjects": subjects}))
        };
        let error = fixture.ensure(&third(json!(["c.>", "a.b"]))).await.unwrap_err();
        assert!(error.to_string().starts_with("stream FIRST already takes"), "{error}");
        // In an update, too.
        fixture.ensure(&third(json!(["c.>"]))).await.unwrap();
        let error = fixture.ensure(&third(json!(["c.>", "a.b", "b.x"]))).await.unwrap_err();
        assert!(
            matches!(&error, Error::SubjectOverlap { streams, .. } if *streams == ["FIRST", "SECOND"]),
            "{error}"
        );
    });
}

/// `size` servers with these settings in a cluster that is called like its JetStream domain.
async fn domain(
    dir: &std::path::Path,
    name: &str,
    size: usize,
    settings: impl Fn(usize) -> String,
) -> Vec<NatsServer> {
    let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
    let routes =
        ports.iter().map(|p| format!("nats://127.0.0.1:{p}")).collect::<Vec<_>>().join(",");
    let start = async |n: usize| {
        let (file, server) = (dir.join(format!("{name}{n}.conf")), format!("{name}{n}"));
        let text = format!("jetstream {{ domain: {name} }}\n{}\n", settings(n));
        std::fs::write(&file, text).unwrap();
        let (file, listen) = (file.to_str().unwrap(), format!("nats://127.0.0.1:{}", ports[n]));
        let named = ["--config", file, "--name", &server, "--cluster_name", name];
        NatsServer::start_with(&[&named[..], &["--cluster", &listen, "--routes", &routes]].concat())
            .await
    };
    futures::future::join_all((0..size).map(start)).await
}

#[test]
fn behind_a_leaf_node_the_servers_of_the_domain_count() {
    sluice_tests::run(LIMIT, async {
        let dir = tempfile::TempDir::new().unwrap();
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let _hub = domain(dir.path(), "hub", 3, |n| {
            format!("leafnodes {{ listen: \"127.0.0.1:{}\" }}", ports[n])
        })
        .await;
        let edge = domain(dir.path(), "edge", 2, |n| {
            format!("leafnodes {{ remotes: [ {{ url: \"nats://127.0.0.1:{}\" }} ] }}", ports[n])
        })
        .await;
        let seen = Streams::connect(&edge[0].url()).await;
        let client = seen.context().client();
        let hub = Ensured::new(jetstream::with_domain(client.clone(), "hub"), "");
        let copies = |replicas: i32| desired(&json!({"replicas": replicas}));
        eventually("the link is up, and the hub has three servers", LIMIT, async || {
            match hub.ensure(&copies(3), Mode::Enforce).await {
                Ok(report) => report.stream,
                Err(error) => {
                    let counted = matches!(&error, Error::NotEnoughServers { known: Some(_), .. });
                    assert!(!counted && error.is_transient(), "{error}");
                    None
                }
            }
        })
        .await;
        for replicas in [1, 3] {
            hub.ensure(&copies(replicas), Mode::Enforce).await.unwrap();
        }
        let five = hub.ensure(&copies(5), Mode::Enforce).await.unwrap_err();
        assert_eq!(five, Error::NotEnoughServers { replicas: 5, known: None });
        // The edge's own JetStream has the servers that are connected to.
        let own = Ensured::new(jetstream::new(client), "");
        let error = own.ensure(&copies(3), Mode::Enforce).await.unwrap_err();
        assert_eq!(error, Error::NotEnoughServers { replicas: 3, known: Some(2) });
    });
}
