//! Topic filters, and the cursor of subscribers whose filter matches nothing for long.

use std::time::Duration;

use bytes::Bytes;
use sluice_tests::{
    clients::{Reader, Request, expected},
    nats::{Log, log},
    run,
};

use crate::fixture::{Fixture, ORDERS, QUIET, SOON};

const LIMIT: Duration = Duration::from_secs(60);
const TOPICS: [&str; 8] = [
    "orders",
    "orders.eu",
    "orders.us",
    "orders.eu.1",
    "orders.eu.2",
    "invoices.eu",
    "invoices.eu.1",
    "größe.1",
];

async fn publish_topics(fixture: &Fixture, rounds: usize) -> Log {
    let events = (0..rounds * TOPICS.len())
        .map(|i| (TOPICS[i % TOPICS.len()].to_owned(), Bytes::from(format!("{i}"))));
    log(fixture.streams.publish_all(&fixture.names.prefix, events).await)
}

#[test]
fn topics_and_wildcards_select_live_and_replayed_events_alike() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let filters: [&[&str]; 9] = [
            &["orders"],
            &["orders.eu"],
            &["orders.*"],
            &["orders.>"],
            &["*.eu"],
            &["*.eu.*"],
            &["orders.us", "invoices.>"],
            &[">"],
            &["größe.*"],
        ];
        let query = |filter: &[&str]| {
            let topics: Vec<String> = filter
                .iter()
                .map(|t| {
                    format!(
                        "topic={}",
                        t.replace('>', "%3E").replace('ö', "%C3%B6").replace('ß', "%C3%9F")
                    )
                })
                .collect();
            format!("{ORDERS}?{}", topics.join("&"))
        };
        let mut live = Vec::new();
        for filter in filters {
            let mut reader = fixture.resume(&query(filter), fixture.cursor(0)).await;
            assert!(reader.read_for(Duration::from_millis(50)).await);
            live.push((filter, reader));
        }
        let log = publish_topics(&fixture, 50).await;
        let newest = *log.keys().next_back().unwrap();
        for (filter, mut reader) in live {
            let expected = expected(&log, 0, newest, filter);
            assert!(!expected.is_empty(), "{filter:?} selects something");
            let last = expected.last().unwrap().0;
            reader.until_sequence(last, SOON).await;
            assert!(reader.read_for(Duration::from_millis(50)).await);
            reader.ledger.assert_exactly(&format!("live {filter:?}"), &expected);
            let mut replay = fixture.open(&format!("{}&from=earliest", query(filter))).await;
            replay.until_sequence(last, SOON).await;
            assert!(replay.read_for(Duration::from_millis(50)).await);
            replay.ledger.assert_exactly(&format!("replay {filter:?}"), &expected);
        }
    });
}

#[test]
fn a_cursor_is_good_for_any_filter() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let log = publish_topics(&fixture, 20).await;
        let newest = *log.keys().next_back().unwrap();
        // 70 is not an event of this topic, and still a place.
        let mut reader =
            fixture.resume("/channels/orders?topic=orders.us", fixture.cursor(70)).await;
        let expected = expected(&log, 70, newest, &["orders.us"]);
        reader.until_sequence(expected.last().unwrap().0, SOON).await;
        reader.ledger.assert_exactly("orders.us", &expected);
        assert_eq!(reader.ledger.gaps, []);
    });
}

#[test]
fn the_cursor_of_a_filtered_idle_subscriber_moves() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.heartbeat = Duration::from_millis(300)).await;
        let mut reader = fixture.open("/channels/orders?topic=rare&from=earliest").await;
        for round in 1..=3u64 {
            fixture.publish_many("frequent", 100).await;
            reader
                .until("the cursor moves", SOON, |l| {
                    l.heartbeats.last().is_some_and(|c| c.sequence >= round * 100)
                })
                .await;
        }
        assert_eq!(reader.ledger.sequences(), [0; 0]);
        let cursor = reader.connection.last_event_id().to_owned();
        assert_eq!(cursor, fixture.cursor(300).to_string());
        drop(reader);
        // Even without the filter nothing old comes again; and the rare one arrives.
        let mut unfiltered = fixture.resume(ORDERS, &cursor).await;
        assert!(unfiltered.read_for(QUIET).await);
        let rare = fixture.publish("rare", "x").await;
        unfiltered.until_sequence(rare.sequence, SOON).await;
        assert_eq!(unfiltered.ledger.sequences(), [rare.sequence]);
        let mut filtered = fixture.resume("/channels/orders?topic=rare", &cursor).await;
        filtered.until_sequence(rare.sequence, SOON).await;
        assert_eq!(filtered.ledger.sequences(), [rare.sequence]);
    });
}

#[test]
fn an_idle_stream_carries_a_heartbeat() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.heartbeat = Duration::from_millis(200)).await;
        fixture.publish_many("a", 3).await;
        // The newest event is what this pod knows as such.
        fixture.open("/channels/orders?from=earliest").await.until_sequence(3, SOON).await;
        let mut reader = fixture.open(ORDERS).await;
        assert!(reader.read_for(Duration::from_secs(3)).await);
        let beats = reader.ledger.comments + reader.ledger.heartbeats.len();
        assert!((8..=20).contains(&beats), "{beats} heartbeats of 200 ms in 3 s");
        assert!(
            reader.ledger.heartbeats.iter().all(|c| *c == fixture.cursor(3)),
            "{:?}",
            reader.ledger.heartbeats
        );
    });
}

#[test]
fn heartbeats_pass_while_a_filtered_replay_matches_nothing() {
    run(LIMIT, async {
        // A replay that reads much and sends nothing is not an idle socket for long.
        let fixture = Fixture::channel(|c| c.delivery.heartbeat = Duration::from_millis(100)).await;
        fixture.publish_many("frequent", 30_000).await;
        let request = Request::get("/channels/orders?from=earliest&topic=rare");
        let mut reader = Reader::open(fixture.plane.http(), &request).await;
        reader
            .until("the end of the replay", SOON, |l| {
                l.heartbeats.last().is_some_and(|c| c.sequence == 30_000)
            })
            .await;
        assert_eq!(reader.ledger.sequences(), [0; 0]);
    });
}
