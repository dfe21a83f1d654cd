//! A subscriber: a position and a filter over the log. It yields ready frames; a driver writes
//! them.
//!
//! Opening → Admitting → Reading (replay, then live) → Closed. There is no queue per subscriber: a
//! slow one is one whose position is further back. Nothing here waits: [`Subscriber::step`] says
//! what to do next, and the driver (a fan-out thread, or [`Frames`] for a body of hyper's) writes,
//! waits and asks the store.

mod clock;
mod control;
mod frames;
mod question;
mod reading;
mod rollback;
mod start;
mod step;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use sluice_channel::{Cursor, Epoch, Filter};
use tokio::time::Instant;

use self::{clock::Clock, reading::Reading};
use crate::{
    frame::{self, CloseReason, Dialect},
    log::Head,
    registry::{Entry, Registration, Stage},
};

pub(crate) use frames::Frames;
pub(crate) use question::{Answer, Question, SegmentKey};
pub(crate) use rollback::Checkpoint;
pub use start::{Request, Start};
pub(crate) use start::{StartPosition, resolve};
pub(crate) use step::Step;

/// One subscriber's way through the log.
#[derive(Debug)]
pub(crate) struct Subscriber {
    entry: Registration,
    request: Request,
    state: State,
    clock: Clock,
}

/// Where a subscriber is in its life. In each state but the last it waits also for its heartbeat,
/// its age and the wish to close.
#[derive(Debug)]
enum State {
    /// Waits for nothing: the `retry:` line goes out before anything is asked of the store.
    Opening,
    /// Waits for the log to reach the store, then, where only the store knows the start, for its
    /// answer.
    Admitting(Admission),
    /// Waits for the head to move, or for a segment of history.
    Reading(Reading),
    /// Waits for nothing: `channel.close` was given out.
    Closed,
}

#[derive(Debug, Default)]
struct Admission {
    /// The store was needed for the start and did not answer.
    failed: bool,
    /// A question for the start is on its way.
    asked: bool,
    /// Of `channel.degraded` and `channel.recovered` the last one sent was the former.
    degraded_sent: bool,
}

impl Subscriber {
    /// A subscriber that is registered as `entry`.
    #[must_use]
    pub(crate) fn new(entry: Registration, request: Request) -> Self {
        let clock = Clock::new(&entry.channel().config().delivery, Instant::now());
        Self { entry, request, state: State::Opening, clock }
    }

    /// Its entry in the registry.
    #[must_use]
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Which events it wants.
    #[must_use]
    pub(crate) const fn filter(&self) -> &Filter {
        &self.request.filter
    }

    /// In which form it wants them.
    #[must_use]
    pub(crate) const fn dialect(&self) -> Dialect {
        self.request.dialect
    }

    /// When it has something to do even if nothing happens.
    #[must_use]
    pub(crate) fn due(&self) -> Instant {
        self.clock.due()
    }

    /// Has the next heartbeat due at `now`.
    pub(crate) const fn beat_at(&mut self, now: Instant) {
        self.clock.wrote(now);
    }

    /// Goes on as of `head` and `now`. A question that is on its way holds up events, never
    /// heartbeats or the end.
    pub(crate) fn step(&mut self, head: Head, now: Instant) -> Step {
        let step = match self.state {
            State::Opening => self.open(),
            State::Admitting(_) | State::Reading(_) => self.go_on(head, now),
            State::Closed => return Step::End,
        };
        self.counted(step, now)
    }

    /// Counts what `step` writes, except for events: those may still be rolled back.
    fn counted(&mut self, step: Step, now: Instant) -> Step {
        if let Step::Write(_) | Step::Events { .. } = &step {
            self.clock.wrote(now + self.entry.channel().config().delivery.heartbeat);
        }
        if let Step::Write(parts) = &step {
            self.count_delivered(0, parts.iter().map(Bytes::len).sum());
        }
        step
    }

    fn open(&mut self) -> Step {
        self.state = State::Admitting(Admission::default());
        let mut out = Vec::new();
        frame::retry(&mut out, self.entry.channel().retry());
        Step::write(out)
    }

    /// What is due by the clock, the wish to close and an outage come before events.
    fn go_on(&mut self, head: Head, now: Instant) -> Step {
        if self.clock.is_over(now) {
            self.entry.close(CloseReason::Age, self.entry.channel().retry());
        }
        if let Some((reason, retry)) = self.entry.close_asked() {
            return self.close(reason, retry);
        }
        if self.clock.heartbeat_is_due(now) {
            return self.heartbeat();
        }
        if self.outage_is_due(head) {
            return self.outage(head);
        }
        if self.is_awaiting_answer() || !self.clock.resume(now) {
            return Step::Wait(self.due());
        }
        match &mut self.state {
            // Nothing was said of a place in the former life: it is none to go on from.
            State::Reading(reading) if reading.unplaced && reading.life != head.life => {
                let degraded_sent = reading.degraded_sent;
                self.state = State::Admitting(Admission { degraded_sent, ..Admission::default() });
                self.admit(head, now)
            }
            State::Reading(reading) => reading
                .step(&self.entry, &self.request, head)
                .unwrap_or_else(|| Step::Wait(self.clock.due())),
            State::Opening | State::Admitting(_) | State::Closed => self.admit(head, now),
        }
    }

    /// Finds the start.
    fn admit(&mut self, head: Head, now: Instant) -> Step {
        let State::Admitting(admission) = &mut self.state else { return Step::Wait(self.due()) };
        let Some(epoch) = head.epoch else {
            if head.down_since.is_some() && !admission.failed {
                admission.failed = true;
                // Now an outage may be due.
                return self.go_on(head, now);
            }
            return Step::Wait(self.due());
        };
        let (channel, request) = (self.entry.channel(), &self.request);
        match start::at_once(channel, &request.start, head, epoch) {
            Some(start) => self.begin(head, epoch, start).unwrap_or_else(|| self.go_on(head, now)),
            None => {
                admission.asked = true;
                Step::Ask(Question::start(channel, &request.start, &request.filter, head, epoch))
            }
        }
    }

    /// `None`: there is something to read first.
    fn begin(&mut self, head: Head, epoch: Epoch, start: StartPosition) -> Option<Step> {
        let degraded_sent = self.degraded_sent();
        let (reading, step) =
            Reading::begin(&self.entry, &self.request, head, epoch, start, degraded_sent);
        self.state = State::Reading(reading);
        step
    }

    /// Takes the answer to the question that [`Step::Ask`] gave out, and goes on.
    pub(crate) fn answer(&mut self, answer: Answer, now: Instant) -> Step {
        self.forget_question();
        let step = match (&mut self.state, answer) {
            (State::Admitting(_), Answer::Start(head, epoch, Ok(start))) => {
                self.clock.reset_backoff();
                self.begin(head, epoch, start).unwrap_or(Step::YIELD)
            }
            (State::Admitting(admission), Answer::Start(_, _, Err(error))) => {
                tracing::debug!(
                    channel = %self.entry.channel().name(),
                    peer = %self.entry.peer().address,
                    %error,
                    "the start position cannot be found yet"
                );
                admission.failed = true;
                self.pause(now)
            }
            (State::Reading(reading), Answer::Segment(Ok(segment))) => {
                self.clock.reset_backoff();
                reading.segment = segment;
                Step::YIELD
            }
            (State::Reading(reading), Answer::Segment(Err(error))) => {
                tracing::debug!(
                    channel = %self.entry.channel().name(),
                    peer = %self.entry.peer().address,
                    %error,
                    position = reading.next,
                    "the store cannot be read now"
                );
                self.pause(now)
            }
            // The stream was closed while the question was on its way.
            (_, Answer::Start(..) | Answer::Segment(_)) => Step::YIELD,
        };
        self.counted(step, now)
    }

    fn pause(&mut self, now: Instant) -> Step {
        self.clock.pause(now);
        // An outage may have to be announced first.
        Step::YIELD
    }

    /// Whether a question is on its way: the head is nothing to wait for then.
    #[must_use]
    pub(crate) const fn is_awaiting_answer(&self) -> bool {
        match &self.state {
            State::Admitting(admission) => admission.asked,
            State::Reading(reading) => reading.asked,
            State::Opening | State::Closed => false,
        }
    }

    /// Says that no answer will come to the question that is on its way.
    pub(crate) fn forget_question(&mut self) {
        match &mut self.state {
            State::Admitting(admission) => admission.asked = false,
            State::Reading(reading) => reading.asked = false,
            State::Opening | State::Closed => {}
        }
    }

    /// Its position, when all that it waits for is the next event. Then one write serves each
    /// subscriber at that position, and [`Self::delivered`] says how far it came.
    #[must_use]
    pub(crate) fn live_at(&self, head: Head) -> Option<u64> {
        let State::Reading(reading) = &self.state else { return None };
        let waits = reading.live && !reading.asked && !self.clock.is_paused();
        let announced = reading.gap_sent_to < reading.next
            && reading.degraded_sent == head.down_since.is_some();
        (waits && announced && reading.life == head.life).then_some(reading.next)
    }

    /// Everything before `next` was delivered; of it, `last` is the last event that passed the
    /// filter. The next heartbeat is due at `heartbeat_at`.
    pub(crate) fn delivered(&mut self, next: u64, last: u64, heartbeat_at: Instant) {
        let State::Reading(reading) = &mut self.state else { return };
        reading.next = next;
        reading.last_id_sent = last;
        self.clock.wrote(heartbeat_at);
        self.entry.moved(next);
    }

    /// Nothing before `next` passed the filter.
    pub(crate) fn passed(&mut self, next: u64) {
        let State::Reading(reading) = &mut self.state else { return };
        reading.next = next;
        self.entry.moved(next);
    }

    /// Counts events and bytes that will be written.
    pub(crate) fn count_delivered(&self, events: u64, bytes: usize) {
        let metrics = self.entry.channel().metrics();
        metrics.events_delivered.inc_by(events);
        metrics.bytes_written.inc_by(bytes as u64);
    }

    /// Goes back to the state before [`Step::Events`]: of what came since, nothing was written.
    pub(crate) fn roll_back(&mut self, checkpoint: Checkpoint) {
        if let State::Reading(reading) = &mut self.state {
            reading.roll_back(&self.entry, checkpoint);
        }
    }

    /// Lets go of the segment that is being read: a subscriber that waits for its socket holds no
    /// memory.
    pub(crate) fn release_segment(&mut self) {
        if let State::Reading(reading) = &mut self.state {
            reading.segment = None;
        }
    }

    /// Everything up to here was given out. Before the start is found, the cursor that the request
    /// has named.
    const fn cursor(&self) -> Option<Cursor> {
        match (&self.state, &self.request.start) {
            (State::Reading(reading), _) if !reading.unplaced => Some(reading.cursor()),
            (_, Start::After(cursor)) => Some(*cursor),
            (_, _) => None,
        }
    }

    const fn degraded_sent(&self) -> bool {
        match &self.state {
            State::Admitting(admission) => admission.degraded_sent,
            State::Reading(reading) => reading.degraded_sent,
            State::Opening | State::Closed => false,
        }
    }

    /// Whether an outage, or its end, has to be announced. Our events carry a cursor: before the
    /// start is found, there is one where the request names it, and it is of use only where the
    /// start cannot be found now.
    const fn outage_is_due(&self, head: Head) -> bool {
        let placed = match &self.state {
            State::Admitting(admission) => admission.failed && self.cursor().is_some(),
            State::Opening | State::Reading(_) | State::Closed => true,
        };
        placed && head.down_since.is_some() != self.degraded_sent()
    }

    fn outage(&mut self, head: Head) -> Step {
        let mut out = match &mut self.state {
            State::Reading(reading) if reading.unplaced => {
                reading.place(&self.entry, &self.request, head, None)
            }
            _ => Vec::new(),
        };
        let (cursor, down) = (self.cursor(), head.down_since.is_some());
        match &mut self.state {
            State::Admitting(admission) => admission.degraded_sent = down,
            State::Reading(reading) => {
                reading.degraded_sent = down;
                reading.last_id_sent = reading.last_id_sent.max(reading.cursor().sequence);
            }
            State::Opening | State::Closed => {}
        }
        control::outage(&mut out, cursor, head.down_since);
        Step::write(out)
    }

    /// A cursor when it has moved without being shown, else a comment.
    fn heartbeat(&mut self) -> Step {
        match &mut self.state {
            State::Reading(reading)
                if !reading.unplaced && reading.cursor().sequence > reading.last_id_sent =>
            {
                let cursor = reading.cursor();
                reading.last_id_sent = cursor.sequence;
                let mut out = Vec::new();
                control::cursor(&mut out, cursor);
                Step::write(out)
            }
            _ => Step::Write(vec![Bytes::from_static(frame::HEARTBEAT)]),
        }
    }

    fn close(&mut self, reason: CloseReason, retry: Duration) -> Step {
        let cursor = self.cursor();
        if let State::Reading(reading) = &self.state {
            self.entry.at(reading.epoch, reading.next, Stage::Closing);
        }
        self.state = State::Closed;
        let mut out = Vec::new();
        frame::write_close(&mut out, cursor, reason, retry);
        Step::write(out)
    }
}
