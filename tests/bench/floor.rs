//! The floor: a server that does nothing but write bytes. One thread, one `epoll`, one `write` for
//! each subscriber and event, and replay as large writes from one contiguous log of encoded frames.
//!
//! `GET` subscribes (from the sequence in `Last-Event-ID`, else from now), `POST` appends its body.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    fd::OwnedFd,
};
use socket2::{Domain, Socket, Type};

/// Most bytes of one write while a subscriber catches up.
const WRITE_BYTES: usize = 256 * 1024;
/// Key of the listening socket.
const LISTENER: u64 = u64::MAX;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n: floor\n\n";

struct Peer {
    socket: TcpStream,
    /// Bytes of a request that is not whole yet.
    request: Vec<u8>,
    /// Where in the log it reads on; `None`: not a subscriber.
    at: Option<usize>,
    /// Waits for its socket to take more.
    blocked: bool,
}

struct Floor {
    epoll: OwnedFd,
    peers: Vec<Option<Peer>>,
    /// All frames one after the other, and where the frame after each sequence begins.
    log: Vec<u8>,
    ends: Vec<usize>,
}

/// Serves until it is killed. Prints `listening http=<address>` first.
pub(crate) fn serve() -> anyhow::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(4096)?;
    listener.set_nonblocking(true)?;
    let listener = std::net::TcpListener::from(listener);
    let mut floor = Floor {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        peers: Vec::new(),
        log: Vec::new(),
        ends: vec![0],
    };
    epoll::add(&floor.epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    println!("listening http={}", listener.local_addr()?);
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match epoll::wait(&floor.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let (key, flags) = (event.data.u64(), event.flags);
            if key == LISTENER {
                while let Ok((socket, _)) = listener.accept() {
                    floor.admit(socket)?;
                }
                continue;
            }
            let index = key as usize;
            if flags.contains(EventFlags::OUT) {
                floor.catch_up(index)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                floor.read(index, &mut buffer)?;
            }
        }
    }
}

impl Floor {
    fn admit(&mut self, socket: TcpStream) -> anyhow::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        epoll::add(
            &self.epoll,
            &socket,
            EventData::new_u64(self.peers.len() as u64),
            EventFlags::IN,
        )?;
        self.peers.push(Some(Peer { socket, request: Vec::new(), at: None, blocked: false }));
        Ok(())
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        let Some(peer) = self.peers[index].as_mut() else { return Ok(()) };
        match peer.socket.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Ok(0) | Err(_) => {
                self.peers[index] = None;
                return Ok(());
            }
            Ok(count) => peer.request.extend_from_slice(&buffer[..count]),
        }
        while let Some(request) =
            self.peers[index].as_mut().and_then(|peer| take_request(&mut peer.request))
        {
            match request {
                Request::Subscribe(sequence) => self.subscribe(index, sequence)?,
                Request::Publish(body) => self.publish(index, &body)?,
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, index: usize, sequence: Option<usize>) -> anyhow::Result<()> {
        let newest = self.ends.len() - 1;
        let at = self.ends[sequence.unwrap_or(newest).min(newest)];
        let Some(peer) = self.peers[index].as_mut() else { return Ok(()) };
        peer.at = Some(at);
        if peer.socket.write_all(HEAD).is_err() {
            self.peers[index] = None;
            return Ok(());
        }
        self.catch_up(index)
    }

    /// Writes once and waits for writability if there is more: no subscriber keeps the others
    /// waiting.
    fn catch_up(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(peer) = self.peers[index].as_mut() else { return Ok(()) };
        let Some(at) = peer.at.as_mut() else { return Ok(()) };
        let end = self.log.len().min(*at + WRITE_BYTES);
        if *at < end {
            match peer.socket.write(&self.log[*at..end]) {
                Ok(count) => *at += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.peers[index] = None;
                    return Ok(());
                }
            }
        }
        let blocked = *at < self.log.len();
        if blocked != peer.blocked {
            peer.blocked = blocked;
            let flags = if blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &peer.socket, EventData::new_u64(index as u64), flags)?;
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, body: &[u8]) -> anyhow::Result<()> {
        write!(self.log, "id: 00000000-{}\ndata: ", self.ends.len())?;
        self.log.extend_from_slice(body);
        self.log.extend_from_slice(b"\n\n");
        self.ends.push(self.log.len());
        if let Some(peer) = self.peers[index].as_mut() {
            peer.socket.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
        }
        for other in 0..self.peers.len() {
            if self.peers[other].as_ref().is_some_and(|p| p.at.is_some() && !p.blocked) {
                self.catch_up(other)?;
            }
        }
        Ok(())
    }
}

enum Request {
    /// Wants all after this sequence; `None`: what comes from now on.
    Subscribe(Option<usize>),
    Publish(Vec<u8>),
}

/// Takes one whole request off the front of `bytes`.
fn take_request(bytes: &mut Vec<u8>) -> Option<Request> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if head.starts_with("GET ") {
        bytes.drain(..end);
        let id = header("Last-Event-ID:").and_then(|id| id.rsplit('-').next()?.parse().ok());
        return Some(Request::Subscribe(id));
    }
    let length: usize = header("Content-Length:").and_then(|v| v.parse().ok()).unwrap_or(0);
    if bytes.len() < end + length {
        return None;
    }
    let body = bytes[end..end + length].to_vec();
    bytes.drain(..end + length);
    Some(Request::Publish(body))
}
