//! What a data plane's memory follows: the streams that are open, and nothing that they were or
//! asked for.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use sluice_tests::{eventually, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::fixture::{Fixture, ORDERS, SOON, Setup};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1024 * 1024;

/// Two fan-out threads: hyper keeps a copy of its own of what it writes.
fn threads() -> Setup<'static> {
    Setup { arguments: &["--fanout-threads", "2"], ..Setup::default() }
}

/// Opens a stream; returns its socket once the stream has said where it starts.
async fn open(address: SocketAddr, query: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {ORDERS}{query} HTTP/1.1\r\nHost: x\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.windows(8).any(|bytes| bytes == b"data: \n\n") {
        assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0, "the stream goes on");
    }
    socket
}

/// Opens a stream with each of `queries`, some at a time.
async fn open_all(address: SocketAddr, queries: impl Iterator<Item = String>) -> Vec<TcpStream> {
    stream::iter(queries)
        .map(|query| async move { open(address, &query).await })
        .buffer_unordered(100)
        .collect()
        .await
}

/// Sockets that are read at once, all that comes.
struct Crowd {
    size: u64,
    /// Bytes that all of them have read.
    read: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Crowd {
    fn of(sockets: Vec<TcpStream>) -> Self {
        let read = Arc::new(AtomicU64::new(0));
        let size = sockets.len() as u64;
        let mut tasks = JoinSet::new();
        for mut socket in sockets {
            let read = Arc::clone(&read);
            tasks.spawn(async move {
                let mut buffer = [0; 8 * 1024];
                while let Ok(count @ 1..) = socket.read(&mut buffer).await {
                    read.fetch_add(count as u64, Relaxed);
                }
            });
        }
        Self { size, read, _tasks: tasks }
    }

    /// Waits until each has read about `bytes` more than `before` for all.
    async fn has_read(&self, before: u64, bytes: usize) {
        let all = before + self.size * bytes as u64;
        let read = async || (self.read.load(Relaxed) >= all).then_some(());
        eventually("all have read it", SOON * 3, read).await;
    }
}

#[test]
fn a_broadcast_to_filters_of_their_own_is_in_memory_once() {
    run(LIMIT, async {
        const STREAMS: usize = 5_000;
        const EVENT: usize = 60_000;
        let mut fixture = Fixture::with(threads()).await;
        let queries = (0..STREAMS).map(|i| format!("?topic=user.{i}&topic=all"));
        let crowd = Crowd::of(open_all(fixture.plane.http(), queries).await);
        let idle = fixture.plane.process().rss();
        let mut now = Vec::new();
        for i in 0..3 {
            let before = crowd.read.load(Relaxed);
            fixture.publish("all", Bytes::from(format!("{i:<EVENT$}"))).await;
            crowd.has_read(before, EVENT).await;
            now.push(fixture.plane.process().rss() / MIB);
        }
        let peak = fixture.plane.process().peak_rss();
        println!(
            "{STREAMS} streams: RSS {} MiB idle, {now:?} after each event, at most {}",
            idle / MIB,
            peak / MIB
        );
        assert!(peak < idle + 64 * MIB, "{} MiB more than idle", (peak - idle) / MIB);
    });
}

#[test]
fn streams_that_have_ended_leave_no_memory_behind() {
    run(LIMIT * 4, async {
        // SLUICE_TEST_STREAMS=14000 SLUICE_TEST_ROUNDS=10: some minutes more.
        let number = |name: &str, default| {
            std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
        };
        let streams: usize = number("SLUICE_TEST_STREAMS", 6_000);
        let rounds: usize = number("SLUICE_TEST_ROUNDS", 3);
        let mut fixture = Fixture::with(threads()).await;
        let (address, process) = (fixture.plane.http(), fixture.plane.process().pid());
        // The first ones pay for what is there once.
        drop(open_all(address, (0..100).map(|_| String::new())).await);
        let left = async || fixture.plane.subscribers().await.is_empty().then_some(());
        eventually("all left", SOON, left).await;
        let start = fixture.plane.process().rss();
        for round in 0..rounds {
            let sockets = open_all(address, (0..streams).map(|_| String::new())).await;
            let open = fixture.plane.process().rss();
            drop(sockets);
            let left = async || fixture.plane.subscribers().await.is_empty().then_some(());
            eventually("all left", SOON, left).await;
            println!(
                "round {round}: {streams} streams, process {process}: RSS {} KiB at the start, {} open, {} closed",
                start / 1024,
                open / 1024,
                fixture.plane.process().rss() / 1024
            );
        }
        let back = async || (fixture.plane.process().rss() <= start / 10 * 13).then_some(());
        eventually("memory goes back", SOON * 2, back).await;
        println!("RSS {} KiB at the end", fixture.plane.process().rss() / 1024);
    });
}
