//! A subscriber: a cursor and a filter over the log. It yields ready frames; something else writes
//! them.
//!
//! Admitting → Replaying → Live → Closing(reason). There is no queue per subscriber: a slow one is
//! one whose position is further back. Nothing here waits: [`Subscriber::step`] says what to do
//! next, and whoever drives it (a fan-out thread, or [`Frames`] for a body of hyper's) writes,
//! waits and asks the store.

mod control;
mod frames;

mod question;
mod rollback;
mod start;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rand::Rng;
use sluice_channel::{Cursor, Epoch, Filter};
use tokio::time::Instant;

use crate::{
    frame::{self, CloseReason, Dialect, GapReason},
    log::{
        Head, Now, Origin,
        segment::{Segment, Slice},
    },
    metrics::seconds_since,
    registry::{Entry, Registration, Stage},
};

pub use frames::Frames;
pub use question::{Answer, Question, SegmentKey};
pub use rollback::Checkpoint;
pub use start::{Start, resolve};

/// First pause after a failed read of the store; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause after a failed read of the store.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// What a subscriber asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to start.
    pub start: Start,
    /// Which events.
    pub filter: Filter,
    /// In which form.
    pub dialect: Dialect,
    /// Whether `channel.open` is wanted.
    pub open: bool,
}

/// What a subscriber needs next.
#[derive(Debug)]
pub enum Step {
    /// Write these: whole frames, in this order.
    Write(Vec<Bytes>),
    /// The same for events, about [`limits::SLICE_BYTES`] of them. Whoever writes them says so by
    /// [`Subscriber::count_delivered`], or takes them back by [`Subscriber::roll_back`].
    Events(Vec<Bytes>, u64),
    /// Nothing to do until the head moves, the stream is to close, or this moment.
    Wait(Instant),
    /// Ask the store, and give its answer to [`Subscriber::answer`]. Until then the subscriber only
    /// waits.
    Ask(Question),
    /// A long run without a match: others have their turn first.
    Yield,
    /// The last frames were given out.
    End,
}

/// One subscriber's way through the log.
#[derive(Debug)]
pub struct Subscriber {
    entry: Registration,
    request: Request,
    stage: Stage,
    opened: bool,
    life: u64,
    epoch: Option<Epoch>,
    /// The sequence to deliver next.
    position: u64,
    /// Highest sequence that a gap event has covered.
    told: u64,
    /// Nothing was delivered yet and there was no cursor: a hole at the very start is nobody's
    /// loss.
    fresh: bool,
    /// Highest sequence that an `id:` on this connection has covered.
    shown: u64,
    told_down: bool,
    /// The store had to be asked for the start and did not answer.
    admission_failed: bool,
    /// A question is on its way.
    asked: bool,
    /// The segment that is being read, where it is none of the ring's.
    segment: Option<(Arc<Segment>, Origin)>,
    heartbeat_at: Instant,
    ends_at: Option<Instant>,
    /// The store did not answer: it is not asked again before this.
    paused_until: Option<Instant>,
    backoff: Duration,
    ended: bool,
}

impl Subscriber {
    /// A subscriber that is registered as `entry`.
    #[must_use]
    pub fn new(entry: Registration, request: Request) -> Self {
        let delivery = &entry.channel().config().delivery;
        let age = delivery.max_connection_age;
        let now = Instant::now();
        // 80–100 %, so that subscribers who came together do not go together.
        let ends_at =
            (!age.is_zero()).then(|| now + age.mul_f64(rand::rng().random_range(0.8..1.0)));
        let heartbeat_at = now + delivery.heartbeat;
        Self {
            request,
            stage: Stage::Admitting,
            opened: false,
            life: 0,
            epoch: None,
            position: 0,
            told: 0,
            fresh: false,
            shown: 0,
            told_down: false,
            admission_failed: false,
            asked: false,
            segment: None,
            heartbeat_at,
            ends_at,
            paused_until: None,
            backoff: MIN_BACKOFF,
            ended: false,
            entry,
        }
    }

    /// Its entry in the registry.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Which events it wants.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.request.filter
    }

    /// In which form it wants them.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.request.dialect
    }

    /// Goes on as of `head` and `now`. A question that is on its way holds up events, never
    /// heartbeats or the end.
    pub fn step(&mut self, head: Head, now: Instant) -> Step {
        if self.ended {
            return Step::End;
        }
        let step = if self.opened { self.advance(head, now) } else { self.open() };
        self.counted(step, now)
    }

    fn counted(&mut self, step: Step, now: Instant) -> Step {
        if let Step::Write(_) | Step::Events(..) = &step {
            self.heartbeat_at = now + self.entry.channel().config().delivery.heartbeat;
        }
        if let Step::Write(parts) = &step {
            self.count_delivered(0, parts.iter().map(Bytes::len).sum());
        }
        step
    }

    /// The first frame goes out before anything is asked of the store.
    fn open(&mut self) -> Step {
        self.opened = true;
        let mut out = Vec::new();
        frame::retry(&mut out, self.entry.channel().retry());
        one(out)
    }

    fn advance(&mut self, head: Head, now: Instant) -> Step {
        if self.ends_at.is_some_and(|end| now >= end) {
            self.entry.close(CloseReason::Age, self.entry.channel().retry());
        }
        if let Some((reason, retry)) = self.entry.close_asked() {
            return self.close(reason, retry);
        }
        if now >= self.heartbeat_at {
            return self.heartbeat();
        }
        // Who has no place yet is given one first where that needs no store: our events carry a
        // cursor.
        let placed =
            self.stage != Stage::Admitting || (self.cursor().is_some() && self.admission_failed);
        if head.down_since.is_some() != self.told_down && placed {
            return self.degraded(head);
        }
        if self.asked {
            return self.wait();
        }
        if self.paused_until.is_some_and(|until| now < until) {
            return self.wait();
        }
        self.paused_until = None;
        if self.stage == Stage::Admitting { self.admit(head, now) } else { self.read(head) }
    }

    fn wait(&self) -> Step {
        Step::Wait(self.due())
    }

    /// When it has something to do even if nothing happens.
    #[must_use]
    pub fn due(&self) -> Instant {
        [self.ends_at, self.paused_until]
            .into_iter()
            .flatten()
            .fold(self.heartbeat_at, Instant::min)
    }

    /// Finds the start position.
    fn admit(&mut self, head: Head, now: Instant) -> Step {
        let Some(epoch) = head.epoch else {
            if !self.admission_failed && head.down_since.is_some() {
                self.admission_failed = true;
                return self.advance(head, now);
            }
            return self.wait();
        };
        let channel = self.entry.channel();
        match start::at_once(channel, &self.request.start, head, epoch) {
            Some(start) => self.begin(head, epoch, start),
            None => {
                self.asked = true;
                Step::Ask(Question::start(
                    channel,
                    &self.request.start,
                    &self.request.filter,
                    head,
                    epoch,
                ))
            }
        }
    }

    /// One step along the log.
    fn read(&mut self, head: Head) -> Step {
        if head.life != self.life {
            return self.new_life(head);
        }
        let here = |(segment, _): &(Arc<Segment>, Origin)| {
            segment.covers(self.position) && self.position >= head.first
        };
        if let Some((segment, origin)) = self.segment.take().filter(here) {
            let step = self.take(
                segment.slice(self.position, self.told, &self.request.filter),
                origin,
                head,
            );
            // The store was asked once.
            self.segment = Some((segment, Origin::Memory))
                .filter(|(segment, _)| segment.covers(self.position));
            return step;
        }
        let log = self.entry.channel().log();
        match log.read_now(
            self.life,
            self.position,
            self.told,
            &self.request.filter,
            self.request.dialect,
        ) {
            Now::Slice(slice) => self.take(slice, Origin::Memory, head),
            Now::Cached(segment) => {
                self.segment = Some((segment, Origin::Memory));
                self.read(head)
            }
            Now::Wait => {
                if self.stage != Stage::Live {
                    self.stage = Stage::Live;
                    self.note();
                }
                self.wait()
            }
            // The head that tells of the new life comes in a moment.
            Now::FormerLife => self.wait(),
            Now::Missing => {
                self.asked = true;
                Step::Ask(Question::segment(log, self.life, self.position, self.request.dialect))
            }
        }
    }

    /// Takes the answer to the question that [`Step::Ask`] gave out, and goes on.
    pub fn answer(&mut self, answer: Answer, now: Instant) -> Step {
        self.asked = false;
        let step = match answer {
            Answer::Start(head, epoch, Ok(start)) => {
                self.backoff = MIN_BACKOFF;
                self.begin(head, epoch, start)
            }
            Answer::Segment(Ok(read)) => {
                self.backoff = MIN_BACKOFF;
                self.segment = read;
                Step::Yield
            }
            Answer::Start(_, _, Err(error)) => {
                tracing::debug!(
                    channel = %self.entry.channel().name(),
                    peer = %self.entry.peer().address,
                    %error,
                    "the start position cannot be found yet"
                );
                self.admission_failed = true;
                self.pause(now)
            }
            Answer::Segment(Err(error)) => {
                tracing::debug!(
                    channel = %self.entry.channel().name(),
                    peer = %self.entry.peer().address,
                    %error,
                    position = self.position,
                    "the store cannot be read now"
                );
                self.pause(now)
            }
        };
        self.counted(step, now)
    }

    /// Whether a question is on its way: the head is nothing to wait for then.
    #[must_use]
    pub const fn is_awaiting_answer(&self) -> bool {
        self.asked
    }

    /// Says that the question will not be answered.
    pub fn unanswered(&mut self) {
        self.asked = false;
    }

    fn pause(&mut self, now: Instant) -> Step {
        self.paused_until = Some(now + self.backoff.mul_f64(rand::rng().random_range(0.5..1.0)));
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        // An outage may have to be told of first.
        Step::Yield
    }

    fn take(&mut self, slice: Slice, origin: Origin, head: Head) -> Step {
        let metrics = self.entry.channel().metrics();
        let live = self.stage == Stage::Live;
        if !live {
            metrics.replay_read(origin);
        }
        match slice {
            Slice::Frames { parts, events, oldest_nanos, next } => {
                self.position = next;
                if parts.is_empty() {
                    self.note();
                    return Step::Yield;
                }
                if live {
                    metrics.publish_to_write.observe(seconds_since(oldest_nanos), 1);
                }
                self.fresh = false;
                self.moved();
                Step::Events(parts, events)
            }
            Slice::Gap { gap, next } => {
                let begins_here = gap.from == Some(self.position);
                self.told = gap.to.unwrap_or(self.told);
                self.position = next;
                if self.fresh && begins_here && gap.reason != GapReason::Compacted {
                    self.note();
                    return Step::Yield;
                }
                self.gap(gap, head)
            }
        }
    }

    /// Its position, when all that it waits for is the next event; then one write serves all that
    /// stand there, and [`Self::delivered`] says how far it came.
    #[must_use]
    pub fn live_at(&self, head: Head) -> Option<u64> {
        let waits = self.stage == Stage::Live && !self.asked && self.paused_until.is_none();
        let told = self.told < self.position && self.told_down == head.down_since.is_some();
        (waits && told && self.life == head.life).then_some(self.position)
    }

    /// Everything before `next` was handed over, or none of it passed the filter (`wrote` is
    /// `None`, else the moment of the next heartbeat).
    pub fn delivered(&mut self, next: u64, wrote: Option<Instant>) {
        self.position = next;
        if let Some(heartbeat_at) = wrote {
            self.fresh = false;
            self.shown = next.saturating_sub(1);
            self.heartbeat_at = heartbeat_at;
        }
        self.entry.moved(next);
    }

    /// Everything up to here was handed over. Before the start is found, what the subscriber itself
    /// has named.
    fn cursor(&self) -> Option<Cursor> {
        match (self.epoch, &self.request.start) {
            (Some(epoch), _) => Some(Cursor::new(epoch, self.position.saturating_sub(1))),
            (None, Start::After(cursor)) => Some(*cursor),
            (None, _) => None,
        }
    }

    fn moved(&mut self) {
        self.shown = self.position.saturating_sub(1);
        self.note();
    }

    fn note(&self) {
        if let Some(epoch) = self.epoch {
            self.entry.at(epoch, self.position, self.stage);
        }
    }
}

fn one(bytes: Vec<u8>) -> Step {
    Step::Write(vec![bytes.into()])
}
