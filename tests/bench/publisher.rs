//! The one publisher of a run: NATS `PUB` with a reply subject for the product, so that JetStream
//! acknowledges each event; HTTP `POST` for the others. One socket, not blocking, so that it shares
//! the generator's thread.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// How long one message may wait for room in the socket.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
const INBOX: &str = "_INBOX.bench";

enum Protocol {
    Nats { subject: String },
    Http,
}

pub(crate) struct Publisher {
    socket: TcpStream,
    protocol: Protocol,
    /// Bytes of an answer that is not whole yet.
    answer: Vec<u8>,
    /// Events that the server has acknowledged.
    pub(crate) acknowledged: u64,
}

impl Publisher {
    /// Publishes to `subject` of a JetStream stream.
    pub(crate) fn nats(address: SocketAddr, subject: &str) -> anyhow::Result<Self> {
        let mut publisher = Self::connect(address, Protocol::Nats { subject: subject.to_owned() })?;
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"name\":\"bench\"}}\r\nSUB {INBOX} 1\r\n"
        );
        publisher.write(hello.as_bytes())?;
        Ok(publisher)
    }

    /// Publishes to the floor or the peer.
    pub(crate) fn http(address: SocketAddr) -> anyhow::Result<Self> {
        Self::connect(address, Protocol::Http)
    }

    fn connect(address: SocketAddr, protocol: Protocol) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(address)
            .with_context(|| format!("the publisher connects to {address}"))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, protocol, answer: Vec::new(), acknowledged: 0 })
    }

    /// The socket, to wait for answers.
    pub(crate) const fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends one event.
    pub(crate) fn publish(&mut self, payload: &str) -> anyhow::Result<()> {
        let length = payload.len();
        let message = match &self.protocol {
            Protocol::Nats { subject } => {
                format!("PUB {subject} {INBOX} {length}\r\n{payload}\r\n")
            }
            Protocol::Http => {
                format!(
                    "POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{payload}"
                )
            }
        };
        self.write(message.as_bytes())
    }

    fn write(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        let deadline = Instant::now() + WRITE_LIMIT;
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    self.poll()?;
                    std::thread::yield_now();
                }
                Err(error) => return Err(error).context("publishing"),
            }
        }
        Ok(())
    }

    /// Reads the answers that are there.
    pub(crate) fn poll(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => bail!(
                    "the publisher's connection was closed: {}",
                    String::from_utf8_lossy(&self.answer)
                ),
                Ok(count) => self.answer.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("reading the publisher's answers"),
            }
        }
        while let Some(end) = memchr::memchr(b'\n', &self.answer) {
            let line = String::from_utf8_lossy(&self.answer[..end]).trim().to_owned();
            // A NATS message is its line and then its payload: an acknowledgement, or an error in
            // its place.
            let payload: usize = if line.starts_with("MSG ") {
                line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0) + 2
            } else {
                0
            };
            if self.answer.len() < end + 1 + payload {
                break;
            }
            let body =
                String::from_utf8_lossy(&self.answer[end + 1..end + 1 + payload]).trim().to_owned();
            self.answer.drain(..=end + payload);
            self.line(&line, &body)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str, body: &str) -> anyhow::Result<()> {
        match line {
            "PING" => self.write(b"PONG\r\n")?,
            _ if line.starts_with("MSG ") && body.contains("\"seq\"") => self.acknowledged += 1,
            _ if line.starts_with("HTTP/1.1 202") => self.acknowledged += 1,
            _ if matches!(self.protocol, Protocol::Http) && line.contains(": ") => {}
            _ if line.starts_with("INFO ") || line.is_empty() || line == "PONG" => {}
            _ => bail!("a publish was answered: {line} {body}"),
        }
        Ok(())
    }
}
