//! Clients in a process of their own: a process has only so many file descriptors, and replaying
//! clients must not hold up the ones whose latency is measured.
//!
//! The parent gives everything as arguments and reads lines of JSON from a socket that the child
//! connects to; `report` on it asks for what the clients have seen since the last time.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sluice_tests::process::Process;

use crate::{
    generator::{Generator, Settled, Target},
    machine,
};

/// How long a crowd may take to open, or to answer.
const LIMIT: Duration = Duration::from_secs(120);
/// How often a crowd looks for the parent's word.
const TURN: Duration = Duration::from_millis(20);

/// What a crowd is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    /// `Last-Event-ID`; none: from now on.
    pub(crate) cursor: Option<String>,
    /// Sequence of the last event before the first that they get.
    pub(crate) seen: u64,
    pub(crate) clients: usize,
    pub(crate) in_flight: usize,
    /// They are settled once they have this event; none: once they are open.
    pub(crate) goal: Option<u64>,
}

/// What a crowd has seen since its last report.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Seconds that it took to settle.
    pub(crate) settled_after: f64,
    pub(crate) deliveries: u64,
    /// Pairs of a bucket of a [`Histogram`](crate::histogram::Histogram) and its count.
    pub(crate) latency: Vec<(usize, u64)>,
    pub(crate) errors: Vec<String>,
}

/// A crowd, as its parent sees it. Ends with this guard.
pub(crate) struct Crowd {
    _process: Process,
    socket: BufReader<TcpStream>,
}

impl Crowd {
    /// Starts one; it begins at once.
    pub(crate) fn start(order: &Order) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a socket for the crowd")?;
        let mut command =
            Command::new(std::env::current_exe().context("the path of this program")?);
        command
            .arg("crowd")
            .arg(listener.local_addr()?.to_string())
            .arg(serde_json::to_string(order)?)
            .stdin(Stdio::null());
        let mut process = Process::spawn("crowd", command);
        listener.set_nonblocking(true)?;
        let socket = (0..500).find_map(|_| {
            listener.accept().ok().or_else(|| {
                pause(TURN);
                process.ended().is_some().then(|| process.print_tail());
                None
            })
        });
        let (socket, _) = socket.context("the crowd has not called")?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(Self { _process: process, socket: BufReader::new(socket) })
    }

    /// Waits until its clients have settled.
    pub(crate) fn settled(&mut self) -> anyhow::Result<Seen> {
        let mut line = String::new();
        if self.socket.read_line(&mut line).context("waiting for the crowd")? == 0 {
            bail!("the crowd has ended before its time");
        }
        serde_json::from_str(&line).context("reading the crowd's report")
    }

    /// What they have seen since the last time.
    pub(crate) fn report(&mut self) -> anyhow::Result<Seen> {
        self.socket.get_mut().write_all(b"report\n")?;
        self.settled()
    }
}

#[allow(clippy::disallowed_methods, reason = "no runtime here: the benchmark's own thread waits")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// The child: opens the clients, and reads until the parent has gone.
pub(crate) fn run(parent: &str, order: &str) -> anyhow::Result<()> {
    let order: Order = serde_json::from_str(order).context("the crowd's order")?;
    machine::raise_open_files(order.clients as u64 + 100)?;
    let mut parent = TcpStream::connect(parent).context("calling the parent")?;
    parent.set_nonblocking(true)?;
    let mut generator = Generator::new()?;
    generator.spread_sources(std::process::id());
    generator.reset(order.goal.unwrap_or(u64::MAX));
    let target = Target { address: order.address, path: &order.path, cursor: order.cursor.clone() };
    let settled = if order.goal.is_some() { Settled::Complete } else { Settled::Open };
    let took = generator.open(&target, order.clients, order.seen, order.in_flight, settled)?;
    tell(&mut parent, &mut generator, took)?;
    loop {
        generator.idle(TURN)?;
        match parent.read(&mut [0; 64]) {
            Ok(0) => return Ok(()),
            Ok(_) => tell(&mut parent, &mut generator, took)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("listening to the parent"),
        }
    }
}

fn tell(parent: &mut TcpStream, generator: &mut Generator, took: Duration) -> anyhow::Result<()> {
    let seen = Seen {
        settled_after: took.as_secs_f64(),
        deliveries: generator.tally.deliveries,
        latency: generator.tally.latency.counts().collect(),
        errors: std::mem::take(&mut generator.errors).first,
    };
    generator.reset(generator.goal);
    // One line fits a socket's buffer.
    writeln!(parent, "{}", serde_json::to_string(&seen)?).context("answering the parent")
}
