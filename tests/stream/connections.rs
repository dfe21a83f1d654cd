//! Connections themselves: those that ask nothing, that close their half, that do not read, and
//! requests that are none.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice_tests::{clients::Reader, clients::Request, eventually, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::fixture::{Fixture, ORDERS, SOON, Setup};

const LIMIT: Duration = Duration::from_secs(120);

/// Sends `request`, closes that half, and reads to the end.
async fn half_closed(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, socket.read_to_end(&mut answer)).await.expect("the end").unwrap();
    String::from_utf8(answer).unwrap()
}

/// What a probe gets, and how soon.
async fn probe(fixture: &Fixture, path: &str) -> (String, Duration) {
    let start = Instant::now();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let asked = async {
        let mut socket = TcpStream::connect(fixture.plane.admin()).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(SOON, asked).await.expect("an answer");
    (answer.lines().next().unwrap_or_default().to_owned(), start.elapsed())
}

#[test]
fn connections_that_ask_nothing_keep_no_other_out() {
    run(LIMIT, async {
        let mut fixture = Fixture::with(Setup { open_files: Some(400), ..Setup::default() }).await;
        let mut first = fixture.open(ORDERS).await;
        assert!(first.read_for(Duration::from_secs(2)).await);
        let mut silent = Vec::new();
        for i in 0..840 {
            let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
            // Some begin to ask, and some have had an answer.
            match i % 3 {
                0 => socket.write_all(b"GET /channels/orders HTTP/1.1\r\n").await.unwrap(),
                1 => socket
                    .write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .await
                    .unwrap(),
                _ => {}
            }
            silent.push(socket);
        }
        for path in ["/livez", "/readyz", "/livez"] {
            let (status, took) = probe(&fixture, path).await;
            assert_eq!(status, "HTTP/1.1 200 OK", "{path}");
            assert!(took < Duration::from_secs(2), "{path} took {took:?}");
        }
        let start = Instant::now();
        let mut reader = fixture.open(ORDERS).await;
        let published = fixture.publish("a", "1").await;
        reader.until_sequence(published.sequence, SOON).await;
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        // The stream that was there before all of them is not one of those that went.
        first.until_sequence(published.sequence, SOON).await;
        assert_eq!(first.ledger.connections, 1);
        let files = fixture.plane.process().open_files();
        assert!(files < 330, "{files} open files");
        assert!(!fixture.plane.log().contains("cannot accept"), "no descriptor was missing");
    });
}

#[test]
fn a_client_that_closes_its_half_has_its_answer() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        let address = fixture.plane.http();
        for i in 1..=50_usize {
            let payload = "x".repeat(i * 1_000);
            let request = format!(
                "POST {ORDERS}/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{payload}",
                payload.len()
            );
            let answer = half_closed(address, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 201 "), "{answer:?}");
        }
        let info = fixture.streams.info(fixture.names.stream.as_str()).await;
        assert_eq!(info.state.messages, 50);
        let page = format!(
            "GET {ORDERS}?from=earliest HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
        );
        let answer = half_closed(address, page.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with('}'), "{answer:.200}");
    });
}

#[test]
fn a_subscriber_that_leaves_gives_its_slot_back_wherever_it_is_written() {
    run(LIMIT, async {
        for threads in ["0", "1"] {
            let arguments = ["--fanout-threads", threads];
            let fixture = Fixture::with(Setup { arguments: &arguments, ..Setup::default() }).await;
            for version in ["1.1", "1.0"] {
                let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
                let request = format!(
                    "GET {ORDERS} HTTP/{version}\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
                );
                socket.write_all(request.as_bytes()).await.unwrap();
                socket.read_u8().await.unwrap();
                eventually("it has a slot", SOON, async || {
                    (fixture.plane.subscribers().await.len() == 1).then_some(())
                })
                .await;
                drop(socket);
                // Long before a heartbeat.
                eventually("its slot is free", Duration::from_secs(5), async || {
                    fixture.plane.subscribers().await.is_empty().then_some(())
                })
                .await;
            }
        }
    });
}

#[test]
fn a_page_that_is_not_read_is_let_go() {
    run(LIMIT, async {
        let mut fixture =
            Fixture::channel(|c| c.delivery.write_timeout = Duration::from_secs(2)).await;
        // As JSON each byte is six.
        let events = (0..400).map(|_| ("a".to_owned(), Bytes::from(vec![1; 9_000])));
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let before = fixture.plane.process().open_files();
        let mut sockets = Vec::new();
        for version in ["1.1", "1.0"] {
            // Both together are as many pages as a pod holds at a time.
            for _ in 0..5 {
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(4_096).unwrap();
                let mut socket = socket.connect(fixture.plane.http()).await.unwrap();
                let request = format!(
                    "GET {ORDERS}?from=earliest&limit=1000 HTTP/{version}\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
                );
                socket.write_all(request.as_bytes()).await.unwrap();
                sockets.push(socket);
            }
        }
        for socket in &mut sockets {
            assert_eq!(timeout(SOON, socket.read_u8()).await.unwrap().unwrap(), b'H');
        }
        let plane = &mut fixture.plane;
        let let_go = async || (plane.process().open_files() <= before + 2).then_some(());
        eventually("the connections have ended", Duration::from_secs(8), let_go).await;
    });
}

/// Sends `request` and gives the answer, as a page of another origin sees it.
#[track_caller]
fn assert_problem(answer: &str, status: u16, what: &str) {
    let (head, body) =
        answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what}: {answer:?}"));
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{what}: {head}");
    for header in [
        "content-type: application/problem+json",
        "access-control-allow-origin: *",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{what}: {header} is not in {head}");
    }
    let problem: serde_json::Value = serde_json::from_str(body).expect(what);
    assert_eq!(problem["status"], status, "{what}");
}

#[test]
fn what_is_no_request_is_answered_with_a_problem() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            c.publish.http = true;
            c.delivery.cors.allowed_origins = vec!["*".to_owned()];
        })
        .await;
        let address = fixture.plane.http();
        let head = "Host: localhost\r\nOrigin: https://a.example\r\nConnection: close\r\n";
        for path in ["/channels/%ff", "/channels/orders%c3%28", "/%ff", "/channels/orders/%ff"] {
            for method in ["GET", "POST", "PUT"] {
                let request =
                    format!("{method} {path} HTTP/1.1\r\n{head}Content-Length: 0\r\n\r\n");
                assert_problem(&half_closed(address, request.as_bytes()).await, 400, path);
            }
        }
        let request = format!("GET /nothing HTTP/1.1\r\n{head}\r\n");
        assert_problem(
            &half_closed(address, request.as_bytes()).await,
            404,
            "a path of no channel",
        );
        for hosts in ["", "Host: localhost\r\nHost: b\r\n", "Host: a b\r\n", "Host: a/b\r\n"] {
            let request = format!(
                "GET {ORDERS} HTTP/1.1\r\n{hosts}Origin: https://a.example\r\nConnection: close\r\n\r\n"
            );
            assert_problem(&half_closed(address, request.as_bytes()).await, 400, hosts);
        }
        let request = format!("HEAD {ORDERS} HTTP/1.0\r\n\r\n");
        let answer = half_closed(address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.0 200 "), "HTTP/1.0 has no Host: {answer:?}");
        for (what, body) in [
            (
                "a chunk size that is none",
                "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
            ),
            (
                "no line end after a chunk",
                "Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
            ),
            ("a chunked body that ends early", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
            ("a body that ends early", "Content-Length: 10\r\n\r\nabc"),
        ] {
            let request = format!("POST {ORDERS}/a HTTP/1.1\r\n{head}{body}");
            assert_problem(&half_closed(address, request.as_bytes()).await, 400, what);
        }
        let long = "x".repeat(1024 * 1024 + 1);
        for body in [
            format!("Content-Length: {}\r\n\r\n{long}", long.len()),
            format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n", long.len()),
        ] {
            let request = format!("POST {ORDERS}/a HTTP/1.1\r\n{head}{body}");
            assert_problem(&half_closed(address, request.as_bytes()).await, 413, "too long");
        }
        let info = fixture.streams.info(fixture.names.stream.as_str()).await;
        assert_eq!(info.state.messages, 0, "nothing was stored");
    });
}

#[test]
fn a_reader_of_many_connections_is_one_of_many() {
    run(LIMIT, async {
        // Most of what a pod with few descriptors may have: none is closed for another's sake.
        let fixture = Fixture::with(Setup { open_files: Some(400), ..Setup::default() }).await;
        let mut readers = Vec::new();
        for _ in 0..150 {
            readers.push(Reader::open(fixture.plane.http(), &Request::get(ORDERS)).await);
        }
        for _ in 0..500 {
            drop(TcpStream::connect(fixture.plane.http()).await.unwrap());
        }
        let published = fixture.publish("a", "1").await;
        for reader in &mut readers {
            reader.until_sequence(published.sequence, SOON).await;
            assert_eq!(reader.ledger.connections, 1);
        }
    });
}
