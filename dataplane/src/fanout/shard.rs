//! A fan-out thread: one `epoll`, its sockets, their timers.
//!
//! Each turn: what the kernel and others say, then live events to some hundreds of those who wait
//! for them, until all have them, then a bounded share of everything else (arrivals, replays,
//! sockets that have room again), which comes also when live events do not end. So replays cannot
//! hold up live events, and live events cannot hold up replays.

mod end;
mod live;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use slab::Slab;
use sluice_channel::limits;

use end::{drained, enqueue, set_timer};

use super::{
    connection::{Connection, Handed},
    group::Group,
    inbox::{Address, Arrival, Inbox, Message},
    round::STANDING,
    store::{Place, Store},
    timers::Timers,
};
use crate::{
    log::Origin,
    subscriber::{Answer, Question, Step, Subscriber},
};

/// Token of the inbox.
pub(super) const INBOX: Token = Token(usize::MAX);
/// Events taken from the kernel at a time.
const EVENTS: usize = 1_024;
/// Bytes written in one turn to those who are not at the head; about a millisecond's worth.
const TURN_BYTES: usize = 1024 * 1024;
/// What a turn costs a connection that writes little.
const LEAST_BYTES: usize = 4 * 1024;
/// Live deliveries, some tens of milliseconds' worth, after which the queue has its share although
/// there are more.
const VISITS_BEFORE_OTHERS: usize = 8 * 1024;
/// Longest wait for anything.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a peer that has its last frame may take to close. A socket that is closed with unread
/// bytes in it would take back what the peer has not read yet (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(2);

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are streams, and a box would cost each delivery a cache line"
)]
enum Slot {
    Stream(Connection),
    /// Has had its last frame.
    Lingering(TcpStream, u64),
}

/// One thread's work.
#[derive(Debug)]
pub(super) struct Shard {
    poll: Poll,
    inbox: Arc<Inbox>,
    /// The inbox, as a log sees it.
    waker: Waker,
    slots: Slab<Slot>,
    groups: Slab<Group>,
    /// Groups by the address of their channel, which they keep alive.
    by_channel: HashMap<usize, usize>,
    /// Those who have something to do that is not live delivery.
    queue: VecDeque<usize>,
    timers: Timers,
    /// Somebody who waits for a head has not been given all of it.
    unserved: bool,
    /// Live deliveries since the queue had its share.
    visits: usize,
    tickets: u64,
    store: Store,
    /// What one connection was given in its turn; empty between turns.
    handed: Vec<Handed>,
    /// Who waits for a read of the store that is on its way.
    readers: HashMap<Place, Vec<Address>>,
    now: Instant,
}

/// What comes after a connection's frames.
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
    pub(super) fn new(poll: Poll, inbox: Arc<Inbox>, store: Store) -> Self {
        Self {
            poll,
            waker: Waker::from(Arc::clone(&inbox)),
            inbox,
            slots: Slab::new(),
            groups: Slab::new(),
            by_channel: HashMap::new(),
            queue: VecDeque::new(),
            timers: Timers::default(),
            unserved: false,
            visits: 0,
            tickets: 0,
            store,
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
        match self.slots.get_mut(key) {
            Some(Slot::Stream(_)) if closed => self.remove(key),
            Some(Slot::Stream(connection)) if writable && connection.blocked => {
                enqueue(&mut self.queue, key, connection)
            }
            Some(Slot::Lingering(socket, _)) => {
                if drained(socket) {
                    self.slots.try_remove(key);
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
                if let Some(Slot::Stream(connection)) = self.slots.get_mut(key) {
                    enqueue(&mut self.queue, key, connection);
                }
            }
            Message::Answered(address, answer) => self.answered(address, answer),
            Message::Read(place, answer) => {
                let mut answer = answer;
                for address in self.readers.remove(&place).unwrap_or_default() {
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
        let slot = self.slots.vacant_entry();
        let key = slot.key();
        let registered = self.poll.registry().register(
            &mut socket,
            Token(key),
            Interest::READABLE | Interest::WRITABLE,
        );
        subscriber.entry().written_by(Arc::clone(&self.inbox) as _, key as u64);
        let group_number = u32::try_from(group_key).unwrap_or(u32::MAX);
        let connection =
            Connection::new(socket, head, subscriber, self.tickets, group_number, filter);
        let Slot::Stream(connection) = slot.insert(Slot::Stream(connection)) else { return };
        match registered {
            Ok(()) => enqueue(&mut self.queue, key, connection),
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
            let Some(key) = self.queue.pop_front() else { break };
            let written = self.pump(key).max(LEAST_BYTES);
            left = left.saturating_sub(written);
            if left == 0 {
                break;
            }
        }
    }

    /// Lets one connection do what it has to do next; returns the bytes written.
    fn pump(&mut self, key: usize) -> usize {
        let Some(Slot::Stream(connection)) = self.slots.get_mut(key) else { return 0 };
        let Some(group) = self.groups.get(connection.group as usize) else { return 0 };
        connection.queued = false;
        // What a newcomer has to write first, its response head, goes out with its first frames.
        if connection.blocked {
            match connection.flush() {
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
            if connection.ending {
                break After::End;
            }
            let mark = connection.subscriber.mark();
            match connection.subscriber.step(head, self.now.into()) {
                Step::Write(parts) => {
                    written += connection.push(parts);
                    // It lies behind the events: they can no longer be taken back.
                    count(&connection.subscriber, &mut self.handed);
                }
                Step::Events(parts, events) => {
                    let bytes = connection.push(parts);
                    written += bytes;
                    self.handed.push(Handed { mark, events, bytes });
                }
                Step::Wait(until) => break After::Wait(until.into_std()),
                Step::Ask(question) => break After::Ask(question),
                Step::Yield => break After::More,
                Step::End => connection.push_end(),
            }
            if written >= limits::WRITE_BYTES {
                break After::More;
            }
        };
        let flushed = connection.flush();
        if matches!(flushed, Ok(false)) {
            connection.take_back(&mut self.handed);
        }
        count(&connection.subscriber, &mut self.handed);
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
        let Some(Slot::Stream(connection)) = self.slots.get_mut(key) else { return };
        match after {
            After::More => enqueue(&mut self.queue, key, connection),
            After::Wait(_) if connection.subscriber.is_asking() => self.stand(key),
            After::Wait(until) => {
                if let Some(group) = self.groups.get_mut(connection.group as usize) {
                    group.seat(key, connection);
                }
                set_timer(&mut self.timers, *until, key, connection);
            }
            After::End => self.finish(key),
            After::Ask(_) => {}
        }
    }

    /// Waits for an answer of the store: not for the head, but it beats.
    fn stand(&mut self, key: usize) {
        self.unseat(key);
        let Some(Slot::Stream(connection)) = self.slots.get_mut(key) else { return };
        let due = connection.subscriber.due().into_std();
        set_timer(&mut self.timers, due, key, connection);
    }

    /// Its socket is full.
    fn block(&mut self, key: usize) {
        self.unseat(key);
        let Some(Slot::Stream(connection)) = self.slots.get_mut(key) else { return };
        let entry = connection.subscriber.entry();
        let rest = entry
            .channel()
            .config()
            .delivery
            .write_timeout
            .saturating_sub(entry.connection().blocked_for());
        set_timer(&mut self.timers, self.now + rest, key, connection);
    }

    fn unseat(&mut self, key: usize) {
        let Some(Slot::Stream(connection)) = self.slots.get_mut(key) else { return };
        let seat = std::mem::replace(&mut connection.seat, STANDING);
        if seat == STANDING {
            return;
        }
        let Some(group) = self.groups.get_mut(connection.group as usize) else { return };
        let (moved, due) = (group.waiting.leave(seat), group.waiting.is_due());
        if let Some((key, Slot::Stream(connection))) =
            moved.and_then(|key| Some((key, self.slots.get_mut(key)?)))
        {
            connection.seat = seat;
            if due {
                // It may have come from a place that is still to be visited to one that was.
                enqueue(&mut self.queue, key, connection);
            }
        }
    }
}

#[cfg(test)]
mod tests;
