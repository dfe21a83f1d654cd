//! A subscriber: a cursor and a filter over the log. It yields ready frames; something else writes them.
//!
//! Admitting → Replaying → Live → Closing(reason). There is no queue per subscriber: a slow one is one whose
//! position is further back.

mod output;
mod start;

#[cfg(test)]
mod tests;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use rand::Rng;
use serde_json::json;
use sluice_channel::{Cursor, Epoch, Filter, config};
use tokio::{sync::watch, time::Instant};

use crate::{
    frame::{self, CloseReason, Dialect, Gap, GapReason},
    log::{Head, Origin, Read, segment::Slice},
    registry::{Entry, Registration, Stage},
};

pub use output::write_close;
use output::{join, seconds_since};
pub use start::{Place, Start, resolve};

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

/// One subscriber's way through the log.
#[derive(Debug)]
pub struct Subscriber {
    entry: Registration,
    request: Request,
    head: watch::Receiver<Head>,
    stage: Stage,
    opened: bool,
    life: u64,
    epoch: Option<Epoch>,
    /// The sequence to deliver next.
    position: u64,
    /// Highest sequence that a gap event has covered.
    told: u64,
    /// Nothing was delivered yet and there was no cursor: a hole at the very start is nobody's loss.
    fresh: bool,
    /// Highest sequence that an `id:` on this connection has covered.
    shown: u64,
    told_down: bool,
    /// The store had to be asked for the start and did not answer.
    admission_failed: bool,
    heartbeat_at: Instant,
    ends_at: Option<Instant>,
    backoff: Duration,
    ended: bool,
}

/// How a wait ended.
enum Wake<T> {
    Done(T),
    Close,
    Time,
}

/// Waits for `work`, the wish to close, or `deadline`, in this order when several are due.
async fn wait<T>(entry: &Entry, deadline: Option<Instant>, work: impl Future<Output = T>) -> Wake<T> {
    let time = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = entry.close_wanted() => Wake::Close,
        done = work => Wake::Done(done),
        () = time => Wake::Time,
    }
}

impl Subscriber {
    /// A subscriber that is registered as `entry`.
    #[must_use]
    pub fn new(entry: Registration, request: Request) -> Self {
        let channel = entry.channel();
        let head = channel.log().head();
        let delivery = &channel.config().delivery;
        let age = delivery.max_connection_age;
        let now = Instant::now();
        // 80–100 %, so that subscribers who came together do not go together.
        let ends_at = (!age.is_zero()).then(|| now + age.mul_f64(rand::rng().random_range(0.8..1.0)));
        let heartbeat_at = now + delivery.heartbeat;
        Self {
            request,
            head,
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
            heartbeat_at,
            ends_at,
            backoff: MIN_BACKOFF,
            ended: false,
            entry,
        }
    }

    /// The next bytes to write, whole frames; `None` at the end of the stream. Waits no longer than the
    /// heartbeat interval plus one answer of the store.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let bytes = if self.opened { self.advance().await } else { self.open() };
        self.heartbeat_at = Instant::now() + self.entry.channel().config().delivery.heartbeat;
        self.entry.channel().metrics().bytes_written.inc_by(bytes.len() as u64);
        Some(bytes)
    }

    /// The first frame goes out before anything is asked of the store.
    fn open(&mut self) -> Bytes {
        self.opened = true;
        let mut out = Vec::new();
        frame::retry(&mut out, self.entry.channel().retry());
        out.into()
    }

    async fn advance(&mut self) -> Bytes {
        loop {
            if let Some((reason, retry)) = self.entry.close_asked() {
                return self.close(reason, retry);
            }
            let now = Instant::now();
            if self.ends_at.is_some_and(|end| now >= end) {
                let retry = self.entry.channel().retry();
                self.entry.close(CloseReason::Age, retry);
                continue;
            }
            if now >= self.heartbeat_at {
                return self.heartbeat();
            }
            let head = *self.head.borrow_and_update();
            // Who has no place yet is given one first where that needs no store: our events carry a cursor.
            let placed = self.stage != Stage::Admitting || (self.cursor().is_some() && self.admission_failed);
            if head.down_since.is_some() != self.told_down && placed {
                return self.degraded(head);
            }
            let frames = if self.stage == Stage::Admitting { self.admit(head).await } else { self.step(head).await };
            if let Some(bytes) = frames {
                return bytes;
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.ends_at.map_or(self.heartbeat_at, |end| end.min(self.heartbeat_at))
    }

    /// Finds the start position; `None` = look again.
    async fn admit(&mut self, head: Head) -> Option<Bytes> {
        let Some(epoch) = head.epoch else {
            if !self.admission_failed && head.down_since.is_some() {
                self.admission_failed = true;
                return None;
            }
            let _ = wait(&self.entry, Some(self.deadline()), self.head.changed()).await;
            return None;
        };
        let channel = self.entry.channel();
        // Bounded by the store's own time limit, so the heartbeat may wait for it.
        match wait(&self.entry, None, resolve(channel, &self.request.start, &self.request.filter, head, epoch)).await {
            Wake::Done(Ok(place)) => {
                self.backoff = MIN_BACKOFF;
                Some(self.begin(head, epoch, place))
            }
            Wake::Done(Err(error)) => {
                tracing::debug!(%error, "the start position cannot be found yet");
                self.admission_failed = true;
                self.pause().await;
                None
            }
            Wake::Close | Wake::Time => None,
        }
    }

    /// The first frames that carry a cursor: from here on a reconnect loses nothing.
    fn begin(&mut self, head: Head, epoch: Epoch, place: Place) -> Bytes {
        self.life = head.life;
        self.epoch = Some(epoch);
        self.position = place.position;
        self.fresh = place.fresh;
        self.stage = Stage::Replaying;
        let mut out = Vec::new();
        if let Some(gap) = place.gap {
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
        if place.gap.is_none() {
            frame::control(&mut out, "channel.cursor", self.cursor(), "", None);
        }
        self.moved();
        out.into()
    }

    /// One step along the log; `None` = look again.
    async fn step(&mut self, head: Head) -> Option<Bytes> {
        if head.life != self.life {
            return Some(self.new_life(head));
        }
        let channel = self.entry.channel();
        let read = channel.log().read(self.life, self.position, self.told, &self.request.filter, self.request.dialect);
        match wait(&self.entry, None, read).await {
            Wake::Done(Ok(Read::Slice(slice, origin))) => self.take(slice, origin, head).await,
            Wake::Done(Ok(Read::Wait)) => {
                if self.stage != Stage::Live {
                    self.stage = Stage::Live;
                    self.note();
                }
                let _ = wait(&self.entry, Some(self.deadline()), self.head.changed()).await;
                None
            }
            Wake::Done(Err(error)) => {
                tracing::debug!(%error, position = self.position, "the store cannot be read now");
                self.pause().await;
                None
            }
            Wake::Done(Ok(Read::FormerLife)) | Wake::Close | Wake::Time => None,
        }
    }

    async fn take(&mut self, slice: Slice, origin: Origin, head: Head) -> Option<Bytes> {
        self.backoff = MIN_BACKOFF;
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
                    // A long run without a match must not keep the thread from others.
                    tokio::task::yield_now().await;
                    return None;
                }
                metrics.events_delivered.inc_by(events);
                if live {
                    metrics.publish_to_write.observe(seconds_since(oldest_nanos));
                }
                self.fresh = false;
                self.moved();
                Some(join(parts))
            }
            Slice::Gap { gap, next } => {
                let begins_here = gap.from == Some(self.position);
                self.told = gap.to.unwrap_or(self.told);
                self.position = next;
                if self.fresh && begins_here && gap.reason != GapReason::Compacted {
                    self.note();
                    return None;
                }
                Some(self.gap(gap, head))
            }
        }
    }

    /// Tells of a hole; where the channel says so, goes on at the head.
    fn gap(&mut self, mut gap: Gap, head: Head) -> Bytes {
        let skip = self.entry.channel().config().delivery.on_gap == config::Start::Latest && gap.reason == GapReason::Expired;
        if skip && head.next > self.position {
            self.position = head.next;
            gap.to = Some(head.next - 1);
            gap.missed = gap.from.map(|from| head.next - from);
            self.told = head.next - 1;
        }
        let mut out = Vec::new();
        self.write_gap(&mut out, gap);
        self.moved();
        out.into()
    }

    /// The stream was recreated or moved back: what the subscriber's position meant is gone.
    fn new_life(&mut self, head: Head) -> Bytes {
        self.life = head.life;
        self.epoch = head.epoch;
        self.told = 0;
        self.stage = Stage::Replaying;
        let place = start::after_gap(self.entry.channel(), head, GapReason::Epoch);
        self.position = place.position;
        self.fresh = true;
        let mut out = Vec::new();
        if let Some(gap) = place.gap {
            self.write_gap(&mut out, gap);
        }
        self.moved();
        out.into()
    }

    fn write_gap(&self, out: &mut Vec<u8>, gap: Gap) {
        self.entry.channel().metrics().gap(gap.reason);
        // A struct of numbers and a word: serialising cannot fail.
        let data = serde_json::to_string(&gap).unwrap_or_default();
        frame::control(out, "channel.gap", self.cursor(), &data, None);
    }

    fn degraded(&mut self, head: Head) -> Bytes {
        let (name, since) = match head.down_since {
            Some(since) => ("channel.degraded", since),
            None => ("channel.recovered", jiff::Timestamp::now().as_millisecond()),
        };
        self.told_down = head.down_since.is_some();
        self.shown = self.shown.max(self.position.saturating_sub(1));
        let data = json!({"since": frame::rfc3339(since.saturating_mul(1_000_000))});
        let mut out = Vec::new();
        frame::control(&mut out, name, self.cursor(), &data.to_string(), None);
        out.into()
    }

    /// A cursor when it has moved without being shown, else a comment.
    fn heartbeat(&mut self) -> Bytes {
        match self.cursor() {
            Some(cursor) if self.stage != Stage::Admitting && cursor.sequence > self.shown => {
                self.shown = cursor.sequence;
                let mut out = Vec::new();
                frame::control(&mut out, "channel.cursor", Some(cursor), "", None);
                out.into()
            }
            _ => Bytes::from_static(frame::HEARTBEAT),
        }
    }

    fn close(&mut self, reason: CloseReason, retry: Duration) -> Bytes {
        self.ended = true;
        self.stage = Stage::Closing;
        self.note();
        let mut out = Vec::new();
        write_close(&mut out, self.cursor(), reason, retry);
        out.into()
    }

    /// Everything up to here was handed over. Before the start is found, what the subscriber itself has named.
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

    async fn pause(&mut self) {
        let until = Instant::now() + self.backoff.mul_f64(rand::rng().random_range(0.5..1.0));
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        let _ = wait(&self.entry, Some(until.min(self.deadline())), std::future::pending::<()>()).await;
    }
}
