//! A store in memory, for tests of what is above the seam: it can lag, lose, be unreachable, and be
//! a leader that is cut off from its cluster, on command.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use sluice_channel::{Epoch, Event};
use tokio::{sync::watch, time::Instant};

use super::{
    Append, Appended, Batch, Delivery, Error, Lead, Published, ReadLimit, Source, StreamState, Tail,
};

#[derive(Debug)]
struct Inner {
    epoch: u32,
    last: u64,
    events: BTreeMap<u64, Event>,
    keys: BTreeMap<String, u64>,
    content_types: BTreeMap<u64, String>,
    reachable: bool,
    replica_last: Option<u64>,
    /// What the replicas lack at the front, though the leader has it.
    replica_first: u64,
    reads: u64,
    /// How late each read is answered.
    latency: Duration,
    states: u64,
    time_questions: u64,
    lose_delivery: bool,
    /// So many answers of the leader are those of one that has just lost its place.
    former: u32,
    /// Since when the leader that answers is cut off, and the last event that it knows of.
    cut_off: Option<(Instant, u64)>,
    /// Changes of the leader.
    term: u64,
    /// How often the replicas are heard; zero: there is one replica.
    heard_every: Duration,
    /// When the stream was made, for the moments at which they are.
    since: Instant,
}

/// A stream in memory.
#[derive(Debug, Clone)]
pub struct MemorySource {
    inner: Arc<Mutex<Inner>>,
    version: Arc<watch::Sender<u64>>,
}

impl Default for MemorySource {
    fn default() -> Self {
        let inner = Inner {
            epoch: 1,
            last: 0,
            events: BTreeMap::new(),
            keys: BTreeMap::new(),
            content_types: BTreeMap::new(),
            reachable: true,
            replica_last: None,
            replica_first: 0,
            reads: 0,
            latency: Duration::ZERO,
            states: 0,
            time_questions: 0,
            lose_delivery: false,
            former: 0,
            cut_off: None,
            term: 1,
            heard_every: Duration::ZERO,
            since: Instant::now(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), version: Arc::new(watch::Sender::new(0)) }
    }
}

impl MemorySource {
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.inner.lock());
        self.version.send_modify(|v| *v += 1);
        result
    }

    /// Has each read answered so late.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.lock().latency = latency;
    }

    /// Appends an event and returns its sequence.
    pub fn put(&self, topic: &str, payload: impl Into<Bytes>) -> u64 {
        let payload = payload.into();
        self.change(|inner| {
            inner.last += 1;
            let event = Event {
                sequence: inner.last,
                time_nanos: now_nanos(),
                topic: topic.to_owned(),
                name: None,
                payload,
            };
            inner.events.insert(inner.last, event);
            inner.last
        })
    }

    /// Deletes one event.
    pub fn delete(&self, sequence: u64) {
        self.change(|inner| inner.events.remove(&sequence));
    }

    /// Deletes every event before `sequence`.
    pub fn purge_before(&self, sequence: u64) {
        self.change(|inner| inner.events = inner.events.split_off(&sequence));
    }

    /// Starts a new life: empty, another epoch.
    pub fn recreate(&self) {
        self.change(|inner| {
            inner.epoch += 1;
            inner.last = 0;
            inner.events.clear();
        });
    }

    /// Whether requests are answered and tails live.
    pub fn set_reachable(&self, reachable: bool) {
        self.change(|inner| inner.reachable = reachable);
    }

    /// Makes history reads see nothing after `last`, as a replica that lags does; `None` = up to
    /// date.
    pub fn set_replica_last(&self, last: Option<u64>) {
        self.change(|inner| inner.replica_last = last);
    }

    /// Has replicas lack what is before `first`, as one that was cut off while a limit was lower
    /// does when it catches up. The tail is read from a replica too.
    pub fn set_replica_first(&self, first: u64) {
        self.change(|inner| inner.replica_first = first);
    }

    /// Makes the tail swallow the next delivery, as a connection that drops a message would.
    pub fn lose_next_delivery(&self) {
        self.change(|inner| inner.lose_delivery = true);
    }

    /// Makes so many next requests to the leader come to one that has just lost its place, and
    /// knows of nothing that is asked for.
    pub fn ask_the_former_leader(&self, times: u32) {
        self.change(|inner| inner.former = times);
    }

    /// Moves the stream back to `last`, as a restore of an older state does.
    pub fn move_back(&self, last: u64) {
        self.change(|inner| {
            inner.events.split_off(&(last + 1));
            inner.last = last;
        });
    }

    /// Makes it a stream of three replicas that the leader hears of at this interval.
    pub fn set_replicated(&self, heard_every: Duration) {
        self.change(|inner| inner.heard_every = heard_every);
    }

    /// From now on the leader that answers is cut off: it knows of nothing after `last`, hears of
    /// no replica, and goes on answering. What is put meanwhile is stored by the others.
    pub fn cut_off(&self, last: u64) {
        self.change(|inner| inner.cut_off = Some((Instant::now(), last)));
    }

    /// The cut has healed: the leader that the others elected answers.
    pub fn heal(&self) {
        self.change(|inner| {
            inner.cut_off = None;
            inner.term += 1;
        });
    }

    /// How often the state was asked for.
    #[must_use]
    pub fn states(&self) -> u64 {
        self.inner.lock().states
    }

    /// How often a place in time was asked for.
    #[must_use]
    pub fn time_questions(&self) -> u64 {
        self.inner.lock().time_questions
    }

    /// How many history reads were answered.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.inner.lock().reads
    }

    /// The epoch of the current life.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch::from_bits(self.inner.lock().epoch)
    }

    fn asked<T>(&self, answer: impl FnOnce(&mut Inner) -> T) -> Result<T, Error> {
        let mut inner = self.inner.lock();
        if inner.reachable {
            Ok(answer(&mut inner))
        } else {
            Err(Error::Unreachable("switched off".into()))
        }
    }
}

fn now_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

impl Inner {
    fn first(&self) -> u64 {
        self.visible(0).next().map_or(self.last() + 1, |event| event.sequence)
    }

    fn last(&self) -> u64 {
        self.cut_off.map_or(self.last, |(_, last)| last)
    }

    /// The events from `from` on that the answering server knows of.
    fn visible(&self, from: u64) -> impl Iterator<Item = &Event> {
        let last = self.last();
        self.events.range(from..).map(|(_, event)| event).take_while(move |e| e.sequence <= last)
    }

    fn lead(&self) -> Lead {
        let others = match (self.cut_off, self.heard_every) {
            (Some((since, _)), _) => vec![since.elapsed(); 2],
            (None, Duration::ZERO) => Vec::new(),
            (None, every) => {
                let since = self.since.elapsed().as_nanos() % every.as_nanos();
                vec![Duration::from_nanos(u64::try_from(since).unwrap_or(u64::MAX)); 2]
            }
        };
        Lead::new(Some("leader"), self.term, others)
    }
}

impl Source for MemorySource {
    fn state(&self) -> BoxFuture<'_, Result<StreamState, Error>> {
        async {
            self.asked(|inner| {
                inner.states += 1;
                StreamState {
                    epoch: Epoch::from_bits(inner.epoch),
                    first: inner.first(),
                    last: inner.last(),
                    lead: inner.lead(),
                }
            })
        }
        .boxed()
    }

    fn tail(&self, from: u64) -> BoxFuture<'_, Result<Box<dyn Tail>, Error>> {
        async move {
            let epoch = self.asked(|inner| inner.epoch)?;
            let tail = MemoryTail {
                source: self.clone(),
                version: self.version.subscribe(),
                epoch,
                next: from,
                delivered: 0,
            };
            Ok(Box::new(tail) as Box<dyn Tail>)
        }
        .boxed()
    }

    fn read(&self, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Batch, Error>> {
        async move {
            let latency = self.inner.lock().latency;
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            self.asked(|inner| {
                inner.reads += 1;
                let to = inner.replica_last.unwrap_or(u64::MAX);
                let mut batch = Batch::default();
                let mut bytes = 0;
                let from = from.max(inner.replica_first);
                for event in inner.visible(from).take_while(|e| e.sequence <= to) {
                    if batch.events.len() as u64 >= limit.events
                        || (bytes >= limit.bytes && !batch.events.is_empty())
                    {
                        batch.more = true;
                        break;
                    }
                    bytes += event.payload.len();
                    batch.events.push(event.clone());
                }
                batch
            })
        }
        .boxed()
    }

    fn read_leader(&self, from: u64) -> BoxFuture<'_, Result<Option<Event>, Error>> {
        let answer = move |inner: &mut Inner| match inner.former.checked_sub(1) {
            Some(left) => {
                inner.former = left;
                None
            }
            None => inner.visible(from).next().cloned(),
        };
        async move { self.asked(answer) }.boxed()
    }

    fn first_since(&self, time_nanos: i64) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        async move {
            self.asked(|inner| {
                inner.time_questions += 1;
                let to = inner.replica_last.unwrap_or(u64::MAX);
                let mut known = inner.visible(0).take_while(|e| e.sequence <= to);
                known.find(|e| e.time_nanos >= time_nanos).map(|e| e.sequence)
            })
        }
        .boxed()
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, Error>> {
        async move {
            self.asked(|_| ())?;
            let known = append
                .idempotency_key
                .as_ref()
                .and_then(|key| self.inner.lock().keys.get(key).copied());
            if let Some(sequence) = known {
                return Ok(Appended { sequence, duplicate: true });
            }
            let last_of_topic = self
                .inner
                .lock()
                .events
                .values()
                .rev()
                .find(|e| e.topic == append.subject)
                .map_or(0, |e| e.sequence);
            if append.expected_last.is_some_and(|expected| expected != last_of_topic) {
                return Err(Error::WrongLastSequence);
            }
            let sequence = self.put(&append.subject, append.payload);
            let mut inner = self.inner.lock();
            if let Some(event) = inner.events.get_mut(&sequence) {
                event.name = append.name;
            }
            if let Some(content_type) = append.content_type {
                inner.content_types.insert(sequence, content_type);
            }
            if let Some(key) = append.idempotency_key {
                inner.keys.insert(key, sequence);
            }
            Ok(Appended { sequence, duplicate: false })
        }
        .boxed()
    }

    fn published(&self, sequence: u64) -> BoxFuture<'_, Result<Option<Published>, Error>> {
        async move {
            self.asked(|inner| {
                let event = inner.visible(sequence).next().filter(|e| e.sequence == sequence)?;
                Some(Published {
                    subject: event.topic.clone(),
                    name: event.name.clone(),
                    content_type: inner.content_types.get(&sequence).cloned(),
                    payload: event.payload.clone(),
                })
            })
        }
        .boxed()
    }

    fn connected(&self) -> bool {
        self.inner.lock().reachable
    }
}

struct MemoryTail {
    source: MemorySource,
    version: watch::Receiver<u64>,
    epoch: u32,
    next: u64,
    delivered: u64,
}

impl Tail for MemoryTail {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, Error>> {
        async {
            loop {
                self.version.mark_unchanged();
                let found = self.source.asked(|inner| {
                    let from = self.next.max(inner.replica_first);
                    let event = inner.visible(from).next().cloned();
                    (inner.epoch == self.epoch).then_some(event)
                })?;
                match found {
                    None => return Err(Error::TailEnded("the stream was recreated".into())),
                    Some(Some(event)) => {
                        self.next = event.sequence + 1;
                        self.delivered += 1;
                        if std::mem::take(&mut self.source.inner.lock().lose_delivery) {
                            continue;
                        }
                        return Ok(Delivery { delivery_sequence: self.delivered, event });
                    }
                    Some(None) => {}
                }
                if self.version.changed().await.is_err() {
                    return Err(Error::TailEnded("the store is gone".into()));
                }
            }
        }
        .boxed()
    }
}
