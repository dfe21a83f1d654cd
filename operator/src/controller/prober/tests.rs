use std::{net::Ipv4Addr, sync::Arc};

use futures::StreamExt;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Of pods that answer, and of those that accept and say nothing.
const ANSWERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const SILENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const EVERY: Duration = Duration::from_secs(30);
/// Far more than it takes, and far less than silent pods would make it.
const SOON_ENOUGH: Duration = Duration::from_secs(5);

fn channel(namespace: &str, name: &str) -> Channel {
    ObjectRef::new(name).within(namespace)
}

fn pod(name: &str, ip: Ipv4Addr, ready: bool) -> Pod {
    let ready = if ready { "True" } else { "False" };
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
    }))
    .unwrap()
}

fn served(generation: i64, connections: u32) -> ServedChannel {
    ServedChannel {
        name: "orders".to_owned(),
        namespace: "shop".to_owned(),
        generation,
        error: None,
        connections: Some(connections),
    }
}

/// A data plane that serves a generation of shop/orders, and one that says nothing.
struct Bed {
    prober: Arc<Prober>,
    generation: Arc<Mutex<(i64, u32)>>,
    _tasks: JoinSet<()>,
}

impl Bed {
    async fn start() -> Self {
        let answers = TcpListener::bind((ANSWERS, 0)).await.unwrap();
        let port = answers.local_addr().unwrap().port();
        let silent = TcpListener::bind((SILENT, port)).await.unwrap();
        let prober = Arc::new(Prober::new(port));
        let generation = Arc::new(Mutex::new((1, 0)));
        let mut tasks = JoinSet::new();
        let says = Arc::clone(&generation);
        tasks.spawn(async move {
            loop {
                let (mut socket, _) = answers.accept().await.unwrap();
                let (generation, connections) = *says.lock();
                let channel = json!({
                    "name": "orders", "namespace": "shop", "generation": generation,
                    "connections": connections,
                });
                let body = json!({ "channels": [channel] }).to_string();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = socket.read(&mut [0; 4_096]).await;
                let _ = socket.write_all((head + &body).as_bytes()).await;
            }
        });
        tasks.spawn(async move {
            let mut held = Vec::new();
            loop {
                held.push(silent.accept().await.unwrap());
            }
        });
        let asks = Arc::clone(&prober);
        tasks.spawn(async move { asks.run(CancellationToken::new()).await });
        Self { prober, generation, _tasks: tasks }
    }

    async fn look(&self, channel: &Channel, pods: &[Pod], generation: i64) -> Pods {
        self.prober.look(&Look { channel, pods, generation, every: EVERY }).await
    }
}

#[tokio::test]
async fn pods_that_say_nothing_cost_other_channels_nothing() {
    let bed = Bed::start().await;
    let mut woken = Box::pin(bed.prober.wakes(None));
    // More than can be asked at a time, of more namespaces than one.
    for number in 0..100 {
        let silent: Vec<_> = (0..3).map(|i| pod(&format!("p{i}"), SILENT, true)).collect();
        let of = channel(if number % 2 == 0 { "a" } else { "b" }, &format!("c{number}"));
        let look = Look { channel: &of, pods: &silent, generation: 1, every: EVERY };
        bed.prober.note(&look, Instant::now());
    }
    let orders = channel("shop", "orders");
    let pods = [pod("p", ANSWERS, true)];
    let begun = Instant::now();
    let serves = async |generation| bed.look(&orders, &pods, generation).await.ready[0].1.clone();
    while serves(1).await != Serves::Generation(1) {
        assert!(begun.elapsed() < SOON_ENOUGH, "{:?}", begun.elapsed());
    }
    // An edit: it is asked again at once, and until it serves it.
    assert_eq!(bed.look(&orders, &pods, 2).await.ready[0].1, Serves::Generation(1));
    *bed.generation.lock() = (2, 0);
    let is_told = async {
        while woken.next().await != Some(orders.clone()) {}
        while bed.look(&orders, &pods, 2).await.ready[0].1 != Serves::Generation(2) {
            woken.next().await;
        }
    };
    tokio::time::timeout(SOON_ENOUGH, is_told).await.expect("the pass is woken");
    assert!(begun.elapsed() < SOON_ENOUGH, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_pass_waits_for_no_silent_pod() {
    let bed = Bed::start().await;
    let channels: Vec<_> = (0..50).map(|i| channel("a", &format!("c{i}"))).collect();
    let silent = [pod("p", SILENT, true)];
    let begun = Instant::now();
    let looks = channels.iter().map(|channel| bed.look(channel, &silent, 1));
    let found = futures::future::join_all(looks).await;
    assert!(found.iter().all(|pods| pods.ready[0].1 == Serves::Unasked), "{found:?}");
    assert!(begun.elapsed() < asker::ANSWER_LIMIT, "{:?}", begun.elapsed());
}

#[test]
fn the_namespaces_take_turns_and_none_has_all_of_them() {
    let mut inner = Inner::default();
    let now = Instant::now();
    let prober = Prober::new(9);
    for namespace in ["a", "b"] {
        for i in 0..100 {
            let of = channel(namespace, &format!("c{i}"));
            let pods = [pod("p", SILENT, true)];
            prober.note(&Look { channel: &of, pods: &pods, generation: 1, every: EVERY }, now);
        }
    }
    std::mem::swap(&mut inner, &mut prober.inner.lock());
    inner.collect(now);
    let asked: Vec<_> = std::iter::from_fn(|| inner.next()).map(|(place, _)| place).collect();
    let of = |namespace: &str| asked.iter().filter(|place| place.namespace == namespace).count();
    assert_eq!((of("a"), of("b")), (ASKED_OF_A_NAMESPACE, ASKED_OF_A_NAMESPACE));
    assert_ne!(asked[0].namespace, asked[1].namespace, "they take turns");
    // An answer makes room for one more of its namespace.
    inner.answered(&asked[0], SILENT.into(), None, now);
    let next = inner.next().unwrap().0;
    assert_eq!(next.namespace, asked[0].namespace);
    assert!(inner.next().is_none());
}

/// A prober that nothing runs, one ready pod of shop/orders, and what it is told.
struct Alone {
    prober: Prober,
    orders: Channel,
    place: Place,
    now: Instant,
}

impl Alone {
    fn new() -> Self {
        let (namespace, channel) = ("shop".to_owned(), "orders".to_owned());
        let place = Place { namespace, channel, pod: "p".to_owned() };
        Self { prober: Prober::new(9), orders: place.channel(), place, now: Instant::now() }
    }

    fn note(&self, generation: i64, ready: bool) {
        let pods = [pod("p", SILENT, ready)];
        let look = Look { channel: &self.orders, pods: &pods, generation, every: EVERY };
        self.prober.note(&look, self.now);
    }

    fn serves(&self, generation: i64) -> Serves {
        let pods = [pod("p", SILENT, true)];
        let look = Look { channel: &self.orders, pods: &pods, generation, every: EVERY };
        self.prober.pods(&look).ready[0].1.clone()
    }

    /// Has the pod asked, which answers so; the pause before it is asked again.
    fn ask(&self, answer: Option<ServedChannel>) -> Duration {
        let mut inner = self.prober.inner.lock();
        inner.collect(self.now);
        assert!(inner.next().is_some(), "it is due");
        let readyz = |said| Readyz { channels: vec![said], refused: Vec::new() };
        inner.answered(&self.place, SILENT.into(), answer.map(readyz), self.now);
        let due = inner.known(&self.place).unwrap().due.unwrap();
        due.saturating_duration_since(self.now)
    }
}

#[test]
fn a_silent_pod_is_asked_less_and_less_often() {
    let mut alone = Alone::new();
    alone.note(1, true);
    let pauses: Vec<_> = (0..8)
        .map(|_| {
            let pause = alone.ask(None);
            alone.now += pause;
            pause.as_secs()
        })
        .collect();
    assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!(alone.ask(Some(served(1, 0))), EVERY);
}

#[test]
fn a_pod_is_asked_often_while_the_file_may_be_on_its_way() {
    let mut alone = Alone::new();
    alone.note(2, true);
    let begun = alone.now;
    while alone.now - begun < PROPAGATION {
        assert_eq!(alone.ask(Some(served(1, 0))), SOON);
        alone.now += SOON;
    }
    assert_eq!(alone.ask(Some(served(1, 0))), EVERY);
    // An edit, or what Kubernetes says of it, makes it due at once.
    alone.note(3, true);
    assert_eq!(alone.ask(Some(served(3, 0))), EVERY);
    alone.note(3, false);
    assert_eq!(alone.ask(Some(served(3, 0))), EVERY);
}

#[test]
fn a_silent_pod_serves_what_it_served_and_nothing_newer() {
    let mut alone = Alone::new();
    alone.note(3, true);
    assert_eq!(alone.serves(3), Serves::Unasked);
    alone.ask(Some(served(3, 7)));
    assert_eq!(alone.serves(3), Serves::Generation(3));
    alone.now += EVERY;
    alone.ask(None);
    assert_eq!(alone.serves(3), Serves::Generation(3));
    alone.note(4, true);
    assert_eq!(alone.serves(4), Serves::Unreachable, "it is not known to have the newer file");
}

#[test]
fn what_changes_while_a_pod_is_asked_has_it_asked_again() {
    let alone = Alone::new();
    alone.note(1, true);
    let mut inner = alone.prober.inner.lock();
    inner.collect(alone.now);
    assert!(inner.next().is_some());
    drop(inner);
    alone.note(2, true);
    let mut inner = alone.prober.inner.lock();
    let answer = Readyz { channels: vec![served(1, 0)], refused: Vec::new() };
    inner.answered(&alone.place, SILENT.into(), Some(answer), alone.now);
    assert_eq!(inner.known(&alone.place).unwrap().due, Some(alone.now));
}

#[test]
fn only_what_a_pass_would_tell_wakes_it() {
    let mut alone = Alone::new();
    let (scoped, mut elsewhere) = mpsc::channel(9);
    let (all, mut woken) = mpsc::channel(9);
    alone.prober.inner.lock().wakes =
        vec![(Some("team".to_owned()), scoped), (Some("shop".to_owned()), all)];
    alone.note(1, true);
    let wakes = |alone: &mut Alone, answer, woken: &mut mpsc::Receiver<Channel>| {
        let pause = alone.ask(answer);
        alone.now += pause;
        woken.try_recv().is_ok()
    };
    assert!(wakes(&mut alone, Some(served(1, 0)), &mut woken));
    assert!(!wakes(&mut alone, Some(served(1, 900)), &mut woken), "connections come and go");
    assert!(!wakes(&mut alone, None, &mut woken), "it serves what it served");
    let troubled = ServedChannel { error: Some("no stream".to_owned()), ..served(1, 0) };
    assert!(wakes(&mut alone, Some(troubled), &mut woken));
    assert!(elsewhere.try_recv().is_err());
}

#[test]
fn channels_that_no_pass_looks_at_are_forgotten() {
    let alone = Alone::new();
    alone.note(1, true);
    let mut inner = alone.prober.inner.lock();
    inner.forget_idle(alone.now + EVERY);
    assert_eq!(inner.channels.len(), 1);
    inner.forget_idle(alone.now + EVERY * FORGOTTEN_AFTER);
    assert!(inner.channels.is_empty());
}

#[test]
fn an_answer_of_a_pod_that_has_gone_is_not_that_of_another_with_its_name() {
    let alone = Alone::new();
    alone.note(1, true);
    let mut inner = alone.prober.inner.lock();
    inner.collect(alone.now);
    assert!(inner.next().is_some());
    drop(inner);
    let pods = [pod("p", ANSWERS, true)];
    let look = Look { channel: &alone.orders, pods: &pods, generation: 1, every: EVERY };
    alone.prober.note(&look, alone.now);
    let mut inner = alone.prober.inner.lock();
    let answer = Readyz { channels: vec![served(1, 0)], refused: Vec::new() };
    inner.answered(&alone.place, SILENT.into(), Some(answer), alone.now);
    assert!(inner.known(&alone.place).unwrap().answer.is_none());
    inner.collect(alone.now);
    assert_eq!(inner.next().map(|(_, ip)| ip), Some(ANSWERS.into()), "it is due");
}

#[test]
fn a_pod_that_was_asked_before_it_ran_is_not_called_unreachable() {
    let mut alone = Alone::new();
    alone.note(1, false);
    let pause = alone.ask(None);
    alone.now += pause / 2;
    alone.note(1, true);
    assert_eq!(alone.serves(1), Serves::Unasked);
    assert_eq!(alone.ask(Some(served(1, 0))), EVERY);
}
