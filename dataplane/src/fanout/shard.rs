//! A fan-out thread: one `epoll`, its sockets, their timers.
//!
//! Each turn: what the kernel and others say, then live events to some hundreds of those who wait
//! for them, until all have them, then a bounded share of everything else (arrivals, replays,
//! sockets that have room again), which comes also when live events do not end. So replays cannot
//! hold up live events, and live events cannot hold up replays.

mod answers;
mod close;
mod live;
mod time;

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use slab::Slab;
use sluice_channel::limits;

use super::{
    group::Group,
    inbox::{Address, Arrival, Inbox, Message},
    questions::Questions,
    queue::Queue,
    socket::Socket,
    stream::{Handed, Stream},
    timers::Timers,
    waiters::NOT_WAITING,
};
use crate::{
    log::Origin,
    subscriber::{Answer, Question, SegmentKey, Step, Subscriber},
};

/// Token of the inbox.
pub(super) const INBOX: Token = Token(usize::MAX);
/// Events taken from the kernel at a time.
const EVENTS: usize = 1_024;
/// Bytes written in one turn to those who are not at the head; about a millisecond's worth.
const TURN_BYTES: usize = 1024 * 1024;
/// What a turn costs a stream that writes little.
const LEAST_BYTES: usize = 4 * 1024;
/// Live deliveries, some tens of milliseconds' worth, after which the queue has its share although
/// there are more.
const VISITS_BEFORE_OTHERS: usize = 8 * 1024;
/// Longest wait for anything.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// One thread's work.
#[derive(Debug)]
pub(super) struct Shard {
    poll: Poll,
    inbox: Arc<Inbox>,
    /// The inbox, as a log sees it.
    waker: Waker,
    sockets: Slab<Socket>,
    groups: Slab<Group>,
    /// Groups by the address of their channel, which they keep alive.
    by_channel: HashMap<usize, usize>,
    /// Those who have something to do that is not live delivery.
    queue: Queue,
    timers: Timers,
    /// Somebody who waits for a head has not been given all of it.
    unserved: bool,
    /// Live deliveries since the queue had its share.
    visits: usize,
    tickets: u64,
    questions: Questions,
    /// What one stream was given in its turn; empty between turns.
    handed: Vec<Handed>,
    /// Who waits for a read of the store that is on its way.
    readers: HashMap<SegmentKey, Vec<Address>>,
    now: Instant,
}

/// What comes after a stream's frames.
enum After {
    More,
    Wait(Instant),
    Ask(Question),
    End,
}

/// Counts events that will be written.
fn count(subscriber: &Subscriber, handed: &mut Vec<Handed>) {
    if !handed.is_empty() {
        let sum = |(events, bytes), handed: Handed| (events + handed.events, bytes + handed.bytes);
        let (events, bytes) = handed.drain(..).fold((0, 0), sum);
        subscriber.handed_over(events, bytes);
    }
}

impl Shard {
    pub(super) fn new(poll: Poll, inbox: Arc<Inbox>, questions: Questions) -> Self {
        Self {
            poll,
            waker: Waker::from(Arc::clone(&inbox)),
            inbox,
            sockets: Slab::new(),
            groups: Slab::new(),
            by_channel: HashMap::new(),
            queue: Queue::default(),
            timers: Timers::default(),
            unserved: false,
            visits: 0,
            tickets: 0,
            questions,
            handed: Vec::new(),
            readers: HashMap::new(),
            now: Instant::now(),
        }
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When the kernel refuses to wait for events.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut messages = Vec::new();
        loop {
            let idle = self.queue.is_empty() && !self.unserved;
            let wait = if idle { self.timers.wait(self.now, LONGEST_WAIT) } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.now = Instant::now();
            let mut roused = false;
            for event in &events {
                if event.token() == INBOX {
                    roused = true;
                    continue;
                }
                let closed = event.is_read_closed() || event.is_error();
                self.ready(event.token().0, closed, event.is_writable());
            }
            self.inbox.take(&mut messages);
            for message in messages.drain(..) {
                if !self.told(message) {
                    return Ok(());
                }
            }
            if roused || self.unserved {
                self.live();
            }
            if !self.unserved || self.visits >= VISITS_BEFORE_OTHERS {
                self.visits = 0;
                self.share();
            }
            self.tick();
        }
    }

    /// The kernel says something of a socket.
    fn ready(&mut self, key: usize, closed: bool, writable: bool) {
        match self.sockets.get_mut(key) {
            Some(Socket::Stream(_)) if closed => self.remove(key),
            Some(Socket::Stream(stream)) if writable && stream.blocked => {
                self.queue.push(key, stream)
            }
            Some(Socket::Lingering(lingering)) => {
                if lingering.drained() {
                    self.sockets.try_remove(key);
                }
            }
            Some(_) | None => {}
        }
    }

    /// Handles a message; `false` = stop.
    fn told(&mut self, message: Message) -> bool {
        match message {
            Message::Arrived(arrival) => self.admit(*arrival),
            Message::Close(key) => {
                if let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) {
                    self.queue.push(key, stream);
                }
            }
            Message::Answered(address, answer) => self.answered(address, answer),
            Message::Read(segment, answer) => {
                let mut answer = answer;
                for address in self.readers.remove(&segment).unwrap_or_default() {
                    self.answered(address, answer.clone());
                    // The store was asked once.
                    if let Answer::Segment(Ok(Some((_, origin)))) = &mut answer {
                        *origin = Origin::Memory;
                    }
                }
            }
            Message::Stop => return false,
        }
        true
    }

    fn admit(&mut self, arrival: Arrival) {
        let Arrival { socket, head, subscriber } = arrival;
        let channel = Arc::clone(subscriber.entry().channel());
        let address = Arc::as_ptr(&channel) as usize;
        let group_key = *self.by_channel.entry(address).or_insert_with(|| {
            channel.log().wake_on_change(self.waker.clone());
            self.groups.insert(Group::new(channel))
        });
        let Some(group) = self.groups.get_mut(group_key) else { return };
        let filter = group.enter(subscriber.filter());
        self.tickets += 1;
        let mut socket = TcpStream::from_std(socket);
        let vacant = self.sockets.vacant_entry();
        let key = vacant.key();
        let registered = self.poll.registry().register(
            &mut socket,
            Token(key),
            Interest::READABLE | Interest::WRITABLE,
        );
        subscriber.entry().written_by(Arc::clone(&self.inbox) as _, key as u64);
        let group_number = u32::try_from(group_key).unwrap_or(u32::MAX);
        let stream = Stream::new(socket, head, subscriber, self.tickets, group_number, filter);
        let Socket::Stream(stream) = vacant.insert(Socket::Stream(stream)) else { return };
        match registered {
            Ok(()) => self.queue.push(key, stream),
            Err(error) => {
                tracing::warn!(%error, "a socket cannot be watched");
                self.remove(key);
            }
        }
    }

    /// A share of the queue.
    fn share(&mut self) {
        let mut left = TURN_BYTES;
        // Those who come back to the queue in this turn wait for the next.
        for _ in 0..self.queue.len() {
            let Some(key) = self.queue.pop() else { break };
            let written = self.pump(key).max(LEAST_BYTES);
            left = left.saturating_sub(written);
            if left == 0 {
                break;
            }
        }
    }

    /// Lets one stream do what it has to do next; returns the bytes written.
    fn pump(&mut self, key: usize) -> usize {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return 0 };
        let Some(group) = self.groups.get(stream.group as usize) else { return 0 };
        stream.queued = false;
        // What a newcomer has to write first, its response head, goes out with its first frames.
        if stream.blocked {
            match stream.flush() {
                Ok(true) => {}
                Ok(false) => {
                    self.block(key);
                    return 0;
                }
                Err(_) => {
                    self.remove(key);
                    return 0;
                }
            }
        }
        let head = group.channel.log().head_now();
        let mut written = 0;
        let after = loop {
            if stream.ending {
                break After::End;
            }
            let checkpoint = stream.subscriber.checkpoint();
            match stream.subscriber.step(head, self.now.into()) {
                Step::Write(parts) => {
                    written += stream.push(parts);
                    // It lies behind the events: they can no longer be taken back.
                    count(&stream.subscriber, &mut self.handed);
                }
                Step::Events(parts, events) => {
                    let bytes = stream.push(parts);
                    written += bytes;
                    self.handed.push(Handed { checkpoint, events, bytes });
                }
                Step::Wait(until) => break After::Wait(until.into_std()),
                Step::Ask(question) => break After::Ask(question),
                Step::Yield => break After::More,
                Step::End => stream.push_end(),
            }
            if written >= limits::WRITE_BYTES {
                break After::More;
            }
        };
        let flushed = stream.flush();
        if matches!(flushed, Ok(false)) {
            stream.take_back(&mut self.handed);
        }
        count(&stream.subscriber, &mut self.handed);
        // Asked also when blocked: the answer finds it later.
        let after = match after {
            After::Ask(question) => {
                self.ask(key, question);
                None
            }
            after => Some(after),
        };
        match (flushed, after) {
            (Ok(true), Some(after)) => self.settle(key, &after),
            (Ok(true), None) => self.stand(key),
            (Ok(false), _) => self.block(key),
            (Err(_), _) => self.remove(key),
        }
        written
    }

    /// Everything was written: what now?
    fn settle(&mut self, key: usize, after: &After) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        match after {
            After::More => self.queue.push(key, stream),
            After::Wait(_) if stream.subscriber.is_asking() => self.stand(key),
            After::Wait(until) => {
                if let Some(group) = self.groups.get_mut(stream.group as usize) {
                    group.wait(key, stream);
                }
                self.timers.arm(*until, key, stream);
            }
            After::End => self.finish(key),
            After::Ask(_) => {}
        }
    }

    /// Waits for an answer of the store: not for the head, but it beats.
    fn stand(&mut self, key: usize) {
        self.stop_waiting(key);
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        let due = stream.subscriber.due().into_std();
        self.timers.arm(due, key, stream);
    }

    /// Its socket is full.
    fn block(&mut self, key: usize) {
        self.stop_waiting(key);
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        let entry = stream.subscriber.entry();
        let rest = entry
            .channel()
            .config()
            .delivery
            .write_timeout
            .saturating_sub(entry.connection().blocked_for());
        self.timers.arm(self.now + rest, key, stream);
    }

    fn stop_waiting(&mut self, key: usize) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        let slot = std::mem::replace(&mut stream.slot, NOT_WAITING);
        if slot == NOT_WAITING {
            return;
        }
        let Some(group) = self.groups.get_mut(stream.group as usize) else { return };
        let (moved, due) = (group.waiters.remove(slot), group.waiters.has_due());
        if let Some((key, Socket::Stream(stream))) =
            moved.and_then(|key| Some((key, self.sockets.get_mut(key)?)))
        {
            stream.slot = slot;
            if due {
                // It may have come from a place that is still to be visited to one that was.
                self.queue.push(key, stream);
            }
        }
    }
}
