//! With a clock that stands still and jumps, and so with an API server in memory: a real one lives
//! by the real clock. The rules on a real one are tested in tests/operator.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{advance, sleep},
};

use super::*;

const LEASE: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

fn settings(identity: &str) -> Settings {
    Settings {
        name: "operator".into(),
        namespace: "system".into(),
        identity: identity.into(),
        lease_duration: LEASE,
        renew_deadline: DEADLINE,
        retry_period: RETRY,
    }
}

/// The lease as the API server keeps it.
#[derive(Default)]
struct Store {
    lease: Mutex<(u64, Option<Value>)>,
}

impl Store {
    fn holder(&self) -> Option<String> {
        self.lease.lock().unwrap().1.as_ref()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    fn answer(&self, method: &str, body: &[u8]) -> (StatusCode, Value) {
        let mut lease = self.lease.lock().unwrap();
        let refused = |code: StatusCode| {
            let reason = code.canonical_reason().unwrap().replace(' ', "");
            (
                code,
                json!({"kind": "Status", "code": code.as_u16(), "status": "Failure", "reason": reason, "message": "refused"}),
            )
        };
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        match (method, &lease.1) {
            ("GET" | "PUT", None) => return refused(StatusCode::NOT_FOUND),
            ("GET", Some(lease)) => return (StatusCode::OK, lease.clone()),
            ("POST", Some(_)) => return refused(StatusCode::CONFLICT),
            ("PUT", Some(found))
                if version(&serde_json::from_slice(body).unwrap()) != version(found) =>
            {
                return refused(StatusCode::CONFLICT);
            }
            ("PUT" | "POST", _) => {}
            other => panic!("{other:?}"),
        }
        let mut new: Value = serde_json::from_slice(body).unwrap();
        lease.0 += 1;
        new["metadata"]["resourceVersion"] = json!(lease.0.to_string());
        lease.1 = Some(new.clone());
        (StatusCode::OK, new)
    }
}

/// The network between an operator and the API server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Link {
    Up,
    /// Requests get lost.
    Silent,
    /// Requests arrive, answers get lost.
    Mute,
    /// Requests and answers each take that long.
    Slow(Duration),
}

struct Operator {
    identity: String,
    link: Arc<Mutex<Link>>,
    lead: Lead,
    stop: CancellationToken,
    task: JoinHandle<()>,
    prepared: Arc<AtomicUsize>,
}

impl Operator {
    fn start(identity: &str, store: &Arc<Store>) -> Self {
        let link = Arc::new(Mutex::new(Link::Up));
        let service = tower::service_fn({
            let (store, link) = (Arc::clone(store), Arc::clone(&link));
            move |request: Request<Body>| {
                let (store, link) = (Arc::clone(&store), Arc::clone(&link));
                async move { Ok::<_, Infallible>(travel(request, &store, &link).await) }
            }
        });
        let client = Client::new(service, "system");
        let reporter = Reporter { controller: "test".into(), instance: None };
        let (candidate, lead) =
            Candidate::new(settings(identity), &client, reporter, Arc::default());
        let (stop, prepared) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&prepared);
        let task = tokio::spawn(candidate.run(stop.clone(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        Self { identity: identity.to_owned(), link, lead, stop, task, prepared }
    }

    fn link(&self, link: Link) {
        *self.link.lock().unwrap() = link;
    }

    fn leads(&self) -> bool {
        self.lead.role.borrow().term(Instant::now()).is_some()
    }

    async fn until_it_leads(&self) -> Duration {
        let started = Instant::now();
        while !self.leads() {
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "{} does not lead",
                self.identity
            );
            sleep(Duration::from_millis(10)).await;
        }
        started.elapsed()
    }
}

async fn travel(request: Request<Body>, store: &Store, link: &Mutex<Link>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if parts.uri.path().contains("/events") {
        return Response::builder()
            .status(StatusCode::CREATED)
            .body(Body::from(body.collect().await.unwrap().to_bytes().to_vec()))
            .unwrap();
    }
    let way = async |loses: Link| {
        let link = *link.lock().unwrap();
        match link {
            Link::Slow(delay) => sleep(delay).await,
            link if link == loses => std::future::pending().await,
            _ => {}
        }
    };
    way(Link::Silent).await;
    let (status, body) =
        store.answer(parts.method.as_str(), &body.collect().await.unwrap().to_bytes());
    way(Link::Mute).await;
    // What was lost on its way here is lost on its way back, too.
    way(Link::Silent).await;
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string().into_bytes()))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_follows_after_a_release_at_once() {
    let store = Arc::default();
    let a = Operator::start("a", &store);
    a.until_it_leads().await;
    let b = Operator::start("b", &store);
    sleep(LEASE * 4).await;
    assert!(a.leads() && !b.leads());
    assert_eq!(b.lead.role(), Role::Standby { holder: Some("a".into()) });
    a.stop.cancel();
    a.task.await.unwrap();
    assert_eq!(store.holder(), None);
    assert!(b.until_it_leads().await <= RETRY.mul_f64(1.0 + JITTER) + Duration::from_millis(10));
    assert_eq!(store.holder().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_a_dead_leader_is_taken_when_it_is_over() {
    let store = Arc::default();
    let a = Operator::start("a", &store);
    let b = Operator::start("b", &store);
    a.until_it_leads().await;
    sleep(LEASE).await;
    a.task.abort();
    let took = b.until_it_leads().await;
    assert!(took > LEASE - RETRY && took <= LEASE + RETRY * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn work_is_dropped_at_the_deadline_when_nothing_can_be_renewed() {
    for link in [Link::Silent, Link::Mute] {
        let store = Arc::default();
        let a = Operator::start("a", &store);
        a.until_it_leads().await;
        sleep(LEASE).await;
        a.link(link);
        let cut = Instant::now();
        assert_eq!(a.lead.hold(std::future::pending::<()>()).await, None);
        // The last renewal was sent up to a retry period before the cut.
        assert!(
            cut.elapsed() <= DEADLINE && cut.elapsed() >= DEADLINE - RETRY,
            "{:?}",
            cut.elapsed()
        );
        assert_eq!(a.lead.hold(async {}).await, None, "nothing begins either");
        assert_eq!(a.lead.role(), Role::Standby { holder: None });
        a.link(Link::Up);
        a.until_it_leads().await;
        assert_eq!(
            (a.prepared.load(Ordering::Relaxed), a.lead.hold(async { 5 }).await),
            (2, Some(5))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_does_nothing_when_it_wakes() {
    let store = Arc::default();
    let a = Operator::start("a", &store);
    a.until_it_leads().await;
    let steps = Arc::new(AtomicUsize::new(0));
    let work = tokio::spawn({
        let (lead, steps) = (a.lead.clone(), Arc::clone(&steps));
        async move {
            lead.hold(async {
                loop {
                    steps.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(100)).await;
                }
            })
            .await
        }
    });
    sleep(DEADLINE * 3).await;
    let before = steps.load(Ordering::Relaxed);
    assert!(before > 290, "it works while the lease is renewed: {before}");
    // All timers are due at once then, in whatever order.
    advance(LEASE).await;
    assert_eq!(work.await.unwrap(), None);
    assert_eq!(steps.load(Ordering::Relaxed), before);
    assert!(
        !matches!(a.lead.hold(std::future::ready(())).await, Some(()))
            || a.lead.role.borrow().term(Instant::now()) == Some(2)
    );
}

#[tokio::test(start_paused = true)]
async fn work_does_not_outlast_a_break_in_the_term() {
    let store = Arc::<Store>::default();
    let a = Operator::start("a", &store);
    a.until_it_leads().await;
    let mut work = pin!(a.lead.hold(std::future::pending::<()>()));
    assert!(futures::poll!(work.as_mut()).is_pending());
    advance(DEADLINE).await;
    // It leads anew before the work was looked at again.
    a.until_it_leads().await;
    assert_eq!(work.await, None);
    let terms = a.lead.terms();
    assert!(futures::StreamExt::next(&mut pin!(terms)).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_names_another_ends_the_term_at_the_next_renewal() {
    let store = Arc::<Store>::default();
    let a = Operator::start("a", &store);
    a.until_it_leads().await;
    {
        let mut lease = store.lease.lock().unwrap();
        lease.0 += 1;
        let version = lease.0.to_string();
        let found = lease.1.as_mut().unwrap();
        found["spec"]["holderIdentity"] = json!("somebody");
        found["metadata"]["resourceVersion"] = json!(version);
    }
    let changed = Instant::now();
    assert_eq!(a.lead.hold(std::future::pending::<()>()).await, None);
    assert!(changed.elapsed() <= RETRY, "{:?}", changed.elapsed());
    assert_eq!(a.lead.role(), Role::Standby { holder: Some("somebody".into()) });
}

/// Three operators, each on a network that changes all the time, die and come back: at no moment
/// two lead.
#[tokio::test(start_paused = true)]
async fn never_two_at_once() {
    for _ in 0..5 {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let store = Arc::<Store>::default();
        let mut operators: Vec<Operator> =
            (0..3).map(|i| Operator::start(&format!("o{i}"), &store)).collect();
        let (mut changes, mut last, mut led) = (0, None, 0);
        for step in 0..18_000 {
            let leaders: Vec<&str> =
                operators.iter().filter(|o| o.leads()).map(|o| o.identity.as_str()).collect();
            assert!(leaders.len() <= 1, "seed {seed}, step {step}: {leaders:?} lead at once");
            led += leaders.len();
            if let Some(leader) = leaders.first()
                && last.as_deref() != Some(*leader)
            {
                changes += 1;
                last = Some((*leader).to_owned());
            }
            let which = random.random_range(0..operators.len());
            match random.random_range(0..1_000) {
                0..4 => operators[which].link(Link::Up),
                4..6 => operators[which].link(Link::Silent),
                6..8 => operators[which].link(Link::Mute),
                8..10 => operators[which]
                    .link(Link::Slow(Duration::from_millis(random.random_range(1..6_000)))),
                10 => {
                    let identity = format!("o{which}.{step}");
                    let old = std::mem::replace(
                        &mut operators[which],
                        Operator::start(&identity, &store),
                    );
                    old.task.abort();
                }
                11 => operators[which].stop.cancel(),
                // Every process is stopped for a while, and with it all that is on its way.
                12 => advance(Duration::from_millis(random.random_range(1..30_000))).await,
                _ => {}
            }
            if operators[which].task.is_finished() {
                operators[which] = Operator::start(&format!("o{which}.{step}"), &store);
            }
            sleep(Duration::from_millis(100)).await;
        }
        assert!(
            changes > 5 && led > 1_800,
            "seed {seed}: {changes} changes, led {led} of 18000 steps: too quiet to show anything"
        );
    }
}

#[test]
fn times_that_cannot_work_are_refused() {
    assert_eq!(settings("a").validate(), Ok(()));
    let seconds = Duration::from_secs;
    for (lease, deadline, retry, flag) in [
        (seconds(10), seconds(10), seconds(2), "--renew-deadline"),
        (seconds(15), seconds(10), seconds(10), "--retry-period"),
        (seconds(15), seconds(10), seconds(0), "--retry-period"),
        (Duration::from_millis(15_500), seconds(10), seconds(2), "--lease-duration"),
        (seconds(0), seconds(0), seconds(0), "--lease-duration"),
    ] {
        let wrong = Settings {
            lease_duration: lease,
            renew_deadline: deadline,
            retry_period: retry,
            ..settings("a")
        };
        assert!(wrong.validate().unwrap_err().contains(flag), "{wrong:?}");
    }
    for name in ["", "-a", "a-", "A", "a_b", "a..b"] {
        assert!(
            Settings { name: name.into(), ..settings("a") }
                .validate()
                .unwrap_err()
                .contains("--lease-name"),
            "{name}"
        );
    }
}

#[test]
fn every_process_is_somebody_else() {
    assert_ne!(identity(Some("pod")), identity(Some("pod")));
    assert!(
        identity(Some("pod")).starts_with("pod_") && identity(None).starts_with("sluice-operator_")
    );
}
