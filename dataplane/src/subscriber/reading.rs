//! A subscriber's way along the log, once its start is found.

use std::sync::Arc;

use sluice_channel::{Cursor, Epoch, config};

use super::{
    control,
    question::Question,
    rollback::Checkpoint,
    start::{Request, StartPosition, after_gap},
    step::Step,
};
use crate::{
    frame::{Gap, GapReason},
    log::{
        Head, Now, Origin,
        segment::{Segment, Slice},
    },
    metrics::seconds_since,
    registry::{Entry, Stage},
};

/// A position in the log, and what the connection has said of it.
#[derive(Debug)]
pub(super) struct Reading {
    /// The life of the log that the position is of.
    pub(super) life: u64,
    pub(super) epoch: Epoch,
    /// The sequence to deliver next.
    pub(super) next: u64,
    /// Highest sequence that a gap event has covered, or that is missing before the start.
    pub(super) gap_sent_to: u64,
    /// Highest sequence that an `id:` on this connection has covered.
    pub(super) last_id_sent: u64,
    /// There was no cursor, and no `id:` was sent yet: the stream starts at the first event that is
    /// there. From then on the client knows a place, and each hole after it has to be named.
    pub(super) unplaced: bool,
    /// The head was reached once. What comes from then on counts as live, and what it waits for is
    /// the next event, unless a question is on its way or the clock has a pause.
    pub(super) live: bool,
    /// A question for a segment is on its way.
    pub(super) asked: bool,
    /// Of `channel.degraded` and `channel.recovered` the last one sent was the former.
    pub(super) degraded_sent: bool,
    /// The segment that is being read, where it is none of the ring's.
    pub(super) segment: Option<(Arc<Segment>, Origin)>,
}

impl Reading {
    const fn new(life: u64, epoch: Epoch, start: StartPosition, degraded_sent: bool) -> Self {
        Self {
            life,
            epoch,
            next: start.position,
            gap_sent_to: 0,
            last_id_sent: 0,
            unplaced: start.lossless && start.gap.is_none(),
            live: false,
            asked: false,
            degraded_sent,
            segment: None,
        }
    }

    /// Begins at `start`. The place is given out where the request named it; else once it is known
    /// what is there: a limit of the stream may have moved the oldest event on since it was found.
    pub(super) fn begin(
        entry: &Entry,
        request: &Request,
        head: Head,
        epoch: Epoch,
        start: StartPosition,
        degraded_sent: bool,
    ) -> (Self, Option<Step>) {
        let mut reading = Self::new(head.life, epoch, start, degraded_sent);
        reading.note(entry);
        let placed = (!reading.unplaced).then(|| reading.place(entry, request, head, start.gap));
        (reading, placed.map(Step::write))
    }

    /// The first frames that carry a cursor: from here on a reconnect loses nothing.
    pub(super) fn place(
        &mut self,
        entry: &Entry,
        request: &Request,
        head: Head,
        gap: Option<Gap>,
    ) -> Vec<u8> {
        let (channel, cursor) = (entry.channel(), self.cursor());
        let mut out = Vec::new();
        if let Some(gap) = gap {
            control::gap(&mut out, cursor, gap, channel.metrics());
        }
        if request.open {
            control::open(&mut out, cursor, self.epoch, head, &channel.config().delivery);
        }
        if gap.is_none() {
            control::cursor(&mut out, cursor);
        }
        self.unplaced = false;
        self.id_sent(cursor.sequence, entry);
        out
    }

    /// Begins anew in the head's life: the stream was recreated or moved back, and what the
    /// position meant is gone.
    fn begin_life(&mut self, entry: &Entry, head: Head, epoch: Epoch) -> Step {
        let channel = entry.channel();
        let start = after_gap(channel, head, GapReason::Epoch);
        *self = Self::new(head.life, epoch, start, self.degraded_sent);
        let mut out = Vec::new();
        if let Some(gap) = start.gap {
            control::gap(&mut out, self.cursor(), gap, channel.metrics());
        }
        self.id_sent(self.cursor().sequence, entry);
        Step::write(out)
    }

    /// One step along the log; `None`: nothing to do until the head moves.
    pub(super) fn step(&mut self, entry: &Entry, request: &Request, head: Head) -> Option<Step> {
        if head.life != self.life {
            return head.epoch.map(|epoch| self.begin_life(entry, head, epoch));
        }
        let here = |(segment, _): &(Arc<Segment>, Origin)| {
            segment.covers(self.next) && self.next >= head.first
        };
        if let Some((segment, origin)) = self.segment.take().filter(here) {
            let slice = segment.slice(self.next, self.gap_sent_to, &request.filter);
            // The store was asked once, but of what comes before the place nothing is taken.
            let after = if self.unplaced { origin } else { Origin::Memory };
            let step = self.take(entry, request, slice, origin, head);
            self.segment = Some((segment, after)).filter(|(segment, _)| segment.covers(self.next));
            return Some(step);
        }
        let log = entry.channel().log();
        let now =
            log.read_now(self.life, self.next, self.gap_sent_to, &request.filter, request.dialect);
        match now {
            Now::Slice(slice) => Some(self.take(entry, request, slice, Origin::Memory, head)),
            Now::Cached(segment) => {
                self.segment = Some((segment, Origin::Memory));
                self.step(entry, request, head)
            }
            Now::Wait if self.unplaced => Some(Step::write(self.place(entry, request, head, None))),
            Now::Wait => {
                if !self.live {
                    self.live = true;
                    self.note(entry);
                }
                None
            }
            // The head that shows the new life comes in a moment.
            Now::FormerLife => None,
            Now::Missing => {
                self.asked = true;
                Some(Step::Ask(Question::segment(log, self.life, self.next, request.dialect)))
            }
        }
    }

    fn take(
        &mut self,
        entry: &Entry,
        request: &Request,
        slice: Slice,
        origin: Origin,
        head: Head,
    ) -> Step {
        if self.unplaced {
            return match slice {
                // What is missing before the first event that is there was never promised.
                Slice::Gap { gap, next } if gap.reason != GapReason::Compacted => {
                    self.gap_sent_to = gap.to.unwrap_or(self.gap_sent_to);
                    self.next = next;
                    self.note(entry);
                    Step::YIELD
                }
                // The same is read again, in the order of events after the place.
                Slice::Gap { .. } | Slice::Frames { .. } => {
                    Step::write(self.place(entry, request, head, None))
                }
            };
        }
        let metrics = entry.channel().metrics();
        if !self.live {
            metrics.replay_read(origin);
        }
        match slice {
            Slice::Frames { parts, runs, events, oldest_nanos, next, compared } => {
                let checkpoint = self.checkpoint();
                self.next = next;
                let Some((_, last)) = runs.last() else {
                    self.note(entry);
                    return Step::Yield { compared };
                };
                if self.live {
                    metrics.publish_to_write.observe(seconds_since(oldest_nanos), 1);
                }
                self.id_sent(*last, entry);
                Step::Events { parts, events, checkpoint, compared }
            }
            Slice::Gap { gap, next } => {
                self.gap_sent_to = gap.to.unwrap_or(self.gap_sent_to);
                self.next = next;
                self.gap(entry, gap, head)
            }
        }
    }

    /// Announces a hole; where the channel says so, goes on at the head.
    fn gap(&mut self, entry: &Entry, mut gap: Gap, head: Head) -> Step {
        let channel = entry.channel();
        let skip = channel.config().delivery.on_gap == config::Start::Latest
            && gap.reason == GapReason::Expired;
        if skip && head.next > self.next {
            self.next = head.next;
            gap.to = Some(head.next - 1);
            gap.missed = gap.from.map(|from| head.next - from);
            self.gap_sent_to = head.next - 1;
        }
        let mut out = Vec::new();
        control::gap(&mut out, self.cursor(), gap, channel.metrics());
        self.id_sent(self.cursor().sequence, entry);
        Step::write(out)
    }

    const fn checkpoint(&self) -> Checkpoint {
        Checkpoint { next: self.next, last_id_sent: self.last_id_sent }
    }

    /// Goes back to the state before [`Step::Events`].
    pub(super) fn roll_back(&mut self, entry: &Entry, checkpoint: Checkpoint) {
        let Checkpoint { next, last_id_sent } = checkpoint;
        self.next = next;
        self.last_id_sent = last_id_sent;
        self.note(entry);
    }

    /// Everything up to here was given out.
    pub(super) const fn cursor(&self) -> Cursor {
        Cursor::new(self.epoch, self.next.saturating_sub(1))
    }

    /// Notes that frames were given out whose last `id:` is of `sequence`. The cursor may be
    /// further: what comes after it passed no filter.
    fn id_sent(&mut self, sequence: u64, entry: &Entry) {
        self.last_id_sent = sequence;
        self.note(entry);
    }

    /// Shows its position in the registry.
    fn note(&self, entry: &Entry) {
        entry.at(self.epoch, self.next, if self.live { Stage::Live } else { Stage::Replaying });
    }
}
