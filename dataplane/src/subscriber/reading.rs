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
    /// Highest sequence that a gap event has covered, or would have covered but for the lossless
    /// start.
    pub(super) gap_sent_to: u64,
    /// Highest sequence that an `id:` on this connection has covered.
    pub(super) last_id_sent: u64,
    /// Nothing was delivered yet and there was no cursor: a hole at the very start is no loss.
    pub(super) lossless_start: bool,
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
            lossless_start: start.lossless,
            live: false,
            asked: false,
            degraded_sent,
            segment: None,
        }
    }

    /// Begins at `start`, with the first frames that carry a cursor: from here on a reconnect loses
    /// nothing.
    pub(super) fn begin(
        entry: &Entry,
        request: &Request,
        head: Head,
        epoch: Epoch,
        start: StartPosition,
        degraded_sent: bool,
    ) -> (Self, Step) {
        let mut reading = Self::new(head.life, epoch, start, degraded_sent);
        let (channel, cursor) = (entry.channel(), reading.cursor());
        let mut out = Vec::new();
        if let Some(gap) = start.gap {
            control::gap(&mut out, cursor, gap, channel.metrics());
        }
        if request.open {
            control::open(&mut out, cursor, epoch, head, &channel.config().delivery);
        }
        if start.gap.is_none() {
            control::cursor(&mut out, cursor);
        }
        reading.cursor_sent(entry);
        (reading, Step::write(out))
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
        self.cursor_sent(entry);
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
            let step = self.take(entry, slice, origin, head);
            // The store was asked once.
            self.segment =
                Some((segment, Origin::Memory)).filter(|(segment, _)| segment.covers(self.next));
            return Some(step);
        }
        let log = entry.channel().log();
        let now =
            log.read_now(self.life, self.next, self.gap_sent_to, &request.filter, request.dialect);
        match now {
            Now::Slice(slice) => Some(self.take(entry, slice, Origin::Memory, head)),
            Now::Cached(segment) => {
                self.segment = Some((segment, Origin::Memory));
                self.step(entry, request, head)
            }
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

    fn take(&mut self, entry: &Entry, slice: Slice, origin: Origin, head: Head) -> Step {
        let metrics = entry.channel().metrics();
        if !self.live {
            metrics.replay_read(origin);
        }
        match slice {
            Slice::Frames { parts, events, oldest_nanos, next, compared, .. } => {
                let checkpoint = self.checkpoint();
                self.next = next;
                if parts.is_empty() {
                    self.note(entry);
                    return Step::Yield { compared };
                }
                if self.live {
                    metrics.publish_to_write.observe(seconds_since(oldest_nanos), 1);
                }
                self.lossless_start = false;
                self.cursor_sent(entry);
                Step::Events { parts, events, checkpoint, compared }
            }
            Slice::Gap { gap, next } => {
                let begins_here = gap.from == Some(self.next);
                self.gap_sent_to = gap.to.unwrap_or(self.gap_sent_to);
                self.next = next;
                if self.lossless_start && begins_here && gap.reason != GapReason::Compacted {
                    self.note(entry);
                    return Step::YIELD;
                }
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
        self.cursor_sent(entry);
        Step::write(out)
    }

    const fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            next: self.next,
            last_id_sent: self.last_id_sent,
            lossless_start: self.lossless_start,
        }
    }

    /// Goes back to the state before [`Step::Events`].
    pub(super) fn roll_back(&mut self, entry: &Entry, checkpoint: Checkpoint) {
        let Checkpoint { next, last_id_sent, lossless_start } = checkpoint;
        self.next = next;
        self.last_id_sent = last_id_sent;
        self.lossless_start = lossless_start;
        self.note(entry);
    }

    /// Everything up to here was given out.
    pub(super) const fn cursor(&self) -> Cursor {
        Cursor::new(self.epoch, self.next.saturating_sub(1))
    }

    /// Notes that frames were given out whose last `id:` is the cursor.
    fn cursor_sent(&mut self, entry: &Entry) {
        self.last_id_sent = self.next.saturating_sub(1);
        self.note(entry);
    }

    /// Shows its position in the registry.
    fn note(&self, entry: &Entry) {
        entry.at(self.epoch, self.next, if self.live { Stage::Live } else { Stage::Replaying });
    }
}
