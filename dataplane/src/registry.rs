//! Every open stream with its position, readable without stopping it, closable from outside.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Serialize;
use sluice_channel::{Cursor, Epoch};
use tokio::sync::Notify;

use crate::{
    channel::Channel,
    frame::CloseReason,
    limits,
    peer::{Peer, Stall},
};

/// Where a subscriber is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Its start position is being found.
    Admitting,
    /// Behind the head.
    Replaying,
    /// At the head.
    Live,
    /// Its last frame was handed over.
    Closing,
}

impl Stage {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Admitting,
            1 => Self::Replaying,
            2 => Self::Live,
            _ => Self::Closing,
        }
    }
}

/// What writes a stream, and is told when it is to end.
pub(crate) trait Writer: Send + Sync + std::fmt::Debug {
    /// The stream that the writer knows as `key` is to end.
    fn close_wanted(&self, key: u64);
}

#[derive(Debug, Default)]
struct Close {
    asked: Option<(CloseReason, Duration)>,
    asked_at: Option<Instant>,
    writer: Option<(Arc<dyn Writer>, u64)>,
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct Entry {
    channel: Arc<Channel>,
    peer: Arc<Peer>,
    filter: String,
    started: Instant,
    epoch: AtomicU32,
    known: AtomicBool,
    position: AtomicU64,
    stage: AtomicU8,
    /// Whether `close` holds a wish: read without its lock on each step of a stream.
    closing: AtomicBool,
    close: Mutex<Close>,
    close_wanted: Notify,
    /// When it ends by its age.
    ends_at: OnceLock<Instant>,
    /// Whether its body goes on, where hyper writes it.
    body: OnceLock<Arc<Stall>>,
}

impl Entry {
    /// Asks the stream to end for `reason` with this reconnection time; the first one to ask wins.
    pub(crate) fn close(&self, reason: CloseReason, retry: Duration) {
        let writer = {
            let mut close = self.close.lock();
            if close.asked.is_some() {
                return;
            }
            close.asked = Some((reason, retry));
            close.asked_at = Some(Instant::now());
            self.closing.store(true, Release);
            close.writer.clone()
        };
        match writer {
            Some((writer, key)) => writer.close_wanted(key),
            None => self.close_wanted.notify_one(),
        }
    }

    /// Why the stream is to end, and the reconnection time to give.
    #[must_use]
    pub(crate) fn close_asked(&self) -> Option<(CloseReason, Duration)> {
        if self.closing.load(Acquire) { self.close.lock().asked } else { None }
    }

    /// Names the thread that writes the stream from now on. A wish to close that came before is
    /// found by [`Self::close_asked`], one that comes later is told to `writer`.
    pub(crate) fn written_by(&self, writer: Arc<dyn Writer>, key: u64) {
        self.close.lock().writer = Some((writer, key));
    }

    /// Names the body as which hyper writes the stream.
    pub(crate) fn written_as(&self, body: &Arc<Stall>) {
        let _ = self.body.set(Arc::clone(body));
    }

    /// Notes when the stream ends by its age.
    pub(crate) fn ends_at(&self, at: Instant) {
        let _ = self.ends_at.set(at);
    }

    /// When the stream is to end by its age, or was asked to: the earlier of the two that are
    /// known.
    #[must_use]
    pub(crate) fn end_due(&self) -> Option<Instant> {
        let asked = self.close.lock().asked_at;
        [asked, self.ends_at.get().copied()].into_iter().flatten().min()
    }

    /// How long the socket, or the stream in it, has taken nothing.
    fn blocked_for(&self) -> Duration {
        let body = self.body.get().map_or(Duration::ZERO, |body| body.lasts());
        self.peer.blocked_for().max(body)
    }

    /// Resolves once the stream is to end.
    pub(crate) async fn close_wanted(&self) {
        while self.close_asked().is_none() {
            self.close_wanted.notified().await;
        }
    }

    /// Notes the subscriber's place: everything before `position` was handed over.
    pub(crate) fn at(&self, epoch: Epoch, position: u64, stage: Stage) {
        self.epoch.store(epoch.bits(), Relaxed);
        self.position.store(position, Relaxed);
        self.stage.store(stage as u8, Relaxed);
        self.known.store(true, Relaxed);
    }

    /// Notes that a live subscriber moved on.
    pub(crate) fn moved(&self, position: u64) {
        self.position.store(position, Relaxed);
    }

    #[must_use]
    pub(crate) const fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// The other end of the connection underneath.
    #[must_use]
    pub(crate) const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

/// What `/debug/subscribers` shows of a stream.
#[derive(Debug, Serialize)]
pub(crate) struct View {
    channel: String,
    peer: SocketAddr,
    cursor: Option<String>,
    lag: Option<u64>,
    age_ms: u64,
    blocked_ms: u64,
    state: Stage,
    filter: String,
}

impl View {
    /// How many events it is behind; `None` before its start is found.
    #[must_use]
    pub(crate) const fn lag(&self) -> Option<u64> {
        self.lag
    }
}

/// All open streams of the pod.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next_id: AtomicU64,
}

impl Registry {
    /// Registers a stream; it is one of the channel's connections until the result is dropped.
    /// `None` when the channel has as many as it may have.
    #[must_use]
    pub(crate) fn register(
        self: &Arc<Self>,
        channel: &Arc<Channel>,
        peer: &Arc<Peer>,
        filter: String,
    ) -> Option<Registration> {
        if !channel.take_slot() {
            return None;
        }
        let id = self.next_id.fetch_add(1, Relaxed);
        let entry = Arc::new(Entry {
            channel: Arc::clone(channel),
            peer: Arc::clone(peer),
            filter,
            started: Instant::now(),
            epoch: AtomicU32::new(0),
            known: AtomicBool::new(false),
            position: AtomicU64::new(0),
            stage: AtomicU8::new(Stage::Admitting as u8),
            closing: AtomicBool::new(false),
            close: Mutex::new(Close::default()),
            close_wanted: Notify::new(),
            ends_at: OnceLock::new(),
            body: OnceLock::new(),
        });
        self.entries.lock().insert(id, Arc::clone(&entry));
        Some(Registration { registry: Arc::clone(self), id, entry })
    }

    fn remove(&self, id: u64) {
        let mut entries = self.entries.lock();
        entries.remove(&id);
        if let Some(capacity) = limits::spare(entries.len(), entries.capacity()) {
            entries.shrink_to(capacity);
        }
    }

    #[must_use]
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().values().cloned().collect()
    }

    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A picture of the streams for people: all, or one channel's.
    #[must_use]
    pub(crate) fn view(&self, channel: Option<&str>) -> Vec<View> {
        let view = |entry: Arc<Entry>| {
            let known = entry.known.load(Relaxed);
            let position = entry.position.load(Relaxed);
            let cursor = Cursor::new(
                Epoch::from_bits(entry.epoch.load(Relaxed)),
                position.saturating_sub(1),
            );
            View {
                channel: entry.channel.name().to_string(),
                peer: entry.peer.address,
                cursor: known.then(|| cursor.to_string()),
                lag: known.then(|| entry.channel.log().head_now().next.saturating_sub(position)),
                age_ms: u64::try_from(entry.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                blocked_ms: u64::try_from(entry.blocked_for().as_millis()).unwrap_or(u64::MAX),
                state: Stage::from_bits(entry.stage.load(Relaxed)),
                filter: entry.filter.clone(),
            }
        };
        self.entries()
            .into_iter()
            .filter(|e| channel.is_none_or(|name| e.channel.name().as_str() == name))
            .map(view)
            .collect()
    }
}

/// Keeps a stream registered.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    id: u64,
    entry: Arc<Entry>,
}

impl Registration {
    /// The stream.
    #[must_use]
    pub(crate) const fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl std::ops::Deref for Registration {
    type Target = Entry;
    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(self.id);
        self.entry.channel.release_slot();
        let reason = self.entry.close_asked().map_or(CloseReason::Client, |(reason, _)| reason);
        self.entry.channel.metrics().close(reason);
    }
}
