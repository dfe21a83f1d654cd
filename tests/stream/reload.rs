//! Configuration changes on a live process, without closing a stream that can stay.

use std::time::Duration;

use serde_json::Value;
use sluice_tests::{
    clients::{Connection, Request},
    dataplane::{ConfigDir, DataPlane, Options, channel_config},
    eventually,
    nats::{names, stream_config},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(60);

async fn status(fixture: &Fixture, path: &str) -> u16 {
    Connection::open(fixture.plane.http(), &Request::get(path)).await.unwrap().status()
}

#[test]
fn heartbeat_and_origins_change_under_an_open_stream() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut reader = fixture.open(ORDERS).await;
        assert!(reader.read_for(Duration::from_secs(1)).await);
        let before = reader.ledger.comments + reader.ledger.heartbeats.len();
        let mut config = fixture.config();
        config.generation = 2;
        config.delivery.heartbeat = Duration::from_millis(200);
        config.delivery.cors.allowed_origins = vec!["https://shop.example".into()];
        fixture.configs.write(&config);
        // The next beat may still be the old one's; a subscriber that comes now has the new.
        sluice_tests::eventually("the generation is served", SOON, async || {
            let (_, body) = fixture.plane.readyz().await;
            (body["channels"][0]["generation"] == 2).then_some(())
        })
        .await;
        let connection = Connection::open(
            fixture.plane.http(),
            &Request::get(ORDERS).header("Origin", "https://shop.example"),
        )
        .await
        .unwrap();
        assert_eq!(connection.header("access-control-allow-origin"), Some("https://shop.example"));
        reader
            .until("the new heartbeat", SOON, |l| l.comments + l.heartbeats.len() >= before + 5)
            .await;
        let next = fixture.publish("a", "x").await;
        reader.until_sequence(next.sequence, SOON).await;
        assert_eq!((reader.ledger.controls.len(), reader.ledger.gaps.len()), (0, 0));
    });
}

#[test]
fn a_channel_removed_is_told_and_then_204_and_a_new_one_appears() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 3).await;
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        reader.until_sequence(3, SOON).await;
        assert_eq!(status(&fixture, "/channels/invoices").await, 404);

        let second = names("invoices");
        fixture.streams.create(stream_config(&second)).await;
        fixture.configs.write(&channel_config(&second));
        sluice_tests::eventually("the new channel is served", SOON, async || {
            (status(&fixture, "/channels/invoices").await == 200).then_some(())
        })
        .await;
        let published = fixture.streams.publish(&second.prefix, "a", "new channel").await;
        let mut invoices = fixture.open("/channels/invoices?from=earliest").await;
        assert_eq!(invoices.event(SOON).await.unwrap().data, "new channel");
        assert_eq!(invoices.ledger.last(), Some(published.sequence));

        fixture.configs.remove("orders");
        reader.until_end(SOON).await;
        assert_eq!(reader.ledger.control_names(), ["channel.close"]);
        let close: Value = serde_json::from_str(&reader.ledger.controls[0].data).unwrap();
        assert_eq!(close["reason"], "removed");
        // 204 tells a browser to stay away (WHATWG HTML 9.2.3).
        assert_eq!(status(&fixture, ORDERS).await, 204);
        assert!(
            invoices.read_for(Duration::from_millis(200)).await,
            "the other channel's stream stays open"
        );

        // And back: the same events, the same cursors.
        fixture.configs.write(&fixture.config());
        sluice_tests::eventually("the channel is served again", SOON, async || {
            (status(&fixture, ORDERS).await == 200).then_some(())
        })
        .await;
        let mut reader = fixture.resume(ORDERS, fixture.cursor(1)).await;
        reader.until_sequence(3, SOON).await;
        assert_eq!(reader.ledger.sequences(), [2, 3]);
    });
}

#[test]
fn a_broken_file_keeps_the_configuration_that_was() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut reader = fixture.open(ORDERS).await;
        for broken in [
            "{",
            "",
            "{\"version\": 2}",
            "[]",
            &fixture.config().to_json().unwrap().replace("\"version\": 1", "\"version\": 99"),
        ] {
            fixture.configs.write_text("orders.json", broken);
            assert!(
                reader.read_for(Duration::from_millis(1_500)).await,
                "{broken:?} closed the stream"
            );
            let next = fixture.publish("a", "still here").await;
            reader.until_sequence(next.sequence, SOON).await;
            assert_eq!(status(&fixture, ORDERS).await, 200);
        }
        let (_, body) = fixture.plane.readyz().await;
        assert_eq!(
            body["channels"][0]["generation"], 1,
            "it does not pretend to serve another: {body}"
        );
        let refused = fixture
            .plane
            .log()
            .lines()
            .filter(|l| l.contains(" WARN ") && l.contains("orders.json"))
            .count();
        assert_eq!(refused, 5, "each mistake is told once");
        // Mended, it is taken.
        let mut config = fixture.config();
        config.generation = 7;
        fixture.configs.write(&config);
        sluice_tests::eventually("the mended file is served", SOON, async || {
            let (_, body) = fixture.plane.readyz().await;
            (body["channels"][0]["generation"] == 7 && body["channels"][0]["error"].is_null())
                .then_some(())
        })
        .await;
        assert!(reader.read_for(Duration::from_millis(100)).await);
        assert_eq!(reader.ledger.controls.len(), 0);
    });
}

#[test]
fn a_smaller_budget_sends_nobody_away_who_is_in() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(fixture.open(ORDERS).await);
        }
        let mut config = fixture.config();
        config.generation = 2;
        config.delivery.max_connections = 1;
        fixture.configs.write(&config);
        sluice_tests::eventually("the generation is served", SOON, async || {
            let (_, body) = fixture.plane.readyz().await;
            (body["channels"][0]["generation"] == 2).then_some(())
        })
        .await;
        for reader in &mut readers {
            assert!(reader.read_for(Duration::from_millis(100)).await);
        }
        let mut refused = fixture.open(ORDERS).await;
        assert_eq!(refused.event(SOON).await.unwrap().name, "channel.close");
    });
}

/// Status and `Retry-After`.
async fn answer(plane: &DataPlane, request: &Request) -> (u16, Option<String>) {
    let connection = Connection::open(plane.http(), request).await.unwrap();
    (connection.status(), connection.header("retry-after").map(str::to_owned))
}

#[test]
fn a_pod_is_not_ready_and_sends_none_away_before_all_its_files_were_in_force() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let good = fixture.config().to_json().unwrap();
        for (file, broken) in [
            ("orders.json", "{".to_owned()),
            ("orders.json", String::new()),
            // Of a later format, which shares nothing but the version and the name.
            ("orders.json", r#"{"version": 2, "name": "orders", "sources": []}"#.to_owned()),
            ("orders.json", good.replace("\"Latest\"", "\"Tomorrow\"")),
            ("orders.json", good.replace("\"generation\"", "\"revision\"")),
            ("another-name.json", good.replace("\"version\": 1", "\"version\": 3")),
            ("orders.json", "x".repeat(2 << 20)),
        ] {
            let configs = ConfigDir::new(&[]);
            configs.write_text(file, &broken);
            let options = Options { not_ready: true, ..Options::default() };
            let plane = DataPlane::start_with(&fixture.nats.url(), &configs, &options).await;
            let brief: String = broken.chars().take(80).collect();
            for request in [
                Request::get(ORDERS),
                Request::get(ORDERS).header("Accept", "application/json"),
                Request::get(format!("{ORDERS}/a")),
            ] {
                let (status, retry) = answer(&plane, &request).await;
                assert_eq!((status, retry.is_some()), (503, true), "{brief}");
            }
            let (status, body) = plane.readyz().await;
            assert_eq!((status, &body["phase"]), (503, &"Starting".into()), "{brief}: {body}");
            assert_eq!(body["refused"][0]["file"], file, "{body}");
            assert!(body["refused"][0]["reason"].as_str().is_some_and(|r| r.len() > 10), "{body}");
            assert_eq!(plane.metrics().await.sum("sluice_config_refused", &[]), 1.0);

            std::fs::remove_file(configs.path().join(file)).unwrap();
            assert_eq!(answer(&plane, &Request::get(ORDERS)).await.0, 503, "no channel is known");
            configs.write(&fixture.config());
            plane.ready().await;
            let (_, body) = plane.readyz().await;
            assert!(body["refused"].is_null(), "{body}");
            assert_eq!(answer(&plane, &Request::get(ORDERS)).await.0, 200);
            assert_eq!(answer(&plane, &Request::get("/channels/invoices")).await.0, 404);
        }
    });
}

#[test]
fn a_file_that_requires_what_a_pod_does_not_know_is_refused_and_the_pod_is_not_ready() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let plain = fixture.config().to_json().unwrap();
        let newer =
            plain.replacen("\"version\"", "\"requires\": [\"auth.tomorrow\"], \"version\"", 1);
        let configs = ConfigDir::new(&[]);
        configs.write_text("orders.json", &newer);
        let options = Options { not_ready: true, ..Options::default() };
        let mut plane = DataPlane::start_with(&fixture.nats.url(), &configs, &options).await;
        plane.expect_errors("requires auth.tomorrow");
        let (status, body) = plane.readyz().await;
        let reason = body["refused"][0]["reason"].as_str().unwrap_or_default();
        assert!(status == 503 && reason.contains("requires auth.tomorrow"), "{status} {body}");
        assert_eq!(body["reads"], serde_json::json!({"version": 1, "requires": []}));
        // An answer that a client takes as passing, not as the end of the channel.
        assert_eq!(answer(&plane, &Request::get(ORDERS)).await.0, 503);
        configs.write_text("orders.json", &plain);
        plane.ready().await;
        assert_eq!(answer(&plane, &Request::get(ORDERS)).await.0, 200);
        // What was in force stays in force, and the pod tells that it is behind.
        configs.write_text("orders.json", &newer);
        let told = eventually("the pod tells", LIMIT, async || {
            let (status, body) = plane.readyz().await;
            body.get("refused").is_some().then_some(status)
        });
        assert_eq!(told.await, 200);
    });
}

#[test]
fn fields_of_a_newer_operator_are_passed_over_and_told() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let newer = fixture
            .config()
            .to_json()
            .unwrap()
            .replacen("\"version\"", "\"shards\": {\"count\": 3}, \"version\"", 1)
            .replacen("\"startAt\"", "\"compression\": \"Zstd\", \"startAt\"", 1);
        let configs = ConfigDir::new(&[]);
        configs.write_text("orders.json", &newer);
        let plane = DataPlane::start(&fixture.nats.url(), &configs).await;
        assert_eq!(answer(&plane, &Request::get(ORDERS)).await.0, 200);
        let (_, body) = plane.readyz().await;
        assert_eq!(body["unknownFields"], 2, "{body}");
        assert_eq!(plane.metrics().await.sum("sluice_config_unknown_fields", &[]), 2.0);
        let log = plane.log();
        assert!(log.contains("shards, delivery.compression"), "{log}");
    });
}

#[test]
fn a_running_pod_keeps_what_was_in_force_and_says_what_is_not() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut reader = fixture.open(ORDERS).await;
        let newer = |name: &str| format!(r#"{{"version": 2, "name": "{name}"}}"#);
        fixture.configs.write_text("invoices.json", &newer("invoices"));
        // Renamed and unreadable at once: not removed.
        fixture.configs.remove("orders");
        fixture.configs.write_text("renamed.json", &newer("orders"));
        sluice_tests::eventually("the files are told", SOON, async || {
            let (status, body) = fixture.plane.readyz().await;
            assert_eq!(status, 200, "a running pod stays ready: {body}");
            (body["refused"].as_array().map_or(0, Vec::len) == 2).then_some(())
        })
        .await;
        assert!(reader.read_for(Duration::from_millis(1_500)).await, "the stream stays open");
        assert_eq!(status(&fixture, ORDERS).await, 200);
        assert_eq!(status(&fixture, "/channels/invoices").await, 503);
        assert_eq!(status(&fixture, "/channels/refunds").await, 404);
        assert_eq!(fixture.plane.metrics().await.sum("sluice_config_refused", &[]), 2.0);

        fixture.configs.remove("renamed");
        reader.until_end(SOON).await;
        assert_eq!(status(&fixture, ORDERS).await, 204, "now it is known to be removed");
        // And what comes back with a mistake is not known to be removed.
        fixture.configs.write_text("orders.json", &newer("orders"));
        sluice_tests::eventually("it may be there", SOON, async || {
            (status(&fixture, ORDERS).await == 503).then_some(())
        })
        .await;
    });
}
