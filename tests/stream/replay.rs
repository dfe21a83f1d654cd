//! Deep history: what it costs the store, and the memory of readers that stall in it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use sluice_tests::{
    clients::{Reader, Request, expected},
    nats::{connect, log},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(240);
/// Sequences of a segment.
const SEGMENT: u64 = 1_024;
const MIB: u64 = 1024 * 1024;

/// Counts what is published to `subject` on this nats-server.
async fn count(url: &str, subject: String) -> Arc<AtomicU64> {
    let client = connect(url).await;
    let mut requests = client.subscribe(subject).await.unwrap();
    client.flush().await.unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while requests.next().await.is_some() {
            counter.fetch_add(1, Relaxed);
        }
        drop(client);
    });
    count
}

#[test]
fn a_crowd_that_replays_from_a_cold_cache_costs_the_store_one_read() {
    const EVENTS: u64 = 30_000;
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let events =
            (0..EVENTS).map(|i| (format!("t{}", i % 16), Bytes::from(format!("{i:<100}"))));
        let log = log(fixture.streams.publish_all(&fixture.names.prefix, events).await);
        let plane = fixture.another().await;
        let stream = fixture.names.stream.as_str();
        let direct = count(&fixture.nats.url(), format!("$JS.API.DIRECT.GET.{stream}")).await;
        let pulls =
            count(&fixture.nats.url(), format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*")).await;
        let created =
            count(&fixture.nats.url(), format!("$JS.API.CONSUMER.CREATE.{stream}.>")).await;
        let everything = expected(&log, 0, EVENTS, &[]);
        let crowd = (0..100).map(|i| {
            let (address, cursor, everything) =
                (plane.http(), fixture.cursor(0), everything.clone());
            async move {
                let mut reader = Reader::open(address, &Request::get(ORDERS).resume(cursor)).await;
                reader.until_sequence(EVENTS, SOON * 4).await;
                reader.ledger.assert_exactly(&format!("reader {i}"), &everything);
                assert_eq!((reader.ledger.gaps.len(), reader.ledger.connections), (0, 1));
            }
        });
        futures::future::join_all(crowd.map(tokio::spawn))
            .await
            .into_iter()
            .for_each(|reader| reader.unwrap());
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (direct, pulls, created) =
            (direct.load(Relaxed), pulls.load(Relaxed), created.load(Relaxed));
        let segments = EVENTS.div_ceil(SEGMENT);
        println!("{segments} segments: {direct} direct gets, {pulls} pulls, {created} consumers");
        // The tail, which was there before the count, pulls now and then, too.
        assert!((2..=4).contains(&direct), "{direct} direct gets before a run begins");
        assert!(
            direct + pulls <= segments + 8,
            "{direct} direct gets and {pulls} pulls for {segments} segments"
        );
        assert_eq!(created, 1, "one run for all");
    });
}

#[test]
fn replays_that_stall_hold_no_segments_in_memory() {
    const CACHE: u64 = 8 * MIB;
    const STALLED: u64 = 100;
    const PAYLOAD: usize = 4_000;
    // A segment is cut at 1 MiB, so that each of them stalls at another one.
    const APART: u64 = 300;
    const EVENTS: u64 = APART * (STALLED + 2);
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            c.delivery.cache_bytes = CACHE;
            c.delivery.write_timeout = Duration::from_secs(120);
        })
        .await;
        let events = (0..EVENTS).map(|i| ("a".to_owned(), Bytes::from(format!("{i:<PAYLOAD$}"))));
        let log = log(fixture.streams.publish_all(&fixture.names.prefix, events).await);
        let mut plane = fixture.another().await;
        let before = plane.process().rss();
        let mut stalled = Vec::new();
        for i in 0..STALLED {
            let request = Request {
                receive_buffer: Some(4_096),
                ..Request::get(ORDERS).resume(fixture.cursor(i * APART))
            };
            let mut reader = Reader::open(plane.http(), &request).await;
            reader
                .until(&format!("the first event of reader {i}"), SOON, |ledger| {
                    ledger.last().is_some()
                })
                .await;
            stalled.push(reader);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = plane.process().rss();
        println!(
            "{STALLED} stalled at as many segments: RSS {} MiB before, {} MiB now",
            before / MIB,
            now / MIB
        );
        // Their segments would be 100 MiB. What is left: the cache, a slice and a frame for each,
        // and what the allocator keeps.
        assert!(now < before + CACHE + 32 * MIB, "{} MiB more than before", (now - before) / MIB);
        for (i, mut reader) in (0..).zip(stalled).step_by(10) {
            let (after, to) = (i * APART, (i + 1) * APART);
            reader.until_sequence(to, SOON).await;
            let read = reader.ledger.last().unwrap();
            reader.ledger.assert_exactly(&format!("reader {i}"), &expected(&log, after, read, &[]));
            assert_eq!((reader.ledger.gaps.len(), reader.ledger.connections), (0, 1));
        }
    });
}
