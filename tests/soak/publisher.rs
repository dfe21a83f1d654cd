//! Publishers: on NATS and by POST. Each event is sent again, with the same key, until it is
//! acknowledged.

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client,
    jetstream::{self, message::PublishMessage},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sluice_channel::Cursor;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::{
    events::{payload, topic},
    session::broken,
    soak::Soak,
};

/// One attempt on NATS.
const NATS_LIMIT: Duration = Duration::from_millis(2_500);
/// One attempt by POST: longer than a pod waits for the store.
const POST_LIMIT: Duration = Duration::from_secs(10);
/// Pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(150);
/// All attempts together: shorter than the stream's window for duplicates, and longer than any
/// outage of the schedule.
const LIMIT: Duration = Duration::from_secs(100);
/// Attempts on one connection to NATS before another server is tried.
const ATTEMPTS: u32 = 2;
/// Of so many acknowledged POSTs one is sent once more.
const REPEATED: u32 = 20;

/// Publishes on NATS until the soak no longer runs.
pub(crate) async fn on_nats(soak: Arc<Soak>, client: Client, prefix: String, every: Duration) {
    let context = jetstream::ContextBuilder::new().timeout(NATS_LIMIT).build(client.clone());
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while *soak.publishing.borrow() {
        ticks.tick().await;
        let (id, sent, began) = (soak.next_number(), soak.now(), Instant::now());
        let subject = format!("{prefix}{}", topic(id));
        for attempt in 1.. {
            let message = PublishMessage::build()
                .payload(payload(id).into())
                .message_id(format!("nats-{id}"));
            let publish = async {
                let acknowledgement = context.send_publish(subject.clone(), message).await;
                acknowledgement.ok()?.await.ok()
            };
            if let Ok(Some(ack)) = timeout(NATS_LIMIT, publish).await {
                let result = soak.book().acknowledge(ack.sequence, id, sent, soak.now());
                soak.check("publisher on NATS", result);
                break;
            }
            if began.elapsed() > LIMIT {
                let what = format!("event number {id}, {attempt} attempts");
                return soak.check("publisher on NATS", broken("not acknowledged", what));
            }
            if attempt % ATTEMPTS == 0 {
                let _ = client.force_reconnect().await;
            }
            sleep(PAUSE).await;
        }
    }
}

/// An answer to a POST.
enum Answer {
    Stored {
        sequence: u64,
        duplicate: bool,
    },
    /// It may or may not be stored.
    Again,
}

/// A publisher by POST.
pub(crate) struct Poster {
    soak: Arc<Soak>,
    rng: StdRng,
    client: reqwest::Client,
}

const POSTER: &str = "publisher by POST";

impl Poster {
    pub(crate) fn new(soak: Arc<Soak>, number: u64) -> Self {
        let rng = StdRng::seed_from_u64(soak.seed ^ (number << 32));
        // A connection for each request, so that each may come to another pod.
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(POST_LIMIT);
        Self { soak, rng, client: client.build().unwrap() }
    }

    /// Publishes until the soak no longer runs.
    pub(crate) async fn run(mut self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while *self.soak.publishing.borrow() {
            ticks.tick().await;
            let (id, sent, began) = (self.soak.next_number(), self.soak.now(), Instant::now());
            let mut stored = None;
            while stored.is_none() {
                if let Answer::Stored { sequence, duplicate } = self.post(id).await {
                    let now = self.soak.now();
                    let result = self.soak.book().acknowledge(sequence, id, sent, now);
                    self.soak.check(POSTER, result);
                    stored = Some((sequence, duplicate));
                } else if began.elapsed() > LIMIT {
                    let result = broken("not acknowledged", format!("event number {id}"));
                    return self.soak.check(POSTER, result);
                } else {
                    sleep(PAUSE).await;
                }
            }
            if let (Some((first, _)), 0) = (stored, self.rng.random_range(0..REPEATED)) {
                self.repeat(id, sent, first).await;
            }
        }
    }

    /// The same once more is the same event.
    async fn repeat(&mut self, id: u64, sent: u32, first: u64) {
        let Answer::Stored { sequence, duplicate } = self.post(id).await else { return };
        let mut book = self.soak.book();
        // A purge makes the store forget which keys it has seen.
        let may_be_new =
            book.has_purged() || book.gone_from()[usize::try_from(first).unwrap()] != u32::MAX;
        let result = match (duplicate, sequence == first) {
            (true, true) => Ok(()),
            (false, false) if may_be_new => book.acknowledge(sequence, id, sent, self.soak.now()),
            _ => broken(
                "a repeat was stored",
                format!("event {first} was sent again: {sequence}, duplicate: {duplicate}"),
            ),
        };
        drop(book);
        self.soak.check(POSTER, result);
    }

    async fn post(&mut self, id: u64) -> Answer {
        let Some(chosen) = self.soak.balancer.choose(&mut self.rng) else { return Answer::Again };
        let request = self
            .client
            .post(format!("http://{}{}/{}", chosen.address, self.soak.path, topic(id)))
            .header("idempotency-key", format!("post-{id}"))
            .body(payload(id));
        let Ok(response) = request.send().await else {
            self.soak.answered("POST", "no answer");
            return Answer::Again;
        };
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let (cursor, duplicate) = (header("event-cursor"), header("event-duplicate"));
        let retry_after = header("retry-after");
        self.soak.answered("POST", status.to_string());
        let duplicate = duplicate.as_deref() == Some("true");
        match (status, cursor.as_deref().map(str::parse::<Cursor>)) {
            (201, Some(Ok(cursor))) if !duplicate && cursor.epoch == self.soak.epoch => {
                Answer::Stored { sequence: cursor.sequence, duplicate }
            }
            (200, Some(Ok(cursor))) if duplicate && cursor.epoch == self.soak.epoch => {
                Answer::Stored { sequence: cursor.sequence, duplicate }
            }
            (503, _) if retry_after.is_some() => Answer::Again,
            _ => {
                let body = response.text().await.unwrap_or_default();
                let kind = if body.contains("in process") {
                    "POST refused while the first copy is in process"
                } else {
                    "POST answered what is not documented"
                };
                let what = format!(
                    "{status}, cursor {cursor:?}, duplicate {duplicate}: {body}, pod {}",
                    chosen.pod
                );
                self.soak.check(POSTER, broken(kind, what));
                Answer::Again
            }
        }
    }
}
