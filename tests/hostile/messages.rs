//! Messages that a broker takes, and no well-behaved publisher sends.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::raw::Sent;

/// Bytes of a payload at which something changes: a slice, a write, a segment, the largest message
/// of the tests' streams.
const SIZES: &[usize] =
    &[0, 1, 6, 7, 63, 4_095, 16 * 1024, 64 * 1024, 65_537, 1024 * 1024 - 200, 1024 * 1024];
/// The largest of them are seldom: one for so many messages.
const ONE_LARGE_IN: u32 = 500;

/// Blocks that stop a parser which expects a well-behaved publisher, and those that mean something
/// in the answers of the store.
pub(crate) const BLOCKS: &[&[u8]] = &[
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

pub(crate) const SUBJECTS: &[&[u8]] = &[
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

/// A text that no message after it changes: the last one of a run.
pub(crate) fn plain(number: usize, prefix: &str) -> Sent {
    let subject = format!("{prefix}last").into_bytes();
    Sent { subject, reply: None, block: None, payload: format!("{number:06} last").into_bytes() }
}

/// A message whose payload begins with its number.
pub(crate) fn sent(
    number: usize,
    prefix: &str,
    subject: &[u8],
    block: Option<&[u8]>,
    rest: &[u8],
) -> Sent {
    let payload = [format!("{number:06}").as_bytes(), rest].concat();
    let subject = [prefix.as_bytes(), subject].concat();
    Sent { subject, reply: None, block: block.map(<[u8]>::to_vec), payload }
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

/// Headers that sluice or the store reads, with values that they take and that they do not. What a
/// stream allows of the store's own is another thing: where it does not, the message is refused.
const HEADERS: &[(&str, &[&str])] = &[
    ("Event-Name", &["order.created", "channel.gap", "a b", "gr\u{f6}\u{df}e", ""]),
    ("event-name", &["lower", "channel.close"]),
    ("EVENT-NAME", &["upper"]),
    ("Content-Type", &["application/json", "text/plain; charset=\u{fc}", ""]),
    ("X", &["y", ""]),
    ("Nats-Sequence", &["1", "77", "-1", "18446744073709551616"]),
    ("Nats-Subject", &["sse.test.orders.elsewhere", "other", ""]),
    ("Nats-Time-Stamp", &["2001-01-01T00:00:00Z", "yesterday"]),
    ("Nats-Stream", &["other", "sse_test_orders"]),
    ("Nats-Num-Pending", &["0", "9"]),
    ("Nats-Last-Sequence", &["0", "3"]),
    ("Nats-UpTo-Sequence", &["1"]),
    ("Nats-Pending-Messages", &["9", "-9"]),
    ("Nats-Pending-Bytes", &["9"]),
    ("Nats-Last-Consumer", &["1"]),
    ("Nats-Last-Stream", &["1"]),
    ("Nats-Consumer-Stalled", &["$JS.FC.x"]),
    ("Nats-Msg-Size", &["0"]),
    ("Nats-Stream-Source", &["other 1 > > >", "x"]),
    ("Nats-Marker-Reason", &["MaxAge", "Purge", "Remove"]),
    ("Nats-Applied-Limit", &["MaxAge"]),
    ("Nats-Expected-Stream", &["other"]),
    ("Nats-Expected-Last-Sequence", &["0", "5", "x"]),
    ("Nats-Expected-Last-Subject-Sequence", &["0", "1", "-1"]),
    ("Nats-Expected-Last-Subject-Sequence-Subject", &["sse.test.orders.a", "*"]),
    ("Nats-Expected-Last-Msg-Id", &["1", ""]),
    ("Nats-Msg-Id", &["1", "2", "3", "\u{e9}", ""]),
    ("Nats-Rollup", &["sub", "every"]),
    ("Nats-TTL", &["1h", "1s", "never", "0", "-1", "x"]),
    (
        "Nats-Schedule",
        &["@at 2001-01-01T00:00:00Z", "@at 2099-01-01T00:00:00Z", "@every 1000h", "x"],
    ),
    ("Nats-Schedule-Target", &["sse.test.orders.scheduled", "elsewhere", "*"]),
    ("Nats-Schedule-TTL", &["1h", "x"]),
    ("Nats-Scheduler", &["sse.test.orders.a"]),
    ("Nats-Schedule-Next", &["purge", "2001-01-01T00:00:00Z"]),
    ("Nats-Incr", &["1", "x"]),
    ("Nats-Batch-Id", &["b"]),
    ("Nats-Batch-Sequence", &["1", "2", "x"]),
    ("Nats-Batch-Commit", &["1", "x"]),
    ("Nats-Required-Api-Level", &["0", "99", "x"]),
    ("Status", &["503", "100"]),
    ("Description", &["Idle Heartbeat"]),
    ("Nats-Service-Error", &["x"]),
];

fn random_block(rng: &mut StdRng) -> Vec<u8> {
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
        block.extend(header(rng));
    }
    block.extend(*ENDS.choose(rng).unwrap());
    block
}

fn header(rng: &mut StdRng) -> Vec<u8> {
    // Often ours, so that events have names; what makes the store refuse a message is seldom.
    let (name, values) = if rng.random_bool(0.6) {
        HEADERS[..8].choose(rng).unwrap()
    } else {
        HEADERS.choose(rng).unwrap()
    };
    let huge = rng.random_bool(0.002);
    let length = rng.random_range(0..if huge { 70_000 } else { 20 });
    let name = if rng.random_bool(0.8) {
        name.as_bytes().to_vec()
    } else {
        let length = rng.random_range(0..12);
        bytes(rng, length, |_| true)
    };
    // A lifetime of seconds would end while the ways to read are compared.
    let is_lifetime = name.ends_with(b"TTL") || name.starts_with(b"Nats-Schedule");
    let value = match rng.random_range(0..8) {
        _ if is_lifetime => values.choose(rng).unwrap().as_bytes().to_vec(),
        0 => bytes(rng, length, |_| true),
        1 => bytes(rng, length, |byte| byte.is_ascii_alphanumeric()),
        2 => rng.random_range(0..100_u32).to_string().into_bytes(),
        _ => values.choose(rng).unwrap().as_bytes().to_vec(),
    };
    let colon: &[u8] = if rng.random_bool(0.9) { b": " } else { b":" };
    [&name, colon, &value].concat()
}

/// A message with random bytes in each place that the protocol leaves free.
pub(crate) fn random_message(number: usize, prefix: &str, rng: &mut StdRng) -> Sent {
    let is_token = |byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'*' | b'>');
    let subject = if rng.random_bool(0.5) {
        SUBJECTS.choose(rng).unwrap().to_vec()
    } else {
        let length = rng.random_range(1..30);
        bytes(rng, length, is_token)
    };
    let block = rng.random_bool(0.9).then(|| random_block(rng));
    let mut sent = sent(number, prefix, &subject, block.as_deref(), &[]);
    let longest = if rng.random_bool(0.1) { 10_000 } else { 100 };
    let length = match rng.random_ratio(1, ONE_LARGE_IN) {
        true => *SIZES.choose(rng).unwrap(),
        false => rng.random_range(0..longest),
    };
    // The server's own limit is on both together.
    let length = length.min(1024 * 1024 - block.map_or(0, |block| block.len()) - 6);
    let is_text = rng.random_bool(0.7);
    sent.payload.extend(bytes(rng, length, |byte| !is_text || byte.is_ascii()));
    // Without its number a message can only be told by its subject.
    let told = String::from_utf8_lossy(&sent.subject);
    if rng.random_bool(0.02) && !told.contains(char::REPLACEMENT_CHARACTER) {
        sent.payload.truncate(*[0, 1, 5].choose(rng).unwrap());
    }
    sent.reply = match rng.random_range(0..20) {
        // Then the acknowledgement is a message of the channel itself.
        0 => Some(format!("{prefix}acknowledged").into_bytes()),
        1 => Some([b"_INBOX.", &bytes(rng, 8, is_token)[..]].concat()),
        _ => None,
    };
    sent
}
