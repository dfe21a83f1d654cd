//! Probes answer whatever the pod is busy with.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_tests::run;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::fixture::{Fixture, ORDERS, SOON, Setup};

const LIMIT: Duration = Duration::from_secs(180);

/// The answer to `request` on the admin listener, and how soon it came.
async fn ask(fixture: &Fixture, request: &str) -> (String, Duration) {
    let start = Instant::now();
    let asked = async {
        let mut socket = TcpStream::connect(fixture.plane.admin()).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    (timeout(SOON, asked).await.expect("an answer"), start.elapsed())
}

async fn probe(fixture: &Fixture, path: &str) -> (String, Duration) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    ask(fixture, &request).await
}

#[test]
fn probes_do_not_wait_behind_requests() {
    run(LIMIT, async {
        let fixture =
            Fixture::with(Setup { arguments: &["--fanout-threads", "1"], ..Setup::default() })
                .await;
        let events = (0..30_000).map(|i| (format!("a.b.c.n{i}"), Bytes::from_static(b"x")));
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let filters: String = (0..32).map(|i| format!("&topic=*.*.*.z{i}")).collect();
        let request = format!(
            "GET {ORDERS}?last=1000{filters} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        // What matches nothing is looked for in all that is in memory.
        let address = fixture.plane.http();
        let load: Vec<_> = (0..48)
            .map(|_| {
                let request = request.clone();
                tokio::spawn(async move {
                    loop {
                        let Ok(mut socket) = TcpStream::connect(address).await else { continue };
                        let _ = socket.write_all(request.as_bytes()).await;
                        let _ = socket.read_to_end(&mut Vec::new()).await;
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..15 {
            for path in ["/livez", "/readyz"] {
                let (answer, took) = probe(&fixture, path).await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
                slowest = slowest.max(took);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        load.iter().for_each(tokio::task::JoinHandle::abort);
        println!("slowest probe: {slowest:?}");
        // Of a machine that is busy with other tests, too; alone it is some milliseconds.
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    });
}

#[test]
fn probes_answer_when_there_are_no_file_descriptors() {
    run(LIMIT, async {
        let setup = Setup {
            open_files: Some(40),
            arguments: &["--fanout-threads", "1"],
            ..Setup::default()
        };
        let mut fixture = Fixture::with(setup).await;
        // Streams are not closed to make room.
        let mut sockets = Vec::new();
        for _ in 0..30 {
            let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
            let request = format!("GET {ORDERS} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let _ = timeout(Duration::from_millis(100), socket.read_u8()).await;
            sockets.push(socket);
        }
        let mut others = Vec::new();
        for _ in 0..30 {
            // Of the admin listener; they take what is left.
            others.push(TcpStream::connect(fixture.plane.admin()).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let files = fixture.plane.process().open_files();
        assert!(files >= 39, "{files} of 40 files are open");
        for _ in 0..5 {
            for path in ["/livez", "/readyz"] {
                let (answer, took) = probe(&fixture, path).await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
                assert!(took < Duration::from_secs(2), "{path} took {took:?}");
            }
        }
    });
}

#[test]
fn a_process_that_was_stopped_is_not_dead() {
    run(LIMIT, async {
        let mut fixture = Fixture::new().await;
        fixture.plane.process().pause();
        tokio::time::sleep(Duration::from_secs(25)).await;
        fixture.plane.process().resume();
        for _ in 0..20 {
            let (answer, _) = probe(&fixture, "/livez").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn what_is_no_probe_reaches_the_other_admin_pages() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let get = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        };
        let (answer, _) = ask(&fixture, &get("/metrics")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("# EOF\n"), "{answer}");
        let (answer, _) = ask(&fixture, &get("/nothing")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let (head, _) = ask(&fixture, &get("/readyz").replace("GET", "HEAD")).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        // The second request of a connection that began with another.
        let kept = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned() + &get("/readyz");
        let (answer, _) = ask(&fixture, &kept).await;
        let (probed, _) = ask(&fixture, &get("/readyz")).await;
        let body = |answer: &str| answer.rsplit_once("\r\n\r\n").unwrap().1.to_owned();
        assert_eq!(body(&answer), body(&probed));
        // One that comes in pieces.
        let mut socket = TcpStream::connect(fixture.plane.admin()).await.unwrap();
        for piece in ["GE", "T /live", "z HTTP/1.1\r\nHost: localhost\r\n", "\r\n"] {
            socket.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok\n"), "{answer}");
        // Sockets that say nothing do not keep a probe from its answer.
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(TcpStream::connect(fixture.plane.admin()).await.unwrap());
        }
        let (answer, took) = probe(&fixture, "/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && took < Duration::from_secs(1), "{took:?}");
    });
}
