//! What a subscriber is told beside the events: where it starts, holes, outages, that the stream
//! lives, that it ends.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sluice_channel::{Cursor, Epoch, config};

use super::{
    Step, Subscriber, one,
    start::{StartPosition, after_gap},
};
use crate::{
    frame::{self, CloseReason, Gap, GapReason},
    log::Head,
    registry::Stage,
};

impl Subscriber {
    /// The first frames that carry a cursor: from here on a reconnect loses nothing.
    pub(super) fn begin(&mut self, head: Head, epoch: Epoch, start: StartPosition) -> Step {
        self.life = head.life;
        self.epoch = Some(epoch);
        self.position = start.position;
        self.fresh = start.lossless;
        self.stage = Stage::Replaying;
        let mut out = Vec::new();
        if let Some(gap) = start.gap {
            self.write_gap(&mut out, gap);
        }
        if self.request.open {
            let delivery = &self.entry.channel().config().delivery;
            let data = json!({
                "cursor": self.cursor().map(|c| c.to_string()),
                "earliest": Cursor::new(epoch, head.first.min(head.next.saturating_sub(1))).to_string(),
                "latest": Cursor::new(epoch, head.next.saturating_sub(1)).to_string(),
                "heartbeat": delivery.heartbeat.as_millis(),
                "maxConnectionAge": delivery.max_connection_age.as_millis(),
            });
            frame::control(&mut out, "channel.open", self.cursor(), &data.to_string(), None);
        }
        if start.gap.is_none() {
            frame::control(&mut out, "channel.cursor", self.cursor(), "", None);
        }
        self.moved();
        one(out)
    }

    /// Tells of a hole; where the channel says so, goes on at the head.
    pub(super) fn gap(&mut self, mut gap: Gap, head: Head) -> Step {
        let skip = self.entry.channel().config().delivery.on_gap == config::Start::Latest
            && gap.reason == GapReason::Expired;
        if skip && head.next > self.position {
            self.position = head.next;
            gap.to = Some(head.next - 1);
            gap.missed = gap.from.map(|from| head.next - from);
            self.told = head.next - 1;
        }
        let mut out = Vec::new();
        self.write_gap(&mut out, gap);
        self.moved();
        one(out)
    }

    /// The stream was recreated or moved back: what the subscriber's position meant is gone.
    pub(super) fn new_life(&mut self, head: Head) -> Step {
        self.life = head.life;
        self.epoch = head.epoch;
        self.told = 0;
        self.segment = None;
        self.stage = Stage::Replaying;
        let start = after_gap(self.entry.channel(), head, GapReason::Epoch);
        self.position = start.position;
        self.fresh = true;
        let mut out = Vec::new();
        if let Some(gap) = start.gap {
            self.write_gap(&mut out, gap);
        }
        self.moved();
        one(out)
    }

    fn write_gap(&self, out: &mut Vec<u8>, gap: Gap) {
        self.entry.channel().metrics().gap(gap.reason);
        // A struct of numbers and a word: serialising cannot fail.
        let data = serde_json::to_string(&gap).unwrap_or_default();
        frame::control(out, "channel.gap", self.cursor(), &data, None);
    }

    pub(super) fn degraded(&mut self, head: Head) -> Step {
        let (name, since) = match head.down_since {
            Some(since) => ("channel.degraded", since),
            None => ("channel.recovered", jiff::Timestamp::now().as_millisecond()),
        };
        self.told_down = head.down_since.is_some();
        self.shown = self.shown.max(self.position.saturating_sub(1));
        let data = json!({"since": frame::rfc3339(since.saturating_mul(1_000_000))});
        let mut out = Vec::new();
        frame::control(&mut out, name, self.cursor(), &data.to_string(), None);
        one(out)
    }

    /// A cursor when it has moved without being shown, else a comment.
    pub(super) fn heartbeat(&mut self) -> Step {
        match self.cursor() {
            Some(cursor) if self.stage != Stage::Admitting && cursor.sequence > self.shown => {
                self.shown = cursor.sequence;
                let mut out = Vec::new();
                frame::control(&mut out, "channel.cursor", Some(cursor), "", None);
                one(out)
            }
            _ => Step::Write(vec![Bytes::from_static(frame::HEARTBEAT)]),
        }
    }

    pub(super) fn close(&mut self, reason: CloseReason, retry: Duration) -> Step {
        self.ended = true;
        self.stage = Stage::Closing;
        self.note();
        let mut out = Vec::new();
        frame::write_close(&mut out, self.cursor(), reason, retry);
        one(out)
    }
}
