//! Many clients that ask for much at once, beside a few hundred that only listen: probes are
//! answered, no subscriber is cut off or misses an event, and what was taken is given back. How
//! late live events are meanwhile is compared in long runs, with the same moments before.

use std::{
    net::SocketAddr,
    sync::LazyLock,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice_tests::{
    clients::{Connection, Ledger, Plan, Reader, Request},
    dataplane::channel_config,
    eventually,
    nats::{Names, Streams, names, stream_config},
    run,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    fixture::{Fixture, ORDERS, SOON, Setup},
    frames,
    probe::{Held, Probes},
    scale,
};

const LIMIT: Duration = Duration::from_secs(240);
/// The channel that nothing is asked of but live events.
const BESIDE: &str = "beside";
/// Between two live events of each channel.
const PACE: Duration = Duration::from_millis(20);
/// How many times as late as alone live events may be, at the 99th percentile,
const TIMES: u32 = 3;
/// and what is added to that: a turn of the scheduler on a machine that the flood keeps busy.
const ADDED: Duration = Duration::from_millis(5);
/// Large events, the oldest of the channel: a page of them is as large as a page's read.
const LARGE: usize = 2_000;
/// Bytes of each.
const LARGE_BYTES: usize = 1_200;
/// What the process may hold more beside a flood and after it, bytes: what the allocator keeps, and
/// pages.
const GROWTH: u64 = 64 << 20;
/// Bytes of a broadcast.
const BROADCAST_BYTES: usize = 400_000;
/// `writeTimeout` of the flooded channel: longer than the crowd's own reader stands still on a busy
/// machine.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Filters of one request, the most that are allowed.
const FILTERS: usize = 32;

/// What live events carry is the time since then.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

struct Bed {
    fixture: Fixture,
    beside: Names,
    crowd: Vec<tokio::task::JoinHandle<Ledger>>,
    stop_at: watch::Sender<u64>,
}

impl Bed {
    async fn new(crowd: usize, open_files: Option<u32>) -> Self {
        let fixture = Fixture::with(Setup {
            channel: &|channel| {
                channel.publish.http = true;
                channel.delivery.write_timeout = WRITE_TIMEOUT;
            },
            open_files,
            ..Setup::default()
        })
        .await;
        let beside = names(BESIDE);
        fixture.streams.create(stream_config(&beside)).await;
        fixture.configs.write(&channel_config(&beside));
        eventually("the second channel", SOON, async || {
            let request = Request::get(format!("/channels/{BESIDE}"));
            let opened = Connection::open(fixture.plane.http(), &request).await.ok()?;
            (opened.status() == 200).then_some(())
        })
        .await;
        let (large, small) = (LARGE, scale::of(5_000, 100_000));
        let events = (0..large + small).map(|number| {
            let size = if number < large { LARGE_BYTES } else { 10 };
            (format!("t{}.b.c.d", number % 1_000), Bytes::from("x".repeat(size)))
        });
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let (stop_at, stops) = watch::channel(u64::MAX);
        let (_, pods) = watch::channel(vec![fixture.plane.http()]);
        let plan = Plan {
            pods,
            first_pod: 0,
            path: ORDERS.to_owned(),
            cursor: None,
            stop_at: stops,
            cut_after: None,
            longest_wait: Duration::ZERO,
        };
        let crowd = (0..crowd).map(|_| plan.clone().spawn()).collect();
        let bed = Self { fixture, beside, crowd, stop_at };
        eventually("the crowd", SOON, async || (bed.open().await == bed.crowd.len()).then_some(()))
            .await;
        bed
    }

    async fn open(&self) -> usize {
        self.fixture.plane.metrics().await.sum("sluice_connections", &[]) as usize
    }

    /// Latencies of live events of both channels, from a thread that only does that.
    fn latencies(&self) -> JoinHandle<[Vec<Duration>; 2]> {
        let (nats, http) = (self.fixture.nats.url(), self.fixture.plane.http());
        let names = [self.fixture.names.clone(), self.beside.clone()];
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let streams = Streams::connect(&nats).await;
                let [flooded, beside] = &names;
                let (flooded, beside) =
                    tokio::join!(latency(&streams, http, flooded), latency(&streams, http, beside));
                [flooded, beside]
            })
        })
    }

    async fn measured(&self) -> [Duration; 2] {
        let measuring = self.latencies();
        let measured = tokio::task::spawn_blocking(|| measuring.join()).await.unwrap();
        measured.expect("each live event comes").map(p99)
    }

    /// Runs `flood` beside the crowd.
    async fn assert_stands(mut self, name: &str, flood: Flood) {
        let held = Held::by(&mut self.fixture.plane);
        let alone = self.measured().await;
        let flooder = Flooder::start();
        flooder.begin(self.fixture.plane.http(), &self.fixture.epoch.to_string(), flood);
        sleep(Duration::from_millis(500)).await;
        let probes = Probes::start(&self.fixture.plane);
        let beside = self.measured().await;
        probes.assert();
        eprintln!("{name}: p99 alone {alone:?}, beside {beside:?} (the channel, another)");
        for _ in 0..flood.broadcasts {
            self.fixture.publish("all", "x".repeat(BROADCAST_BYTES)).await;
            sleep(Duration::from_millis(200)).await;
        }
        // Also while no other event comes. A subscriber whose socket is full keeps one event until
        // it is read, and the flooder takes its time where the machine is busy.
        eventually(&format!("{name}: memory is given back"), SOON * 2, async || {
            let grown = self.fixture.plane.process().rss().saturating_sub(held.rss);
            (grown < GROWTH).then_some(())
        })
        .await;
        let settled = flood.ends_by_itself.then_some(self.crowd.len());
        if let Some(open) = settled {
            // The connections are open still.
            eventually("the stalled streams have ended", WRITE_TIMEOUT + SOON, async || {
                (self.open().await == open).then_some(())
            })
            .await;
        }
        drop(flooder);
        let open = self.crowd.len();
        held.assert_given_back(&mut self.fixture.plane, open, GROWTH).await;
        if scale::is_long() {
            for (alone, beside) in alone.iter().zip(beside) {
                let bound = *alone * TIMES + ADDED;
                assert!(beside <= bound, "{name}: p99 is {beside:?} where {bound:?} is allowed");
            }
        }
        self.assert_crowd().await;
    }

    /// Each subscriber of the crowd has all events, on its first connection, and was told of
    /// nothing else.
    async fn assert_crowd(self) {
        let last = self.fixture.publish("last", "last").await.sequence;
        self.stop_at.send(last).unwrap();
        for subscriber in self.crowd {
            let ledger = timeout(SOON, subscriber).await.expect("the last event").unwrap();
            assert_eq!(ledger.connections, 1, "a subscriber was cut off");
            assert_eq!(ledger.control_names(), [""; 0], "it was told of an outage");
            let sequences = ledger.sequences();
            let first = sequences[0];
            assert_eq!(sequences, (first..=last).collect::<Vec<_>>(), "each event once");
        }
    }
}

fn p99(mut latencies: Vec<Duration>) -> Duration {
    latencies.sort_unstable();
    latencies[(latencies.len() * 99).div_ceil(100) - 1]
}

/// Publishes live events at a pace of its own, and notes how late each comes.
async fn latency(streams: &Streams, http: SocketAddr, names: &Names) -> Vec<Duration> {
    let count = scale::of(50, 500);
    let request = Request::get(format!("/channels/{}?topic=live", names.channel));
    let mut reader = Reader::open(http, &request).await;
    reader.until("the first frame", SOON, |ledger| !ledger.heartbeats.is_empty()).await;
    let publishing = async {
        let mut tick = tokio::time::interval(PACE);
        for _ in 0..count {
            tick.tick().await;
            let sent = BEGIN.elapsed().as_nanos().to_string();
            let subject = format!("{}live", names.prefix);
            streams.context().client().publish(subject, sent.into()).await.unwrap();
        }
    };
    let reading = async {
        let mut latencies = Vec::new();
        while latencies.len() < count {
            let event = reader.event(SOON).await.expect("the stream goes on");
            assert!(!event.name.starts_with("channel."), "{event:?}");
            let sent: u64 = event.data.parse().unwrap();
            latencies.push(BEGIN.elapsed().saturating_sub(Duration::from_nanos(sent)));
        }
        latencies
    };
    tokio::join!(publishing, reading).1
}

/// What each connection of a flood does, again and again.
#[derive(Clone, Copy)]
struct Flood {
    connections: usize,
    /// The bytes of a connection, by its number, its round and the channel's epoch.
    bytes: fn(usize, usize, &str) -> Vec<u8>,
    /// How long it reads after that, unless the server ends the connection.
    hold: Duration,
    /// How long it waits before it comes again: what a data plane that stands can do with cores to
    /// spare, so that lateness is not only that of a busy machine.
    pause: Duration,
    /// Large events that all subscribers are sent at its end: a copy for each of those that have a
    /// filter of their own would be more than may be held.
    broadcasts: usize,
    /// Whether it answers the server's pings, as clients of HTTP/2 do.
    speaks_http2: bool,
    /// Whether the data plane ends its streams while the connections stay.
    ends_by_itself: bool,
}

/// Holds a connection for as long as the test takes.
const FOR_EVER: Duration = Duration::from_secs(3_600);

const FLOOD: Flood = Flood {
    connections: 1,
    bytes: |_, _, _| Vec::new(),
    hold: FOR_EVER,
    pause: Duration::from_millis(20),
    broadcasts: 0,
    speaks_http2: false,
    ends_by_itself: false,
};

/// A thread that yields to all others of the machine: the flood takes what they leave.
struct Flooder(Option<Runtime>);

impl Flooder {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(|| _ = rustix::process::nice(19))
            .enable_all()
            .build();
        Self(Some(runtime.unwrap()))
    }

    fn begin(&self, address: SocketAddr, epoch: &str, flood: Flood) {
        for connection in 0..flood.connections {
            let epoch = epoch.to_owned();
            self.0.as_ref().unwrap().spawn(async move {
                for round in 0.. {
                    let bytes = (flood.bytes)(connection, round, &epoch);
                    let asking = ask(address, &bytes, flood.speaks_http2);
                    let _ = timeout(flood.hold, asking).await;
                    sleep(flood.pause).await;
                }
            });
        }
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        // Its sockets close with its tasks.
        self.0.take().unwrap().shutdown_background();
    }
}

/// Sends `bytes`, and reads to the end.
async fn ask(address: SocketAddr, bytes: &[u8], speaks_http2: bool) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(bytes).await?;
    let mut came = Vec::new();
    while socket.read_buf(&mut came).await? > 0 {
        if speaks_http2 {
            socket.write_all(&frames::replies(&mut came)).await?;
        } else {
            came.clear();
        }
    }
    Ok(())
}

fn get(path: &str, accept: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
        .into()
}

const STREAM: &str = "text/event-stream";
const PAGE: &str = "application/json";

/// Filters that match nothing.
fn nothing(connection: usize, round: usize) -> String {
    let filter = |number| format!("&topic=*.*.*.n{connection}-{round}-{number}");
    (0..FILTERS).map(filter).collect()
}

fn assert_stands(name: &str, crowd: usize, open_files: Option<u32>, flood: Flood) {
    run(LIMIT, async {
        Bed::new(crowd, open_files).await.assert_stands(name, flood).await;
    });
}

/// Subscribers beside each flood.
fn crowd() -> usize {
    scale::of(100, 200)
}

#[test]
fn connections_that_ask_nothing() {
    let bytes = |connection: usize, _: usize, _: &str| match connection % 3 {
        0 => Vec::new(),
        1 => b"GET /channels/orders HTTP/1.1\r\nHost:".to_vec(),
        _ => frames::opening(65_535),
    };
    let flood = Flood { connections: 700, bytes, speaks_http2: true, ..FLOOD };
    assert_stands("silent connections", crowd(), Some(crowd() as u32 + 500), flood);
}

#[test]
fn pages_of_the_whole_history() {
    let bytes =
        |_: usize, _: usize, _: &str| get("/channels/orders?from=earliest&limit=1000", PAGE);
    let pause = Duration::from_secs(3);
    assert_stands("pages", crowd(), None, Flood { connections: 150, bytes, pause, ..FLOOD });
}

#[test]
fn streams_with_a_filter_of_their_own() {
    let bytes = |connection: usize, round: usize, _: &str| {
        get(&format!("/channels/orders?topic=user.{connection}.{round}&topic=all"), STREAM)
    };
    let hold = Duration::from_secs(5);
    assert_stands(
        "filters",
        crowd(),
        None,
        Flood { connections: 300, bytes, hold, broadcasts: 3, ..FLOOD },
    );
}

#[test]
fn newest_events_of_topics_that_there_are_not() {
    let bytes = |connection: usize, round: usize, _: &str| {
        let path = format!("/channels/orders?last=1000{}", nothing(connection, round));
        get(&path, if connection.is_multiple_of(2) { STREAM } else { PAGE })
    };
    let hold = Duration::from_secs(1);
    let pause = Duration::from_millis(50);
    assert_stands("last", crowd(), None, Flood { connections: 4, bytes, hold, pause, ..FLOOD });
}

#[test]
fn replays_of_topics_that_there_are_not() {
    let bytes = |connection: usize, round: usize, _: &str| {
        get(&format!("/channels/orders?from=earliest{}", nothing(connection, round)), STREAM)
    };
    let hold = Duration::from_millis(300);
    assert_stands(
        "filtered replays",
        crowd(),
        None,
        Flood { connections: 20, bytes, hold, ..FLOOD },
    );
}

#[test]
fn times_and_cursors_that_the_store_is_asked_for() {
    let bytes = |connection: usize, round: usize, epoch: &str| {
        let start = match connection % 2 {
            0 => format!("since={}ms", 3_600_000 + round),
            _ => format!("from={epoch}-{}", 1_000_000_000 + round),
        };
        let accept = if connection % 4 < 2 { STREAM } else { PAGE };
        get(&format!("/channels/orders?{start}"), accept)
    };
    let hold = Duration::from_millis(500);
    assert_stands(
        "since and cursors",
        crowd(),
        None,
        Flood { connections: 32, bytes, hold, ..FLOOD },
    );
}

#[test]
fn http2_streams_that_are_not_read() {
    let bytes = |_: usize, _: usize, _: &str| {
        let streams = (0..100).flat_map(|number| {
            frames::get(number * 2 + 1, "/channels/orders?from=earliest", STREAM)
        });
        [frames::opening(1), streams.collect()].concat()
    };
    let flood = Flood { speaks_http2: true, ends_by_itself: true, bytes, ..FLOOD };
    assert_stands("stalled streams", crowd(), None, Flood { connections: 6, ..flood });
}

#[test]
fn publishes_as_fast_as_they_are_answered() {
    let bytes = |_: usize, _: usize, _: &str| {
        let body = "x".repeat(100);
        let head = "POST /channels/orders/flood HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\n";
        format!("{head}{body}").into_bytes()
    };
    // Each event goes to each of the crowd: it is the flood's factor.
    assert_stands("publishes", crowd() / 5, None, Flood { connections: 8, bytes, ..FLOOD });
}
