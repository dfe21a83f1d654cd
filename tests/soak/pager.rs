//! Subscribers that read pages, and go on with `next`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    balancer::Chosen,
    events::{Selection, id_of},
    session::{Broken, From, Session, broken},
    soak::{Phase, Soak},
};

/// Longest wait for a page: a pod may ask the store several times.
const LIMIT: Duration = Duration::from_secs(15);
/// Between two pages at the newest event.
const PERIOD: Duration = Duration::from_millis(1_500);
/// Before a page is asked for again.
const PAUSE: Duration = Duration::from_millis(300);

/// A reader of pages as a task.
pub(crate) struct Pager {
    soak: Arc<Soak>,
    name: String,
    selection: Selection,
    rng: StdRng,
    client: reqwest::Client,
    position: Arc<AtomicU64>,
}

impl Pager {
    pub(crate) fn new(soak: Arc<Soak>, number: u64, selection: Selection) -> Self {
        let rng = StdRng::seed_from_u64(soak.seed ^ (number << 20));
        let name = format!("pager {number} ({})", selection.query());
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(LIMIT);
        let (client, position) = (client.build().unwrap(), Arc::default());
        Self { soak, name, selection, rng, client, position }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The sequence at which it is.
    pub(crate) fn position(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.position)
    }

    /// Reads from the oldest event on until the soak ends and everything was read.
    pub(crate) async fn run(mut self) -> Vec<Session> {
        let soak = Arc::clone(&self.soak);
        let (selection, name) = (self.selection, self.name.clone());
        let mut session = Session::new(name, selection, From::Earliest, soak.now(), soak.epoch);
        soak.counts.sessions.fetch_add(1, Relaxed);
        loop {
            let done = match *soak.phase.borrow() {
                Phase::Until(sequence) => session.start.is_some() && session.position >= sequence,
                Phase::Running => false,
            };
            if done {
                return vec![session];
            }
            let pause = match soak.balancer.choose(&mut self.rng) {
                Some(chosen) => self.page(&mut session, chosen).await,
                None => PAUSE,
            };
            sleep(pause.mul_f64(self.rng.random_range(0.5..1.5))).await;
        }
    }

    /// Reads one page; how long to wait before the next.
    async fn page(&mut self, session: &mut Session, chosen: Chosen) -> Duration {
        let from = session.cursor().map_or("earliest".to_owned(), |cursor| cursor.to_string());
        if session.start.is_none() {
            session.opened = self.soak.now();
        }
        let limit = self.rng.random_range(50..1_000);
        let query = format!("from={from}&limit={limit}{}", self.selection.query());
        let url = format!("http://{}{}?{query}", chosen.address, self.soak.path);
        let began = Instant::now();
        let request = self.client.get(url).header("accept", "application/json");
        let Ok(response) = request.send().await else {
            self.soak.answered("page", "no answer");
            if began.elapsed() >= LIMIT && !self.soak.balancer.was_away(chosen.pod, began) {
                self.broke(broken("no answer", format!("no page from pod {}", chosen.pod)));
            }
            return PAUSE;
        };
        let status = response.status().as_u16();
        self.soak.answered("page", status.to_string());
        let retry_after = response.headers().contains_key("retry-after");
        let Ok(body) = response.text().await else { return PAUSE };
        if status == 503 && retry_after {
            return PAUSE;
        }
        let page: Value = serde_json::from_str(&body).unwrap_or_default();
        if status != 200 || page["events"].as_array().is_none() {
            self.broke(broken("no page", format!("pod {} answered {status}: {body}", chosen.pod)));
            return PAUSE;
        }
        self.soak.counts.pages.fetch_add(1, Relaxed);
        if let Err(Broken { kind, what }) = self.take(session, &page) {
            self.broke(broken(kind, format!("{what} (pod {}, from={from})", chosen.pod)));
        }
        self.position.store(session.position, Relaxed);
        if page["upToDate"] == Value::Bool(true) { PERIOD } else { Duration::ZERO }
    }

    fn broke(&self, result: Result<(), Broken>) {
        self.soak.check(&self.name, result);
    }

    fn take(&self, session: &mut Session, page: &Value) -> Result<(), Broken> {
        let counts = &self.soak.counts;
        if !page["gap"].is_null() {
            let is_expired = page["gap"]["reason"] == "expired";
            (if is_expired { &counts.expired } else { &counts.deleted }).fetch_add(1, Relaxed);
            session.gap(&page["gap"], self.soak.now())?;
        }
        for event in page["events"].as_array().into_iter().flatten() {
            counts.received.fetch_add(1, Relaxed);
            let sequence = session.sequence(event["id"].as_str().unwrap_or_default())?;
            let Some(id) = event["data"].as_str().and_then(id_of) else {
                return broken("altered", format!("event {sequence}: {event}"));
            };
            self.soak.book().saw(sequence, id)?;
            session.event(sequence, id, self.soak.now())?;
        }
        let next = session.sequence(page["next"].as_str().unwrap_or_default())?;
        session.stands_at(next, false)
    }
}
