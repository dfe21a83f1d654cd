//! The log of a channel on this pod: the newest events in memory, older ones from the store through
//! a cache, one way to read both. Live and replay are the same thing: *read from the position on*.
//!
//! ```text
//! store ─tail─▶ Reader ─▶ Ring (sealed segments + open one) ─┐
//!   └───history, single flight──▶ History (segments) ────────┴─▶ Log::read ─▶ subscribers
//! ```
//! Invariant: no I/O here beyond the `Source` (held by `tests/tidy`).

mod absence;
mod history;
mod marks;
mod newest;
mod reader;
mod ring;
mod room;
pub mod segment;
mod stretch;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use sluice_channel::{Epoch, Event, Filter, config::Encoding};
use tokio::sync::watch;
use tracing::{Instrument, Span};

use self::{
    history::{History, Scope, missing},
    marks::Marks,
    newest::Turns,
    ring::Ring,
    segment::{Segment, Slice},
    stretch::Flights,
};
use crate::{
    frame::{Dialect, Gap, GapReason},
    source::{Error, Source, proof::Proofs},
};

pub(crate) use reader::Status;

/// The log of the process names an event that cannot be text, but no more than one in this time: a
/// publisher may write nothing else.
const INVALID_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// What subscribers watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Counts the lives of the log: it rises when the stream was recreated or moved back, and
    /// positions of a former life mean nothing any more.
    pub(crate) life: u64,
    /// The stream's epoch; `None` until the store was reached for the first time.
    pub(crate) epoch: Option<Epoch>,
    /// Lowest sequence the store had when last asked.
    pub(crate) first: u64,
    /// The sequence that comes next.
    pub(crate) next: u64,
    /// Since when the store has been unreachable, Unix milliseconds.
    pub(crate) down_since: Option<i64>,
}

/// Where a slice came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Memory: the ring or a cached segment.
    Memory,
    /// The store was asked.
    Store,
}

/// What is at a position without asking the store.
#[derive(Debug)]
pub(crate) enum Now {
    /// In the ring: what to write.
    Slice(Slice),
    /// In a cached segment, which covers the position.
    Cached(Arc<Segment>),
    /// The position is the head: wait for it to move.
    Wait,
    /// The position is of a former life.
    FormerLife,
    /// Only the store has it: [`Log::segment`].
    Missing,
}

/// What may change while the log is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// How payloads become `data:`.
    pub(crate) encoding: Encoding,
    /// Whether holes are compaction.
    pub(crate) compacted: bool,
    /// Bytes of encoded segments kept.
    pub(crate) cache_bytes: u64,
}

#[derive(Debug)]
struct Rings {
    /// The life that they are of; the head follows a moment later.
    life: u64,
    plain: Ring,
    /// Made when the first subscriber asks for envelopes.
    envelope: Option<Ring>,
}

/// The log of one channel.
#[derive(Debug)]
pub(crate) struct Log {
    source: Arc<dyn Source>,
    /// What the store says is not there has to be proven.
    proofs: Arc<Proofs>,
    options: RwLock<Options>,
    rings: RwLock<Rings>,
    /// What the stream is known again by after an interruption.
    marks: Mutex<Marks>,
    history: History,
    /// Reads for pages.
    flights: Flights,
    /// Bounds on looking for a start.
    turns: Turns,
    head: watch::Sender<Head>,
    /// Woken when the head changes: threads that cannot wait for the watch.
    wakers: RwLock<Vec<Waker>>,
    status: Mutex<Status>,
    /// Names the channel in the log lines of the reader, and of reads of the store.
    span: Span,
    invalid: std::sync::atomic::AtomicU64,
    invalid_logged: Mutex<Option<Instant>>,
}

impl Log {
    /// A log over `source`; nothing happens until [`Log::run`] is driven. Its log lines are in
    /// `span`.
    #[must_use]
    pub(crate) fn new(source: Arc<dyn Source>, options: Options, span: Span) -> Self {
        let proofs = Arc::new(Proofs::new(Arc::clone(&source)));
        Self {
            history: History::new(
                Arc::clone(&source),
                Arc::clone(&proofs),
                options.cache_bytes / 2,
            ),
            source,
            proofs,
            marks: Mutex::default(),
            flights: Flights::default(),
            turns: Turns::default(),
            options: RwLock::new(options),
            rings: RwLock::new(Rings {
                life: 0,
                plain: Ring::new(Dialect::Plain, 1),
                envelope: None,
            }),
            head: watch::Sender::new(Head::default()),
            wakers: RwLock::default(),
            status: Mutex::new(Status::default()),
            span,
            invalid: std::sync::atomic::AtomicU64::new(0),
            invalid_logged: Mutex::new(None),
        }
    }

    /// The head, to watch.
    #[must_use]
    pub(crate) fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    #[must_use]
    pub(crate) fn head_now(&self) -> Head {
        *self.head.borrow()
    }

    /// Wakes `waker` at each change of the head from now on.
    pub(crate) fn wake_on_change(&self, waker: Waker) {
        self.wakers.write().push(waker);
    }

    /// No longer wakes `waker`.
    pub(crate) fn forget_waker(&self, waker: &Waker) {
        self.wakers.write().retain(|known| !known.will_wake(waker));
    }

    /// Changes the head; `change` says whether it did.
    fn change_head(&self, change: impl FnOnce(&mut Head) -> bool) -> bool {
        let changed = self.head.send_if_modified(change);
        if changed {
            self.wakers.read().iter().for_each(Waker::wake_by_ref);
        }
        changed
    }

    #[must_use]
    pub(crate) fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// What the reader does, for probes and people.
    #[must_use]
    pub(crate) fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// Topics that were not text, and payloads that were not on a text channel, since the start.
    #[must_use]
    pub(crate) fn invalid_payloads(&self) -> u64 {
        self.invalid.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Applies changed options; subscribers keep their positions.
    pub(crate) fn set_options(&self, options: Options) {
        // Under the lock of the rings: what is appended is encoded by the rule of its ring.
        let mut rings = self.rings.write();
        let before = std::mem::replace(&mut *self.options.write(), options);
        self.history.set_capacity(options.cache_bytes / 2);
        if before.encoding != options.encoding || before.compacted != options.compacted {
            // What is in memory was encoded by the old rule. The store still has it.
            let next = rings.plain.next();
            *rings =
                Rings { life: rings.life, plain: Ring::new(Dialect::Plain, next), envelope: None };
            self.history.clear();
        }
    }

    /// Lets go of what is in memory: no event is added any more. A stream that is being closed
    /// may still read, of the store.
    fn let_go(&self) {
        let mut rings = self.rings.write();
        let next = rings.plain.next();
        *rings = Rings { life: rings.life, plain: Ring::new(Dialect::Plain, next), envelope: None };
        drop(rings);
        self.history.close();
    }

    /// What is at `position`, for a subscriber that was told of every hole up to `told`. Does not
    /// wait.
    #[must_use]
    pub(crate) fn read_now(
        &self,
        life: u64,
        position: u64,
        told: u64,
        filter: &Filter,
        dialect: Dialect,
    ) -> Now {
        let head = self.head_now();
        let Some(epoch) = head.epoch.filter(|_| head.life == life) else { return Now::FormerLife };
        if position >= head.next {
            return Now::Wait;
        }
        if position < head.first.min(head.next) {
            return Now::Slice(self.gone(head.first.min(head.next), position, told));
        }
        match self.ring_slice(life, position, told, filter, dialect) {
            Some(Some(slice)) => Now::Slice(slice),
            None => Now::FormerLife,
            Some(None) => {
                let scope = self.scope(head, epoch, dialect);
                let Some(segment) = self.history.cached(scope, position) else {
                    return Now::Missing;
                };
                self.expect(scope, &segment);
                Now::Cached(segment)
            }
        }
    }

    /// What is at `position` when the store has nothing before `first`: memory may still, but what
    /// was removed is not served, whichever pod a subscriber comes to.
    fn gone(&self, first: u64, position: u64, told: u64) -> Slice {
        if told + 1 >= first {
            return Slice::nothing(first);
        }
        let reason =
            if self.options.read().compacted { GapReason::Compacted } else { GapReason::Expired };
        let from = position.max(told + 1);
        Slice::Gap {
            gap: Gap { from: Some(from), to: Some(first - 1), missed: Some(first - from), reason },
            next: first,
        }
    }

    /// Has the segment after `segment` read before it is asked for, unless memory has it.
    fn expect(&self, scope: Scope, segment: &Segment) {
        let next = segment.end();
        if next <= scope.last && next < self.rings.read().plain.start() {
            self.history.expect(scope, next);
        }
    }

    /// The segment of history that covers `position`, from memory or the store; `None` when `life`
    /// is over or the position is not in the past.
    ///
    /// # Errors
    /// The store's; the same call may be made again, nothing is lost.
    pub(crate) async fn segment(
        &self,
        life: u64,
        position: u64,
        dialect: Dialect,
    ) -> Result<Option<(Arc<Segment>, Origin)>, Error> {
        let head = self.head_now();
        let Some(epoch) = head.epoch.filter(|_| head.life == life && position < head.next) else {
            return Ok(None);
        };
        let scope = self.scope(head, epoch, dialect);
        let (segment, asked) =
            self.history.segment(scope, position).instrument(self.span.clone()).await?;
        if self.head_now().life != life {
            return Ok(None);
        }
        self.expect(scope, &segment);
        Ok(Some((segment, if asked { Origin::Store } else { Origin::Memory })))
    }

    fn scope(&self, head: Head, epoch: Epoch, dialect: Dialect) -> Scope {
        let Options { encoding, compacted, .. } = *self.options.read();
        Scope {
            life: head.life,
            epoch,
            dialect,
            encoding,
            compacted,
            last: head.next.saturating_sub(1),
        }
    }

    /// What memory has at `position`, if it does; `None` when memory is of another life.
    fn ring_slice(
        &self,
        life: u64,
        position: u64,
        told: u64,
        filter: &Filter,
        dialect: Dialect,
    ) -> Option<Option<Slice>> {
        {
            let rings = self.rings.read();
            if rings.life != life {
                return None;
            }
            match (dialect, &rings.envelope) {
                (Dialect::Plain, _) => return Some(rings.plain.slice(position, told, filter)),
                (Dialect::Envelope, Some(ring)) => return Some(ring.slice(position, told, filter)),
                (Dialect::Envelope, None) => {}
            }
        }
        let mut rings = self.rings.write();
        let next = rings.plain.next();
        rings.envelope.get_or_insert_with(|| Ring::new(Dialect::Envelope, next));
        Some(None)
    }

    /// Appends what the tail delivered and tells the subscribers.
    fn append(&self, epoch: Epoch, events: &[Event]) {
        let first = self.head.borrow().first;
        let (mut invalid, mut named) = (0, None);
        let next = {
            let mut rings = self.rings.write();
            let options = *self.options.read();
            for event in events {
                let next = rings.plain.next();
                if event.sequence < next {
                    continue;
                }
                let hole = missing(options.compacted, event.sequence - 1, first);
                if !rings.plain.append(epoch, event, options.encoding, hole) {
                    invalid += 1;
                    named = named.or(Some(event.sequence));
                }
                if let Some(ring) = &mut rings.envelope {
                    ring.append(epoch, event, options.encoding, hole);
                }
            }
            let capacity = usize::try_from(options.cache_bytes / 2).unwrap_or(usize::MAX);
            let Rings { plain, envelope, .. } = &mut *rings;
            match envelope {
                None => plain.trim(capacity, first),
                Some(ring) => {
                    plain.trim(capacity / 2, first);
                    ring.trim(capacity / 2, first);
                }
            }
            plain.next()
        };
        if let Some(last) = events.last() {
            self.marks.lock().note(last.sequence, last.time_nanos);
        }
        self.invalid.fetch_add(invalid, std::sync::atomic::Ordering::Relaxed);
        if let Some(sequence) = named {
            self.tell_invalid(epoch, sequence);
        }
        self.change_head(|head| std::mem::replace(&mut head.next, next) != next);
    }

    fn tell_invalid(&self, epoch: Epoch, sequence: u64) {
        let mut last = self.invalid_logged.lock();
        if last.is_none_or(|last| last.elapsed() >= INVALID_LOGGED_EVERY) {
            *last = Some(Instant::now());
            let total = self.invalid_payloads();
            tracing::warn!(%epoch, sequence, total, "an event that is not text; channel.invalid stands for it");
        }
    }

    /// Starts a new life at `start`.
    fn begin(&self, epoch: Epoch, first: u64, start: u64) {
        let life = self.head.borrow().life + 1;
        *self.rings.write() =
            Rings { life, plain: Ring::new(Dialect::Plain, start), envelope: None };
        *self.marks.lock() = Marks::default();
        self.history.clear();
        self.change_head(|head| {
            *head =
                Head { life, epoch: Some(epoch), first, next: start, down_since: head.down_since };
            true
        });
    }
}
