//! Bytes of one HTTP/1.1 response into the events of an SSE stream: the head, then a body that is
//! chunked or ends with the connection. Fast rather than complete: it reads what the two servers
//! under test send.

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// The response's head: the stream is open.
    Open,
    /// An event of the channel.
    Event {
        /// Its JetStream sequence, from the id.
        sequence: u64,
        /// When it was published, from the payload; nanoseconds of the benchmark's clock.
        stamp: Option<u64>,
    },
    /// An event of the server itself, by its name.
    Control(String),
}

#[derive(Debug)]
enum Framing {
    Head,
    /// The body ends with the connection.
    Plain,
    /// In a chunk's size line; the digits so far.
    ChunkSize(usize),
    /// In a chunk; bytes left.
    Chunk(usize),
    /// Between a chunk and the next size line.
    ChunkEnd,
    Ended,
}

/// The event that is being read.
#[derive(Debug, Default)]
struct Pending {
    sequence: Option<u64>,
    stamp: Option<u64>,
    control: Option<String>,
    has_data: bool,
}

/// State of one connection's response.
#[derive(Debug)]
pub(crate) struct Decoder {
    framing: Framing,
    /// The beginning of a line (or of the head) whose end has not been read.
    carry: Vec<u8>,
    pending: Pending,
}

impl Decoder {
    pub(crate) const fn new() -> Self {
        let pending = Pending { sequence: None, stamp: None, control: None, has_data: false };
        Self { framing: Framing::Head, carry: Vec::new(), pending }
    }

    /// Whether the body has ended by its own framing.
    pub(crate) const fn ended(&self) -> bool {
        matches!(self.framing, Framing::Ended)
    }

    /// Reads on; an error is an answer that is no stream.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        on: &mut impl FnMut(Item),
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            match self.framing {
                Framing::Head => bytes = self.head(bytes, on)?,
                Framing::Plain => {
                    self.body(bytes, on);
                    bytes = &[];
                }
                Framing::ChunkSize(size) => {
                    let (byte, rest) = (bytes[0], &bytes[1..]);
                    self.framing = match (byte, char::from(byte).to_digit(16)) {
                        (b'\n', _) if size == 0 => Framing::Ended,
                        (b'\n', _) => Framing::Chunk(size),
                        (b'\r', _) => Framing::ChunkSize(size),
                        (_, Some(digit)) => Framing::ChunkSize(size * 16 + digit as usize),
                        _ => return Err(format!("byte {byte:#x} in a chunk's size")),
                    };
                    bytes = rest;
                }
                Framing::Chunk(left) => {
                    let (chunk, rest) = bytes.split_at(left.min(bytes.len()));
                    self.framing = if chunk.len() == left {
                        Framing::ChunkEnd
                    } else {
                        Framing::Chunk(left - chunk.len())
                    };
                    self.body(chunk, on);
                    bytes = rest;
                }
                Framing::ChunkEnd => {
                    if bytes[0] == b'\n' {
                        self.framing = Framing::ChunkSize(0);
                    }
                    bytes = &bytes[1..];
                }
                Framing::Ended => bytes = &[],
            }
        }
        Ok(())
    }

    fn head<'a>(&mut self, bytes: &'a [u8], on: &mut impl FnMut(Item)) -> Result<&'a [u8], String> {
        let before = self.carry.len();
        self.carry.extend_from_slice(bytes);
        let Some(end) = memchr::memmem::find(&self.carry, b"\r\n\r\n") else { return Ok(&[]) };
        let head = String::from_utf8_lossy(&self.carry[..end]).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") {
            return Err(head.lines().next().unwrap_or_default().to_owned());
        }
        self.framing = if head.contains("transfer-encoding: chunked") {
            Framing::ChunkSize(0)
        } else {
            Framing::Plain
        };
        self.carry = Vec::new();
        on(Item::Open);
        Ok(&bytes[end + 4 - before..])
    }

    fn body(&mut self, mut bytes: &[u8], on: &mut impl FnMut(Item)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            if self.carry.is_empty() {
                self.pending.line(&bytes[..end], on);
            } else {
                self.carry.extend_from_slice(&bytes[..end]);
                self.pending.line(&self.carry, on);
                self.carry.clear();
            }
            bytes = &bytes[end + 1..];
        }
        self.carry.extend_from_slice(bytes);
    }
}

impl Pending {
    fn line(&mut self, line: &[u8], on: &mut impl FnMut(Item)) {
        match line {
            [] => {
                let event = std::mem::take(self);
                match event {
                    Self { control: Some(name), .. } => on(Item::Control(name)),
                    Self { sequence: Some(sequence), stamp, has_data: true, .. } => {
                        on(Item::Event { sequence, stamp });
                    }
                    _ => {}
                }
            }
            [b'i', b'd', b':', b' ', id @ ..] => {
                self.sequence =
                    id.iter().position(|b| *b == b'-').map(|dash| number(&id[dash + 1..]));
            }
            [b'd', b'a', b't', b'a', b':', b' ', b'T', b'=', rest @ ..] => {
                self.has_data = true;
                self.stamp = Some(number(rest));
            }
            [b'd', b'a', b't', b'a', b':', ..] => self.has_data = true,
            [b'e', b'v', b'e', b'n', b't', b':', b' ', name @ ..]
                if name.starts_with(b"channel.") =>
            {
                self.control = Some(String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
    }
}

/// The decimal number that `text` begins with.
fn number(text: &[u8]) -> u64 {
    text.iter()
        .take_while(|b| b.is_ascii_digit())
        .fold(0, |value, digit| value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

/// Reads a known response cut at every place: a benchmark that cannot read proves nothing.
pub(crate) fn self_test() -> Result<(), String> {
    let body = ": hi\nretry: 5\n\nid: 0000abcd-7\ndata: T=0042 x\n\nid: 0000abcd-7\nevent: channel.cursor\ndata:\n\nid: 0000abcd-9\ndata: \n\n";
    let (first, second) = body.split_at(21);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    let plain = format!("HTTP/1.1 200 OK\r\n\r\n{body}");
    let expected = [
        Item::Open,
        Item::Event { sequence: 7, stamp: Some(42) },
        Item::Control("channel.cursor".to_owned()),
        Item::Event { sequence: 9, stamp: None },
    ];
    for response in [chunked, plain] {
        for cut in 0..=response.len() {
            let (mut decoder, mut items) = (Decoder::new(), Vec::new());
            for part in [&response[..cut], &response[cut..]] {
                decoder.feed(part.as_bytes(), &mut |item| items.push(item))?;
            }
            if items != expected {
                return Err(format!("the decoder read {items:?} from a response cut at {cut}"));
            }
        }
    }
    Ok(())
}
