//! A thread, its channel, the store, and the peers; and what may happen to them.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};

use mio::{Events, Poll, Waker};
use proptest::sample::Index;
use sluice_channel::{ChannelConfig, Cursor, Filter, config};
use tokio::{runtime::Runtime, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::{DELIVERIES_BEFORE_QUEUE, INBOX, Ready, Shard},
    peer::{Peer, Taken, Truth},
};
use crate::{
    channel::Channel,
    fanout::{
        inbox::{Arrival, Inbox, Message},
        questions::Questions,
    },
    frame::{CloseReason, Dialect},
    log::Head,
    metrics::Metrics,
    peer,
    registry::{Entry, Registry},
    source::memory::MemorySource,
    subscriber::{Request, Start, Subscriber},
};

/// Longer than all that a world does between two beats.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(600);
const CONFIG: &str = r#"{
    "version": 1, "name": "c", "namespace": "d", "generation": 1,
    "stream": {"name": "s", "subjects": [">"], "topicPrefix": ""},
    "delivery": {"maxConnectionAgeMillis": 0}
}"#;
/// Payload bytes: many of one in a slice, about a socket's buffer, and more than a slice.
const SIZES: [usize; 6] = [1, 60, 900, 2_100, 5_000, 20_000];
const TOPICS: [&str; 2] = ["a", "b"];
const FILTERS: [&[&str]; 4] = [&[], &["a"], &["b"], &["none"]];
/// Peers at a time: more than the slots that have to change for a visit to be lost.
const PEERS: usize = 6;

/// What the store's readers may wait for each other, all in all: a replica that lags is asked again
/// after a pause.
const UNDISTURBED: Duration = Duration::from_millis(400);
/// After an outage, or in another life, they wait for longer before they try again.
const DISTURBED: Duration = Duration::from_secs(20);

/// What does not change in a world.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// Events before the thread begins.
    pub(super) history: u64,
    pub(super) on_gap_latest: bool,
    /// The ring keeps no sealed segment.
    pub(super) small_cache: bool,
    pub(super) outages: bool,
}

/// What may happen.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// The thread makes so many of its calls.
    Steps(u8),
    /// The store takes events.
    Publish { size: usize, count: u8, topic: u8 },
    /// The runtime's tasks go on: the reader, questions to the store.
    Runtime(u8),
    /// A peer comes.
    Subscribe { start: u8, filter: u8 },
    /// A peer reads.
    Read(Index, usize),
    /// The same, by its place.
    ReadFrom(usize, usize),
    /// A peer goes.
    Leave(Index),
    /// A peer closes its side, and goes on reading.
    HalfClose(Index),
    /// A peer sends something.
    Send(Index, usize),
    /// A stream is to end.
    Close(Index),
    /// The store removes an event.
    Delete(Index),
    /// The store removes its oldest events.
    Purge(Index),
    /// The stream is created anew.
    Recreate,
    /// A heartbeat is due.
    Beat,
    /// The reader asks the store where it stands; with outages, the store goes away or comes back.
    Probe,
    /// All come to rest, and are judged.
    Rest,
}

/// The calls of [`Shard::run`], in their order.
#[derive(Debug, Clone, Copy)]
enum Call {
    Poll,
    Inbox,
    Live,
    Queue,
    Timers,
}

pub(super) struct World {
    runtime: Runtime,
    memory: MemorySource,
    pub(super) channel: Arc<Channel>,
    registry: Arc<Registry>,
    pub(super) shard: Shard,
    events: Events,
    call: Call,
    woken: bool,
    peers: Vec<Peer>,
    truth: Truth,
    published: u64,
    arrived: u16,
    setting: Setting,
    reachable: bool,
    /// Since the last rest.
    disturbed: bool,
    stop: CancellationToken,
}

impl World {
    pub(super) fn new(setting: &Setting) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let memory = MemorySource::default();
        let mut config = ChannelConfig::from_json(CONFIG.as_bytes()).unwrap();
        // Beyond what a file may say: no time is to be over by itself.
        config.delivery.heartbeat = HEARTBEAT;
        config.delivery.write_timeout = HEARTBEAT * 6;
        config.delivery.on_gap =
            if setting.on_gap_latest { config::Start::Latest } else { config::Start::Earliest };
        if setting.small_cache {
            config.delivery.cache_bytes = 1_024;
        }
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let channel = Self::channel(config, &memory, &stop, &tasks, &runtime);
        let poll = Poll::new().unwrap();
        let inbox = Arc::new(Inbox::new(0, Waker::new(poll.registry(), INBOX).unwrap()));
        let questions = Questions { runtime: runtime.handle().clone(), tasks, abort: stop.clone() };
        let shard = Shard::new(poll, inbox, questions);
        let mut world = Self {
            runtime,
            memory,
            channel,
            registry: Arc::default(),
            shard,
            events: Events::with_capacity(16),
            call: Call::Poll,
            woken: false,
            peers: Vec::new(),
            truth: Truth::default(),
            published: 0,
            arrived: 0,
            setting: setting.clone(),
            reachable: true,
            disturbed: false,
            stop,
        };
        (0..setting.history).for_each(|i| world.publish(SIZES[0], TOPICS[i as usize % 2]));
        world.runtime(100);
        world
    }

    pub(super) fn act(&mut self, action: &Action) {
        match action {
            Action::Steps(count) => {
                for _ in 0..*count {
                    self.step();
                }
            }
            Action::Publish { size, count, topic } => {
                (0..*count).for_each(|_| self.publish(SIZES[*size], TOPICS[usize::from(*topic)]));
            }
            Action::Runtime(count) => self.runtime(*count),
            Action::Subscribe { start, filter } => self.subscribe(*start, *filter),
            Action::Read(peer, bytes) if !self.peers.is_empty() => {
                let peer = peer.index(self.peers.len());
                self.peers[peer].read(*bytes, &self.truth);
            }
            Action::ReadFrom(peer, bytes) => {
                if let Some(peer) = self.peers.get_mut(*peer) {
                    peer.read(*bytes, &self.truth);
                }
            }
            Action::Leave(peer) if !self.peers.is_empty() => {
                drop(self.peers.remove(peer.index(self.peers.len())));
            }
            Action::Close(peer) if !self.peers.is_empty() => {
                let peer = &self.peers[peer.index(self.peers.len())];
                peer.entry.close(CloseReason::Drain, Duration::from_secs(1));
            }
            Action::HalfClose(peer) if !self.peers.is_empty() => {
                let peer = &self.peers[peer.index(self.peers.len())];
                // It may have ended.
                let _ = peer.socket.shutdown(std::net::Shutdown::Write);
            }
            Action::Send(peer, bytes) if !self.peers.is_empty() => {
                let peer = peer.index(self.peers.len());
                // It may have ended, or have no room.
                let _ = self.peers[peer].socket.write(&vec![b'x'; *bytes]);
            }
            Action::Read(..)
            | Action::Leave(_)
            | Action::Close(_)
            | Action::HalfClose(_)
            | Action::Send(..) => {}
            Action::Delete(which) => self.remove(|sequences| {
                let sequence = sequences[which.index(sequences.len())];
                (sequence, sequence)
            }),
            Action::Purge(which) => {
                self.remove(|sequences| (0, sequences[which.index(sequences.len())]));
            }
            Action::Recreate => {
                self.disturbed = true;
                self.memory.recreate();
            }
            Action::Beat => self.advance(HEARTBEAT),
            Action::Probe => {
                self.advance(Duration::from_secs(5));
                if self.setting.outages {
                    self.disturbed = true;
                    self.reachable = !self.reachable;
                    self.memory.set_reachable(self.reachable);
                }
            }
            Action::Rest => self.rest_and_judge(),
        }
    }

    pub(super) fn publish(&mut self, size: usize, topic: &'static str) {
        self.published += 1;
        let payload = format!("{}-{}", self.published, "x".repeat(size));
        let sequence = self.memory.put(topic, payload.clone());
        let life = self.truth.entry(self.memory.epoch().bits()).or_default();
        life.insert(sequence, Taken { topic, payload, gone: false });
    }

    /// The store removes from the first to the second of what `choose` says.
    fn remove(&mut self, choose: impl FnOnce(&[u64]) -> (u64, u64)) {
        let Some(life) = self.truth.get_mut(&self.memory.epoch().bits()) else { return };
        let there: Vec<u64> =
            life.iter().filter(|(_, taken)| !taken.gone).map(|(sequence, _)| *sequence).collect();
        if there.is_empty() {
            return;
        }
        let (from, to) = choose(&there);
        for sequence in there.into_iter().filter(|sequence| (from..=to).contains(sequence)) {
            self.memory.delete(sequence);
            life.entry(sequence).and_modify(|taken| taken.gone = true);
        }
    }

    pub(super) fn runtime(&self, count: u8) {
        self.runtime.block_on(async {
            for _ in 0..count {
                tokio::task::yield_now().await;
            }
        });
    }

    fn advance(&self, time: Duration) {
        self.runtime.block_on(tokio::time::advance(time));
    }

    /// A channel whose log is read, and its store.
    fn channel(
        config: ChannelConfig,
        memory: &MemorySource,
        stop: &CancellationToken,
        tasks: &TaskTracker,
        runtime: &Runtime,
    ) -> Arc<Channel> {
        let metrics = Metrics::default().channel("c");
        let channel = Arc::new(Channel::new(config, Arc::new(memory.clone()), metrics));
        tasks.spawn_on(Arc::clone(channel.log()).run(stop.clone()), runtime.handle());
        channel
    }

    /// One more channel, which holds nothing, and its store.
    pub(super) fn another_channel(&self) -> (Arc<Channel>, MemorySource) {
        let memory = MemorySource::default();
        let config = ChannelConfig::from_json(CONFIG.as_bytes()).unwrap();
        let tasks = TaskTracker::new();
        (Self::channel(config, &memory, &self.stop, &tasks, &self.runtime), memory)
    }

    /// The peers' positions.
    pub(super) fn positions(&self) -> Vec<u64> {
        let views = serde_json::to_value(self.registry.view(None)).unwrap();
        let cursor = |view: &serde_json::Value| view["cursor"].as_str()?.parse::<Cursor>().ok();
        views
            .as_array()
            .unwrap()
            .iter()
            .map(|view| cursor(view).map_or(0, |c| c.sequence))
            .collect()
    }

    /// The thread and the runtime go on until there is nothing to do.
    pub(super) fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            self.runtime(20);
            let busy = (0..5).fold(false, |busy, _| self.step() || busy);
            quiet = if busy { 0 } else { quiet + 1 };
        }
    }

    /// The thread takes what has arrived, and what has moved.
    pub(super) fn take_in(&mut self) {
        self.step();
        while !matches!(self.call, Call::Live) {
            self.step();
        }
        if self.woken {
            self.shard.take_moved();
        }
    }

    /// A subscriber that nothing drives yet, and its entry.
    pub(super) fn register(&mut self, start: Start, filter: Filter) -> (Subscriber, Arc<Entry>) {
        self.register_to(&Arc::clone(&self.channel), start, filter)
    }

    fn register_to(
        &mut self,
        channel: &Arc<Channel>,
        start: Start,
        filter: Filter,
    ) -> (Subscriber, Arc<Entry>) {
        let _time = self.runtime.enter();
        self.arrived += 1;
        let address = SocketAddr::from(([127, 0, 0, 1], self.arrived));
        let other_end = Arc::new(peer::Peer::new(address));
        let registered = self.registry.register(channel, &other_end, String::new());
        let entries = self.registry.entries();
        let entry = entries.into_iter().find(|entry| entry.peer().address == address).unwrap();
        let request = Request { start, filter, dialect: Dialect::Plain, open: false };
        (Subscriber::new(registered.unwrap(), request), entry)
    }

    /// The head at this moment.
    pub(super) fn head(&self) -> Head {
        self.channel.log().head_now()
    }

    fn subscribe(&mut self, start: u8, filter: u8) {
        if self.peers.len() == PEERS {
            return;
        }
        let last = self.channel.log().head_now().next.saturating_sub(1);
        let after = |sequence| Cursor::new(self.memory.epoch(), sequence);
        let start = match start {
            0 | 1 => Start::Latest,
            2 => Start::Earliest,
            3 => Start::Last(2),
            4 => Start::After(after(last)),
            5 => Start::After(after(last.saturating_sub(2))),
            _ => Start::After(after(0)),
        };
        let named = match &start {
            Start::After(cursor) => Some(*cursor),
            _ => None,
        };
        let filter = Filter::new(FILTERS[usize::from(filter)].iter().copied()).unwrap();
        let (theirs, entry) = self.arrive(&Arc::clone(&self.channel), start, filter.clone());
        self.peers.push(Peer::new(theirs, entry, filter, named, self.setting.on_gap_latest));
    }

    /// A subscriber arrives; its end of the socket, and its entry.
    pub(super) fn arrive(
        &mut self,
        channel: &Arc<Channel>,
        start: Start,
        filter: Filter,
    ) -> (UnixStream, Arc<Entry>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        // The kernel's least.
        socket2::SockRef::from(&ours).set_send_buffer_size(1).unwrap();
        let (subscriber, entry) = self.register_to(channel, start, filter);
        let socket = TcpStream::from(OwnedFd::from(ours));
        let head = b"HTTP/1.1 200 OK\r\n\r\n"[..].into();
        let inbox = &self.shard.inbox;
        inbox.stream_added();
        inbox.send(Message::Arrived(Box::new(Arrival { socket, head, subscriber })));
        (theirs, entry)
    }

    /// The next call of [`Shard::run`]. Returns whether it had something to do.
    fn step(&mut self) -> bool {
        let _time = self.runtime.enter();
        let shard = &mut self.shard;
        let (busy, next) = match self.call {
            Call::Poll => {
                shard.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
                shard.now = Instant::now().into_std();
                self.woken = false;
                for event in &self.events {
                    if event.token() == INBOX {
                        self.woken = true;
                        continue;
                    }
                    shard.socket_ready(event.token().0, Ready::of(event));
                }
                (!self.events.is_empty(), Call::Inbox)
            }
            Call::Inbox => {
                let mut messages = Vec::new();
                shard.inbox.take(&mut messages);
                let busy = !messages.is_empty();
                messages.into_iter().for_each(|message| assert!(shard.handle(message)));
                (busy, Call::Live)
            }
            Call::Live => {
                if self.woken {
                    shard.take_moved();
                }
                shard.deliver_live();
                (!shard.live.is_empty(), Call::Queue)
            }
            Call::Queue => {
                let busy = !shard.queue.is_empty();
                if shard.live.is_empty() || shard.live_deliveries >= DELIVERIES_BEFORE_QUEUE {
                    shard.live_deliveries = 0;
                    shard.serve_queue();
                }
                (busy, Call::Timers)
            }
            Call::Timers => {
                shard.fire_timers();
                // Else it would sleep.
                (!shard.queue.is_empty() || !shard.live.is_empty(), Call::Poll)
            }
        };
        self.call = next;
        busy
    }

    /// Peers read, tasks run and the thread turns until there is nothing to do but wait for time,
    /// of which `time` passes.
    fn rest(&mut self, time: Duration) {
        let pause = Duration::from_millis(50);
        let (mut left, mut quiet) = (time, 0);
        for _ in 0..20_000 {
            self.runtime(20);
            let read: usize =
                self.peers.iter_mut().map(|peer| peer.read(usize::MAX, &self.truth)).sum();
            // A whole turn, wherever it begins.
            let busy = (0..5).fold(false, |busy, _| self.step() || busy);
            quiet = if busy || read > 0 { 0 } else { quiet + 1 };
            if quiet < 3 {
                continue;
            }
            if left.is_zero() || self.lacks().is_none() {
                return;
            }
            left = left.saturating_sub(pause);
            self.advance(pause);
            quiet = 0;
        }
        panic!("the thread does not come to rest");
    }

    /// What is still to come.
    fn lacks(&self) -> Option<String> {
        if self.channel.log().head_now().epoch != Some(self.memory.epoch()) {
            return Some("the log is of a former life".to_owned());
        }
        if let Some(error) = self.channel.log().status().error {
            return Some(format!("the reader waits after {error}"));
        }
        self.peers.iter().find_map(|peer| {
            let is_to_end = peer.entry.close_asked().is_some();
            match is_to_end {
                true if peer.closed && peer.ended => None,
                true => Some("a stream that is to end has not ended".to_owned()),
                false => peer.lacks(self.memory.epoch().bits(), &self.truth),
            }
        })
    }

    fn judge(&self) {
        let lacks = self.lacks();
        assert!(lacks.is_none(), "{}", lacks.unwrap_or_default());
    }

    /// All that was published is delivered, and so is what is published then: at once, since what
    /// a pause of the store's readers takes is all the time that passes.
    fn rest_and_judge(&mut self) {
        self.memory.set_reachable(true);
        self.reachable = true;
        let patience = if std::mem::take(&mut self.disturbed) { DISTURBED } else { UNDISTURBED };
        self.rest(patience);
        self.judge();
        for topic in TOPICS {
            self.publish(SIZES[1], topic);
            self.rest(Duration::ZERO);
            self.judge();
        }
    }

    pub(super) fn end(mut self) {
        self.rest_and_judge();
        // Some of what comes at once is for each, and the end of it for few.
        TOPICS.iter().rev().chain([&TOPICS[1]]).for_each(|topic| self.publish(SIZES[0], topic));
        self.rest(Duration::ZERO);
        self.peers.retain(|peer| !peer.closed);
        let beats: Vec<_> = self.peers.iter().map(|peer| peer.beats).collect();
        self.advance(HEARTBEAT);
        self.rest(Duration::ZERO);
        for (peer, before) in self.peers.iter().zip(beats) {
            assert_eq!(peer.beats, before + 1, "one heartbeat");
            let all = self.head().next - 1;
            assert_eq!(peer.place(), Some(all), "it knows that everything is behind it");
        }
        assert_eq!(self.registry.len(), self.peers.len(), "streams that are open");
        self.stop.cancel();
    }
}
