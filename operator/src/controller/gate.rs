//! Which pass goes next. kube-runtime starts passes in the order of a hash map, so that with more
//! channels than slots some would wait for ever; here each pass waits for a slot of its own, and
//!
//! - edits go before what else has changed, and that before looks without a cause; the latter
//!   still get their part;
//! - namespaces take turns, and none holds all slots, however many channels it has and however slow
//!   they are.
//!
//! All namespace scopes share one gate.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Notify, oneshot};

use crate::{crd::SseChannel, metrics::Metrics};

type Channel = ObjectRef<SseChannel>;

/// Why a pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The channel is new, was edited, or is being deleted.
    Edit,
    /// Something around it has changed.
    Change,
    /// It is time to look again.
    Look,
}

const CAUSES: [Cause; 3] = [Cause::Edit, Cause::Change, Cause::Look];

impl Cause {
    /// Of twelve slots that become free while all three wait, how many it gets.
    const fn weight(self) -> i64 {
        match self {
            Self::Edit => 8,
            Self::Change => 3,
            Self::Look => 1,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Edit => "edit",
            Self::Change => "change",
            Self::Look => "look",
        }
    }
}

/// How much earlier than its time a look may come and still be one.
const EARLY: Duration = Duration::from_millis(100);
/// First looks at channels that nothing has happened to, after a start or a change of the leader,
/// are spread over so much time for each channel, and over a resync at most: more than a pass
/// takes of an idle API server.
const SPREAD: Duration = Duration::from_millis(20);

/// A pass that waits.
struct Ticket {
    id: u64,
    channel: Channel,
    since: Instant,
    go: oneshot::Sender<Slot>,
}

/// The passes of one cause that wait; their namespaces take turns.
#[derive(Default)]
struct Turns {
    namespaces: VecDeque<(String, VecDeque<Ticket>)>,
    /// What this cause has in hand over the others.
    credit: i64,
}

impl Turns {
    fn push(&mut self, ticket: Ticket) {
        let namespace = ticket.channel.namespace.clone().unwrap_or_default();
        match self.namespaces.iter_mut().find(|(of, _)| *of == namespace) {
            Some((_, queue)) => queue.push_back(ticket),
            None => self.namespaces.push_back((namespace, VecDeque::from([ticket]))),
        }
    }

    /// Takes out the pass of `channel`, or with `id` only that one.
    fn remove(&mut self, channel: &Channel, id: Option<u64>) -> Option<Ticket> {
        let namespace = channel.namespace.as_deref().unwrap_or_default();
        let at = self.namespaces.iter().position(|(of, _)| of == namespace)?;
        let queue = &mut self.namespaces.get_mut(at)?.1;
        let is_it =
            |ticket: &Ticket| ticket.channel == *channel && id.is_none_or(|id| id == ticket.id);
        let found = queue.iter().position(is_it).and_then(|at| queue.remove(at));
        if queue.is_empty() {
            self.namespaces.remove(at);
        }
        found
    }

    /// The namespace whose turn it is, among those that `may` have another slot.
    fn first(&self, may: impl Fn(&str) -> bool) -> Option<usize> {
        self.namespaces.iter().position(|(namespace, _)| may(namespace))
    }

    /// The first pass of that namespace, which goes behind the others.
    fn take(&mut self, at: usize) -> Option<Ticket> {
        let (namespace, mut queue) = self.namespaces.remove(at)?;
        let ticket = queue.pop_front();
        if !queue.is_empty() {
            self.namespaces.push_back((namespace, queue));
        }
        ticket
    }

    fn len(&self) -> usize {
        self.namespaces.iter().map(|(_, queue)| queue.len()).sum()
    }

    fn oldest(&self) -> Option<Instant> {
        self.namespaces.iter().filter_map(|(_, queue)| queue.front()).map(|t| t.since).min()
    }
}

#[derive(Default)]
struct Inner {
    closed: bool,
    ids: u64,
    waiting: [Turns; 3],
    /// Passes under way, by namespace.
    running: HashMap<String, usize>,
    total: usize,
    /// Channels whose first look is still to come, and what brings it forward.
    spread: HashMap<Channel, Arc<Notify>>,
    /// When the next look at a channel is due; as many entries as there are channels.
    due: HashMap<Channel, Instant>,
}

impl Inner {
    /// The next pass, if there is a slot for one.
    fn next(&mut self, slots: usize, share: usize) -> Option<Ticket> {
        if self.total >= slots {
            return None;
        }
        let running = &self.running;
        let may = |namespace: &str| running.get(namespace).is_none_or(|count| *count < share);
        let mut found: Option<(usize, usize)> = None;
        let mut all = 0;
        let mut best = i64::MIN;
        for (lane, cause) in CAUSES.into_iter().enumerate() {
            let Some(turns) = self.waiting.get_mut(lane) else { continue };
            let Some(at) = turns.first(may) else { continue };
            turns.credit += cause.weight();
            all += cause.weight();
            if turns.credit > best {
                (best, found) = (turns.credit, Some((lane, at)));
            }
        }
        let (lane, at) = found?;
        let turns = self.waiting.get_mut(lane)?;
        turns.credit -= all;
        let ticket = turns.take(at)?;
        let namespace = ticket.channel.namespace.clone().unwrap_or_default();
        *self.running.entry(namespace).or_default() += 1;
        self.total += 1;
        Some(ticket)
    }

    fn released(&mut self, namespace: &str) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.running.get_mut(namespace) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.running.remove(namespace);
            }
        }
    }

    fn remove(&mut self, channel: &Channel, id: Option<u64>) -> Option<Ticket> {
        self.waiting.iter_mut().find_map(|turns| turns.remove(channel, id))
    }
}

/// Gives out the slots for passes.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    slots: usize,
    metrics: Arc<Metrics>,
}

/// The right to make a pass, until it is dropped.
pub(super) struct Slot {
    gate: Arc<Gate>,
    namespace: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.inner.lock().released(&self.namespace);
        self.gate.admit();
    }
}

/// Takes a pass out again that no longer waits.
struct Waiting<'a> {
    gate: &'a Gate,
    channel: &'a Channel,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.gate.inner.lock();
        if inner.remove(self.channel, Some(self.id)).is_some() {
            self.gate.tell(&inner);
        }
    }
}

impl Gate {
    /// `slots` passes may be under way at a time; one at least.
    pub(super) fn new(slots: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let slots = slots.max(1);
        metrics.queue.slots(slots);
        Arc::new(Self { inner: Mutex::default(), slots, metrics })
    }

    /// Slots that one namespace may hold: a quarter, one at least, is always another's.
    fn share(&self) -> usize {
        self.slots.saturating_sub((self.slots / 4).max(1)).max(1)
    }

    /// Waits until it is the turn of a pass over `channel`, of which there is one at a time.
    /// `is_edited` says that the channel is not as it was last looked at. `None`: no pass begins
    /// any more.
    ///
    /// A first look at one of `channels` that is not edited is put off for a while, `longest` at
    /// most, so that not all of them are looked at at once.
    pub(super) async fn enter(
        self: &Arc<Self>,
        channel: &Channel,
        is_edited: bool,
        channels: usize,
        longest: Duration,
    ) -> Option<Slot> {
        let due = self.inner.lock().due.remove(channel);
        let cause = match due {
            _ if is_edited => Cause::Edit,
            Some(due) if due > Instant::now() + EARLY => Cause::Change,
            Some(_) => Cause::Look,
            None if self.has_come(channel, channels, longest).await => Cause::Look,
            None => Cause::Edit,
        };
        let (waiting, go) = self.queue(channel, cause)?;
        self.admit();
        let slot = go.await.ok();
        drop(waiting);
        slot
    }

    /// Waits for the time of a first look. Answers false where the channel is edited before.
    async fn has_come(&self, channel: &Channel, channels: usize, longest: Duration) -> bool {
        let spread =
            SPREAD.saturating_mul(u32::try_from(channels).unwrap_or(u32::MAX)).min(longest);
        let pause = spread.mul_f64(rand::rng().random_range(0.0..1.0));
        let early = Arc::new(Notify::new());
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return true;
            }
            inner.spread.insert(channel.clone(), Arc::clone(&early));
        }
        let has_come = tokio::time::timeout(pause, early.notified()).await.is_err();
        self.inner.lock().spread.remove(channel);
        has_come
    }

    fn queue<'a>(
        &'a self,
        channel: &'a Channel,
        cause: Cause,
    ) -> Option<(Waiting<'a>, oneshot::Receiver<Slot>)> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return None;
        }
        inner.ids += 1;
        let (id, (go, come)) = (inner.ids, oneshot::channel());
        let ticket = Ticket { id, channel: channel.clone(), since: Instant::now(), go };
        inner.waiting.get_mut(cause as usize)?.push(ticket);
        self.metrics.queue.added();
        Some((Waiting { gate: self, channel, id }, come))
    }

    /// Gives free slots to those whose turn it is.
    fn admit(self: &Arc<Self>) {
        loop {
            let next = {
                let mut inner = self.inner.lock();
                let next = inner.next(self.slots, self.share());
                self.tell(&inner);
                next
            };
            let Some(ticket) = next else { return };
            self.metrics.queue.admitted(ticket.since.elapsed());
            let namespace = ticket.channel.namespace.clone().unwrap_or_default();
            // Where it waits no longer, the slot comes back, and is given to the next.
            let _ = ticket.go.send(Slot { gate: Arc::clone(self), namespace });
        }
    }

    fn tell(&self, inner: &Inner) {
        let depths = CAUSES.iter().zip(&inner.waiting);
        let oldest = inner.waiting.iter().filter_map(Turns::oldest).min();
        let depths = depths.map(|(cause, turns)| (cause.text(), turns.len()));
        self.metrics.queue.stands(depths, oldest, inner.total);
    }

    /// The channel was edited: a pass that waits goes with the edits.
    pub(super) fn edited(&self, channel: &Channel) {
        let mut inner = self.inner.lock();
        if let Some(early) = inner.spread.get(channel) {
            early.notify_one();
        }
        if let Some(ticket) = inner.remove(channel, None)
            && let Some(edits) = inner.waiting.get_mut(Cause::Edit as usize)
        {
            edits.push(ticket);
            self.tell(&inner);
        }
    }

    /// A look at the channel is due after `pause`.
    pub(super) fn look_after(&self, channel: &Channel, pause: Duration) {
        self.inner.lock().due.insert(channel.clone(), Instant::now() + pause);
    }

    /// The channel has gone.
    pub(super) fn forget(&self, channel: &Channel) {
        self.inner.lock().due.remove(channel);
    }

    /// The next look at each channel is the first.
    pub(super) fn forget_all(&self) {
        self.inner.lock().due.clear();
    }

    /// No pass begins any more.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for early in inner.spread.values() {
            early.notify_one();
        }
        // Dropping a ticket tells the pass that waits for it.
        let waiting = std::mem::take(&mut inner.waiting);
        self.tell(&inner);
        drop(inner);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests;
