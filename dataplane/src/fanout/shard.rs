//! A fan-out thread: one `epoll`, its sockets, their timers.
//!
//! Each turn: what the kernel reports and the inbox holds; then live events, to some hundreds of
//! the streams that wait for them; then, once all of these have them, a bounded part of everything
//! else (arrivals, replays, sockets that have room again). That part has its turn also when live
//! events do not end. So replays cannot hold up live events, and live events cannot hold up
//! replays.

mod answers;
mod close;
mod live;
mod time;

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, event::Event, net::TcpStream};
use slab::Slab;

use super::{
    group::Group,
    inbox::{Address, Arrival, HeadWatch, Inbox, Message},
    questions::Questions,
    queue::Queue,
    socket::Socket,
    stream::{READ_BYTES, Received, Stream, Uncommitted},
    timers::Timers,
    waiters::NOT_WAITING,
};
use crate::{
    limits,
    log::Origin,
    pulse::Pulse,
    subscriber::{Answer, Question, SegmentKey, Step, Subscriber},
};

/// Token of the inbox.
pub(super) const INBOX: Token = Token(usize::MAX);
/// Events taken from the kernel at a time.
const EVENTS: usize = 1_024;
/// Bytes written in one turn to streams from the queue; about a millisecond's worth.
const TURN_BYTES: usize = 1024 * 1024;
/// What a stream from the queue costs its turn at least: a system call is not free.
const LEAST_BYTES: usize = 4 * 1024;
/// What a comparison of a pattern with a topic costs a turn: it takes as long as to write so many
/// bytes. A replay whose filter selects nothing writes nothing, and is no cheaper for that.
const COMPARISON_BYTES: usize = 32;
/// Live deliveries, some tens of milliseconds' worth, after which the queue is served although more
/// are due.
const DELIVERIES_BEFORE_QUEUE: usize = 8 * 1024;
/// Longest wait for the kernel: half of what the probes expect a sign of life in.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// One thread's work.
#[derive(Debug)]
pub(super) struct Shard {
    poll: Poll,
    inbox: Arc<Inbox>,
    sockets: Slab<Socket>,
    /// Above this number of sockets their table is not shrunk.
    shrink_at: usize,
    groups: Slab<Group>,
    /// Groups by the address of their channel, which they keep alive.
    by_channel: HashMap<usize, usize>,
    queue: Queue,
    timers: Timers,
    /// Keys of the groups with streams that may have yet to be given all of the head.
    live: Vec<usize>,
    /// Empty; here, so that its memory is used again.
    moved: Vec<usize>,
    /// Keys of groups whose last stream has left.
    emptied: Vec<usize>,
    /// Live deliveries since the queue was served.
    live_deliveries: usize,
    last_generation: u64,
    questions: Questions,
    /// Events added to the stream that is being advanced; empty otherwise. Here, so that its memory
    /// is used again.
    uncommitted: Vec<Uncommitted>,
    /// What peers have sent, which nothing looks at.
    received: Box<[u8; READ_BYTES]>,
    /// The streams that share a read of the store that is on its way.
    segment_requests: HashMap<SegmentKey, Vec<Address>>,
    /// When this turn began. One reading of the clock serves all of it.
    now: Instant,
    pulse: Pulse,
}

/// What comes after a stream's frames.
enum After {
    More,
    Wait(Instant),
    Ask(Question),
    End,
}

/// What the kernel reports of a socket.
#[derive(Debug, Clone, Copy)]
struct Ready {
    /// The connection is gone, in both directions.
    broken: bool,
    /// There is something to read, if only the end.
    readable: bool,
    writable: bool,
}

impl Ready {
    fn of(event: &Event) -> Self {
        Self {
            broken: event.is_error() || event.is_write_closed(),
            readable: event.is_readable() || event.is_read_closed(),
            writable: event.is_writable(),
        }
    }
}

/// Counts events that can no longer be rolled back.
fn commit(subscriber: &Subscriber, uncommitted: &mut Vec<Uncommitted>) {
    if !uncommitted.is_empty() {
        let sum =
            |(events, bytes), chunk: Uncommitted| (events + chunk.events, bytes + chunk.bytes);
        let (events, bytes) = uncommitted.drain(..).fold((0, 0), sum);
        subscriber.count_delivered(events, bytes);
    }
}

impl Shard {
    pub(super) fn new(poll: Poll, inbox: Arc<Inbox>, questions: Questions) -> Self {
        Self {
            poll,
            inbox,
            sockets: Slab::new(),
            shrink_at: 0,
            groups: Slab::new(),
            by_channel: HashMap::new(),
            queue: Queue::default(),
            timers: Timers::default(),
            live: Vec::new(),
            moved: Vec::new(),
            emptied: Vec::new(),
            live_deliveries: 0,
            last_generation: 0,
            questions,
            uncommitted: Vec::new(),
            received: Box::new([0; READ_BYTES]),
            segment_requests: HashMap::new(),
            now: Instant::now(),
            pulse: Pulse::default(),
        }
    }

    /// What each turn raises.
    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Runs until [`Message::Stop`].
    ///
    /// # Errors
    /// When the kernel refuses to wait for events.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut messages = Vec::new();
        loop {
            let idle = self.queue.is_empty() && self.live.is_empty();
            let wait =
                if idle { self.timers.until_next(self.now, LONGEST_WAIT) } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.now = Instant::now();
            self.pulse.beat();
            let mut woken = false;
            for event in &events {
                if event.token() == INBOX {
                    woken = true;
                    continue;
                }
                self.socket_ready(event.token().0, Ready::of(event));
            }
            self.inbox.take(&mut messages);
            for message in messages.drain(..) {
                if !self.handle(message) {
                    return Ok(());
                }
            }
            if woken {
                self.take_moved();
            }
            self.deliver_live();
            if self.live.is_empty() || self.live_deliveries >= DELIVERIES_BEFORE_QUEUE {
                self.live_deliveries = 0;
                self.serve_queue();
            }
            self.fire_timers();
        }
    }

    /// Acts on what the kernel reports of a socket.
    fn socket_ready(&mut self, key: usize, ready: Ready) {
        match self.sockets.get_mut(key) {
            Some(Socket::Stream(_)) if ready.broken => self.remove(key),
            Some(Socket::Stream(stream)) => {
                stream.unread |= ready.readable && !stream.half_closed;
                if stream.unread || (ready.writable && stream.blocked) {
                    self.queue.push(key, stream);
                }
            }
            Some(Socket::Lingering(lingering)) => {
                let ended = lingering.drained();
                if ended {
                    self.take_socket(key);
                }
            }
            None => {}
        }
    }

    /// Handles a message; `false` = stop.
    fn handle(&mut self, message: Message) -> bool {
        match message {
            Message::Arrived(arrival) => self.add(*arrival),
            Message::Close(key) => {
                if let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) {
                    self.queue.push(key, stream);
                }
            }
            Message::Answered(address, answer) => self.answer(address, answer),
            Message::SegmentRead(segment, answer) => {
                let mut answer = answer;
                for address in self.segment_requests.remove(&segment).unwrap_or_default() {
                    self.answer(address, answer.clone());
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

    /// Takes a new stream in.
    fn add(&mut self, arrival: Arrival) {
        let Arrival { socket, head, subscriber } = arrival;
        let channel = Arc::clone(subscriber.entry().channel());
        let address = Arc::as_ptr(&channel) as usize;
        let group_key = *self.by_channel.entry(address).or_insert_with(|| {
            let vacant = self.groups.vacant_entry();
            let key = vacant.key();
            vacant.insert(Group::new(channel, HeadWatch::new(&self.inbox, key)));
            key
        });
        let Some(group) = self.groups.get_mut(group_key) else { return };
        let filter = group.join(subscriber.filter());
        self.last_generation += 1;
        let mut socket = TcpStream::from_std(socket);
        self.shrink_at = self.shrink_at.max(self.sockets.len() / 2);
        let vacant = self.sockets.vacant_entry();
        let key = vacant.key();
        let registered = self.poll.registry().register(
            &mut socket,
            Token(key),
            Interest::READABLE | Interest::WRITABLE,
        );
        subscriber.entry().written_by(Arc::clone(&self.inbox) as _, key as u64);
        let group_number = u32::try_from(group_key).unwrap_or(u32::MAX);
        let stream =
            Stream::new(socket, head, subscriber, self.last_generation, group_number, filter);
        let Socket::Stream(stream) = vacant.insert(Socket::Stream(stream)) else { return };
        match registered {
            Ok(()) => self.queue.push(key, stream),
            Err(error) => {
                let entry = stream.subscriber.entry();
                tracing::warn!(
                    channel = %entry.channel().name(),
                    peer = %entry.peer().address,
                    %error,
                    "a socket cannot be watched"
                );
                self.remove(key);
            }
        }
    }

    /// Serves the queue, up to [`TURN_BYTES`].
    fn serve_queue(&mut self) {
        let mut left = TURN_BYTES;
        // Streams that come back to the queue in this turn wait for the next.
        for _ in 0..self.queue.len() {
            let Some(key) = self.queue.pop() else { break };
            let cost = self.receive(key) + self.advance(key);
            if let Some(Socket::Stream(stream)) = self.sockets.get_mut(key)
                && stream.unread
            {
                self.queue.push(key, stream);
            }
            left = left.saturating_sub(cost.max(LEAST_BYTES));
            if left == 0 {
                break;
            }
        }
    }

    /// Reads away what a stream's peer has sent; returns how many bytes.
    ///
    /// A peer that has closed its side of the connection may go on reading, or be gone: both look
    /// the same. So it is sent a heartbeat at once: where no socket is left, the answer is a reset.
    fn receive(&mut self, key: usize) -> usize {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return 0 };
        if !stream.unread {
            return 0;
        }
        match stream.receive(&mut self.received) {
            Received::More(bytes) => return bytes,
            Received::Nothing => {}
            Received::End => {
                stream.half_closed = true;
                stream.subscriber.beat_at(self.now.into());
            }
            Received::Broken => self.remove(key),
        }
        0
    }

    /// Takes a stream as far as it comes without waiting; returns what that has cost: the bytes
    /// given to it, and what was looked at on the way, as bytes.
    fn advance(&mut self, key: usize) -> usize {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return 0 };
        let Some(group) = self.groups.get(stream.group as usize) else { return 0 };
        stream.queued = false;
        // A new stream is not blocked: its response head goes out with its first frames.
        if stream.blocked {
            match stream.flush() {
                Ok(true) => {}
                Ok(false) => {
                    self.await_writable(key);
                    return 0;
                }
                Err(_) => {
                    self.remove(key);
                    return 0;
                }
            }
        }
        let head = group.channel.log().head_now();
        let mut cost = 0;
        let after = loop {
            if stream.ending {
                break After::End;
            }
            match stream.subscriber.step(head, self.now.into()) {
                Step::Write(parts) => {
                    cost += stream.push(parts);
                    // It lies behind the events: they can no longer be rolled back.
                    commit(&stream.subscriber, &mut self.uncommitted);
                }
                Step::Events { parts, events, checkpoint, compared } => {
                    let bytes = stream.push(parts);
                    cost += bytes + compared * COMPARISON_BYTES;
                    self.uncommitted.push(Uncommitted { checkpoint, events, bytes });
                }
                Step::Wait(until) => break After::Wait(until.into_std()),
                Step::Ask(question) => break After::Ask(question),
                Step::Yield { compared } => {
                    cost += compared * COMPARISON_BYTES;
                    break After::More;
                }
                Step::End => stream.push_end(),
            }
            if cost >= limits::WRITE_BYTES {
                break After::More;
            }
        };
        let flushed = stream.flush();
        if matches!(flushed, Ok(false)) {
            stream.roll_back(&mut self.uncommitted);
        }
        commit(&stream.subscriber, &mut self.uncommitted);
        // Asked also when blocked: the answer finds it later.
        let after = match after {
            After::Ask(question) => {
                self.ask(key, question);
                None
            }
            after => Some(after),
        };
        match (flushed, after) {
            (Ok(true), Some(after)) => self.after_flush(key, &after),
            (Ok(true), None) => self.await_answer(key),
            (Ok(false), _) => self.await_writable(key),
            (Err(_), _) => self.remove(key),
        }
        cost
    }

    /// Has a stream wait for what comes next, once everything was written.
    fn after_flush(&mut self, key: usize, after: &After) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        match after {
            After::More => self.queue.push(key, stream),
            After::Wait(_) if stream.subscriber.is_awaiting_answer() => self.await_answer(key),
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

    /// Has a stream wait for an answer of the store: not for the head, but for its heartbeat too.
    fn await_answer(&mut self, key: usize) {
        self.stop_waiting(key);
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        let due = stream.subscriber.due().into_std();
        self.timers.arm(due, key, stream);
    }

    /// Has a stream wait for room in its socket, at most for the write timeout.
    fn await_writable(&mut self, key: usize) {
        self.stop_waiting(key);
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(key) else { return };
        let entry = stream.subscriber.entry();
        let rest = entry
            .channel()
            .config()
            .delivery
            .write_timeout
            .saturating_sub(entry.peer().blocked_for());
        self.timers.arm(self.now + rest, key, stream);
    }

    /// Takes a stream off the list of those that wait for the head, if it is on it.
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
                // The move may be from a slot that is still to be visited to one that was.
                self.queue.push(key, stream);
            }
        }
    }
}

#[cfg(test)]
mod tests;
