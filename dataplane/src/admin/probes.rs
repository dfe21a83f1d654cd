//! Probes, on a thread of their own: what is too busy for requests is not dead, and a kubelet that
//! takes it for dead makes the load of one pod that of the next.
//!
//! The thread accepts what comes to the admin listener. A connection that begins with a probe is
//! answered by it; each other one goes on to the runtime, unread. It shares no queue with requests,
//! and it keeps file descriptors in reserve, so that it can answer when there are no others.

mod head;
mod vitals;

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{self, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mio::{
    Events, Interest, Poll, Token, Waker,
    net::{TcpListener, TcpStream},
};
use slab::Slab;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    head::{Head, Probe},
    vitals::Vitals,
};
use super::guard::Guard;
use crate::{pulse::Pulse, state::Shared, throttle::Throttle};

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);
/// Connections that have not sent a request head yet, or not taken their answer: the kubelet's, and
/// some that are none of a probe. One more, and the oldest is closed.
const CONNECTIONS: usize = 32;
/// Connections that wait for the runtime to take them; further ones are closed.
const QUEUE: usize = 16;
/// Time for a request head to come and for its answer to be taken: longer than a probe waits.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request head that are looked at: a probe's are far fewer.
const HEAD_BYTES: usize = 4 * 1024;
/// The signs of life are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Without file descriptors: pause before the next try, and what a connection is left to send its
/// head before another takes its descriptor.
const NO_FILES_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are logged once in this time.
const LOG_PERIOD: Duration = Duration::from_secs(1);

/// Connections of the admin listener that are none of a probe.
pub(crate) type Others = mpsc::Receiver<(net::TcpStream, SocketAddr)>;

/// The thread of the probes.
#[derive(Debug)]
pub(crate) struct Probes {
    thread: JoinHandle<()>,
    waker: Waker,
    stop: Arc<AtomicBool>,
}

impl Probes {
    /// Starts it on `listener`, which does not block. `/livez` fails when one of `signs`, which
    /// have names, stands still. `failed` is cancelled when the thread cannot go on.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread or no `epoll`.
    pub(crate) fn start(
        listener: net::TcpListener,
        shared: Arc<Shared>,
        signs: Vec<(String, Pulse)>,
        access: Guard,
        failed: CancellationToken,
    ) -> io::Result<(Self, Others)> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), STOP)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, others) = mpsc::channel(QUEUE);
        let mut server = Server {
            poll,
            listener,
            connections: Slab::with_capacity(CONNECTIONS),
            others: sender,
            spares: Vec::with_capacity(SPARES),
            accept_at: None,
            failures: Throttle::new(LOG_PERIOD),
            shared,
            access,
            vitals: Vitals::new(signs),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("probes".to_owned()).spawn(move || {
            let guard = failed.drop_guard();
            match server.run(&stopped) {
                Ok(()) => {
                    guard.disarm();
                }
                Err(error) => {
                    tracing::error!(thread = "probes", %error, "probes cannot be answered any more: draining, so that the pod is started anew");
                }
            }
        })?;
        Ok((Self { thread, waker, stop }, others))
    }

    /// Ends the thread. Blocks until it has ended.
    pub(crate) fn stop(self) {
        self.stop.store(true, Relaxed);
        if self.waker.wake().is_ok() {
            let _ = self.thread.join();
        }
    }
}

/// What the reserve is descriptors of.
const SPARE: &str = "/dev/null";
/// How many: between one that is closed and the accept that is to have it, another thread may take
/// it.
const SPARES: usize = 4;

struct Connection {
    socket: TcpStream,
    address: SocketAddr,
    since: Instant,
    /// What is left of the answer to write; empty: there is none yet.
    answer: Vec<u8>,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    others: mpsc::Sender<(net::TcpStream, SocketAddr)>,
    /// Closed, one after the other, to accept a connection when there is no other descriptor.
    spares: Vec<File>,
    /// When to accept again, which failed last time.
    accept_at: Option<Instant>,
    failures: Throttle,
    shared: Arc<Shared>,
    /// Which probes are answered here; others are for the runtime to answer, or to refuse.
    access: Guard,
    vitals: Vitals,
}

impl Server {
    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(CONNECTIONS + 2);
        let mut tick_at = Instant::now() + TICK;
        self.fill_up();
        while !stop.load(Relaxed) {
            let next = self.accept_at.map_or(tick_at, |at| at.min(tick_at));
            let wait = next.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            if now >= tick_at {
                // From now on, not from when it was due: of a process that was stopped all threads
                // stood still, this one too.
                tick_at = now + TICK;
                self.vitals.tick();
                self.shared.set_dead(self.vitals.dead());
                self.expire(now);
            }
            let mut accept = self.accept_at.is_some_and(|at| now >= at);
            for event in &events {
                match event.token() {
                    LISTENER => accept = true,
                    STOP => {}
                    Token(key) => self.look(key),
                }
            }
            if accept {
                self.accept(now);
            }
            self.fill_up();
        }
        Ok(())
    }

    /// Takes descriptors into reserve, as far as there are any.
    fn fill_up(&mut self) {
        while self.spares.len() < SPARES {
            match File::open(SPARE) {
                Ok(file) => self.spares.push(file),
                // The next turn tries again.
                Err(_) => break,
            }
        }
    }

    /// Accepts what waits.
    fn accept(&mut self, now: Instant) {
        self.accept_at = None;
        for _ in 0..CONNECTIONS {
            match self.listener.accept() {
                Ok((socket, address)) => self.add(socket, address, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of file descriptors, most likely.
                    if let Some(passed_over) = self.failures.admit() {
                        tracing::warn!(thread = "probes", %error, passed_over, "cannot accept a connection");
                    }
                    if self.spares.pop().is_none() && !self.close_oldest(now, NO_FILES_PAUSE) {
                        break;
                    }
                }
            }
        }
        // There may be more, of which the kernel does not tell again.
        self.accept_at = Some(now + NO_FILES_PAUSE);
    }

    fn add(&mut self, mut socket: TcpStream, address: SocketAddr, now: Instant) {
        if self.connections.len() >= CONNECTIONS {
            self.close_oldest(now, Duration::ZERO);
        }
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut socket, Token(key), interest).is_ok() {
            entry.insert(Connection { socket, address, since: now, answer: Vec::new() });
            // It may have sent its request by now.
            self.look(key);
        }
    }

    /// Closes the oldest connection if it is `age` old.
    fn close_oldest(&mut self, now: Instant, age: Duration) -> bool {
        let oldest = self.connections.iter().min_by_key(|(_, connection)| connection.since);
        let Some((key, _)) = oldest.filter(|(_, oldest)| now >= oldest.since + age) else {
            return false;
        };
        self.connections.remove(key);
        true
    }

    fn expire(&mut self, now: Instant) {
        self.connections.retain(|_, connection| now < connection.since + TIMEOUT);
    }

    /// Goes on with a connection as far as it comes without waiting.
    fn look(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.answer.is_empty() {
            let mut bytes = [0; HEAD_BYTES];
            match connection.socket.peek(&mut bytes) {
                Ok(0) => {
                    self.connections.remove(key);
                    return;
                }
                Ok(length) => match head::read(&bytes[..length], length < HEAD_BYTES) {
                    Head::Partial => return,
                    Head::Other => return self.hand_over(key),
                    Head::Probe(..) if !self.access.lets_in(&bytes[..length]) => {
                        return self.hand_over(key);
                    }
                    Head::Probe(probe, with_body) => {
                        connection.answer = answer(&self.vitals, &self.shared, probe, with_body);
                    }
                },
                Err(error) if waits(&error) => return,
                Err(_) => {
                    self.connections.remove(key);
                    return;
                }
            }
        }
        self.write(key);
    }

    fn write(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        while !connection.answer.is_empty() {
            match connection.socket.write(&connection.answer) {
                Ok(written) => {
                    connection.answer.drain(..written);
                }
                Err(error) if waits(&error) => return,
                Err(_) => break,
            }
        }
        // What is unread when a socket is closed takes the answer along.
        let mut bytes = [0; HEAD_BYTES];
        let _ = connection.socket.read(&mut bytes);
        self.connections.remove(key);
    }

    /// Gives a connection to the runtime, with all that it has sent.
    fn hand_over(&mut self, key: usize) {
        let mut connection = self.connections.remove(key);
        if self.poll.registry().deregister(&mut connection.socket).is_err() {
            return;
        }
        if self.others.try_send((connection.socket.into(), connection.address)).is_err() {
            tracing::debug!(thread = "probes", peer = %connection.address, "the runtime takes no connection: closing it");
        }
    }
}

fn waits(error: &io::Error) -> bool {
    [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind())
}

/// Whether the process is alive, when `dead` has stood still, and what is said of that.
pub(super) fn liveness(dead: Option<&str>) -> (bool, String) {
    match dead {
        None => (true, "ok\n".to_owned()),
        Some(dead) => (false, format!("{dead} has stood still for too long\n")),
    }
}

/// The whole answer to a probe.
fn answer(vitals: &Vitals, shared: &Shared, probe: Probe, with_body: bool) -> Vec<u8> {
    let (status, kind, body) = match probe {
        Probe::Live => {
            let (alive, text) = liveness(vitals.dead());
            let status = if alive { "200 OK" } else { "503 Service Unavailable" };
            (status, "text/plain; charset=utf-8", text)
        }
        Probe::Ready => {
            let (ready, told) = super::readiness(shared);
            let status = if ready { "200 OK" } else { "503 Service Unavailable" };
            (status, "application/json", told.to_string())
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), if with_body { body.as_bytes() } else { &[] }].concat()
}
