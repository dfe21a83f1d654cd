//! Whatever bytes a broker accepts, a channel goes on, and all ways to read it agree.
//!
//! `SLUICE_TEST_MESSAGES` and `SLUICE_TEST_SEED` make another run of the random messages.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::Config;
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use sluice_channel::{Event, event::check_name};
use sluice_dataplane::source::{
    ReadLimit, Source,
    jetstream::{self, JetStream, Settings, connect},
};
use sluice_tests::{
    clients::{Connection, Reader, Request},
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{NatsServer, Streams, names, stream_config},
    run,
    sse::normalise,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(120);
/// Random messages, unless the environment asks for another number.
const MESSAGES: usize = 4_000;
/// How late an event of another channel of the process may come meanwhile.
const BESIDE: Duration = Duration::from_secs(2);

/// A publisher in plain bytes: no client library would send what these tests do.
struct Raw(BufReader<TcpStream>);

/// A message as it goes to the server.
#[derive(Debug, Clone)]
struct Sent {
    subject: Vec<u8>,
    /// `None` = published without a block of headers.
    block: Option<Vec<u8>>,
    payload: Vec<u8>,
}

impl Raw {
    async fn connect(nats: &NatsServer) -> Self {
        let address = nats.url().replace("nats://", "");
        let mut raw = Self(BufReader::new(TcpStream::connect(address).await.unwrap()));
        let options = json!({"verbose": false, "pedantic": false, "headers": true, "protocol": 1, "lang": "test", "version": "0"});
        raw.0.write_all(format!("CONNECT {options}\r\n").as_bytes()).await.unwrap();
        raw.settle().await;
        raw
    }

    /// Sends `messages`, and waits until the server has parsed all of them.
    ///
    /// A message with a CR in its subject goes alone: where one read of nats-server's ends within a
    /// line that has a CR, it takes away the last byte that it has read, whichever that is.
    async fn publish(&mut self, messages: &[Sent]) {
        for run in
            messages.chunk_by(|a, b| !a.subject.contains(&b'\r') && !b.subject.contains(&b'\r'))
        {
            self.write(run).await;
        }
    }

    async fn write(&mut self, messages: &[Sent]) {
        let mut wire = Vec::new();
        for Sent { subject, block, payload } in messages {
            let total = block.as_ref().map_or(0, Vec::len) + payload.len();
            wire.extend(if block.is_some() { &b"HPUB "[..] } else { b"PUB " });
            wire.extend(subject);
            if let Some(block) = block {
                wire.extend(format!(" {}", block.len()).bytes());
            }
            wire.extend(format!(" {total}\r\n").bytes());
            wire.extend(block.iter().flatten());
            wire.extend(payload);
            wire.extend(b"\r\n");
        }
        self.0.write_all(&wire).await.unwrap();
        self.settle().await;
    }

    async fn settle(&mut self) {
        self.0.write_all(b"PING\r\n").await.unwrap();
        let mut line = String::new();
        while line != "PONG\r\n" {
            assert!(!line.starts_with("-ERR"), "the server does not take it: {line}");
            line.clear();
            assert!(self.0.read_line(&mut line).await.unwrap() > 0, "the server hung up");
        }
    }
}

/// What a channel must make of a message that the store has.
#[derive(Debug)]
struct Due {
    sequence: u64,
    topic: String,
    is_text: bool,
    name: Option<String>,
    time: String,
    payload: Vec<u8>,
}

impl Due {
    /// Name and data on a stream of a text channel.
    fn on_stream(&self) -> (String, String) {
        let reason = match std::str::from_utf8(&self.payload) {
            _ if !self.is_text => "topic not UTF-8",
            Ok(text) => {
                return (self.name.clone().unwrap_or("message".into()), normalise(text));
            }
            Err(_) => "not UTF-8",
        };
        let data = json!({"sequence": self.sequence, "topic": self.topic, "bytes": self.payload.len(), "reason": reason});
        ("channel.invalid".to_owned(), data.to_string())
    }

    /// The same on a page.
    fn on_page(&self) -> Value {
        let mut event = json!({"topic": self.topic, "time": self.time});
        match std::str::from_utf8(&self.payload) {
            Ok(text) if self.is_text => event["data"] = text.into(),
            _ => event["data"] = BASE64_STANDARD.encode(&self.payload).into(),
        }
        if self.on_stream().0 == "channel.invalid" {
            event["event"] = "channel.invalid".into();
        } else if let Some(name) = &self.name {
            event["event"] = name.clone().into();
        }
        event
    }
}

/// The name that a block of headers gives, found another way than the product does.
fn name_in(block: &[u8]) -> Option<String> {
    let mut lines = vec![Vec::new()];
    let mut bytes = block[..block.len().saturating_sub(2)].iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\r' && bytes.peek() == Some(&b'\n') {
            bytes.next();
            lines.push(Vec::new());
        } else {
            lines.last_mut().unwrap().push(byte);
        }
    }
    lines.pop();
    let is_name = |line: &&Vec<u8>| line.to_ascii_lowercase().starts_with(b"event-name:");
    let line = lines.iter().skip(1).find(is_name)?;
    let value = String::from_utf8(line[b"event-name:".len()..].to_vec()).ok()?;
    Some(value.trim().to_owned()).filter(|name| check_name(name).is_ok())
}

/// Percent-encodes what is no text.
fn topic_of(subject: &[u8], prefix: &str) -> (String, bool) {
    let mut subject = subject;
    while let [rest @ .., b'\r'] = subject {
        subject = rest;
    }
    let topic = &subject[prefix.len()..];
    if let Ok(text) = String::from_utf8(topic.to_vec()) {
        return (text, true);
    }
    let plain = |byte: &u8| (0x21..0x7f).contains(byte) && *byte != b'%';
    let encoded = topic.iter().map(|byte| match byte {
        byte if plain(byte) => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    (encoded.collect(), false)
}

/// What the store has, by its own word in JSON. That cannot say what a subject is that is no text;
/// a payload begins with the number of its message. (A CR in a subject is not always there: the
/// server drops it where what it reads ends within the line.)
async fn truth(fixture: &Fixture, sent: &[Sent]) -> Vec<Due> {
    let client = fixture.streams.context().client();
    let last = fixture.streams.info(fixture.names.stream.as_str()).await.state.last_sequence;
    let stream = fixture.names.stream.as_str();
    let ask = |sequence: u64| {
        let client = client.clone();
        async move {
            let request = json!({"seq": sequence}).to_string();
            let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
            let answer = client.request(subject, request.into()).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            let message = &answer["message"];
            let bytes = |key: &str| {
                BASE64_STANDARD.decode(message[key].as_str().unwrap_or_default()).unwrap()
            };
            let payload = bytes("data");
            let number: usize = std::str::from_utf8(&payload[..6]).unwrap().parse().unwrap();
            let told = message["subject"].as_str().unwrap();
            let is_exact = !told.contains(char::REPLACEMENT_CHARACTER);
            let subject = if is_exact { told.as_bytes() } else { &sent[number].subject };
            let (topic, is_text) = topic_of(subject, &fixture.names.prefix);
            let time = message["time"].as_str().unwrap().to_owned();
            Due { sequence, topic, is_text, name: name_in(&bytes("hdrs")), time, payload }
        }
    };
    stream::iter((1..=last).map(ask)).buffered(64).collect().await
}

/// Reads `path` in the background, as events come.
fn follow(
    plane: &DataPlane,
    path: &str,
    count: usize,
) -> JoinHandle<Vec<(String, String, String)>> {
    let (address, request) = (plane.http(), Request::get(path));
    tokio::spawn(async move {
        let mut reader = Reader::open(address, &request).await;
        let mut events = Vec::new();
        while events.len() < count {
            let event = reader.event(SOON).await.expect("the stream goes on");
            events.push((event.last_event_id, event.name, event.data));
        }
        events
    })
}

async fn assert_streams(
    fixture: &Fixture,
    due: &[Due],
    way: &str,
    events: JoinHandle<Vec<(String, String, String)>>,
) {
    let events = events.await.unwrap();
    for (due, (id, name, data)) in due.iter().zip(&events) {
        let expected = due.on_stream();
        assert_eq!(*id, fixture.cursor(due.sequence).to_string(), "{way}: order; {due:?}");
        assert_eq!((name, data), (&expected.0, &expected.1), "{way}: {due:?}");
    }
    assert_eq!(events.len(), due.len(), "{way}");
}

async fn assert_pages(fixture: &Fixture, plane: &DataPlane, due: &[Due], query: &str) {
    let client = reqwest::Client::new();
    let (mut from, mut events) = ("earliest".to_owned(), Vec::new());
    loop {
        let url = plane.url(&format!("{ORDERS}?limit=1000&from={from}{query}"));
        let answer = client.get(url).header("accept", "application/json").send().await.unwrap();
        let page: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(page["gap"], Value::Null, "nothing is missing");
        events.extend(page["events"].as_array().unwrap().clone());
        from = page["next"].as_str().unwrap().to_owned();
        if page["upToDate"] == true {
            break;
        }
    }
    for (due, event) in due.iter().zip(&mut events) {
        let mut expected = due.on_page();
        expected["id"] = fixture.cursor(due.sequence).to_string().into();
        assert_eq!(*event, expected, "page: {due:?}");
    }
    assert_eq!(events.len(), due.len(), "pages{query}");
}

async fn connection(nats: &NatsServer) -> jetstream::Connection {
    let settings =
        Settings { servers: vec![nats.url()], name: "any bytes".into(), ..Settings::default() };
    let connection = connect(&settings).await.unwrap();
    is_up(&connection).await;
    connection
}

async fn is_up(connection: &jetstream::Connection) {
    sluice_tests::eventually("a connection", SOON, async || connection.is_up().then_some(())).await;
}

/// The tail, reads in a row (direct gets, then a consumer) and the leader's word give the same.
async fn assert_source(fixture: &Fixture, due: &[Due]) {
    let source = JetStream::new(
        connection(&fixture.nats).await,
        fixture.names.stream.clone(),
        &fixture.names.prefix,
        "any-bytes",
    );
    let mut tail = source.tail(1).await.unwrap();
    let mut tailed = Vec::new();
    while tailed.len() < due.len() {
        let delivery = tokio::time::timeout(SOON, tail.next()).await.expect("a delivery").unwrap();
        tailed.push(delivery.event);
    }
    let mut read: Vec<Event> = Vec::new();
    while read.len() < due.len() {
        let from = read.last().map_or(1, |event| event.sequence + 1);
        let limit = ReadLimit { events: 100, bytes: 1024 * 1024 };
        let events = source.read(from, limit).await.unwrap().events;
        // A consumer names the first one after those that were asked for, too.
        read.extend(events.into_iter().filter(|event| event.sequence < from + 100));
    }
    let ask = |sequence| source.read_leader(sequence);
    let led = stream::iter((1..=due.len() as u64).map(ask)).buffered(64);
    let led: Vec<Event> = led.map_ok(Option::unwrap).try_collect().await.unwrap();
    for ((tailed, read), led) in tailed.iter().zip(&read).zip(&led) {
        assert_eq!(tailed, read, "the tail and a read");
        assert_eq!(tailed, led, "the tail and the leader");
    }
    for (due, event) in due.iter().zip(&tailed) {
        assert_eq!((due.sequence, &due.name), (event.sequence, &event.name), "{due:?}");
    }
}

/// A fixture whose memory is small: what is old is read from the store.
async fn small_cache() -> Fixture {
    Fixture::channel(|channel| channel.delivery.cache_bytes = 1024 * 1024).await
}

/// Publishes `sent`, and compares all ways to read it. Returns what is due.
async fn assert_all_ways(fixture: &Fixture, sent: &[Sent]) -> Vec<Due> {
    let (live_due, live_done) = tokio::sync::oneshot::channel::<usize>();
    let (address, request) = (fixture.plane.http(), Request::get(ORDERS));
    let mut live = Reader::open(address, &request).await;
    assert!(live.read_for(Duration::from_millis(200)).await);
    let live = tokio::spawn(async move {
        let (mut events, mut count) = (Vec::new(), None);
        let mut done = live_done;
        while count.is_none_or(|count| events.len() < count) {
            tokio::select! {
                event = live.event(LIMIT) => {
                    let event = event.expect("the stream goes on");
                    events.push((event.last_event_id, event.name, event.data));
                }
                total = &mut done, if count.is_none() => count = Some(total.unwrap()),
            }
        }
        events
    });
    let mut raw = Raw::connect(&fixture.nats).await;
    for some in sent.chunks(100) {
        raw.publish(some).await;
    }
    let due = truth(fixture, sent).await;
    live_due.send(due.len()).unwrap();
    assert_streams(fixture, &due, "live", live).await;

    let path = format!("{ORDERS}?from=earliest");
    assert_streams(fixture, &due, "memory", follow(&fixture.plane, &path, due.len())).await;
    assert_pages(fixture, &fixture.plane, &due, "").await;
    let restarted = fixture.another().await;
    assert_streams(fixture, &due, "history", follow(&restarted, &path, due.len())).await;
    let all = format!("{path}&topic=%3E");
    assert_streams(fixture, &due, "history", follow(&restarted, &all, due.len())).await;
    let envelopes = follow(&restarted, &format!("{path}&envelope=json"), due.len()).await.unwrap();
    for (due, (_, name, data)) in due.iter().zip(envelopes) {
        if name != "channel.invalid" {
            let envelope: Value = serde_json::from_str(&data).unwrap();
            assert_eq!(envelope["topic"], due.topic, "{due:?}");
            assert_eq!(envelope["time"], due.time, "{due:?}");
        }
    }
    assert_source(fixture, &due).await;
    due
}

fn sent(number: usize, subject: &[u8], block: Option<&[u8]>, rest: &[u8]) -> Sent {
    let payload = [format!("{number:06}").as_bytes(), rest].concat();
    let subject = [b"sse.test.orders.", subject].concat();
    Sent { subject, block: block.map(<[u8]>::to_vec), payload }
}

/// Blocks that stop a parser which expects a well-behaved publisher, and those that mean something
/// in the answers of the store.
const BLOCKS: &[&[u8]] = &[
    b"NATS/1.0\r\nX-User: Jos\xe9\r\n\r\n",
    b"NATS/1.0\r\nEvent Name: x\r\n\r\n",
    b"NATS/1.0\r\nX-Note: a\rb\r\nEvent-Name: after\r\n\r\n",
    b"NATS/1.0\r\nX-Note: a\nb\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nX-\xff\x00: y\r\nevent-name: lower\r\n\r\n",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\n",
    b"NATS/1.0\r\nEvent-Name: cut",
    b"NATS/1.0\r\nEvent-Name: cut\r\n",
    b"NATS/1.0\r\n\r\nEvent-Name: behind\r\n\r\n",
    b"\r\n",
    b"N",
    b"",
    b"\xff\xfe\xfd",
    b"Event-Name: first line\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 404 Message Not Found\r\n\r\n",
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 9\r\nNats-Pending-Bytes: 9\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 9999\r\n\r\n",
    b"NATS/1.0\r\nStatus: 503\r\nDescription: x\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 77\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 1\r\nNats-Sequence: 2\r\n\r\n",
    b"NATS/1.0\r\nNats-Subject: sse.test.orders.elsewhere\r\nNats-Stream: other\r\n\r\n",
    b"NATS/1.0\r\nNats-Time-Stamp: 2001-01-01T00:00:00Z\r\nNats-Last-Sequence: 3\r\n\r\n",
    b"NATS/1.0\r\nEvent-Name: a\r\nEvent-Name: b\r\n\r\n",
    b"NATS/1.0\r\nEvent-Name: \xff\r\nEvent-Name: b\r\n\r\n",
    b"NATS/1.0\r\nEvent-Name: channel.close\r\n\r\n",
];

const SUBJECTS: &[&[u8]] = &[
    b"a",
    b"\xff",
    b"a.\xff\xfe.b",
    b"a.%FF",
    b"a.\xef\xbf\xbd",
    b"a\x0bb",
    b"a\xc2\xa0b",
    b"a\xe2\x80\x83b",
    b"\x00\x01\x7f",
    b"a\rb",
    b"a\r",
];

#[test]
fn each_message_that_a_broker_takes_arrives_on_every_path() {
    run(LIMIT, async {
        let fixture = small_cache().await;
        let mut messages = Vec::new();
        for block in BLOCKS {
            messages.push(sent(messages.len(), b"a", Some(block), b" text"));
        }
        let forged = format!(
            "NATS/1.0\r\nNats-Stream: {}\r\nNats-Subject: x\r\nNats-Sequence: 5\r\nNats-Time-Stamp: 2001-01-01T00:00:00Z\r\nNats-Num-Pending: 0\r\n\r\n",
            fixture.names.stream
        );
        messages.push(sent(messages.len(), b"a", Some(forged.as_bytes()), b" text"));
        for subject in SUBJECTS {
            messages.push(sent(messages.len(), subject, None, b" text"));
            let block = b"NATS/1.0\r\nEvent-Name: n\r\n\r\n";
            messages.push(sent(messages.len(), subject, Some(block), b" text"));
        }
        messages.push(sent(messages.len(), b"a", None, b"\xff"));
        let due = assert_all_ways(&fixture, &messages).await;
        assert_eq!(due.len(), messages.len(), "the store takes all of them");
        let names: Vec<_> = due.iter().filter_map(|due| due.name.as_deref()).collect();
        assert_eq!(names[..4], ["after", "lower", "behind", "a"]);
        // A filter selects none of those whose topic is no text, unless it is `>`.
        let some: Vec<Due> = due.into_iter().filter(|due| due.is_text).collect();
        for plane in [&fixture.plane, &fixture.another().await] {
            let [one, more] = ["*", "*.>"].map(|filter| format!("&topic={filter}"));
            assert_pages(&fixture, plane, &some, &format!("{one}{more}")).await;
        }
        let metrics = fixture.plane.metrics().await;
        let invalid = metrics.sum("sluice_invalid_payloads", &[("channel", "orders")]);
        assert_eq!(invalid, 5.0, "topics of two messages each, and one payload");
        assert!(fixture.plane.log().contains("an event that is not text"), "the log names one");
    });
}

/// Random bytes: `length` of them, of those that `allowed` lets in.
fn bytes(rng: &mut StdRng, length: usize, allowed: impl Fn(u8) -> bool) -> Vec<u8> {
    (0..length)
        .map(|_| {
            loop {
                let byte = if rng.random_bool(0.5) {
                    rng.random()
                } else {
                    *b"ab \r\n:\0\xff".choose(rng).unwrap()
                };
                if allowed(byte) {
                    break byte;
                }
            }
        })
        .collect()
}

fn random_block(rng: &mut StdRng) -> Vec<u8> {
    const NAMES: &[&[u8]] = &[
        b"Event-Name",
        b"event-name",
        b"X",
        b"Nats-Sequence",
        b"Nats-Subject",
        b"Nats-Time-Stamp",
        b"Nats-Stream",
        b"Nats-Num-Pending",
        b"Nats-Pending-Messages",
        b"Status",
    ];
    const ENDS: &[&[u8]] = &[b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n", b"\r\n", b"", b"\n\n"];
    match rng.random_range(0..20) {
        0 | 1 => return BLOCKS.choose(rng).unwrap().to_vec(),
        2 => {
            let length = rng.random_range(0..200);
            return bytes(rng, length, |_| true);
        }
        _ => {}
    }
    let mut block = b"NATS/1.0".to_vec();
    if rng.random_bool(0.2) {
        block.extend(format!(" {} x", rng.random_range(0..1100)).bytes());
    }
    for _ in 0..rng.random_range(0..6) {
        block.extend(b"\r\n");
        if rng.random_bool(0.7) {
            block.extend(*NAMES.choose(rng).unwrap());
        } else {
            let length = rng.random_range(0..12);
            block.extend(bytes(rng, length, |_| true));
        }
        block.extend(b": ");
        let huge = rng.random_bool(0.002);
        let length = rng.random_range(0..if huge { 40_000 } else { 20 });
        match rng.random_range(0..3) {
            0 => block.extend(bytes(rng, length, |_| true)),
            1 => block.extend(bytes(rng, length, |byte| byte.is_ascii_alphanumeric())),
            _ => block.extend(rng.random_range(0..100_u32).to_string().bytes()),
        }
    }
    block.extend(*ENDS.choose(rng).unwrap());
    block
}

fn random_message(number: usize, rng: &mut StdRng) -> Sent {
    let subject = if rng.random_bool(0.5) {
        SUBJECTS.choose(rng).unwrap().to_vec()
    } else {
        let length = rng.random_range(1..30);
        bytes(rng, length, |byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'*' | b'>'))
    };
    let block = rng.random_bool(0.9).then(|| random_block(rng));
    let longest = if rng.random_bool(0.1) { 10_000 } else { 100 };
    let length = rng.random_range(0..longest);
    let payload = if rng.random_bool(0.3) {
        bytes(rng, length, |_| true)
    } else {
        bytes(rng, length, |byte| byte.is_ascii())
    };
    sent(number, &subject, block.as_deref(), &payload)
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Publishes on a second channel of the process for as long as `task` takes; the longest time that
/// an event took to its subscriber.
async fn beside<T>(fixture: &Fixture, task: impl Future<Output = T>) -> (T, Duration) {
    let names = names("beside");
    fixture.streams.create(stream_config(&names)).await;
    fixture.configs.write(&channel_config(&names));
    let path = "/channels/beside";
    sluice_tests::eventually("the second channel", SOON, async || {
        let opened = Connection::open(fixture.plane.http(), &Request::get(path)).await.ok()?;
        (opened.status() == 200).then_some(())
    })
    .await;
    let mut reader = fixture.open(path).await;
    assert!(reader.read_for(Duration::from_millis(300)).await);
    let longest = Cell::new(Duration::ZERO);
    let publishing = async {
        loop {
            let begun = Instant::now();
            fixture.streams.publish(&names.prefix, "a", "x").await;
            assert_eq!(reader.event(SOON).await.unwrap().data, "x");
            longest.set(longest.get().max(begun.elapsed()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let value = tokio::select! {
        value = task => value,
        () = publishing => unreachable!("it never ends"),
    };
    (value, longest.get())
}

#[test]
fn random_bytes_arrive_alike_on_every_path() {
    let count = from_environment("SLUICE_TEST_MESSAGES").unwrap_or(MESSAGES);
    let seed = from_environment("SLUICE_TEST_SEED").unwrap_or_else(rand::random::<u64>);
    eprintln!("SLUICE_TEST_SEED={seed}");
    run(LIMIT + Duration::from_millis(count as u64 * 10), async {
        let fixture = small_cache().await;
        let mut rng = StdRng::seed_from_u64(seed);
        let messages: Vec<Sent> =
            (0..count).map(|number| random_message(number, &mut rng)).collect();
        let (due, longest) = beside(&fixture, assert_all_ways(&fixture, &messages)).await;
        eprintln!("{} of {count} messages stored; beside them {longest:?} at most", due.len());
        assert!(due.len() > count / 2, "the store takes most of them: {}", due.len());
        assert!(due.iter().any(|due| !due.is_text) && due.iter().any(|due| due.name.is_some()));
        assert!(longest < BESIDE, "an event of another channel came after {longest:?}");
    });
}

#[test]
fn a_message_larger_than_a_pull_does_not_stop_the_tail() {
    const LARGE: usize = 9 * 1024 * 1024;
    run(LIMIT, async {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), "max_payload: 16MB\n").unwrap();
        let nats = NatsServer::start_with(&["-c", config.path().to_str().unwrap()]).await;
        let names = names("orders");
        let streams = Streams::connect(&nats.url()).await;
        let stream = Config { max_message_size: -1, ..stream_config(&names) };
        streams.create(stream).await;
        let configs = ConfigDir::new(&[channel_config(&names)]);
        let plane = DataPlane::start(&nats.url(), &configs).await;
        let mut live = Reader::open(plane.http(), &Request::get(ORDERS)).await;
        assert!(live.read_for(Duration::from_millis(200)).await);
        let large = Bytes::from("x".repeat(LARGE));
        let payloads: Vec<Bytes> =
            ["1".into(), large.clone(), "3".into(), large.clone(), large, "6".into()].into();
        for payload in &payloads {
            streams.publish(&names.prefix, "a", payload.clone()).await;
        }
        let another = DataPlane::start(&nats.url(), &configs).await;
        let request = Request::get(format!("{ORDERS}?from=earliest"));
        let mut replay = Reader::open(another.http(), &request).await;
        for reader in [&mut live, &mut replay] {
            for payload in &payloads {
                let event = reader.event(SOON).await.unwrap();
                assert!(event.data.as_bytes() == payload, "{} bytes came", event.data.len());
            }
        }
        // And it goes on as it should.
        streams.publish(&names.prefix, "a", "7").await;
        assert_eq!(live.event(SOON).await.unwrap().data, "7");
    });
}

#[test]
fn a_client_that_has_ended_is_replaced() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish("a", "1").await;
        let connection = connection(&fixture.nats).await;
        let (stream, prefix) = (fixture.names.stream.clone(), fixture.names.prefix.clone());
        let source = JetStream::new(connection.clone(), stream, &prefix, "replaced");
        let mut tail = source.tail(1).await.unwrap();
        assert_eq!(tail.next().await.unwrap().event.sequence, 1);
        // Ends the client's task, as a panic in it would.
        connection.client().drain().await.unwrap();
        let ended = tokio::time::timeout(SOON, tail.next()).await.expect("the tail ends");
        assert!(ended.is_err());
        let state =
            sluice_tests::eventually("another client", SOON, async || source.state().await.ok());
        assert_eq!(state.await.last, 1);
        assert!(connection.is_up());
        let mut tail = source.tail(1).await.unwrap();
        assert_eq!(tail.next().await.unwrap().event.sequence, 1);
        assert!(source.read_leader(1).await.unwrap().is_some());
    });
}
