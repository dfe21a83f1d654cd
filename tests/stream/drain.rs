//! SIGTERM: not ready at once, still accepting for a while, then each subscriber is sent away at a
//! moment of its own.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use sluice_tests::{
    clients::{Connection, Reader, Request},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON, Setup};

const LIMIT: Duration = Duration::from_secs(60);

async fn fixture(delay: &str, period: &str) -> Fixture {
    Fixture::with(Setup {
        arguments: &["--drain-delay", delay, "--drain-period", period],
        ..Setup::default()
    })
    .await
}

#[test]
fn a_drain_tells_each_stream_when_to_come_back_and_ends_in_time() {
    run(LIMIT, async {
        const READERS: usize = 20;
        let mut fixture = fixture("2s", "4s").await;
        let log = fixture.publish_many("a", 10).await;
        let other = fixture.another().await;
        let mut readers = Vec::new();
        for _ in 0..READERS {
            readers.push(fixture.resume(ORDERS, fixture.cursor(0)).await);
        }
        let start = Instant::now();
        fixture.plane.process().terminate();
        let (status, body) =
            sluice_tests::eventually("not ready at once", Duration::from_millis(500), async || {
                let (status, body) = fixture.plane.readyz().await;
                (status == 503).then_some((status, body))
            })
            .await;
        assert_eq!((status, body["phase"].as_str()), (503, Some("Draining")), "{body}");
        // Load balancers send new ones for a while yet: they are served, with what they missed.
        let mut latecomer = fixture.resume(ORDERS, fixture.cursor(4)).await;
        latecomer.until_sequence(10, SOON).await;
        assert!(start.elapsed() < Duration::from_secs(2), "the latecomer came within the delay");
        readers.push(latecomer);
        let mut tasks = Vec::new();
        for mut reader in readers {
            tasks.push(tokio::spawn(async move {
                reader.until_end(SOON).await;
                (start.elapsed(), reader)
            }));
        }
        let (mut ends, mut retries) = (Vec::new(), HashSet::new());
        for task in tasks {
            let (end, reader) = task.await.unwrap();
            assert_eq!(reader.ledger.control_names(), ["channel.close"]);
            let close: Value = serde_json::from_str(&reader.ledger.controls[0].data).unwrap();
            assert_eq!(close["reason"], "drain");
            assert!(reader.connection.ended_cleanly(), "ended by a cut");
            assert_eq!(reader.ledger.last(), Some(10));
            assert!(
                reader.ledger.retries.len() >= 2,
                "a retry at the start and its own slot at the end"
            );
            retries.insert(*reader.ledger.retries.last().unwrap());
            ends.push(end);
            // On another pod it goes on where it was.
            let mut resumed = Reader::open(
                other.http(),
                &Request::get(ORDERS).resume(reader.connection.last_event_id()),
            )
            .await;
            assert!(resumed.read_for(Duration::from_millis(20)).await);
            assert_eq!((resumed.ledger.entries.len(), resumed.ledger.gaps.len()), (0, 0));
        }
        ends.sort_unstable();
        let (first, last) = (ends[0], ends[READERS]);
        assert!(first >= Duration::from_millis(1_900), "closed during the delay: {first:?}");
        assert!(last - first >= Duration::from_millis(1_500), "all at once: {first:?} to {last:?}");
        assert!(last < Duration::from_millis(6_500), "{last:?}");
        assert!(retries.len() > READERS / 2, "{retries:?}");
        let status = fixture.plane.process().wait(SOON).await.expect("the data plane ends");
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        assert_eq!(status.code(), Some(0));
        drop(log);
    });
}

#[test]
fn a_drain_without_streams_ends_after_the_delay() {
    run(LIMIT, async {
        let mut fixture = fixture("500ms", "30s").await;
        let start = Instant::now();
        let status = fixture.plane.drain(Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0));
        assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    });
}

#[test]
fn a_second_signal_ends_it_now() {
    run(LIMIT, async {
        let mut fixture = fixture("30s", "30s").await;
        let mut reader = fixture.open(ORDERS).await;
        fixture.plane.process().terminate();
        assert!(reader.read_for(Duration::from_millis(500)).await);
        assert!(fixture.plane.process().ended().is_none());
        fixture.plane.process().signal(Signal::INT);
        assert!(
            fixture.plane.process().wait(Duration::from_secs(2)).await.is_some(),
            "still there after a second signal"
        );
    });
}

#[test]
fn a_drain_ends_in_time_though_a_subscriber_is_stalled() {
    run(LIMIT, async {
        let mut fixture = Fixture::with(Setup {
            arguments: &["--drain-delay", "0s", "--drain-period", "2s"],
            channel: &|c| c.delivery.write_timeout = Duration::from_secs(60),
            ..Setup::default()
        })
        .await;
        let request = Request {
            receive_buffer: Some(4_096),
            ..Request::get(ORDERS).resume(fixture.cursor(0))
        };
        let stalled = Connection::open(fixture.plane.http(), &request).await.unwrap();
        let events = (0..8_000).map(|i| ("a".to_owned(), bytes::Bytes::from(format!("{i:<2048}"))));
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let status = fixture.plane.drain(Duration::from_secs(10)).await;
        assert_eq!(status.code(), Some(0));
        drop(stalled);
    });
}

#[test]
fn the_admin_listener_can_start_the_drain() {
    run(LIMIT, async {
        let mut fixture = fixture("0s", "1s").await;
        let mut reader = fixture.open(ORDERS).await;
        let answer = reqwest::Client::new()
            .post(format!("http://{}/drain", fixture.plane.admin()))
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        reader.until_end(SOON).await;
        assert_eq!(reader.ledger.control_names(), ["channel.close"]);
        assert_eq!(fixture.plane.process().wait(SOON).await.and_then(|s| s.code()), Some(0));
    });
}

#[test]
fn bad_arguments_are_told_and_end_with_64() {
    run(LIMIT, async {
        for arguments in [
            &["--no-such-flag"][..],
            &["--listen", "nowhere"],
            &[
                "--config-dir",
                "/nonexistent/channels",
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
            ],
        ] {
            let mut command = std::process::Command::new(sluice_tests::process::workspace_program(
                "sluice-dataplane",
            ));
            command.args(arguments);
            let mut process = sluice_tests::process::Process::spawn("dataplane", command);
            let status = process.wait(Duration::from_secs(10)).await.expect("it ends");
            assert_eq!(status.code(), Some(64), "{arguments:?}: {}", process.stderr());
            assert!(
                !process.stderr().contains("panicked") && !process.stderr().trim().is_empty(),
                "{arguments:?}: {}",
                process.stderr()
            );
            assert_eq!(process.stdout(), "");
        }
    });
}
