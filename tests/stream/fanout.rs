//! What the fan-out threads do beside what every stream must do: all other tests of plain HTTP/1.1
//! go through them.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use serde_json::Value;
use sluice_tests::{
    clients::{Reader, Request, expected},
    run,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::{Fixture, ORDERS, QUIET, SOON, Setup};

const LIMIT: Duration = Duration::from_secs(120);

/// Names of the data plane's threads.
fn threads(fixture: &mut Fixture) -> Vec<String> {
    let tasks = format!("/proc/{}/task", fixture.plane.process().pid());
    let names = std::fs::read_dir(tasks)
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn as_many_threads_as_asked_for_share_the_streams() {
    run(LIMIT, async {
        let mut fixture =
            Fixture::with(Setup { arguments: &["--fanout-threads", "3"], ..Setup::default() })
                .await;
        let names: HashSet<String> =
            threads(&mut fixture).into_iter().filter(|name| name.starts_with("fanout-")).collect();
        assert_eq!(names, ["fanout-0", "fanout-1", "fanout-2"].map(str::to_owned).into());
        let mut readers = join_all((0..30).map(|_| fixture.open(ORDERS))).await;
        let log = fixture.publish_many("a", 200).await;
        for (i, reader) in readers.iter_mut().enumerate() {
            reader.until_sequence(200, SOON).await;
            reader.ledger.assert_exactly(&format!("reader {i}"), &expected(&log, 0, 200, &[]));
        }
        drop(readers);
        sluice_tests::eventually("all left", SOON, async || {
            fixture.plane.subscribers().await.is_empty().then_some(())
        })
        .await;
        assert_eq!(fixture.plane.drain(SOON).await.code(), Some(0));
    });
}

#[test]
fn without_fan_out_threads_the_same_streams_stay_with_the_http_library() {
    run(LIMIT, async {
        let mut fixture = Fixture::with(Setup {
            arguments: &["--fanout-threads", "0"],
            channel: &|c| c.delivery.heartbeat = Duration::from_millis(200),
            ..Setup::default()
        })
        .await;
        assert!(!threads(&mut fixture).iter().any(|name| name.starts_with("fanout-")));
        let mut log = fixture.publish_many("a", 3_000).await;
        let mut all = fixture.resume(ORDERS, fixture.cursor(0)).await;
        let mut some = fixture.resume("/channels/orders?topic=b", fixture.cursor(0)).await;
        all.until_sequence(3_000, SOON).await;
        log.extend(fixture.publish_many("b", 10).await);
        for (reader, filter) in [(&mut all, &[][..]), (&mut some, &["b"])] {
            reader.until_sequence(3_010, SOON).await;
            reader.ledger.assert_exactly("a reader", &expected(&log, 0, 3_010, filter));
        }
        let beats = all.ledger.comments;
        assert!(all.read_for(QUIET).await);
        assert!(all.ledger.comments > beats, "no heartbeat");
        fixture.plane.process().terminate();
        all.until_end(SOON).await;
        assert!(all.connection.ended_cleanly());
        assert_eq!(all.ledger.control_names(), ["channel.close"]);
    });
}

#[test]
fn a_peer_that_leaves_is_noticed_at_once() {
    run(LIMIT, async {
        // Nothing is written in this time: no heartbeat, no event.
        let fixture = Fixture::new().await;
        let readers = join_all((0..50).map(|_| fixture.open(ORDERS))).await;
        assert_eq!(fixture.plane.subscribers().await.len(), 50);
        drop(readers);
        sluice_tests::eventually("all left", Duration::from_secs(5), async || {
            fixture.plane.subscribers().await.is_empty().then_some(())
        })
        .await;
        let closes =
            fixture.plane.metrics().await.sum("sluice_closes_total", &[("reason", "client")]);
        assert_eq!(closes, 50.0);
    });
}

/// Reads from `socket` until `done`.
async fn read_until(socket: &mut TcpStream, bytes: &mut Vec<u8>, done: impl Fn(&str) -> bool) {
    let reading = async {
        while !done(&String::from_utf8_lossy(bytes)) {
            assert_ne!(
                socket.read_buf(bytes).await.unwrap(),
                0,
                "closed after {}",
                String::from_utf8_lossy(bytes)
            );
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("more soon");
}

#[test]
fn a_head_in_pieces_and_bytes_after_it_do_no_harm() {
    run(LIMIT, async {
        let fixture =
            Fixture::with(Setup { arguments: &["--fanout-threads", "1"], ..Setup::default() })
                .await;
        fixture.publish_many("a", 3).await;
        let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
        let head = format!("GET {ORDERS}?from=earliest HTTP/1.1\r\nHost: x\r\n\r\n");
        for piece in head.as_bytes().chunks(7) {
            socket.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut bytes = Vec::new();
        read_until(&mut socket, &mut bytes, |text| text.contains("data: a/3\n\n")).await;
        // Of no meaning on an endless response; much of it, so that it fills the kernel's buffer.
        for _ in 0..64 {
            let _ = tokio::time::timeout(
                Duration::from_millis(20),
                socket.write_all(&[b'x'; 64 * 1024]),
            )
            .await;
        }
        fixture.publish("a", "after the noise").await;
        read_until(&mut socket, &mut bytes, |text| text.contains("data: after the noise\n\n"))
            .await;
        drop(socket);
        sluice_tests::eventually("it left", SOON, async || {
            fixture.plane.subscribers().await.is_empty().then_some(())
        })
        .await;
    });
}

/// Bytes that the kernel has received on this address' connections and no program has read
/// (`rx_queue` of Linux's `/proc/net/tcp`).
fn unread(address: std::net::SocketAddr) -> u64 {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = sockets.filter(|words| words[1].ends_with(&port) && words[3] == "01");
    established
        .map(|words| u64::from_str_radix(words[4].split_once(':').unwrap().1, 16).unwrap())
        .sum()
}

#[test]
fn what_a_peer_sends_after_its_request_is_not_kept_and_holds_up_nothing() {
    run(LIMIT, async {
        // More than both ends' kernels have room for.
        const BYTES: usize = 64 * 1024 * 1024;
        let fixture =
            Fixture::with(Setup { arguments: &["--fanout-threads", "1"], ..Setup::default() })
                .await;
        let mut quiet = fixture.open(ORDERS).await;
        let mut talkers = Vec::new();
        for _ in 0..20 {
            let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
            let request = format!("GET {ORDERS} HTTP/1.1\r\nHost: x\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            read_until(&mut socket, &mut Vec::new(), |text| text.contains("data: \n\n")).await;
            talkers.push(socket);
        }
        let mut loudest = talkers.pop().unwrap();
        let sending = tokio::spawn(async move {
            for _ in 0..BYTES / (64 * 1024) {
                loudest.write_all(&[b'x'; 64 * 1024]).await.unwrap();
            }
            loudest
        });
        for socket in &mut talkers {
            socket.write_all(&[b'x'; 100_000]).await.unwrap();
        }
        while !sending.is_finished() {
            let published = fixture.publish("a", "live").await;
            quiet.until_sequence(published.sequence, SOON).await;
        }
        talkers.push(sending.await.unwrap());
        sluice_tests::eventually("all of it was read", SOON, async || {
            (unread(fixture.plane.http()) == 0).then_some(())
        })
        .await;
        fixture.publish("a", "after the noise").await;
        for socket in &mut talkers {
            let mut bytes = Vec::new();
            read_until(socket, &mut bytes, |text| text.contains("data: after the noise\n\n")).await;
        }
    });
}

#[test]
fn a_client_that_closes_its_side_goes_on_receiving() {
    run(LIMIT, async {
        let fixture =
            Fixture::with(Setup { arguments: &["--fanout-threads", "1"], ..Setup::default() })
                .await;
        let mut sockets = Vec::new();
        for number in 0..10 {
            let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
            let request = format!("GET {ORDERS} HTTP/1.1\r\nHost: x\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            // With the request, as `printf … | nc -N` does, or later.
            if number % 2 == 0 {
                socket.shutdown().await.unwrap();
            }
            read_until(&mut socket, &mut bytes, |text| text.contains("data: \n\n")).await;
            if number % 2 == 1 {
                socket.shutdown().await.unwrap();
            }
            // What tells it from one that is gone.
            read_until(&mut socket, &mut bytes, |text| text.contains(": hb\n")).await;
            sockets.push((socket, bytes));
        }
        for number in 0..3 {
            fixture.publish("a", format!("live/{number}")).await;
            for (socket, bytes) in &mut sockets {
                let event = format!("data: live/{number}\n\n");
                read_until(socket, bytes, |text| text.contains(&event)).await;
            }
            tokio::time::sleep(QUIET).await;
        }
        for (_, bytes) in &sockets {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(text.matches(": hb\n").count(), 1, "one for each: {text}");
        }
        assert_eq!(fixture.plane.subscribers().await.len(), 10);
        // Both sides are closed now, which the next write finds out.
        drop(sockets);
        fixture.publish("a", "after the end").await;
        sluice_tests::eventually("all left", Duration::from_secs(5), async || {
            fixture.plane.subscribers().await.is_empty().then_some(())
        })
        .await;
    });
}

#[test]
fn one_connection_serves_other_requests_before_its_stream() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 2).await;
        let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
        let mut bytes = Vec::new();
        // One after the other, and then two at once (pipelined): answers come in order, and the
        // stream is the last.
        let page = format!(
            "GET {ORDERS}?from=earliest HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n"
        );
        socket.write_all(page.as_bytes()).await.unwrap();
        read_until(&mut socket, &mut bytes, |text| text.contains("upToDate")).await;
        let stream = format!("{page}GET {ORDERS}?from=earliest HTTP/1.1\r\nHost: x\r\n\r\n");
        bytes.clear();
        socket.write_all(stream.as_bytes()).await.unwrap();
        read_until(&mut socket, &mut bytes, |text| text.contains("data: a/2\n\n")).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (page, stream) =
            (text.find("upToDate").unwrap(), text.find("text/event-stream").unwrap());
        assert!(page < stream, "{text}");
        assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{text}");
        fixture.publish("a", "live").await;
        read_until(&mut socket, &mut bytes, |text| text.contains("data: live\n\n")).await;
    });
}

#[test]
fn every_subscriber_may_have_a_filter_of_its_own() {
    run(LIMIT, async {
        const TOPICS: usize = 40;
        let fixture = Fixture::new().await;
        let topic = |i: usize| format!("t{}", i % TOPICS);
        let mut readers = Vec::new();
        for i in 0..TOPICS * 2 {
            readers.push(fixture.open(&format!("/channels/orders?topic={}", topic(i))).await);
        }
        let events = (0..2_000).map(|i| (topic(i * 7), Bytes::from(format!("{i}"))));
        let log = sluice_tests::nats::log(
            fixture.streams.publish_all(&fixture.names.prefix, events).await,
        );
        for (i, reader) in readers.iter_mut().enumerate() {
            let expected = expected(&log, 0, 2_000, &[&topic(i)]);
            reader.until_sequence(expected.last().unwrap().0, SOON).await;
            reader.ledger.assert_exactly(&topic(i), &expected);
        }
    });
}

#[test]
fn live_events_pass_those_who_replay() {
    run(LIMIT, async {
        const HISTORY: usize = 60_000;
        const REPLAYS: usize = 40;
        let fixture = Fixture::with(Setup {
            arguments: &["--fanout-threads", "1"],
            // Longer than a busy test machine keeps one of the replays from its turn.
            channel: &|c| c.delivery.write_timeout = Duration::from_secs(100),
            ..Setup::default()
        })
        .await;
        let events = (0..HISTORY).map(|i| ("a".to_owned(), Bytes::from(format!("{i:<256}"))));
        let log = sluice_tests::nats::log(
            fixture.streams.publish_all(&fixture.names.prefix, events).await,
        );
        let mut live = fixture.open(ORDERS).await;
        assert!(live.read_for(Duration::from_millis(200)).await);
        let start = Instant::now();
        let replays: Vec<_> = (0..REPLAYS)
            .map(|_| {
                let (address, cursor) = (fixture.plane.http(), fixture.cursor(0));
                tokio::spawn(async move {
                    let mut reader =
                        Reader::open(address, &Request::get(ORDERS).resume(cursor)).await;
                    reader.until_sequence(HISTORY as u64, SOON * 4).await;
                    reader
                })
            })
            .collect();
        let (mut worst, mut passed) = (Duration::ZERO, 0);
        while !replays.iter().all(tokio::task::JoinHandle::is_finished) {
            let published = fixture.publish("a", "live").await;
            let sent = Instant::now();
            live.until_sequence(published.sequence, SOON).await;
            worst = worst.max(sent.elapsed());
            passed += 1;
        }
        println!(
            "{passed} live events passed {REPLAYS} replays of {HISTORY} in {:?}; the slowest took {worst:?}",
            start.elapsed()
        );
        assert!(passed > 3, "the replays were over too soon to tell");
        assert!(worst < Duration::from_secs(3), "a live event took {worst:?}");
        for replay in replays {
            let reader = replay.await.unwrap();
            let upto: Vec<_> = reader
                .ledger
                .entries
                .iter()
                .copied()
                .filter(|(sequence, _)| *sequence <= HISTORY as u64)
                .collect();
            assert_eq!(upto, expected(&log, 0, HISTORY as u64, &[]));
        }
    });
}

#[test]
fn an_idle_stream_costs_little_memory() {
    run(LIMIT, async {
        const STREAMS: usize = 2_000;
        let mut fixture =
            Fixture::with(Setup { arguments: &["--fanout-threads", "1"], ..Setup::default() })
                .await;
        // The first ones pay for what is there once.
        let mut readers = join_all((0..200).map(|_| fixture.open(ORDERS))).await;
        let before = fixture.plane.process().rss();
        for _ in 0..STREAMS / 100 {
            readers.extend(join_all((0..100).map(|_| fixture.open(ORDERS))).await);
        }
        sluice_tests::eventually("all are live", SOON, async || {
            let live = |subscriber: &&Value| subscriber["state"] == "Live";
            (fixture.plane.subscribers().await.iter().filter(live).count() == readers.len())
                .then_some(())
        })
        .await;
        let each = fixture.plane.process().rss().saturating_sub(before) / STREAMS as u64;
        println!("{each} bytes for each of {STREAMS} idle streams");
        assert!(each < 5 * 1024, "{each} bytes for each idle stream");
    });
}
