//! The course of a run.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    nats::{Streams, connect},
};
use tokio::{
    task::{self, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    balancer::{Balancer, PODS},
    bed::{Bed, configuration},
    events::{Selection, TOPICS, payload, topic},
    faults::{self, Brokers, PodFaults, StreamFaults},
    judge::{Judge, Store},
    pager::Pager,
    publisher::{Poster, on_nats},
    report::{self, Rows},
    schedule::{Fault, Schedule},
    session::{Session, broken},
    soak::{Phase, Soak},
    subscriber::{Habit, Subscriber},
};

/// Events before the first subscriber comes.
const PRELOADED: usize = 5_000;
/// Publishers on NATS and by POST, and how often each publishes: 80 events a second, so that two
/// cores have time for 300 subscribers in a build for development.
const NATS_PUBLISHERS: usize = 4;
const POSTERS: u64 = 3;
const NATS_EVERY: Duration = Duration::from_millis(73);
const POST_EVERY: Duration = Duration::from_millis(120);
/// Until a pod that is ready is known to be.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// After the last fault: until everything that was sent is acknowledged, and until all that read
/// have come to the newest event.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// A pod whose subscribers are gone holds no more descriptors than before they came, but for a few.
const SPARE_FILES: usize = 16;
/// And no more memory than when all of them read, but for what fragmentation and the caches take.
const SPARE_BYTES: u64 = 96 << 20;
/// Until descriptors are closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// How many of each kind, all topics and some: 300 together.
const SUBSCRIBERS: [(Habit, u64, u64); 6] = [
    (Habit::Steady, 70, 60),
    (Habit::HangsUp, 40, 30),
    (Habit::Slow, 15, 5),
    (Habit::Replays, 15, 5),
    (Habit::Since, 10, 5),
    (Habit::Last, 10, 5),
];
const PAGERS: (u64, u64) = (20, 10);

/// Resources of a pod.
#[derive(Debug, Clone, Copy)]
struct Used {
    files: usize,
    bytes: u64,
}

/// Subscribers by their tasks.
#[derive(Default)]
struct Clients {
    tasks: JoinSet<Vec<Session>>,
    /// Name and position of each.
    names: HashMap<task::Id, (String, Arc<AtomicU64>)>,
}

impl Clients {
    fn add(
        &mut self,
        name: String,
        position: Arc<AtomicU64>,
        run: impl Future<Output = Vec<Session>> + Send + 'static,
    ) {
        let id = self.tasks.spawn(run).id();
        self.names.insert(id, (name, position));
    }
}

/// Runs the soak of `seed`, and fails with what it has found.
pub(crate) async fn run(seed: u64, length: Duration) {
    let logs = tempfile::TempDir::with_prefix(format!("sluice-soak-{seed}-")).unwrap().keep();
    let mut bed = Bed::start(&logs).await;
    let balancer = Balancer::default();
    for pod in 0..PODS {
        bed.pods.start(pod, &bed.configs, &balancer).await;
        bed.pods.plane(pod).ready().await;
    }
    let path = format!("/channels/{}", bed.names.channel);
    let soak = Arc::new(Soak::new(seed, bed.epoch, path, balancer));
    faults::always(&soak);
    preload(&soak, &bed.streams, &bed.names.prefix).await;
    let idle = used(&mut bed);

    let _watches = watches(&soak);
    eventually("all pods are chosen from", READY_LIMIT, async || {
        (soak.balancer.ready() == PODS).then_some(())
    })
    .await;
    let clients = subscribers(&soak);
    let publishers = publishers(&soak, &bed).await;

    let schedule = Schedule::new(seed, length);
    let rows = RefCell::new(Rows::default());
    let loaded = go_wrong(&soak, &mut bed, &schedule, &rows, &logs).await;
    sleep_to(&soak, length).await;
    soak.note("all faults are over");
    settle(&soak, publishers).await;
    let sessions = finish(&soak, &bed.streams, &bed.names.prefix, clients).await;
    leaks(&soak, &mut bed, &idle, &loaded).await;
    let store = stored(&bed).await;
    for finding in Judge::new(&soak.book(), &store).judge(&sessions) {
        soak.found(finding);
    }
    bed.keep_logs(&logs);
    for line in &bed.pods.errors {
        soak.check("a pod's log", broken("an error in a log", line.clone()));
    }
    std::fs::write(logs.join("timeline.log"), soak.timeline()).unwrap();
    println!(
        "\nseed {seed}, {} s\n{}\n{}",
        length.as_secs(),
        rows.borrow().table(&soak),
        report::numbers(&soak)
    );
    // Ended before a panic, which would print the end of each log.
    drop(bed);
    if let Some(findings) = soak.verdict() {
        panic!(
            "seed {seed}: promises were broken; logs and the time line are in {}\n{findings}",
            logs.display()
        );
    }
    std::fs::remove_dir_all(&logs).unwrap();
}

/// Knows which pods are ready, and notes the numbers, until it is dropped.
fn watches(soak: &Arc<Soak>) -> JoinSet<()> {
    let mut probes = JoinSet::new();
    let sampled = Arc::clone(soak);
    probes.spawn(async move { sampled.sample().await });
    for pod in 0..PODS {
        let soak = Arc::clone(soak);
        probes.spawn(async move {
            let note = |ready| {
                soak.note(format!("pod{pod} is {}", if ready { "ready" } else { "not ready" }));
            };
            soak.balancer.probe(pod, note).await;
        });
    }
    probes
}

async fn publishers(soak: &Arc<Soak>, bed: &Bed) -> JoinSet<()> {
    let mut publishers = JoinSet::new();
    for _ in 0..NATS_PUBLISHERS {
        let (client, prefix) = (connect(&bed.urls).await, bed.names.prefix.clone());
        publishers.spawn(on_nats(Arc::clone(soak), client, prefix, NATS_EVERY));
    }
    for number in 0..POSTERS {
        publishers.spawn(Poster::new(Arc::clone(soak), number).run(POST_EVERY));
    }
    publishers
}

async fn sleep_to(soak: &Soak, length: Duration) {
    tokio::time::sleep_until(soak.started + length).await;
}

async fn publish(soak: &Soak, streams: &Streams, prefix: &str) -> u64 {
    let (id, sent) = (soak.next_number(), soak.now());
    let (key, limit) = (format!("test-{id}"), SETTLE_LIMIT);
    let event =
        streams.publish_through_outages(prefix, &topic(id), &key, payload(id).into(), limit).await;
    let result = soak.book().acknowledge(event.sequence, id, sent, soak.now());
    soak.check("the test's publisher", result);
    event.sequence
}

async fn preload(soak: &Soak, streams: &Streams, prefix: &str) {
    stream::iter(0..PRELOADED)
        .map(|_| publish(soak, streams, prefix))
        .buffer_unordered(128)
        .for_each(async |_| {})
        .await;
}

fn used(bed: &mut Bed) -> Vec<Used> {
    let of = |pod| {
        let process = bed.pods.plane(pod).process();
        Used { files: process.open_files(), bytes: process.rss() }
    };
    (0..PODS).map(of).collect()
}

/// Starts all subscribers.
fn subscribers(soak: &Arc<Soak>) -> Clients {
    let mut rng = StdRng::seed_from_u64(soak.seed);
    let mut clients = Clients::default();
    let mut number = 0;
    let mut some = || {
        let topics = [rng.random_range(0..TOPICS), rng.random_range(0..TOPICS)];
        Selection::of(&topics[..rng.random_range(1..3)])
    };
    let mut next = || {
        number += 1;
        number
    };
    for (habit, all, filtered) in SUBSCRIBERS {
        for i in 0..all + filtered {
            let selection = if i < all { Selection::ALL } else { some() };
            let one = Subscriber::new(Arc::clone(soak), next(), habit, selection);
            clients.add(one.name().to_owned(), one.position(), one.run());
        }
    }
    for i in 0..PAGERS.0 + PAGERS.1 {
        let selection = if i < PAGERS.0 { Selection::ALL } else { some() };
        let one = Pager::new(Arc::clone(soak), next(), selection);
        clients.add(one.name().to_owned(), one.position(), one.run());
    }
    clients
}

/// Lets the schedule happen; returns what the pods used before the first fault.
async fn go_wrong(
    soak: &Soak,
    bed: &mut Bed,
    schedule: &Schedule,
    rows: &RefCell<Rows>,
    logs: &std::path::Path,
) -> Vec<Used> {
    sleep(Duration::from_secs(5)).await;
    let loaded = used(bed);
    let Bed { cut, pods, links, streams, names, stream, configs, .. } = bed;
    let mut brokers = Brokers { soak, cut, streams, stream: names.stream.as_str(), logs };
    let mut pods = PodFaults { soak, pods, configs };
    let on_stream = StreamFaults { soak, streams, config: stream };
    tokio::join!(
        faults::follow(soak, rows, &schedule.brokers, async |fault, lasts| {
            brokers.act(fault, lasts).await;
        }),
        faults::follow(soak, rows, &schedule.pods, async |fault, lasts| {
            pods.act(fault, lasts).await;
        }),
        faults::follow(soak, rows, &schedule.links, async |fault, lasts| {
            faults::link(links, fault, lasts).await;
        }),
        faults::follow(soak, rows, &schedule.stream, async |fault, lasts| {
            on_stream.act(fault, lasts).await;
        }),
        faults::follow(soak, rows, &schedule.clients, async |_, _| {
            soak.anew.send_replace(());
        }),
        faults::follow(soak, rows, &schedule.configuration, async |fault, _| {
            if let Fault::Configure(edit) = fault {
                faults::configure(configs, names, edit);
            }
        }),
    );
    // The last edit may have left room for fewer than there are.
    configs.write(&configuration(names));
    loaded
}

/// No more is published; waits until everything that was sent is acknowledged.
async fn settle(soak: &Soak, mut publishers: JoinSet<()>) {
    soak.publishing.send_replace(false);
    let all = async {
        while let Some(ended) = publishers.join_next().await {
            if let Err(error) = ended {
                soak.check("a publisher", broken("a client of the test ended", error.to_string()));
            }
        }
    };
    if timeout(SETTLE_LIMIT, all).await.is_err() {
        soak.check("publishers", broken("not acknowledged", "a publisher did not come to its end"));
    }
}

/// Lets all that read come to the newest event, and end; returns what they got.
async fn finish(
    soak: &Soak,
    streams: &Streams,
    prefix: &str,
    mut clients: Clients,
) -> Vec<Session> {
    let last = publish(soak, streams, prefix).await;
    soak.note(format!("the last event is {last}"));
    soak.phase.send_replace(Phase::Until(last));
    let mut sessions = Vec::new();
    let deadline = Instant::now() + HEAD_LIMIT;
    let Clients { tasks, names } = &mut clients;
    while let Ok(Some(ended)) = timeout_at(deadline, tasks.join_next_with_id()).await {
        let id = ended.as_ref().map_or_else(task::JoinError::id, |(id, _)| *id);
        let (name, _) = names.remove(&id).unwrap_or_default();
        match ended {
            Ok((_, of_one)) => sessions.extend(of_one),
            Err(error) => {
                soak.check(&name, broken("a client of the test ended", error.to_string()));
            }
        }
    }
    for (name, position) in names.values() {
        let (at, ready) = (position.load(Relaxed), soak.balancer.ready());
        let what = format!("at {at} instead of {last}, {ready} pods are ready");
        soak.check(name, broken("not at the head in time", what));
    }
    // Those that hang are asked no more.
    tasks.shutdown().await;
    soak.note("all readers have ended");
    sessions
}

/// What the pods held for subscribers is given back.
async fn leaks(soak: &Soak, bed: &mut Bed, idle: &[Used], loaded: &[Used]) {
    let deadline = Instant::now() + CLOSE_LIMIT;
    let too_many =
        |now: &[Used]| (0..PODS).find(|pod| now[*pod].files > idle[*pod].files + SPARE_FILES);
    let mut now = used(bed);
    while too_many(&now).is_some() && Instant::now() < deadline {
        sleep(Duration::from_millis(200)).await;
        now = used(bed);
    }
    if let Some(pod) = too_many(&now) {
        let what = format!("{} at the start, {} at the end", idle[pod].files, now[pod].files);
        soak.check(&format!("pod{pod}"), broken("open files", what));
    }
    for pod in 0..PODS {
        let (before, after) = (loaded[pod].bytes, now[pod].bytes);
        println!(
            "pod{pod}: {} MiB before the first fault, {} MiB at the end; files {} and {}",
            before >> 20,
            after >> 20,
            idle[pod].files,
            now[pod].files
        );
        if after > before + SPARE_BYTES {
            let what = format!("{before} bytes before the first fault, {after} at the end");
            soak.check(&format!("pod{pod}"), broken("memory", what));
        }
    }
}

/// What the stream holds at the end, by the word of a leader that has all its replicas.
async fn stored(bed: &Bed) -> Store {
    bed.cut.cluster.in_sync(&bed.streams, bed.names.stream.as_str()).await;
    let subject = format!("STREAM.INFO.{}", bed.names.stream);
    let info: Value = eventually("what is stored", SETTLE_LIMIT, async || {
        let body = json!({"deleted_details": true});
        bed.streams.context().request(subject.clone(), &body).await.ok()
    })
    .await;
    let state = &info["state"];
    let number = |name: &str| state[name].as_u64().expect("a number");
    let deleted = state["deleted"].as_array().into_iter().flatten();
    let deleted = deleted.map(|sequence| sequence.as_u64().expect("a sequence")).collect();
    Store { first: number("first_seq"), last: number("last_seq"), deleted }
}
