//! Subscribers over raw sockets, which can be stalled, cut and moved between pods, and the ledger
//! of what each one got.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::SocketAddr,
    time::Duration,
};

use serde_json::Value;
use sluice_channel::{Cursor, Filter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    nats::Log,
    sse::{Event, Item, Parser, normalise},
};

/// How long a data plane may take to send a response head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// A request as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method; `GET` unless changed.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// Header lines.
    pub headers: Vec<(String, String)>,
    /// `HTTP/1.1` unless changed.
    pub version: &'static str,
    /// `SO_RCVBUF` of the socket, bytes, so that a reader that stops reading is felt soon.
    pub receive_buffer: Option<u32>,
}

impl Request {
    /// `GET` of a path as `EventSource` sends it.
    pub fn get(path: impl Into<String>) -> Self {
        let headers = vec![("Accept".to_owned(), "text/event-stream".to_owned())];
        Self {
            method: "GET",
            path: path.into(),
            headers,
            version: "HTTP/1.1",
            receive_buffer: None,
        }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The same with a cursor as `Last-Event-ID`.
    #[must_use]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "so that callers may give a cursor as well as any text"
    )]
    pub fn resume(self, cursor: impl ToString) -> Self {
        self.header("Last-Event-ID", cursor.to_string())
    }

    fn text(&self) -> String {
        let mut text = format!("{} {} {}\r\n", self.method, self.path, self.version);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            // A name that the admin listener answers to, too.
            text += "Host: localhost\r\n";
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text + "\r\n"
    }
}

/// How the end of a body is known.
#[derive(Debug)]
enum Framing {
    Chunked(Chunked),
    /// Bytes still to come.
    Length(u64),
    UntilClose,
}

/// A response whose body is read as an event stream, at the test's pace.
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
    parser: Parser,
    /// Body bytes so far.
    received: u64,
    ended: bool,
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends the request and reads the response head.
    ///
    /// # Errors
    /// When the connection is refused or ends before the head is whole.
    pub async fn open(address: SocketAddr, request: &Request) -> io::Result<Self> {
        let opened = timeout(HEAD_LIMIT, Self::open_unbounded(address, request)).await;
        opened.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no response head")))
    }

    async fn open_unbounded(address: SocketAddr, request: &Request) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = request.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let mut socket = socket.connect(address).await?;
        socket.write_all(request.text().as_bytes()).await?;
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            if socket.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|l| l.split(' ').nth(1)?.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
            .collect();
        let value = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let framing = if request.method == "HEAD" || status == 204 || status == 304 {
            Framing::Length(0)
        } else if value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            Framing::Chunked(Chunked::default())
        } else {
            value("content-length")
                .and_then(|v| v.parse().ok())
                .map_or(Framing::UntilClose, Framing::Length)
        };
        let mut connection = Self {
            socket,
            status,
            headers,
            framing,
            parser: Parser::new(),
            received: 0,
            ended: false,
            buffer: Vec::with_capacity(64 * 1024),
        };
        connection.take(&bytes[end + 4..], |parser, body| parser.push(body));
        Ok(connection)
    }

    /// HTTP status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All values of a header, as one list in lower case.
    pub fn list(&self, name: &str) -> String {
        let values =
            self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.to_ascii_lowercase());
        values.collect::<Vec<_>>().join(", ")
    }

    /// All headers, names in lower case.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Whether the body ended as its framing demands, rather than by a cut connection.
    pub fn ended_cleanly(&self) -> bool {
        match &self.framing {
            Framing::Chunked(chunked) => chunked.state == ChunkState::Done,
            Framing::Length(left) => *left == 0,
            Framing::UntilClose => self.ended,
        }
    }

    /// Body bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What a browser would send as `Last-Event-ID` now.
    pub fn last_event_id(&self) -> &str {
        self.parser.last_event_id()
    }

    /// The local address, by which the data plane knows this subscriber.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// The next item; `None` once the stream has ended. Can be cancelled without loss.
    pub async fn item(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.parser.pop() {
                return Some(item);
            }
            if !self.fill(Parser::push).await {
                return None;
            }
        }
    }

    /// The rest of the body as it is.
    pub async fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while self.fill(|_, bytes| body.extend_from_slice(bytes)).await {}
        body
    }

    /// Reads once; false once the stream has ended.
    async fn fill(&mut self, sink: impl FnMut(&mut Parser, &[u8])) -> bool {
        if self.ended || (!matches!(self.framing, Framing::UntilClose) && self.ended_cleanly()) {
            self.ended = true;
            return false;
        }
        self.buffer.clear();
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(n) if n > 0 => {
                let bytes = std::mem::take(&mut self.buffer);
                self.take(&bytes, sink);
                self.buffer = bytes;
                true
            }
            _ => {
                self.ended = true;
                false
            }
        }
    }

    fn take(&mut self, bytes: &[u8], mut sink: impl FnMut(&mut Parser, &[u8])) {
        let (parser, received) = (&mut self.parser, &mut self.received);
        let mut sink = |body: &[u8]| {
            *received += body.len() as u64;
            sink(parser, body);
        };
        match &mut self.framing {
            Framing::Chunked(chunked) => chunked.push(bytes, sink),
            Framing::Length(left) => {
                let take = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                sink(&bytes[..take]);
            }
            Framing::UntilClose => sink(bytes),
        }
    }
}

/// Decoder of HTTP/1.1's chunked framing (RFC 9112, section 7.1).
#[derive(Debug, Default)]
struct Chunked {
    state: ChunkState,
    line: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum ChunkState {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
    Done,
}

impl Chunked {
    fn push(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            if let ChunkState::Data(left) = self.state {
                let take = left.min(bytes.len());
                sink(&bytes[..take]);
                bytes = &bytes[take..];
                self.state =
                    if take == left { ChunkState::DataEnd } else { ChunkState::Data(left - take) };
                continue;
            }
            let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
                self.line.extend_from_slice(bytes);
                return;
            };
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line =
                String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
            self.state = match &self.state {
                ChunkState::Size => {
                    match usize::from_str_radix(line.split(';').next().unwrap_or(""), 16) {
                        Ok(0) => ChunkState::Trailer,
                        Ok(size) => ChunkState::Data(size),
                        Err(_) => panic!("not a chunk size: {line:?}"),
                    }
                }
                ChunkState::DataEnd if line.is_empty() => ChunkState::Size,
                ChunkState::Trailer if line.is_empty() => ChunkState::Done,
                ChunkState::Trailer => ChunkState::Trailer,
                state => panic!("{line:?} after {state:?}"),
            };
        }
    }
}

/// A `channel.gap` as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// `reason` of its data.
    pub reason: String,
    /// Its whole data.
    pub data: Value,
    /// Its id.
    pub cursor: Cursor,
    /// How many events were recorded before it.
    pub after: usize,
}

/// What one subscriber got, over all its connections. Recording checks what must hold at any time.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Sequence and [`digest`] of each event of the channel's own, in order of arrival.
    pub entries: Vec<(u64, u64)>,
    /// The gaps that were named.
    pub gaps: Vec<Gap>,
    /// Our other events but `channel.cursor`, in order.
    pub controls: Vec<Event>,
    /// Ids of `channel.cursor` events.
    pub heartbeats: Vec<Cursor>,
    /// `retry:` values, milliseconds.
    pub retries: Vec<u64>,
    /// Comments seen.
    pub comments: usize,
    /// Connections made.
    pub connections: usize,
    position: Option<Cursor>,
}

/// A digest of an event's data, to compare it without keeping it.
pub fn digest(data: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    hasher.finish()
}

impl Ledger {
    /// Notes an item.
    ///
    /// # Panics
    /// When it breaks a promise: an event without a cursor as id, or one that goes back or repeats.
    pub fn record(&mut self, item: &Item) {
        match item {
            Item::Retry(millis) => self.retries.push(*millis),
            Item::Comment(_) => self.comments += 1,
            Item::Event(event) => self.record_event(event),
        }
    }

    fn record_event(&mut self, event: &Event) {
        let is_ours = event.name.starts_with("channel.") && event.name != "channel.invalid";
        if is_ours && !event.has_id && self.position.is_none() && event.name != "channel.gap" {
            // Before the data plane has seen the stream at all, it has no cursor to give.
            self.controls.push(event.clone());
            return;
        }
        assert!(event.has_id, "an event without an id of its own: {event:?}");
        let cursor: Cursor =
            event.last_event_id.parse().unwrap_or_else(|_| panic!("no cursor as id: {event:?}"));
        if event.name == "channel.gap" {
            let data: Value = serde_json::from_str(&event.data)
                .unwrap_or_else(|_| panic!("the data of a gap is JSON: {event:?}"));
            let reason = data["reason"]
                .as_str()
                .unwrap_or_else(|| panic!("a gap has a reason: {event:?}"))
                .to_owned();
            self.gaps.push(Gap { reason, data, cursor, after: self.entries.len() });
            self.position = Some(cursor);
            return;
        }
        if let Some(position) = self.position {
            assert_eq!(cursor.epoch, position.epoch, "the epoch changed without a gap: {event:?}");
            let rises = cursor.sequence > position.sequence
                || (is_ours && cursor.sequence == position.sequence);
            assert!(rises, "{} after {}: {event:?}", cursor.sequence, position.sequence);
        }
        self.position = Some(cursor);
        match event.name.as_str() {
            "channel.cursor" => {
                assert_eq!(event.data, "", "channel.cursor has no data");
                self.heartbeats.push(cursor);
            }
            _ if is_ours => self.controls.push(event.clone()),
            _ => self.entries.push((cursor.sequence, digest(&event.data))),
        }
    }

    /// Where the subscriber is.
    pub fn position(&self) -> Option<Cursor> {
        self.position
    }

    /// Sequence of the last event of the channel's own.
    pub fn last(&self) -> Option<u64> {
        self.entries.last().map(|(sequence, _)| *sequence)
    }

    /// Names of our own events seen, without gaps and cursors.
    pub fn control_names(&self) -> Vec<&str> {
        self.controls.iter().map(|e| e.name.as_str()).collect()
    }

    /// Sequences of the channel's own events, in order.
    pub fn sequences(&self) -> Vec<u64> {
        self.entries.iter().map(|(sequence, _)| *sequence).collect()
    }

    /// The channel's own events must be exactly `expected`, in order: no hole, no duplicate,
    /// nothing altered.
    ///
    /// # Panics
    /// When they are not; the first difference is named.
    #[track_caller]
    pub fn assert_exactly(&self, what: &str, expected: &[(u64, u64)]) {
        for (i, (got, want)) in self.entries.iter().zip(expected).enumerate() {
            assert!(
                got.0 == want.0,
                "{what}: event {i} has sequence {} and should have {}",
                got.0,
                want.0
            );
            assert!(got.1 == want.1, "{what}: event {i} (sequence {}) has another payload", got.0);
        }
        let (got, want) = (self.entries.len(), expected.len());
        assert!(
            got == want,
            "{what}: {got} events instead of {want}; last {:?}, should be {:?}",
            self.last(),
            expected.last().map(|e| e.0)
        );
    }
}

/// The entries that a ledger should hold after reading `log` with `filter` from after `from` up to
/// and including `to`.
///
/// # Panics
/// When the filter is malformed or a payload is not UTF-8.
pub fn expected(log: &Log, from: u64, to: u64, filter: &[&str]) -> Vec<(u64, u64)> {
    let filter = Filter::new(filter.iter().copied()).expect("a filter");
    let events = log.range(from + 1..to.max(from) + 1).filter(|(_, e)| filter.matches(&e.topic));
    events
        .map(|(sequence, e)| {
            (*sequence, digest(&normalise(std::str::from_utf8(&e.payload).expect("UTF-8"))))
        })
        .collect()
}

/// A connection with its ledger.
#[derive(Debug)]
pub struct Reader {
    /// The open stream.
    pub connection: Connection,
    /// What it brought.
    pub ledger: Ledger,
}

impl Reader {
    /// Opens a stream; it must be one.
    ///
    /// # Panics
    /// When the answer is not 200 with an event stream.
    pub async fn open(address: SocketAddr, request: &Request) -> Self {
        let connection = Connection::open(address, request).await.expect("a response");
        assert_eq!(connection.status(), 200, "{} of {}", request.method, request.path);
        assert_eq!(connection.header("content-type"), Some("text/event-stream"));
        Self { connection, ledger: Ledger { connections: 1, ..Ledger::default() } }
    }

    /// The next item, recorded; `None` at the end of the stream.
    ///
    /// # Panics
    /// When none comes within `limit`.
    pub async fn item(&mut self, limit: Duration) -> Option<Item> {
        let item = timeout(limit, self.connection.item()).await;
        let item = item.unwrap_or_else(|_| {
            panic!("nothing came within {limit:?}; position {:?}", self.ledger.position())
        });
        if let Some(item) = &item {
            self.ledger.record(item);
        }
        item
    }

    /// The next event, also one of ours but for `channel.cursor`; `None` at the end of the stream.
    ///
    /// # Panics
    /// When none comes within `limit`.
    pub async fn event(&mut self, limit: Duration) -> Option<Event> {
        let deadline = Instant::now() + limit;
        loop {
            match self.item(deadline.saturating_duration_since(Instant::now())).await? {
                Item::Event(event) if event.name != "channel.cursor" => return Some(event),
                _ => {}
            }
        }
    }

    /// Reads until `done` holds.
    ///
    /// # Panics
    /// When it does not within `limit`, or the stream ends before.
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Ledger) -> bool,
    ) {
        let deadline = Instant::now() + limit;
        while !done(&self.ledger) {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.connection.item()).await {
                Ok(Some(item)) => self.ledger.record(&item),
                Ok(None) => panic!("the stream ended before {what}; {}", self.summary()),
                Err(_) => panic!("not within {limit:?}: {what}; {}", self.summary()),
            }
        }
    }

    /// Reads until the channel's event with this sequence is there.
    pub async fn until_sequence(&mut self, sequence: u64, limit: Duration) {
        self.until(&format!("sequence {sequence}"), limit, |ledger| {
            ledger.last().is_some_and(|last| last >= sequence)
        })
        .await;
    }

    /// Reads for this long, whatever comes; true when the stream is still open.
    pub async fn read_for(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            match timeout(
                deadline.saturating_duration_since(Instant::now()),
                self.connection.item(),
            )
            .await
            {
                Ok(Some(item)) => self.ledger.record(&item),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Reads until the stream ends.
    ///
    /// # Panics
    /// When it does not within `limit`.
    pub async fn until_end(&mut self, limit: Duration) {
        assert!(
            !self.read_for(limit).await,
            "the stream did not end within {limit:?}; {}",
            self.summary()
        );
    }

    fn summary(&self) -> String {
        let ledger = &self.ledger;
        format!(
            "{} events, position {:?}, gaps {:?}, controls {:?}",
            ledger.entries.len(),
            ledger.position,
            ledger.gaps,
            ledger.control_names()
        )
    }
}

/// What a reconnecting subscriber does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Pods to connect to, in turn; what is not there is skipped.
    pub pods: watch::Receiver<Vec<SocketAddr>>,
    /// Which pod comes first.
    pub first_pod: usize,
    /// Path and query.
    pub path: String,
    /// Where to start; `None` = no cursor.
    pub cursor: Option<Cursor>,
    /// Ends once this sequence is there (`u64::MAX` while it is not known).
    pub stop_at: watch::Receiver<u64>,
    /// Drops its own connection, wherever in a frame that is, after so many events, again and
    /// again.
    pub cut_after: Option<usize>,
    /// Longest wait before it connects again: keeps tests short, whatever `retry:` says.
    pub longest_wait: Duration,
}

impl Plan {
    /// Runs it as a task. The ledger comes back once `stop_at` is reached.
    pub fn spawn(self) -> JoinHandle<Ledger> {
        tokio::spawn(self.run())
    }

    async fn run(mut self) -> Ledger {
        let mut ledger = Ledger::default();
        let mut cursor = self.cursor.map(|c| c.to_string()).unwrap_or_default();
        let mut pod = self.first_pod;
        loop {
            let pods = self.pods.borrow_and_update().clone();
            let request = Request::get(self.path.clone());
            let request = if cursor.is_empty() { request } else { request.resume(&cursor) };
            let opened = match pods.get(pod % pods.len().max(1)) {
                Some(address) => Connection::open(*address, &request).await,
                None => Err(io::ErrorKind::NotFound.into()),
            };
            pod += 1;
            if let Ok(mut connection) = opened {
                assert_eq!(connection.status(), 200, "a stream is answered with 200");
                ledger.connections += 1;
                let done = self.follow(&mut connection, &mut ledger).await;
                // Not the parser's: it may be ahead of what was taken from it before a cut.
                if let Some(position) = ledger.position() {
                    cursor = position.to_string();
                }
                if done {
                    return ledger;
                }
            }
            let wait = ledger
                .retries
                .last()
                .map_or(Duration::from_millis(100), |ms| Duration::from_millis(*ms));
            sleep(wait.min(self.longest_wait)).await;
        }
    }

    /// Reads one connection to its end; true once the goal is reached.
    async fn follow(&mut self, connection: &mut Connection, ledger: &mut Ledger) -> bool {
        let until = self.cut_after.map_or(usize::MAX, |n| ledger.entries.len() + n);
        loop {
            let stop_at = *self.stop_at.borrow_and_update();
            if ledger.last().is_some_and(|last| last >= stop_at) {
                return true;
            }
            if ledger.entries.len() >= until {
                return false;
            }
            tokio::select! {
                item = connection.item() => match item {
                    Some(item) => ledger.record(&item),
                    None => return false,
                },
                changed = self.stop_at.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_wherever_they_are_cut() {
        let wire = b"5\r\nhello\r\n1;x=y\r\n \r\nA\r\nworld\r\n\r\n!\r\n0\r\n\r\n";
        for cut in 0..wire.len() {
            let (mut chunked, mut body) = (Chunked::default(), Vec::new());
            chunked.push(&wire[..cut], |b| body.extend_from_slice(b));
            chunked.push(&wire[cut..], |b| body.extend_from_slice(b));
            assert_eq!(
                (body.as_slice(), &chunked.state),
                (&b"hello world\r\n\r\n!"[..], &ChunkState::Done)
            );
        }
    }

    fn event(name: &str, id: &str) -> Item {
        Item::Event(Event {
            name: name.into(),
            data: r#"{"reason":"expired"}"#.into(),
            last_event_id: id.into(),
            has_id: true,
        })
    }

    #[test]
    fn a_ledger_takes_rising_events_and_named_gaps() {
        let mut ledger = Ledger::default();
        for (name, id) in [
            ("message", "00000001-4"),
            ("message", "00000001-7"),
            ("channel.close", "00000001-7"),
            ("channel.gap", "00000002-0"),
            ("message", "00000002-1"),
        ] {
            ledger.record(&event(name, id));
        }
        assert_eq!(
            (ledger.sequences(), ledger.gaps.len(), ledger.gaps[0].after),
            (vec![4, 7, 1], 1, 2)
        );
    }

    #[test]
    #[should_panic(expected = "7 after 7")]
    fn a_ledger_refuses_a_duplicate() {
        let mut ledger = Ledger::default();
        ledger.record(&event("message", "00000001-7"));
        ledger.record(&event("message", "00000001-7"));
    }

    #[test]
    #[should_panic(expected = "epoch changed without a gap")]
    fn a_ledger_refuses_another_epoch_without_a_gap() {
        let mut ledger = Ledger::default();
        ledger.record(&event("message", "00000001-7"));
        ledger.record(&event("message", "00000002-8"));
    }

    #[test]
    #[should_panic(expected = "sequence 3 and should have 2")]
    fn a_ledger_finds_a_hole() {
        let ledger = Ledger { entries: vec![(1, 0), (3, 0)], ..Ledger::default() };
        ledger.assert_exactly("x", &[(1, 0), (2, 0), (3, 0)]);
    }
}
