//! Subscribers to the live stream, of every kind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use sluice_tests::{
    clients::{Connection, Request},
    sse::{Event, Item},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    balancer::Chosen,
    events::{Selection, id_of},
    session::{Broken, From, Millis, Session, broken},
    soak::{Phase, Soak},
};

/// Longest wait for the head of a response.
const HEAD_LIMIT: Duration = Duration::from_secs(9);
/// Longest silence on an open stream: the longest heartbeat of the schedule and a reserve for a
/// machine that is busy.
const SILENCE_LIMIT: Duration = Duration::from_secs(9);
/// Wait when no pod is ready, or the first `retry:` has not come.
const RETRY: Duration = Duration::from_millis(300);
/// Longest that a subscriber stays away that has hung up.
const AWAY: Duration = Duration::from_secs(12);
/// Receive buffer of a slow reader, bytes, so that its stalls are felt.
const SLOW_BUFFER: u32 = 8 * 1024;
/// `last=` of sessions that begin so.
const LAST: u64 = 200;

/// What a subscriber does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Stays until it is cut, and comes back.
    Steady,
    /// Hangs up at random, wherever in a frame that is.
    HangsUp,
    /// Stops reading for a while, again and again.
    Slow,
    /// Reads from the oldest event to the newest, and begins again.
    Replays,
    /// From a time, to the newest event.
    Since,
    /// The newest so many.
    Last,
}

impl Habit {
    fn begins_again(self) -> bool {
        matches!(self, Self::Replays | Self::Since | Self::Last)
    }
}

/// How a connection ended.
enum End {
    /// The session is over.
    Done,
    /// Come back after this time.
    Back(Duration),
}

/// A subscriber as a task.
pub(crate) struct Subscriber {
    soak: Arc<Soak>,
    habit: Habit,
    name: String,
    selection: Selection,
    rng: StdRng,
    anew: watch::Receiver<()>,
    phase: watch::Receiver<Phase>,
    retry: Duration,
    last_event: Option<Instant>,
    position: Arc<AtomicU64>,
}

impl Subscriber {
    pub(crate) fn new(soak: Arc<Soak>, number: u64, habit: Habit, selection: Selection) -> Self {
        let rng = StdRng::seed_from_u64(soak.seed ^ (number << 20));
        let filter = selection.query();
        let name = format!("subscriber {number} ({habit:?}{filter})");
        let (anew, phase) = (soak.anew.subscribe(), soak.phase.subscribe());
        let (retry, last_event, position) = (RETRY, None, Arc::default());
        Self { soak, habit, name, selection, rng, anew, phase, retry, last_event, position }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The sequence at which it is.
    pub(crate) fn position(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.position)
    }

    /// Subscribes until the soak ends and everything was read; returns what it got.
    pub(crate) async fn run(mut self) -> Vec<Session> {
        let mut sessions = Vec::new();
        sleep(self.up_to(Duration::from_secs(2))).await;
        loop {
            let is_last = *self.phase.borrow_and_update() != Phase::Running;
            sessions.push(self.session().await);
            if is_last || !self.habit.begins_again() {
                return sessions;
            }
            let pause = Duration::from_secs(3) + self.up_to(Duration::from_secs(12));
            let _ = timeout(pause, self.phase.changed()).await;
        }
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random_range(0.0..1.0))
    }

    /// The sequence at which the session ends, if it is known.
    fn goal(&self, newest: u64) -> Option<u64> {
        match *self.phase.borrow() {
            Phase::Until(sequence) => Some(sequence),
            Phase::Running => Some(newest).filter(|_| self.habit.begins_again()),
        }
    }

    async fn session(&mut self) -> Session {
        let soak = Arc::clone(&self.soak);
        let newest = soak.book().last();
        let opened = soak.now();
        // A time is named in the past of the stream, and by the clock that the store has.
        let back = Duration::from_millis(self.rng.random_range(1_000..40_000));
        let from = match self.habit {
            Habit::Replays => From::Earliest,
            Habit::Since => {
                From::Since(opened.saturating_sub(Millis::try_from(back.as_millis()).unwrap()))
            }
            _ => From::Newest,
        };
        let query = match (self.habit, from) {
            (_, From::Earliest) => "from=earliest".to_owned(),
            (_, From::Since(time)) => format!("since={}", unix_millis(&soak, time)),
            (Habit::Last, _) => format!("last={LAST}"),
            _ => "from=latest".to_owned(),
        };
        let path = format!("{}?{query}{}", soak.path, self.selection.query());
        let mut session = Session::new(self.name.clone(), self.selection, from, opened, soak.epoch);
        soak.counts.sessions.fetch_add(1, Relaxed);
        self.last_event = None;
        loop {
            let pause = match soak.balancer.choose(&mut self.rng) {
                None => RETRY,
                Some(chosen) => match self.connect(&mut session, &path, chosen, newest).await {
                    End::Done => return session,
                    End::Back(pause) => pause,
                },
            };
            sleep(pause).await;
        }
    }

    async fn connect(
        &mut self,
        session: &mut Session,
        path: &str,
        chosen: Chosen,
        newest: u64,
    ) -> End {
        let mut request = Request::get(path);
        if self.habit == Habit::Slow {
            request.receive_buffer = Some(SLOW_BUFFER);
        }
        if let Some(cursor) = session.cursor() {
            request = request.resume(cursor);
            self.soak.counts.resumes.fetch_add(1, Relaxed);
        } else {
            session.opened = self.soak.now();
        }
        let began = Instant::now();
        let answer = timeout(HEAD_LIMIT, Connection::open(chosen.address, &request)).await;
        let is_away = || self.soak.balancer.was_away(chosen.pod, began);
        let mut connection = match answer {
            Ok(Ok(connection)) => connection,
            // Refused or reset: the pod went away.
            Ok(Err(_)) => return End::Back(self.retry),
            Err(_) => {
                if !is_away() {
                    self.broke("no answer", format!("no response head from pod {}", chosen.pod));
                }
                return End::Back(self.retry);
            }
        };
        if connection.status() != 200 {
            let status = connection.status();
            let body = String::from_utf8_lossy(&connection.body().await).into_owned();
            self.broke("no stream", format!("pod {} answered {status}: {body}", chosen.pod));
            return End::Back(self.retry);
        }
        self.read(session, &mut connection, chosen, newest).await
    }

    fn broke(&self, kind: &'static str, what: String) {
        self.soak.check(&self.name, broken(kind, what));
    }

    async fn read(
        &mut self,
        session: &mut Session,
        connection: &mut Connection,
        chosen: Chosen,
        newest: u64,
    ) -> End {
        self.anew.mark_unchanged();
        let hangs_up = Instant::now()
            + match self.habit {
                Habit::HangsUp => Duration::from_millis(500) + self.up_to(Duration::from_secs(14)),
                _ => Duration::from_secs(1_000_000),
            };
        let mut stalls = Instant::now() + self.up_to(Duration::from_secs(4));
        let mut is_first = true;
        loop {
            if self
                .goal(newest)
                .is_some_and(|goal| session.start.is_some() && session.position >= goal)
            {
                return End::Done;
            }
            if self.habit == Habit::Slow && Instant::now() > stalls {
                let longest = if self.rng.random_bool(0.1) { 12_000 } else { 2_500 };
                sleep(self.up_to(Duration::from_millis(longest))).await;
                stalls = Instant::now() + self.up_to(Duration::from_secs(4));
            }
            let waits = Instant::now();
            tokio::select! {
                item = timeout(SILENCE_LIMIT, connection.item()) => match item {
                    Ok(Some(item)) => {
                        let result = self.take(session, &item, &mut is_first);
                        self.position.store(session.position, Relaxed);
                        if let Err(Broken { kind, what }) = result {
                            self.broke(kind, format!("{what} (pod {})", chosen.pod));
                        }
                    }
                    // Closed, as announced or by the pod's end.
                    Ok(None) => return End::Back(self.retry),
                    Err(_) => {
                        if !self.soak.balancer.was_away(chosen.pod, waits) {
                            let (pod, position) = (chosen.pod, session.position);
                            self.broke("silence", format!("pod {pod}, at {position}"));
                        }
                        return End::Back(self.retry);
                    }
                },
                _ = self.anew.changed() => return End::Back(self.up_to(RETRY)),
                // The goal may be reached already.
                _ = self.phase.changed() => {}
                () = sleep_until(hangs_up) => {
                    // Some stay away while much happens.
                    let most = if self.rng.random_bool(0.2) { AWAY } else { RETRY };
                    return End::Back(self.up_to(most));
                }
            }
        }
    }

    fn take(
        &mut self,
        session: &mut Session,
        item: &Item,
        is_first: &mut bool,
    ) -> Result<(), Broken> {
        let event = match item {
            Item::Retry(millis) => {
                self.retry = Duration::from_millis(*millis);
                return Ok(());
            }
            Item::Comment(_) => return Ok(()),
            Item::Event(event) => event,
        };
        let begins = std::mem::take(is_first);
        if event.name == "message" {
            return self.event(session, event);
        }
        let data = || serde_json::from_str::<Value>(&event.data).unwrap_or_default();
        let counts = &self.soak.counts;
        match event.name.as_str() {
            "channel.gap" => {
                let gap = data();
                let counter =
                    if gap["reason"] == "expired" { &counts.expired } else { &counts.deleted };
                counter.fetch_add(1, Relaxed);
                session.sequence(&event.last_event_id)?;
                return session.gap(&gap, self.soak.now());
            }
            "channel.close" => {
                let reason = data()["reason"].as_str().unwrap_or_default().to_owned();
                self.soak.closed(&reason);
                if !["drain", "age", "overload", "slow"].contains(&reason.as_str()) {
                    return broken("bad close", event.data.clone());
                }
            }
            "channel.degraded" => {
                counts.degraded.fetch_add(1, Relaxed);
            }
            "channel.recovered" | "channel.cursor" => {}
            name => return broken("bad event", format!("{name}: {}", event.data)),
        }
        if !event.has_id {
            return Ok(());
        }
        let sequence = session.sequence(&event.last_event_id)?;
        // A stream that begins with something else than its cursor is one that is turned away.
        let begins = begins && event.name == "channel.cursor";
        let is_start = session.start.is_none() && event.name != "channel.cursor";
        if is_start {
            Ok(())
        } else {
            session.stands_at(sequence, begins && session.start.is_some())
        }
    }

    fn event(&mut self, session: &mut Session, event: &Event) -> Result<(), Broken> {
        self.soak.counts.received.fetch_add(1, Relaxed);
        if self.habit == Habit::Steady && self.selection.is_all() {
            let last = self.last_event.replace(Instant::now());
            if let Some(last) = last {
                self.soak.paused(last);
            }
        }
        if !event.has_id {
            return broken("bad id", format!("an event without an id: {}", event.data));
        }
        let sequence = session.sequence(&event.last_event_id)?;
        if session.start.is_none() {
            return broken("bad start", format!("event {sequence} came before any cursor"));
        }
        let Some(id) = id_of(&event.data) else {
            return broken("altered", format!("event {sequence}: {:?}", event.data));
        };
        self.soak.book().saw(sequence, id)?;
        session.event(sequence, id, self.soak.now())
    }
}

/// The clock's time at a moment of the soak.
fn unix_millis(soak: &Soak, time: Millis) -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let ago = soak.started.elapsed().saturating_sub(Duration::from_millis(time.into()));
    (now - ago).as_millis()
}
