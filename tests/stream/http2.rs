//! Streams over HTTP/2: each has its own progress, age and end, whatever its connection does.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    client::{Builder, SendRequest},
};
use http::Response;
use sluice_tests::{eventually, run};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1024 * 1024;
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection; PINGs are answered for as long as it is there.
struct Client {
    requests: SendRequest<Bytes>,
    address: SocketAddr,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    /// A connection each stream of which takes `window` bytes until more are asked for.
    async fn connect(address: SocketAddr, window: u32) -> Self {
        Self::with_windows(address, window, 1 << 24).await
    }

    /// The same, where all streams together take `connection` bytes.
    async fn with_windows(address: SocketAddr, window: u32, connection: u32) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (requests, connection) = Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(connection)
            .handshake(socket)
            .await
            .unwrap();
        Self { requests, address, connection: tokio::spawn(connection) }
    }

    async fn request(&self, method: &str, path: &str, accept: &str) -> Response<RecvStream> {
        let mut requests = self.requests.clone().ready().await.unwrap();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("accept", accept)
            .body(())
            .unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        timeout(SOON, response).await.expect("a response head").unwrap()
    }

    async fn stream(&self, path: &str) -> RecvStream {
        let response = self.request("GET", path, "text/event-stream").await;
        assert_eq!(response.status(), 200, "{path}");
        response.into_body()
    }

    async fn streams(&self, path: &str, count: usize) -> Vec<RecvStream> {
        let opened = (0..count).map(|_| self.stream(path));
        futures::future::join_all(opened).await
    }

    /// The connection is there and answers.
    async fn lives(&self) {
        assert_eq!(self.request("HEAD", ORDERS, "*/*").await.status(), 200);
        assert!(!self.connection.is_finished());
    }
}

async fn open_streams(fixture: &Fixture) -> f64 {
    fixture.plane.metrics().await.sum("sluice_connections", &[("channel", "orders")])
}

async fn closed(fixture: &Fixture, reason: &str) -> f64 {
    let labels = [("channel", "orders"), ("reason", reason)];
    fixture.plane.metrics().await.sum("sluice_closes_total", &labels)
}

/// Waits until no stream has a slot any more.
async fn all_end(fixture: &Fixture, limit: Duration) {
    let none = async || (open_streams(fixture).await == 0.0).then_some(());
    eventually("all streams have ended", limit, none).await;
}

/// Whether the server has reset the stream.
async fn is_reset(mut body: RecvStream) -> bool {
    loop {
        match timeout(SOON, body.data()).await.expect("the end of the stream") {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.reason() == Some(Reason::CANCEL),
            None => return false,
        }
    }
}

#[test]
fn streams_that_take_nothing_are_reset_and_their_connection_lives() {
    run(LIMIT, async {
        let mut fixture = Fixture::channel(|c| c.delivery.write_timeout = WRITE_TIMEOUT).await;
        let large = (0..20).map(|i| ("a".to_owned(), Bytes::from(vec![b'a' + i; 900_000])));
        fixture.streams.publish_all(&fixture.names.prefix, large).await;
        let before = fixture.plane.process().rss();
        let mut clients = Vec::new();
        // The window of each stream is shut, or that of the connection is soon.
        for (window, connection) in [(0, 1 << 24), (1, 1 << 24), (200, 1 << 24), (1 << 20, 65_535)]
        {
            let client = Client::with_windows(fixture.plane.http(), window, connection).await;
            let bodies = client.streams(&format!("{ORDERS}?from=earliest"), 200).await;
            clients.push((client, bodies));
        }
        let opened = open_streams(&fixture).await;
        assert!(opened > 200.0, "{opened} streams");
        // The timeout, and as much again for a machine that is busy with other tests.
        all_end(&fixture, WRITE_TIMEOUT * 2).await;
        assert_eq!(closed(&fixture, "slow").await, 800.0);
        for (client, bodies) in clients {
            client.lives().await;
            for body in bodies {
                assert!(is_reset(body).await);
            }
            client.lives().await;
        }
        // While they stood still each held one event, and a slice beside it.
        let peak = fixture.plane.process().peak_rss();
        println!("RSS {} MiB, at most {} MiB", before / MIB, peak / MIB);
        assert!(peak < before + 500 * MIB, "{} MiB", (peak - before) / MIB);
        // Room for as many again.
        let client = Client::connect(fixture.plane.http(), 65_535).await;
        let _bodies = client.streams(ORDERS, 200).await;
        assert_eq!(open_streams(&fixture).await, 200.0);
    });
}

#[test]
fn a_stream_that_has_nothing_to_write_does_not_stand_still() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.write_timeout = Duration::from_secs(1)).await;
        let client = Client::connect(fixture.plane.http(), 65_535).await;
        let mut body = client.stream(ORDERS).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(open_streams(&fixture).await, 1.0);
        fixture.publish("a", "after many write timeouts").await;
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("after many write timeouts") {
            let data = timeout(SOON, body.data()).await.expect("the event").unwrap().unwrap();
            text.extend_from_slice(&data);
        }
    });
}

#[test]
fn a_stream_that_goes_on_slowly_is_not_cut() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.write_timeout = WRITE_TIMEOUT).await;
        fixture.publish("a", vec![b'x'; 600_000]).await;
        let client = Client::connect(fixture.plane.http(), 65_535).await;
        let mut body = client.stream(&format!("{ORDERS}?from=earliest")).await;
        let mut taken = 0;
        // Three times the write timeout for one event.
        while taken < 600_000 {
            let data = timeout(SOON, body.data()).await.expect("data").unwrap().unwrap();
            taken += data.len();
            tokio::time::sleep(
                Duration::from_secs(6) * u32::try_from(data.len()).unwrap() / 600_000,
            )
            .await;
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!((open_streams(&fixture).await, closed(&fixture, "slow").await), (1.0, 0.0));
    });
}

#[test]
fn streams_that_take_nothing_end_by_age_removal_and_drain_too() {
    run(LIMIT, async {
        let mut fixture = Fixture::channel(|c| {
            c.delivery.write_timeout = Duration::from_secs(60);
            c.delivery.max_connection_age = Duration::from_secs(3);
        })
        .await;
        fixture.publish("a", vec![b'x'; 200_000]).await;
        let path = format!("{ORDERS}?from=earliest");
        let client = Client::connect(fixture.plane.http(), 1).await;
        let bodies = client.streams(&path, 50).await;
        all_end(&fixture, Duration::from_secs(8)).await;
        assert_eq!(closed(&fixture, "age").await, 50.0);
        for body in bodies {
            assert!(is_reset(body).await);
        }
        client.lives().await;

        let mut config = fixture.config();
        config.delivery.write_timeout = Duration::from_secs(60);
        fixture.configs.write(&config);
        let aged = async || {
            let body = client.stream(&path).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let open = open_streams(&fixture).await > 0.0;
            drop(body);
            open.then_some(())
        };
        eventually("the configuration without an age", SOON * 2, aged).await;
        all_end(&fixture, SOON).await;
        let bodies = client.streams(&path, 50).await;
        fixture.configs.remove("orders");
        eventually("the removal", Duration::from_secs(6), async || {
            (closed(&fixture, "removed").await == 50.0).then_some(())
        })
        .await;
        for body in bodies {
            assert!(is_reset(body).await);
        }
        assert!(fixture.plane.drain(SOON).await.success());
    });
}

#[test]
fn a_page_or_problem_that_is_not_read_is_let_go() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.write_timeout = WRITE_TIMEOUT).await;
        // As JSON each byte is six.
        let events = (0..400).map(|_| ("a".to_owned(), Bytes::from(vec![1; 9_000])));
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let page = format!("{ORDERS}?from=earliest&limit=1000");
        // One that is read is whole, however small the window.
        let client = Client::connect(fixture.plane.http(), 10_000).await;
        let response = client.request("GET", &page, "application/json").await;
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let (mut body, mut taken) = (response.into_body(), 0);
        while let Some(data) = timeout(SOON, body.data()).await.expect("data") {
            let data = data.unwrap();
            taken += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(taken, length);
        assert!(length > 3_600_000, "{length}");
        for window in [0, 1, 65_535] {
            let client = Client::connect(fixture.plane.http(), window).await;
            // As many as a pod holds at a time.
            let pages = (0..10).map(|_| client.request("GET", &page, "application/json"));
            let pages = futures::future::join_all(pages).await;
            let problem = client.request("GET", "/channels/nothing", "*/*").await;
            for page in pages {
                assert_eq!(page.status(), 200);
                assert!(is_reset(page.into_body()).await, "window {window}");
            }
            assert_eq!(problem.status(), 404);
            assert!(window > 1 || is_reset(problem.into_body()).await);
            client.lives().await;
        }
    });
}

#[test]
fn a_connection_that_asks_nothing_ends_and_one_with_a_stream_does_not() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let client = Client::connect(fixture.plane.http(), 65_535).await;
        let _body = client.stream(ORDERS).await;
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(Client::connect(fixture.plane.http(), 65_535).await);
        }
        let asked = Client::connect(fixture.plane.http(), 65_535).await;
        asked.lives().await;
        idle.push(asked);
        for client in idle {
            // They answer PINGs.
            let ended = timeout(Duration::from_secs(45), client.connection).await;
            ended.expect("an idle connection ends").unwrap().unwrap();
        }
        client.lives().await;
        assert_eq!(open_streams(&fixture).await, 1.0);
    });
}
