//! Passes that are cut off. The API server is one in memory that stops answering in the middle of a
//! pass: a real one cannot be told when.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Client,
    client::Body,
    runtime::events::{Recorder, Reporter},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::{
    leader::{Lead, Role},
    nats::{self, Connection},
    stream::Streams,
    tenancy::{self, Namespaces},
};

/// Answers for the channel, refuses Events, and leaves reads of the channel's objects unanswered;
/// they are counted.
fn client(channel: &SseChannel, unanswered: &Arc<AtomicUsize>) -> Client {
    let (channel, unanswered) = (json!(channel), Arc::clone(unanswered));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (channel, unanswered) = (channel.clone(), Arc::clone(&unanswered));
        async move {
            let path = request.uri().path();
            let (code, body) = if path.ends_with("/ssechannels/orders") {
                (StatusCode::OK, channel)
            } else if path.ends_with("/events") {
                (StatusCode::FORBIDDEN, json!({"kind": "Status", "code": 403, "status": "Failure"}))
            } else {
                unanswered.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            };
            Ok::<_, Infallible>(response(code, &body))
        }
    });
    Client::new(service, "shop")
}

fn response(code: StatusCode, body: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
}

async fn context(client: &Client, lead: Lead) -> Arc<Context> {
    let connection = Connection::open(nats::Settings {
        // Discard, which nothing serves: the stream is unreachable at once.
        servers: vec!["nats://127.0.0.1:9".to_owned()],
        credentials: None,
        ca: None,
        client_certificate: None,
        domain: None,
        name: "test".to_owned(),
    })
    .await
    .unwrap();
    let reporter = Reporter { controller: "test".to_owned(), instance: None };
    Arc::new(Context {
        client: client.clone(),
        streams: Streams::over(&connection),
        settings: desired::tests::settings(),
        cluster: "c".to_owned(),
        resync: Duration::from_secs(30),
        nats_grace: Duration::from_secs(30),
        prober: Arc::new(prober::Prober::new(9)),
        lead,
        recorder: Recorder::new(client.clone(), reporter),
        metrics: Arc::default(),
        remembered: remembered::RememberedChannels::default(),
        namespaces: Arc::new(Namespaces::new(
            tenancy::Settings {
                mode: tenancy::Mode::Open,
                max_bytes: "1Gi".parse().unwrap(),
                quota: "1Gi".parse().unwrap(),
                grants: std::collections::BTreeMap::new(),
            },
            client.clone(),
        )),
        quotas: quota::Quotas::default(),
        gate: gate::Gate::new(4, Arc::default()),
        rollouts: rollouts::Rollouts::new(rollouts::MaxRolling::Percent(100), Arc::default()),
        channels: AtomicUsize::new(1),
    })
}

fn followed(channel: &SseChannel) -> Followed {
    serde_json::from_value(json!(channel)).unwrap()
}

fn leader() -> Role {
    let until = tokio::time::Instant::now() + Duration::from_secs(3600);
    Role::Leader { identity: "a".to_owned(), term: 1, until }
}

/// Starts a pass of a channel that has failed twice; `cut` makes it end. What the pause after the
/// next failure is then tells whether the two are still known.
async fn pause_after_a_pass_that_is(cut: impl AsyncFnOnce(&watch::Sender<Role>)) -> Duration {
    let channel = validate::tests::channel("orders", &json!({}));
    let unanswered = Arc::new(AtomicUsize::new(0));
    let client = client(&channel, &unanswered);
    let (role, lead) = watch::channel(leader());
    let ctx = context(&client, Lead::following(lead)).await;
    let object = Arc::new(followed(&channel));
    let name = object.reference();
    for _ in 0..2 {
        ctx.remembered.take(&name).failed();
    }
    let pass = tokio::spawn(reconcile(object, Arc::clone(&ctx)));
    while unanswered.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!pass.is_finished(), "it waits for the objects");
    cut(&role).await;
    let _ = pass.await.unwrap();
    ctx.remembered.take(&name).failed()
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_goes_with_the_channel() {
    let mut channel = validate::tests::channel("orders", &json!({}));
    for (deleted, known) in [(None, true), (Some(Time(Timestamp::UNIX_EPOCH)), false)] {
        channel.metadata.deletion_timestamp = deleted;
        let client = client(&channel, &Arc::default());
        let ctx = context(&client, Lead::alone()).await;
        let object = Arc::new(followed(&channel));
        let name = object.reference();
        let _ = reconcile(object, Arc::clone(&ctx)).await;
        assert_eq!(ctx.remembered.knows(&name), known);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_takes_too_long_loses_nothing_that_is_remembered() {
    let pause = pause_after_a_pass_that_is(async |_| {}).await;
    assert_eq!(pause, Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_pass_whose_lease_is_lost_loses_nothing_that_is_remembered() {
    let pause = pause_after_a_pass_that_is(async |role| {
        role.send_replace(Role::Standby { holder: None });
    })
    .await;
    assert_eq!(pause, Duration::from_secs(4));
}

#[tokio::test]
async fn a_panic_is_the_failure_of_one_pass() {
    let failed = contained(async { panic!("index {} is out of bounds", 7) }).await;
    let Err::<(), _>(error) = failed else { panic!("it does not fail") };
    assert_eq!(error.to_string(), "a defect of this program ended it: index 7 is out of bounds");
    assert!(matches!(contained(async { 7 }).await, Ok(7)));
}
