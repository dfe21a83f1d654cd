//! NATS goes away and comes back: streams stay open, and nothing is lost or doubled.

use std::time::{Duration, Instant};

use sluice_channel::{Cursor, config::Start};
use sluice_tests::{
    clients::{Reader, Request, expected},
    nats::{Streams, stream_config},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(120);
const OUTAGE: Duration = Duration::from_secs(20);

/// Reads until the stream is told to be degraded.
async fn until_degraded(reader: &mut Reader) {
    reader
        .until("channel.degraded", SOON, |l| l.control_names().contains(&"channel.degraded"))
        .await;
}

#[test]
fn twenty_seconds_without_nats_close_no_stream_and_lose_nothing() {
    run(LIMIT, async {
        let mut fixture = Fixture::new().await;
        let mut log = fixture.publish_many("a", 100).await;
        let mut readers = Vec::new();
        for i in 0..5 {
            readers.push((i * 20, fixture.resume(ORDERS, fixture.cursor(i * 20)).await));
        }
        for (_, reader) in &mut readers {
            reader.until_sequence(100, SOON).await;
        }
        let stopped = Instant::now();
        fixture.nats.stop().await;
        for (_, reader) in &mut readers {
            until_degraded(reader).await;
        }
        // A subscriber that comes during the outage is not sent away: an error status would stop a
        // browser for good.
        let mut newcomers = vec![
            (100, fixture.open(ORDERS).await),
            (60, fixture.resume(ORDERS, fixture.cursor(60)).await),
        ];
        for (_, reader) in &mut newcomers {
            until_degraded(reader).await;
        }
        assert_eq!(
            reqwest::get(format!("http://{}/livez", fixture.plane.admin()))
                .await
                .unwrap()
                .status()
                .as_u16(),
            200,
            "NATS away is no reason for a restart"
        );
        for (_, reader) in readers.iter_mut().chain(&mut newcomers) {
            assert!(
                reader.read_for(Duration::from_millis(100)).await,
                "a stream ended during the outage"
            );
        }
        tokio::time::sleep(OUTAGE.saturating_sub(stopped.elapsed())).await;
        fixture.nats.restart().await;
        fixture.streams = Streams::connect(&fixture.nats.url()).await;
        log.extend(fixture.publish_many("b", 100).await);
        for (from, mut reader) in readers.into_iter().chain(newcomers) {
            reader.until_sequence(200, SOON * 2).await;
            reader.ledger.assert_exactly(&format!("from {from}"), &expected(&log, from, 200, &[]));
            assert_eq!(
                reader.ledger.control_names(),
                ["channel.degraded", "channel.recovered"],
                "from {from}"
            );
            assert_eq!(reader.ledger.gaps, [], "from {from}");
        }
        fixture.plane.ready().await;
        // With several channels in one process, a line without its channel cannot be followed up.
        let log = fixture.plane.log();
        let of_the_log: Vec<_> =
            log.lines().filter(|line| line.contains("sluice_dataplane::log")).collect();
        assert!(!of_the_log.is_empty(), "the outage is logged");
        for line in of_the_log {
            assert!(line.contains("channel=orders"), "{line}");
        }
    });
}

#[test]
fn a_pod_that_starts_without_nats_serves_once_it_is_there() {
    run(LIMIT, async {
        let mut fixture = Fixture::new().await;
        let log = fixture.publish_many("a", 10).await;
        fixture.nats.stop().await;
        let options = sluice_tests::dataplane::Options { not_ready: true, ..Default::default() };
        let plane = sluice_tests::dataplane::DataPlane::start_with(
            &fixture.nats.url(),
            &fixture.configs,
            &options,
        )
        .await;
        let (status, _) = plane.readyz().await;
        assert_eq!(status, 503, "not ready without NATS");
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(4))).await;
        assert!(reader.read_for(Duration::from_secs(1)).await, "the stream stays open");
        fixture.nats.restart().await;
        plane.ready().await;
        reader.until_sequence(10, SOON).await;
        reader.ledger.assert_exactly("early", &expected(&log, 4, 10, &[]));
        assert_eq!(reader.ledger.gaps, []);
    });
}

#[test]
fn a_store_that_comes_back_empty_is_another_epoch_and_a_gap() {
    run(LIMIT, async {
        let mut fixture = Fixture::new().await;
        fixture.publish_many("a", 50).await;
        let mut readers = Vec::new();
        for _ in 0..3 {
            let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
            reader.until_sequence(50, SOON).await;
            readers.push(reader);
        }
        fixture.nats.kill();
        for reader in &mut readers {
            until_degraded(reader).await;
        }
        fixture.nats.restart_empty().await;
        fixture.streams = Streams::connect(&fixture.nats.url()).await;
        let epoch = fixture.streams.create(stream_config(&fixture.names)).await;
        assert_ne!(epoch, fixture.epoch);
        let log = fixture.publish_many("b", 30).await;
        for reader in &mut readers {
            reader
                .until("the new life's events", SOON * 2, |l| {
                    l.position() == Some(Cursor::new(epoch, 30))
                })
                .await;
            assert_eq!(reader.ledger.gaps.len(), 1);
            let gap = reader.ledger.gaps[0].clone();
            assert_eq!((gap.reason.as_str(), gap.cursor.epoch, gap.after), ("epoch", epoch, 50));
            reader.ledger.entries.drain(..50);
            reader.ledger.assert_exactly("the new life", &expected(&log, 0, 30, &[]));
        }
        // And a subscriber that was away meanwhile learns it when it comes back.
        let mut late = fixture.resume(ORDERS, fixture.cursor(50)).await;
        late.until_sequence(30, SOON).await;
        assert_eq!(
            late.ledger.gaps.iter().map(|g| g.reason.as_str()).collect::<Vec<_>>(),
            ["epoch"]
        );
        late.ledger.assert_exactly("late", &expected(&log, 0, 30, &[]));
    });
}

#[test]
fn a_stream_recreated_behind_our_back_is_another_epoch_without_a_reconnect() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.on_gap = Start::Earliest).await;
        fixture.publish_many("a", 50).await;
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        reader.until_sequence(50, SOON).await;
        fixture.streams.context().delete_stream(fixture.names.stream.as_str()).await.unwrap();
        // Longer than before, so that sequences alone cannot tell the two lives apart.
        let epoch = fixture.streams.create(stream_config(&fixture.names)).await;
        let log = fixture.publish_many("b", 80).await;
        reader
            .until("the new life's events", SOON * 3, |l| {
                l.position() == Some(Cursor::new(epoch, 80))
            })
            .await;
        assert_eq!(
            (
                reader.ledger.gaps.len(),
                reader.ledger.gaps[0].reason.as_str(),
                reader.ledger.gaps[0].cursor.epoch
            ),
            (1, "epoch", epoch)
        );
        assert_eq!(reader.ledger.gaps[0].after, 50, "events of the new life came before the gap");
        reader.ledger.entries.drain(..50);
        reader.ledger.assert_exactly("the new life", &expected(&log, 0, 80, &[]));
    });
}

#[test]
fn a_stopped_nats_server_that_keeps_its_sockets_is_noticed() {
    run(LIMIT, async {
        let mut fixture = Fixture::new().await;
        let mut log = fixture.publish_many("a", 10).await;
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        reader.until_sequence(10, SOON).await;
        // SIGSTOP: connections stay up and nothing answers, as with a hung node.
        fixture.nats.process().pause();
        let noticed = Instant::now();
        reader
            .until("channel.degraded", Duration::from_secs(60), |l| {
                l.control_names().contains(&"channel.degraded")
            })
            .await;
        println!("noticed after {:?}", noticed.elapsed());
        fixture.nats.process().resume();
        fixture.streams = Streams::connect(&fixture.nats.url()).await;
        log.extend(fixture.publish_many("b", 10).await);
        reader.until_sequence(20, SOON * 2).await;
        reader.ledger.assert_exactly("reader", &expected(&log, 0, 20, &[]));
        assert_eq!(reader.ledger.control_names(), ["channel.degraded", "channel.recovered"]);
        assert_eq!(reader.ledger.gaps, []);
    });
}
