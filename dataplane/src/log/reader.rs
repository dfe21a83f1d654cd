//! The reader: keeps the log at the stream's tail, whatever happens to the store.
//!
//! FindingTail → Tailing → Interrupted (back-off) → Reconciling → Tailing. It owns its position:
//! the store is only ever told where to start.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use rand::Rng;
use serde::Serialize;
use sluice_channel::Epoch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Log;
use crate::{
    source::{Delivery, Error, StreamState, Tail, proof::Asked},
    throttle::Throttle,
};

/// Sequences read back into memory at the start, so that subscribers that return after a roll find
/// them there.
const WARM_SEQUENCES: u64 = 1_024;
/// Deliveries handled as one, so that a burst wakes the subscribers once.
const BURST: usize = 256;
/// How often the store is asked where it stands, in case the tail has gone quiet without a word.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Subscribers hear of an interruption that lasts longer than this; a change of leader is over
/// sooner.
const DEGRADED_AFTER: Duration = Duration::from_secs(2);
/// A store that seems to have moved back is believed when it was proven to be behind for this long:
/// a new leader may not have applied all that it has.
const MOVED_BACK_AFTER: Duration = Duration::from_secs(6);
/// A leader that no majority of the replicas has answered for this long is cut off: what others
/// store meanwhile does not come through its tail, however quiet that is. They answer it once a
/// second.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);
/// How soon after its opening a tail that has not come to the head is looked at: the newest events
/// may be deleted.
const FIRST_CHECK: Duration = Duration::from_millis(500);
/// A tail that ended sooner than this was no success: the next attempt waits.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Interruptions of the tail are logged once in this time: a tail that the store lets open and then
/// ends would write a line with each attempt.
const INTERRUPTION_LOG_PERIOD: Duration = Duration::from_secs(10);

/// What the reader is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) enum Activity {
    /// The store has not been reached yet, or the newest events are still being read.
    #[default]
    FindingTail,
    /// At the tail.
    Tailing,
    /// The tail ended or the store does not answer.
    Interrupted,
    /// The store answers; the reader finds out whether the stream is the one it knew.
    Reconciling,
}

/// The reader's state, for probes and people.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) activity: Activity,
    /// Whether the log has covered the tail at least once: only then are subscribers sent here.
    pub(crate) warm: bool,
    /// What went wrong last, while it is wrong.
    pub(crate) error: Option<String>,
    /// How far the store was ahead when last asked, events.
    pub(crate) lag: u64,
}

struct Reader {
    log: Arc<Log>,
    /// The log is warm once it has passed this sequence.
    warm_target: u64,
    failing_since: Option<Instant>,
    /// By which leader's word the store is behind what was read from it, and since when.
    behind: Option<(u64, Instant)>,
    attempts: u32,
    interruptions: Throttle,
}

/// What the store says of where it stands.
struct Standing {
    /// The head when it was asked.
    asked_at: u64,
    state: StreamState,
    /// It is proven that there is nothing from `asked_at` to `state.last`: it was deleted.
    is_end: bool,
}

/// A question to the store under way.
type Probe<'a> = BoxFuture<'a, Result<Standing, Error>>;

async fn answer_of(probe: &mut Option<Probe<'_>>) -> Result<Standing, Error> {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}

impl Log {
    /// Keeps the log at the tail until `cancel`, and reads ahead of replays; then lets go of what
    /// it has in memory.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let log = self;
        let reader = Reader {
            log: Arc::clone(&log),
            warm_target: 0,
            failing_since: None,
            behind: None,
            attempts: 0,
            interruptions: Throttle::new(INTERRUPTION_LOG_PERIOD),
        };
        // Cancelled as a whole: every await in it may be dropped.
        let both = futures::future::join(reader.run(), log.history.read_ahead());
        let _ = cancel.run_until_cancelled(both.instrument(log.span.clone())).await;
        log.let_go();
    }
}

impl Log {
    /// Asks where the store stands; where that is beyond a tail that has nothing more to deliver,
    /// also whether anything is there at all.
    async fn standing(&self) -> Result<Standing, Error> {
        let asked_at = self.head_now().next;
        let asked = self.proofs.state().await?;
        let state = asked.state;
        let waits = || state.last >= asked_at && self.head_now().next == asked_at;
        let is_end = waits() && self.is_end(asked, asked_at).await.unwrap_or_default() && waits();
        Ok(Standing { asked_at, state, is_end })
    }

    /// Whether it is proven that there is nothing from `next` to the end of the stream.
    async fn is_end(&self, asked: Asked, next: u64) -> Result<bool, Error> {
        let Asked { state, .. } = asked;
        let newer = self.source.read_leader(next).await?;
        if newer.is_some_and(|event| event.sequence <= state.last) {
            // It is there: the tail is late.
            return Ok(false);
        }
        let now = self.proofs.prove(state.lead, Instant::now()).await?;
        // Once more, as in `History::events`.
        let newer = self.source.read_leader(next).await?;
        let is_there = newer.is_some_and(|event| event.sequence <= state.last);
        Ok(!is_there && now.epoch == state.epoch && now.last >= state.last)
    }
}

impl Reader {
    async fn run(mut self) {
        loop {
            let error = match self.connect().await {
                Ok((epoch, tail)) => {
                    self.recovered();
                    let opened = Instant::now();
                    let error = self.follow(epoch, tail).await;
                    if let Some(passed_over) = self.interruptions.admit() {
                        tracing::info!(%error, passed_over, "the tail was interrupted");
                    }
                    self.set(Activity::Interrupted, Some(&error));
                    if opened.elapsed() > STABLE_AFTER {
                        // At once: subscribers do not notice a consumer that a healthy store lost.
                        self.attempts = 0;
                        continue;
                    }
                    error
                }
                Err(error) => error,
            };
            self.failed(&error);
            tokio::time::sleep(self.backoff()).await;
        }
    }

    /// Finds out where the store stands and opens a tail at the log's own position. A new life
    /// begins only with a tail that is open: a leader that is cut off cannot open one for long.
    /// The tail is one of the stream that was asked about if that one is still there afterwards.
    async fn connect(&mut self) -> Result<(Epoch, Box<dyn Tail>), Error> {
        let asked = self.log.proofs.state().await?;
        if self.log.status.lock().activity == Activity::Interrupted {
            self.set(Activity::Reconciling, None);
        }
        let new_life = self.is_another(asked).await?;
        let state = asked.state;
        let start = (state.last + 1).saturating_sub(WARM_SEQUENCES).max(state.first).max(1);
        let from = if new_life { start } else { self.log.head_now().next };
        let tail = self.log.source.tail(from).await?;
        if self.log.proofs.state().await?.state.epoch != state.epoch {
            return Err(Error::TailEnded("the stream was recreated while it was opened".into()));
        }
        if new_life {
            self.behind = None;
            self.log.begin(state.epoch, state.first, start);
        } else {
            self.log.change_head(|h| std::mem::replace(&mut h.first, state.first) != state.first);
        }
        self.warm_target = state.last;
        Ok((state.epoch, tail))
    }

    /// Decides whether the stream is another one than the log is of: recreated, behind what was
    /// read from it, or set back and filled again.
    async fn is_another(&mut self, asked: Asked) -> Result<bool, Error> {
        let Asked { at, state } = asked;
        let head = self.log.head_now();
        let Some(epoch) = head.epoch else { return Ok(true) };
        if epoch != state.epoch {
            self.log.proofs.prove(state.lead, at).await?;
            tracing::warn!(epoch = %state.epoch, "the stream was recreated: a new life begins");
            return Ok(true);
        }
        if state.last + 1 < head.next {
            return self.has_moved_back(asked, head.next - 1).await.map(|()| true);
        }
        self.behind = None;
        if self.log.is_set_back(state).await? {
            tracing::warn!("the stream was set back and filled again: a new life begins");
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether the store was proven to be behind `read` for long enough, by one leader over one
    /// connection; an error until then.
    async fn has_moved_back(&mut self, asked: Asked, read: u64) -> Result<(), Error> {
        let Asked { at, state } = asked;
        let by = state.lead.id;
        let since = match self.behind {
            Some((leader, since)) if leader == by => since,
            _ => at,
        };
        self.behind = None;
        self.log.proofs.prove(state.lead, at).await?;
        self.behind = Some((by, since));
        if since.elapsed() < MOVED_BACK_AFTER {
            let last = state.last;
            return Err(Error::Unreachable(format!("it is at {last} but {read} was read from it")));
        }
        tracing::warn!(last = state.last, read, "the stream has moved back: a new life begins");
        Ok(())
    }

    /// Feeds the log from `tail` until something is wrong with it.
    async fn follow(&mut self, epoch: Epoch, mut tail: Box<dyn Tail>) -> Error {
        let log = Arc::clone(&self.log);
        let mut expected = 1;
        let mut check = tokio::time::interval_at(Instant::now() + FIRST_CHECK, CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probe: Option<Probe<'_>> = None;
        let mut stalled_at = None;
        self.note_progress();
        loop {
            tokio::select! {
                biased;
                first = tail.next() => {
                    if let Err(error) = self.take(epoch, first, &mut *tail, &mut expected).await {
                        return error;
                    }
                }
                answer = answer_of(&mut probe) => {
                    probe = None;
                    if let Err(error) = self.probed(epoch, answer, &mut stalled_at) {
                        return error;
                    }
                }
                _ = check.tick(), if probe.is_none() => probe = Some(log.standing().boxed()),
            }
        }
    }

    /// Appends a delivery, and the deliveries that wait behind it.
    async fn take(
        &mut self,
        epoch: Epoch,
        first: Result<Delivery, Error>,
        tail: &mut dyn Tail,
        expected: &mut u64,
    ) -> Result<(), Error> {
        let mut events = Vec::new();
        let mut result = Ok(());
        let mut delivery = Some(first);
        while let Some(next) = delivery.take() {
            match next {
                Ok(Delivery { delivery_sequence, event }) if delivery_sequence == *expected => {
                    *expected += 1;
                    events.push(event);
                }
                Ok(Delivery { delivery_sequence, .. }) => {
                    result = Err(Error::TailEnded(format!(
                        "delivery {delivery_sequence} came where {expected} was due"
                    )));
                }
                Err(error) => result = Err(error),
            }
            if result.is_ok() && events.len() < BURST {
                delivery = tail.next().now_or_never();
            }
        }
        let holes = self.log.holes(&events);
        if !holes.is_empty() {
            // Whether it went from the front is what the reason of the hole depends on.
            let first = self.log.proofs.state().await?.state.first;
            self.log.change_head(|head| std::mem::replace(&mut head.first, first) != first);
            if let Some(hole) = self.log.lacking(&holes, first).await? {
                events.truncate(hole.before);
                let what = format!("its replica lacks some of {} to {}", hole.from, hole.to);
                result = Err(Error::TailEnded(what));
            }
        }
        if !events.is_empty() {
            self.log.append(epoch, &events);
            self.note_progress();
        }
        result
    }

    /// Judges the store's answer to "where do you stand?".
    fn probed(
        &mut self,
        epoch: Epoch,
        answer: Result<Standing, Error>,
        stalled_at: &mut Option<u64>,
    ) -> Result<(), Error> {
        let Standing { asked_at, state, is_end } = match answer {
            Ok(standing) => standing,
            // The tail says itself when it is broken; a late answer to one probe is no reason to
            // give it up.
            Err(error @ Error::NoStream(_)) => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "a probe of the store failed");
                return Ok(());
            }
        };
        if state.epoch != epoch {
            return Err(Error::TailEnded("the stream was recreated".into()));
        }
        if state.last + 1 < asked_at {
            return Err(Error::TailEnded("the stream has moved back".into()));
        }
        self.log.change_head(|h| std::mem::replace(&mut h.first, state.first) != state.first);
        if is_end && self.log.end_at(asked_at, state) {
            self.note_progress();
        }
        let is_behind = state.last >= self.log.head_now().next;
        self.note_followers(state.lead.unheard, is_behind);
        let head = self.log.head_now();
        let stalled = head.next == asked_at && state.last >= head.next;
        self.log.status.lock().lag = (state.last + 1).saturating_sub(head.next);
        if stalled && *stalled_at == Some(head.next) {
            return Err(Error::TailEnded("the store has moved on and the tail has not".into()));
        }
        *stalled_at = stalled.then_some(head.next);
        Ok(())
    }

    /// Warm once everything that was there at the start has been read.
    fn note_progress(&mut self) {
        let next = self.log.head_now().next;
        let mut status = self.log.status.lock();
        status.error = None;
        if next > self.warm_target {
            status.warm = true;
            status.activity = Activity::Tailing;
            status.lag = 0;
        }
    }

    /// Takes note of whether the leader that feeds the tail still leads. The tail stays open: if it
    /// does again, nothing was missed once the tail has come to where the store stands.
    fn note_followers(&mut self, unheard: Duration, is_behind: bool) {
        if unheard > FOLLOWED_WITHIN {
            let now = Instant::now();
            self.failing_since.get_or_insert(now.checked_sub(unheard).unwrap_or(now));
            let error = "no majority of the stream's replicas answers its leader";
            self.failed(&Error::Unreachable(error.into()));
        } else if self.failing_since.is_some() && !is_behind {
            self.recovered();
            self.note_progress();
        }
    }

    fn recovered(&mut self) {
        self.failing_since = None;
        if self.log.change_head(|head| head.down_since.take().is_some()) {
            tracing::info!("the store answers again");
        }
    }

    fn failed(&mut self, error: &Error) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.set(Activity::Interrupted, Some(error));
        if since.elapsed() < DEGRADED_AFTER {
            return;
        }
        let elapsed = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let down_since = jiff::Timestamp::now().as_millisecond().saturating_sub(elapsed);
        let changed = self.log.change_head(|head| {
            head.down_since.is_none() && head.down_since.replace(down_since).is_none()
        });
        if changed {
            tracing::warn!(%error, "the store is unreachable; streams stay open");
        }
    }

    fn set(&self, activity: Activity, error: Option<&Error>) {
        let mut status = self.log.status.lock();
        if activity != Activity::Interrupted || status.warm {
            status.activity = activity;
        }
        status.error = error.map(ToString::to_string);
    }

    fn backoff(&mut self) -> Duration {
        let base = Duration::from_millis(100 << self.attempts.min(5)).min(MAX_BACKOFF);
        self.attempts = self.attempts.saturating_add(1);
        base.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
