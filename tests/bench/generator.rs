//! The load generator: thousands of SSE clients and the publisher on one thread and one `epoll`.
//! Each client checks that its events come in order, none missing, none twice.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    fd::OwnedFd,
};
use socket2::{Domain, Socket, Type};

use crate::{
    decoder::{Decoder, Item},
    histogram::Histogram,
    publisher::Publisher,
};

/// Key of the publisher's socket.
const PUBLISHER: u64 = u64::MAX;
/// Clients from one source address: its ephemeral ports must suffice.
const CLIENTS_PER_ADDRESS: usize = 4_000;
/// Error texts that are kept; the rest is only counted.
const ERRORS_KEPT: usize = 5;
/// Payload of an event, bytes.
const PAYLOAD_BYTES: usize = 256;

/// What must be true of a client before another one may start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The head of its response was read.
    Open,
    /// It has all events up to the goal.
    Complete,
}

struct Client {
    /// `None`: closed.
    socket: Option<TcpStream>,
    /// Sent when the connection stands; empty once it is sent.
    request: String,
    decoder: Decoder,
    /// Sequence of its newest event.
    last: u64,
}

/// What the clients have seen since the last [`Generator::reset`].
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) open: usize,
    pub(crate) complete: usize,
    pub(crate) deliveries: u64,
    pub(crate) latency: Histogram,
    pub(crate) last_delivery: Option<Instant>,
}

pub(crate) struct Generator {
    epoll: OwnedFd,
    clients: Vec<Client>,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    /// Second and third byte of the next source address: each set of clients has addresses of its
    /// own, so ports that wait out an earlier set's connections are not in the way.
    next_source: u16,
    /// A client is complete when it has this sequence.
    pub(crate) goal: u64,
    pub(crate) tally: Tally,
    pub(crate) errors: Errors,
}

/// Errors of a whole run.
#[derive(Default)]
pub(crate) struct Errors {
    pub(crate) count: u64,
    pub(crate) first: Vec<String>,
}

impl Errors {
    pub(crate) fn add(&mut self, text: String) {
        self.count += 1;
        if self.first.len() < ERRORS_KEPT {
            self.first.push(text);
        }
    }
}

impl Generator {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            events: Vec::with_capacity(4096),
            buffer: vec![0; 256 * 1024],
            next_source: 0x0100,
            goal: u64::MAX,
            tally: Tally::default(),
            errors: Errors::default(),
        })
    }

    /// Takes source addresses that the crowds of other processes do not use.
    pub(crate) fn spread_sources(&mut self, process: u32) {
        self.next_source = 0x0200 + (process as u16 % 0xfc) * 0x0100;
    }

    /// Forgets what was seen, and sets the sequence at which a client is complete.
    pub(crate) fn reset(&mut self, goal: u64) {
        self.tally = Tally { open: self.tally.open, ..Tally::default() };
        self.goal = goal;
    }

    /// Closes all clients.
    pub(crate) fn close(&mut self) {
        self.clients.clear();
        self.tally = Tally::default();
    }

    /// Opens `count` clients that have seen everything up to `seen`, never more than `in_flight` of
    /// them not settled, and waits until all are. Returns how long that took.
    pub(crate) fn open(
        &mut self,
        target: &Target<'_>,
        count: usize,
        seen: u64,
        in_flight: usize,
        settled: Settled,
    ) -> anyhow::Result<Duration> {
        let request = target.request();
        let start = Instant::now();
        let (mut progress, mut last_change) = (0, start);
        let first = self.clients.len();
        self.next_source += 1;
        loop {
            let done = if settled == Settled::Open { self.tally.open } else { self.tally.complete };
            if done >= count {
                return Ok(start.elapsed());
            }
            while self.clients.len() - first < count
                && self.clients.len() - first < done + in_flight
            {
                self.connect(target.address, &request, seen)?;
            }
            self.turn(None, Duration::from_millis(100))?;
            if done > progress
                || self.tally.deliveries > 0
                    && self.tally.last_delivery.is_some_and(|t| t > last_change)
            {
                (progress, last_change) = (done, Instant::now());
            }
            if last_change.elapsed() > Duration::from_secs(15) {
                self.errors
                    .add(format!("only {done} of {count} clients settled, nothing came for 15 s"));
                return Ok(start.elapsed());
            }
        }
    }

    fn connect(&mut self, server: SocketAddr, request: &str, seen: u64) -> anyhow::Result<()> {
        let index = self.clients.len();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let [high, low] = self.next_source.to_be_bytes();
        let address = u8::try_from(1 + index / CLIENTS_PER_ADDRESS)
            .context("too many clients for the source addresses")?;
        socket
            .bind(&SocketAddr::from(([127, high, low, address], 0)).into())
            .context("binding a client")?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&server.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).context("connecting a client");
            }
            _ => {}
        }
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), EventFlags::OUT)?;
        self.clients.push(Client {
            socket: Some(socket.into()),
            request: request.to_owned(),
            decoder: Decoder::new(),
            last: seen,
        });
        Ok(())
    }

    /// Waits for something to read, at most `limit`, and reads it.
    fn turn(&mut self, publisher: Option<&mut Publisher>, limit: Duration) -> anyhow::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))
        {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut answers = false;
        for event in &events {
            match event.data.u64() {
                PUBLISHER => answers = true,
                index => self.serve(index as usize, event.flags),
            }
        }
        self.events = events;
        match publisher {
            Some(publisher) if answers => publisher.poll(),
            _ => Ok(()),
        }
    }

    fn serve(&mut self, index: usize, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let Some(socket) = client.socket.as_mut() else { return };
        let result = if client.request.is_empty() {
            read(client, &mut self.buffer, self.goal, &mut self.tally)
        } else if flags.contains(EventFlags::ERR) {
            Err(format!("connect: {:?}", socket.take_error()))
        } else {
            // The request fits a fresh socket's buffer.
            let request = std::mem::take(&mut client.request);
            let sent = socket.write_all(request.as_bytes());
            let watched = epoll::modify(
                &self.epoll,
                &*socket,
                EventData::new_u64(index as u64),
                EventFlags::IN,
            );
            sent.and(watched.map_err(Into::into)).map_err(|e| format!("sending a request: {e}"))
        };
        if let Err(text) = result {
            self.errors.add(format!("client {index}: {text}"));
            // Closing the only descriptor takes it out of the epoll.
            client.socket = None;
        }
    }

    /// Publishes `total` events at `rate` a second and waits until every client has them.
    pub(crate) fn paced(
        &mut self,
        publisher: &mut Publisher,
        rate: f64,
        total: u64,
        limit: Duration,
    ) -> anyhow::Result<()> {
        self.watch(publisher)?;
        let (start, acknowledged) = (Instant::now(), publisher.acknowledged);
        let mut sent = 0;
        while sent < total
            || self.tally.complete < self.alive()
            || publisher.acknowledged - acknowledged < sent
        {
            let due = |n: u64| start + Duration::from_secs_f64(n as f64 / rate);
            while sent < total && due(sent) <= Instant::now() {
                publisher.publish(&payload())?;
                sent += 1;
            }
            let next = if sent < total {
                due(sent).saturating_duration_since(Instant::now())
            } else {
                Duration::from_millis(100)
            };
            self.turn(Some(publisher), next)?;
            if start.elapsed() > limit {
                self.errors.add(format!(
                    "after {limit:?} only {} of {} clients had all events",
                    self.tally.complete,
                    self.alive()
                ));
                break;
            }
        }
        self.unwatch(publisher)
    }

    /// For `seconds`, publishes as fast as the clients take it: at most `window` events not yet
    /// delivered to all. Returns how many were published; they have been delivered then.
    pub(crate) fn flat_out(
        &mut self,
        publisher: &mut Publisher,
        seconds: Duration,
        window: u64,
        base: u64,
    ) -> anyhow::Result<u64> {
        self.watch(publisher)?;
        let clients = self.alive().max(1) as u64;
        let (start, acknowledged) = (Instant::now(), publisher.acknowledged);
        let mut sent = 0;
        while start.elapsed() < seconds {
            while sent < self.tally.deliveries / clients + window {
                publisher.publish(&payload())?;
                sent += 1;
            }
            self.turn(Some(publisher), Duration::from_millis(100))?;
        }
        self.goal = base + sent;
        self.tally.complete =
            self.clients.iter().filter(|c| c.socket.is_some() && c.last >= self.goal).count();
        while self.tally.complete < self.alive() || publisher.acknowledged - acknowledged < sent {
            self.turn(Some(publisher), Duration::from_millis(100))?;
            if start.elapsed() > seconds + Duration::from_secs(20) {
                self.errors.add(format!(
                    "only {} of {} clients had all events in the end",
                    self.tally.complete,
                    self.alive()
                ));
                break;
            }
        }
        self.unwatch(publisher)?;
        Ok(sent)
    }

    /// Publishes `total` events with at most 1,000 not acknowledged.
    pub(crate) fn fill(&mut self, publisher: &mut Publisher, total: u64) -> anyhow::Result<()> {
        self.watch(publisher)?;
        let (start, acknowledged) = (Instant::now(), publisher.acknowledged);
        let mut sent = 0;
        while publisher.acknowledged - acknowledged < total {
            while sent < total && sent < publisher.acknowledged - acknowledged + 1_000 {
                publisher.publish(&payload())?;
                sent += 1;
            }
            self.turn(Some(publisher), Duration::from_millis(100))?;
            if start.elapsed() > Duration::from_secs(60) {
                bail!(
                    "only {} of {total} events were acknowledged in 60 s",
                    publisher.acknowledged - acknowledged
                );
            }
        }
        self.unwatch(publisher)
    }

    fn watch(&self, publisher: &Publisher) -> anyhow::Result<()> {
        epoll::add(&self.epoll, publisher.socket(), EventData::new_u64(PUBLISHER), EventFlags::IN)
            .context("watching the publisher")
    }

    fn unwatch(&self, publisher: &Publisher) -> anyhow::Result<()> {
        epoll::delete(&self.epoll, publisher.socket()).context("leaving the publisher")
    }

    fn alive(&self) -> usize {
        self.clients.iter().filter(|c| c.socket.is_some()).count()
    }

    /// Reads on for `duration` with nothing published.
    pub(crate) fn idle(&mut self, duration: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.turn(None, end.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }
}

fn read(
    client: &mut Client,
    buffer: &mut [u8],
    goal: u64,
    tally: &mut Tally,
) -> Result<(), String> {
    let Some(socket) = client.socket.as_mut() else { return Ok(()) };
    let count = match socket.read(buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(format!("reading: {error}")),
        Ok(0) => return Err("the server closed the stream".to_owned()),
        Ok(count) => count,
    };
    let now = nanos();
    let mut broken = None;
    let last = &mut client.last;
    client.decoder.feed(&buffer[..count], &mut |item| match item {
        Item::Open => tally.open += 1,
        Item::Event { sequence, stamp } => {
            if sequence != *last + 1 && broken.is_none() {
                broken = Some(format!("event {sequence} came after {last}"));
            }
            *last = sequence;
            tally.deliveries += 1;
            if let Some(stamp) = stamp {
                tally.latency.add(Duration::from_nanos(now.saturating_sub(stamp)));
            }
            if sequence == goal {
                tally.complete += 1;
            }
        }
        Item::Control(name) if name == "channel.cursor" || name == "channel.open" => {}
        Item::Control(name) => broken = Some(format!("the server sent {name}")),
    })?;
    tally.last_delivery = Some(Instant::now());
    if client.decoder.ended() {
        return Err("the server ended the stream".to_owned());
    }
    broken.map_or(Ok(()), Err)
}

/// The machine's monotonic clock, so that processes can compare what they read.
fn nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A payload that says when it was made.
fn payload() -> String {
    let mut text = format!("T={:019} ", nanos());
    text.extend(std::iter::repeat_n('x', PAYLOAD_BYTES - text.len()));
    text
}

/// Where clients connect, and where they start.
pub(crate) struct Target<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) path: &'a str,
    /// `Last-Event-ID`, or none.
    pub(crate) cursor: Option<String>,
}

impl Target<'_> {
    fn request(&self) -> String {
        let cursor =
            self.cursor.as_ref().map(|c| format!("Last-Event-ID: {c}\r\n")).unwrap_or_default();
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n{cursor}\r\n",
            self.path, self.address
        )
    }
}
