//! A subscriber that stops reading slows only itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_tests::{
    clients::{Reader, Request, expected},
    nats::{Log, log},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(180);
const CACHE: u64 = 8 * 1024 * 1024;
const EVENTS: usize = 8_000;
const READERS: usize = 100;
/// What may lie in the sockets' buffers between data plane and a stalled subscriber is less than
/// this.
const PAYLOAD: usize = 2_048;

async fn publish(fixture: &Fixture) -> Log {
    let events = (0..EVENTS).map(|i| ("a".to_owned(), Bytes::from(format!("{i:<PAYLOAD$}"))));
    log(fixture.streams.publish_all(&fixture.names.prefix, events).await)
}

/// A subscriber whose kernel takes little on its behalf.
fn stalling(cursor: impl ToString) -> Request {
    Request { receive_buffer: Some(4_096), ..Request::get(ORDERS).resume(cursor) }
}

/// Opens [`READERS`] readers and one that stalls, publishes 16 MiB, and checks that the others get
/// all of it. Returns the stalled one and the log.
async fn stall_one_of_many(fixture: &mut Fixture) -> (Reader, Log) {
    let before = fixture.plane.process().rss();
    let mut stalled = Reader::open(fixture.plane.http(), &stalling(fixture.cursor(0))).await;
    assert!(stalled.read_for(Duration::from_millis(200)).await);
    let mut tasks = Vec::new();
    for _ in 0..READERS {
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        tasks.push(tokio::spawn(async move {
            reader.until_sequence(EVENTS as u64, SOON * 3).await;
            reader
        }));
    }
    let start = Instant::now();
    let log = publish(fixture).await;
    let expected = expected(&log, 0, EVENTS as u64, &[]);
    for (i, task) in tasks.into_iter().enumerate() {
        let reader = task.await.unwrap();
        reader.ledger.assert_exactly(&format!("reader {i}"), &expected);
        assert_eq!((&reader.ledger.gaps[..], reader.ledger.connections), (&[][..], 1));
    }
    let (peak, mib) = (fixture.plane.process().peak_rss(), 1024 * 1024);
    println!(
        "{READERS} readers got {EVENTS} events in {:?} beside a stalled one; RSS {} MiB before, at most {} MiB",
        start.elapsed(),
        before / mib,
        peak / mib
    );
    // Cache, and for each connection what hyper and a write of ours may hold.
    assert!(peak < before + CACHE + 96 * mib, "{} MiB more than before", (peak - before) / mib);
    (stalled, log)
}

#[test]
fn one_stalled_of_101_leaves_the_others_alone_and_catches_up() {
    run(LIMIT, async {
        let mut fixture = Fixture::channel(|c| {
            c.delivery.cache_bytes = CACHE;
            c.delivery.write_timeout = Duration::from_secs(120);
        })
        .await;
        let (mut stalled, log) = stall_one_of_many(&mut fixture).await;
        assert!(stalled.ledger.last().unwrap_or(0) < EVENTS as u64);
        stalled.until_sequence(EVENTS as u64, SOON).await;
        stalled.ledger.assert_exactly("the stalled one", &expected(&log, 0, EVENTS as u64, &[]));
        assert_eq!((stalled.ledger.gaps.len(), stalled.ledger.connections), (0, 1));
        // And it is live again.
        let next = fixture.publish("a", "live").await;
        stalled.until_sequence(next.sequence, SOON).await;
    });
}

#[test]
fn one_stalled_for_longer_than_the_write_timeout_is_closed_and_resumes_exactly() {
    run(LIMIT, async {
        let mut fixture = Fixture::channel(|c| {
            c.delivery.cache_bytes = CACHE;
            // Longer than a busy test machine keeps one of the other hundred readers from its turn.
            c.delivery.write_timeout = Duration::from_secs(12);
        })
        .await;
        let (mut stalled, log) = stall_one_of_many(&mut fixture).await;
        let closed = async || {
            (fixture
                .plane
                .metrics()
                .await
                .sum("sluice_closes_total", &[("channel", "orders"), ("reason", "slow")])
                >= 1.0)
                .then_some(())
        };
        sluice_tests::eventually("the stalled one is closed", SOON * 2, closed).await;
        // What the kernel held still arrives; the last frame may be cut.
        stalled.until_end(SOON).await;
        assert!(
            stalled.ledger.last().unwrap_or(0) < EVENTS as u64,
            "it must have been closed before the end"
        );
        let cursor = stalled.connection.last_event_id().to_owned();
        let mut resumed = fixture.resume(ORDERS, &cursor).await;
        resumed.until_sequence(EVENTS as u64, SOON).await;
        let mut both = stalled.ledger.clone();
        both.entries.extend(&resumed.ledger.entries);
        both.assert_exactly(
            "both connections of the stalled one",
            &expected(&log, 0, EVENTS as u64, &[]),
        );
        assert_eq!((stalled.ledger.gaps.len(), resumed.ledger.gaps.len()), (0, 0));
        let metrics = fixture.plane.metrics().await;
        assert_eq!(
            metrics.sum("sluice_closes_total", &[("channel", "orders"), ("reason", "slow")]),
            1.0
        );
    });
}
