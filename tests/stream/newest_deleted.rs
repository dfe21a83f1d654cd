//! The newest event of a stream is deleted: what counts is what can be delivered.

use std::time::Duration;

use sluice_tests::{
    clients::{Connection, Reader, Request},
    run,
};

use crate::fixture::{Fixture, ORDERS, QUIET, SOON};

const LIMIT: Duration = Duration::from_secs(90);

/// Deletes the newest event: one of the ways in which that happens.
async fn delete_newest(fixture: &Fixture, by_purge: bool) {
    let stream = fixture.streams.get(fixture.names.stream.as_str()).await;
    if by_purge {
        let subject = format!("{}customer7", fixture.names.prefix);
        stream.purge().filter(subject).await.unwrap();
    } else {
        fixture.streams.delete_message(fixture.names.stream.as_str(), 7).await;
    }
}

#[test]
fn a_pod_that_starts_on_it_is_ready_and_says_where_it_stands() {
    run(LIMIT, async {
        for by_purge in [false, true] {
            let fixture = Fixture::new().await;
            let mut live = fixture.resume(ORDERS, fixture.cursor(0)).await;
            fixture.publish_many("keep", 6).await;
            fixture.publish("customer7", "to be erased").await;
            live.until_sequence(7, SOON).await;
            delete_newest(&fixture, by_purge).await;
            // Waits until it is ready, or fails.
            let plane = fixture.another().await;
            let head = Request { method: "HEAD", ..Request::get(ORDERS) };
            let head = Connection::open(plane.http(), &head).await.unwrap();
            assert_eq!(head.header("event-cursor"), Some(fixture.cursor(7).to_string().as_str()));
            let request = Request::get(ORDERS).resume(fixture.cursor(3));
            let mut reader = Reader::open(plane.http(), &request).await;
            reader.until("the hole", SOON, |l| !l.gaps.is_empty()).await;
            assert_eq!(reader.ledger.sequences(), [4, 5, 6]);
            assert_eq!(reader.ledger.gaps[0].reason, "deleted");
            assert_eq!(reader.ledger.gaps[0].cursor, fixture.cursor(7));
            // Long enough for two looks at the store, which took it for a tail that is stuck.
            tokio::time::sleep(Duration::from_secs(11)).await;
            assert_eq!(plane.metrics().await.sum("sluice_reader_lag_events", &[]), 0.0);
            assert!(!plane.log().contains("the tail was interrupted"), "{}", plane.log());
            fixture.publish("keep", "next").await;
            reader.until_sequence(8, SOON).await;
            live.until_sequence(8, SOON).await;
            assert_eq!((reader.ledger.gaps.len(), live.ledger.gaps.len()), (1, 0));
            assert!(reader.read_for(QUIET).await);
        }
    });
}
