//! `/metrics` tells what happened, in numbers that match what subscribers saw.

use std::time::Duration;

use reqwest::Client;
use sluice_tests::{
    clients::{Reader, Request},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(60);
const ORDERS_LABEL: &[(&str, &str)] = &[("channel", "orders")];

#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn all_documented_metrics_are_there_and_count_what_was_delivered() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            c.publish.http = true;
            c.delivery.max_connection_age = Duration::from_secs(6);
        })
        .await;
        fixture.publish_many("a", 3_000).await;
        // One that starts now has the tail in memory at most; the rest it must read from the store.
        let plane = fixture.another().await;
        let (mut delivered, mut bytes) = (0, 0);
        let mut readers = Vec::new();
        for from in [0, 0, 1_500, 2_990, 9_000] {
            let mut reader =
                Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(from)))
                    .await;
            reader.until_sequence(3_000, SOON).await;
            readers.push(reader);
        }
        let posted = Client::new()
            .post(format!("http://{}{ORDERS}/a", plane.http()))
            .body("live")
            .send()
            .await
            .unwrap();
        assert_eq!(posted.status().as_u16(), 201);
        let refused = Client::new()
            .post(format!("http://{}{ORDERS}/a", plane.http()))
            .body(vec![0xFF])
            .send()
            .await
            .unwrap();
        assert!(refused.status().is_client_error());
        for reader in &mut readers {
            reader.until_sequence(3_001, SOON).await;
            delivered += reader.ledger.entries.len();
        }
        assert_eq!(plane.metrics().await.sum("sluice_connections", ORDERS_LABEL), 5.0);
        for mut reader in readers {
            reader.until_end(SOON).await;
            bytes += reader.connection.received();
        }
        let metrics = plane.metrics().await;
        for name in [
            "sluice_connections",
            "sluice_events_delivered_total",
            "sluice_bytes_written_total",
            "sluice_replay_reads_total",
            "sluice_gaps_total",
            "sluice_closes_total",
            "sluice_publishes_total",
            "sluice_publish_to_write_seconds_bucket",
            "sluice_publish_to_write_seconds_sum",
            "sluice_publish_to_write_seconds_count",
            "sluice_reader_lag_events",
            "sluice_nats_clients_replaced_total",
        ] {
            assert!(metrics.has(name), "{name} is missing");
        }
        let sum = |name: &str, labels: &[(&str, &str)]| {
            metrics.sum(name, &[ORDERS_LABEL, labels].concat())
        };
        #[allow(clippy::cast_precision_loss)]
        let (delivered, bytes) = (delivered as f64, bytes as f64);
        assert_eq!(sum("sluice_events_delivered_total", &[]), delivered);
        assert_eq!(sum("sluice_bytes_written_total", &[]), bytes);
        assert!(
            sum("sluice_replay_reads_total", &[("source", "store")]) > 0.0,
            "history came from the store"
        );
        assert!(
            sum("sluice_replay_reads_total", &[("source", "memory")]) > 0.0,
            "the second reader came from memory"
        );
        assert_eq!(sum("sluice_gaps_total", &[("reason", "unknown")]), 1.0);
        assert_eq!(sum("sluice_gaps_total", &[]), 1.0);
        assert_eq!(sum("sluice_closes_total", &[("reason", "age")]), 5.0);
        assert_eq!(sum("sluice_connections", &[]), 0.0);
        assert_eq!(
            sum("sluice_publishes_total", &[]),
            2.0,
            "{:?}",
            metrics.labels("sluice_publishes_total")
        );
        // The one live event reached five subscribers; those of the history are no latency.
        let (count, seconds) = (
            sum("sluice_publish_to_write_seconds_count", &[]),
            sum("sluice_publish_to_write_seconds_sum", &[]),
        );
        assert!((1.0..=5.0).contains(&count), "{count}");
        assert!(seconds > 0.0 && seconds / count < 5.0, "{seconds} s for {count}");
        assert_eq!(sum("sluice_reader_lag_events", &[]), 0.0);
    });
}

#[test]
fn closes_by_the_client_are_counted_apart() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let readers = [fixture.open(ORDERS).await, fixture.open(ORDERS).await];
        drop(readers);
        let closed = async || {
            (fixture
                .plane
                .metrics()
                .await
                .sum("sluice_closes_total", &[("channel", "orders"), ("reason", "client")])
                >= 2.0)
                .then_some(())
        };
        sluice_tests::eventually("two closes by clients", SOON, closed).await;
    });
}

#[test]
fn one_consumer_serves_all_subscribers() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 2_000).await;
        let mut readers = Vec::new();
        for i in 0..30 {
            let mut reader = fixture.resume(ORDERS, fixture.cursor(i * 50)).await;
            reader.until_sequence(2_000, SOON).await;
            readers.push(reader);
        }
        let consumers =
            fixture.streams.info(fixture.names.stream.as_str()).await.state.consumer_count;
        assert_eq!(consumers, 1, "a consumer for each connection brings a NATS cluster down");
    });
}
