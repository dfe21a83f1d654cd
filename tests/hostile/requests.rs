//! Requests and frames of all kinds: the process answers what it documents, answers its probes, and
//! gives back what it took.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use sluice_tests::{eventually, run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedReadHalf},
    task::JoinSet,
    time::timeout,
};

use crate::{
    answers,
    fixture::{Fixture, Setup},
    frames,
    grammar::{Ending, Script},
    probe::{Held, Probes},
    scale,
};

/// Kinds of faults that are told of one run.
const FAULTS: usize = 20;
/// Connections at a time.
const CONNECTIONS: usize = 24;
/// Longest wait for an answer that should come.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a client waits where nothing may be due: a request that did not end, an open stream.
const PATIENCE: Duration = Duration::from_millis(30);
/// How long a socket may take none of a script: the server has stopped reading it.
const WRITE: Duration = Duration::from_secs(1);
/// Bytes that are read of a stream, and then the client goes.
const ENOUGH: usize = 256 * 1024;
/// What a process may hold more than when its caches were warm, bytes: what the allocator keeps.
const GROWTH: u64 = 64 << 20;

async fn fixture() -> Fixture {
    let fixture = Fixture::with(Setup {
        channel: &|channel| {
            channel.publish.http = true;
            channel.stream.max_message_size = 64 * 1024;
            channel.delivery.cache_bytes = 4 << 20;
            let origin = "https://shop.example.com".to_owned();
            channel.delivery.cors.allowed_origins = vec![origin];
        },
        ..Setup::default()
    })
    .await;
    fixture.publish_many("a", 300).await;
    fixture
}

/// Reads until the end, until it is enough, or until nothing comes for `patience`.
pub(crate) async fn read(socket: &mut OwnedReadHalf, patience: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < ENOUGH {
        match timeout(patience, socket.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            _ => break,
        }
    }
    bytes
}

/// Sends `bytes` while it reads, as `ending` says. Returns what came.
pub(crate) async fn exchange(
    address: SocketAddr,
    bytes: &[u8],
    ending: Ending,
    patience: Duration,
) -> Vec<u8> {
    let connecting = timeout(ANSWER, TcpStream::connect(address)).await;
    let socket = connecting.expect("a connection in time").expect("a connection");
    let (mut read_half, mut write_half) = socket.into_split();
    let writing = async {
        // The server may have answered and closed before it has read all of it.
        let _ = timeout(WRITE, write_half.write_all(bytes)).await;
        if ending == Ending::HalfClose {
            let _ = write_half.shutdown().await;
        }
        write_half
    };
    if ending == Ending::Closes {
        writing.await;
        return Vec::new();
    }
    let (_open, came) = tokio::join!(writing, read(&mut read_half, patience));
    came
}

/// Sends scripts that `script` makes until `count` requests are out; `fault` names what is wrong
/// with what came.
async fn send(
    address: SocketAddr,
    count: usize,
    rng: &mut StdRng,
    script: fn(&mut StdRng) -> Script,
    fault: fn(&Script, &[u8]) -> Option<String>,
) -> usize {
    let (sent, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (mut workers, faults) = (JoinSet::new(), Faults::default());
    for _ in 0..CONNECTIONS {
        let mut rng = StdRng::seed_from_u64(rng.random());
        let (sent, answered, faults) = (Arc::clone(&sent), Arc::clone(&answered), faults.clone());
        workers.spawn(async move {
            while sent.load(Relaxed) < count {
                let script = script(&mut rng);
                sent.fetch_add(script.requests, Relaxed);
                let came = exchange(address, &script.bytes, script.ending, PATIENCE).await;
                answered.fetch_add(usize::from(!came.is_empty()), Relaxed);
                if let Some(fault) = fault(&script, &came) {
                    faults.note(fault, &script.bytes);
                }
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    faults.assert();
    answered.load(Relaxed)
}

/// What was wrong, each with the first input of its kind.
#[derive(Debug, Clone, Default)]
struct Faults(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Faults {
    fn note(&self, fault: String, input: &[u8]) {
        let mut faults = self.0.lock().unwrap();
        if faults.len() < FAULTS {
            faults.entry(fault).or_insert_with(|| input.to_vec());
        }
    }

    fn assert(&self) {
        let faults = self.0.lock().unwrap();
        let told = faults
            .iter()
            .map(|(fault, input)| format!("{fault}\n  input b\"{}\"", input.escape_ascii()));
        assert!(faults.is_empty(), "{}", told.collect::<Vec<_>>().join("\n"));
    }
}

fn public_fault(script: &Script, came: &[u8]) -> Option<String> {
    match answers::parse(came, script.ends_with_head) {
        Ok(answers) => answers.iter().find_map(|answer| answer.fault(true)),
        Err(fault) => Some(fault),
    }
}

fn admin_fault(script: &Script, came: &[u8]) -> Option<String> {
    // A mutated one may have become another path.
    let is_channel = !script.is_mutated && script.path.starts_with("/channels/");
    match answers::parse(came, script.ends_with_head) {
        Ok(answers) => answers.iter().find_map(|answer| answer.admin_fault(is_channel)),
        Err(fault) => Some(fault),
    }
}

/// Sends `count` requests or frames by `sending`, which returns how many were answered.
fn assert_survives(
    name: &str,
    count: usize,
    sending: &impl AsyncFn(&Fixture, usize, &mut StdRng) -> usize,
) {
    let mut rng = scale::rng(name);
    run(Duration::from_secs(120) + Duration::from_millis(2 * count as u64), async {
        let mut fixture = fixture().await;
        // So that what is kept for good is not counted as lost.
        sending(&fixture, (count / 10).min(20_000), &mut rng).await;
        let held = Held::by(&mut fixture.plane);
        let probes = Probes::start(&fixture.plane);
        let answered = sending(&fixture, count, &mut rng).await;
        eprintln!("{name}: {count} sent, {answered} connections answered");
        assert!(answered * 20 > count / 10, "{answered} connections of {count} requests answered");
        held.assert_given_back(&mut fixture.plane, 0, GROWTH).await;
        probes.assert();
        // And it serves as before.
        let mut reader = fixture.open("/channels/orders").await;
        assert!(reader.read_for(Duration::from_millis(100)).await);
        let last = fixture.publish("a", "last").await.sequence;
        reader.until_sequence(last, ANSWER).await;
    });
}

#[test]
fn any_request_is_answered_as_documented() {
    assert_survives("requests", scale::of(20_000, 600_000), &async |fixture, count, rng| {
        send(fixture.plane.http(), count, rng, Script::public, public_fault).await
    });
}

#[test]
fn any_request_of_the_admin_listener_is_answered() {
    assert_survives("admin", scale::of(5_000, 200_000), &async |fixture, count, rng| {
        send(fixture.plane.admin(), count, rng, Script::admin, admin_fault).await
    });
}

#[test]
fn any_frames_leave_nothing_behind() {
    assert_survives("frames", scale::of(100_000, 1_000_000), &async |fixture, count, rng| {
        let (sent, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (mut workers, faults) = (JoinSet::new(), Faults::default());
        for worker in 0..CONNECTIONS {
            // Both listeners speak HTTP/2.
            let address =
                if worker % 6 == 0 { fixture.plane.admin() } else { fixture.plane.http() };
            let mut rng = StdRng::seed_from_u64(rng.random());
            let (sent, answered, faults) =
                (Arc::clone(&sent), Arc::clone(&answered), faults.clone());
            workers.spawn(async move {
                while sent.load(Relaxed) < count {
                    let script = frames::Script::random(&mut rng);
                    sent.fetch_add(script.frames, Relaxed);
                    let came = exchange(address, &script.bytes, script.ending, PATIENCE).await;
                    answered.fetch_add(usize::from(!came.is_empty()), Relaxed);
                    if let Some(fault) = script.fault(&came) {
                        faults.note(fault, &script.bytes);
                    }
                }
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
        faults.assert();
        answered.load(Relaxed) * 10
    });
}

/// How soon a slot is free again, with some time for a busy machine: far below the heartbeat, whose
/// failure would free it, too.
const GONE: Duration = Duration::from_secs(6);

#[test]
fn a_client_that_has_gone_holds_no_slot() {
    run(Duration::from_secs(240), async {
        let fixture = fixture().await;
        let head = "GET /channels/orders HTTP/1.1\r\nHost: x\r\n";
        let old = "GET /channels/orders HTTP/1.0\r\nHost: x\r\n";
        let more = "x".repeat(70_000);
        // What is left unread must not hide that nothing follows.
        let requests = [
            format!("{head}\r\n"),
            format!("{head}Content-Length: 70000\r\n\r\n{more}"),
            format!("{head}Content-Length: 50\r\n\r\nhello"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{more}"),
            format!("{head}\r\n{more}"),
            format!("{head}\r\n{head}\r\n"),
            format!("{head}\r\n").repeat(1_000),
            format!("{old}\r\n"),
            format!("{old}\r\n{more}"),
        ];
        for address in [fixture.plane.http(), fixture.plane.admin()] {
            for request in &requests {
                let came =
                    exchange(address, request.as_bytes(), Ending::Reads, PATIENCE * 10).await;
                let told = &request[..request.len().min(120)];
                assert!(!came.is_empty(), "the stream was open: {told:?}");
                eventually(&format!("the slot of {told:?} at {address}"), GONE, async || {
                    let open = fixture.plane.metrics().await.sum("sluice_connections", &[]);
                    (open == 0.0).then_some(())
                })
                .await;
            }
        }
    });
}
