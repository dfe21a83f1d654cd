//! The seam between replay and live, under load, with subscribers that move between pods.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sluice_tests::{
    clients::{Ledger, Plan, Reader, Request, expected},
    nats::{Log, events, log},
    run,
};
use tokio::{sync::watch, task::JoinHandle};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(240);
const SUBSCRIBERS: usize = 200;
const STORED: u64 = 10_000;
const LIVE: u64 = 20_000;

/// Subscribers that start at random cursors, at random moments, on both pods in turn.
struct Herd {
    tasks: Vec<(u64, JoinHandle<Ledger>)>,
    stop_at: watch::Sender<u64>,
    _pods: watch::Sender<Vec<SocketAddr>>,
}

impl Herd {
    fn start(fixture: &Fixture, pods: Vec<SocketAddr>, seed: u64) -> Self {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let (stop_at, stop_at_receiver) = watch::channel(u64::MAX);
        let (pods, pods_receiver) = watch::channel(pods);
        let mut tasks = Vec::new();
        for i in 0..SUBSCRIBERS {
            let from = random.random_range(0..=STORED);
            let plan = Plan {
                pods: pods_receiver.clone(),
                first_pod: i,
                path: ORDERS.to_owned(),
                cursor: Some(fixture.cursor(from)),
                stop_at: stop_at_receiver.clone(),
                // Half of them also drop their connection again and again and hop to the other pod.
                cut_after: (i % 2 == 0).then(|| random.random_range(500..8_000)),
                longest_wait: Duration::from_millis(100),
            };
            let delay = Duration::from_millis(random.random_range(0..2_000));
            let task = tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                plan.spawn().await.unwrap()
            });
            tasks.push((from, task));
        }
        Self { tasks, stop_at, _pods: pods }
    }

    /// Waits until all have the newest event and checks each one's ledger.
    async fn finish(self, log: &Log) -> usize {
        let newest = *log.keys().next_back().unwrap();
        self.stop_at.send(newest).unwrap();
        let (mut delivered, mut connections) = (0, 0);
        for (i, (from, task)) in self.tasks.into_iter().enumerate() {
            let ledger = task.await.unwrap();
            ledger.assert_exactly(
                &format!("subscriber {i} from {from}"),
                &expected(log, from, newest, &[]),
            );
            assert_eq!(ledger.gaps, [], "subscriber {i}");
            delivered += ledger.entries.len();
            connections += ledger.connections;
        }
        println!(
            "{SUBSCRIBERS} subscribers, {connections} connections, {delivered} events delivered, none lost or doubled"
        );
        connections
    }
}

/// Publishes [`LIVE`] events at full speed and returns the whole log.
async fn publish_live(fixture: &Fixture, mut log: Log) -> Log {
    let (start, count) = (Instant::now(), usize::try_from(LIVE).unwrap());
    log.extend(self::log(
        fixture.streams.publish_all(&fixture.names.prefix, events(count, 50, 200, 2)).await,
    ));
    println!("published {LIVE} events in {:?}", start.elapsed());
    log
}

async fn store(fixture: &Fixture) -> Log {
    log(fixture
        .streams
        .publish_all(&fixture.names.prefix, events(usize::try_from(STORED).unwrap(), 50, 200, 1))
        .await)
}

#[test]
fn publishing_at_full_speed_while_200_resume_at_random_cursors_on_two_pods() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let stored = store(&fixture).await;
        let second = fixture.another().await;
        let herd = Herd::start(&fixture, vec![fixture.plane.http(), second.http()], rand::random());
        let log = publish_live(&fixture, stored).await;
        let connections = herd.finish(&log).await;
        assert!(connections > SUBSCRIBERS, "some must have resumed");
    });
}

#[test]
fn a_pod_killed_in_the_middle_and_its_subscribers_resumed_on_the_other() {
    run(LIMIT, async {
        let mut fixture = Fixture::new().await;
        let stored = store(&fixture).await;
        let second = fixture.another().await;
        let herd = Herd::start(&fixture, vec![fixture.plane.http(), second.http()], rand::random());
        let streams = fixture.streams.clone();
        let prefix = fixture.names.prefix.clone();
        let publisher = tokio::spawn(async move {
            let mut log = stored;
            for part in 0..4 {
                let count = usize::try_from(LIVE / 4).unwrap();
                log.extend(self::log(
                    streams.publish_all(&prefix, events(count, 50, 200, 10 + part)).await,
                ));
            }
            log
        });
        // In the middle: once there are subscribers on the pod, and most are still on their way.
        sluice_tests::eventually("subscribers on the first pod", SOON, async || {
            (fixture.plane.subscribers().await.len() > SUBSCRIBERS / 8).then_some(())
        })
        .await;
        fixture.plane.kill();
        let log = publisher.await.unwrap();
        herd.finish(&log).await;
    });
}

#[test]
fn a_replay_of_100_000_events_ends_in_live_on_one_connection_in_bounded_memory() {
    run(LIMIT, async {
        const CACHE: u64 = 16 * 1024 * 1024;
        /// What the process may need above its cache: encoded segments in flight, buffers,
        /// allocator slack.
        const SLACK: u64 = 64 * 1024 * 1024;
        let mut fixture = Fixture::channel(|c| c.delivery.cache_bytes = CACHE).await;
        let payloads = (0..100_000).map(|i| ("a".to_owned(), Bytes::from(format!("{i:<1024}"))));
        let mut log = log(fixture.streams.publish_all(&fixture.names.prefix, payloads).await);
        let mut plane = fixture.another().await;
        let before = plane.process().rss();
        let start = Instant::now();
        let mut reader =
            Reader::open(plane.http(), &Request::get("/channels/orders?from=earliest")).await;
        reader.until_sequence(100_000, SOON * 3).await;
        let took = start.elapsed();
        let live = fixture.publish("a", "live").await;
        log.insert(live.sequence, live);
        reader.until_sequence(100_001, SOON).await;
        reader.ledger.assert_exactly("one connection", &expected(&log, 0, 100_001, &[]));
        assert_eq!(reader.ledger.gaps, []);
        let (one, mib) = (plane.process().peak_rss(), 1024 * 1024);
        // Readers at other places of the history at the same time do not add up.
        let mut more = Vec::new();
        for i in 0..8 {
            let request = Request::get(ORDERS).resume(fixture.cursor(i * 12_000));
            let address = plane.http();
            more.push(tokio::spawn(async move {
                let mut reader = Reader::open(address, &request).await;
                reader.until_sequence(100_001, SOON * 4).await;
                reader.ledger.entries.len()
            }));
        }
        for (i, task) in more.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), 100_001 - i * 12_000);
        }
        let eight = plane.process().peak_rss();
        println!(
            "100,000 events of 1 KiB in {took:?}; RSS {} MiB before, at most {} MiB with one replay and {} MiB with eight; cache {} MiB",
            before / mib,
            one / mib,
            eight / mib,
            CACHE / mib
        );
        assert!(one < before + CACHE + SLACK, "one replay took {} MiB", (one - before) / mib);
        assert!(
            eight < before + CACHE + 2 * SLACK,
            "eight replays took {} MiB",
            (eight - before) / mib
        );
        // The pod that was there while they were published kept within its bound too.
        let witness = fixture.plane.process().peak_rss();
        assert!(witness < before + CACHE + 2 * SLACK, "the tail took {} MiB", witness / mib);
    });
}
