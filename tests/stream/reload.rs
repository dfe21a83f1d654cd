//! Configuration changes on a live process, without closing a stream that can stay.

use std::time::Duration;

use serde_json::Value;
use sluice_tests::{
    clients::{Connection, Request},
    dataplane::channel_config,
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
