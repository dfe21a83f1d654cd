//! HTTP/2 (RFC 9113) as bytes: connections that begin as they should, and what may follow.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::grammar::{Ending, mutate};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Statuses that a `GET`, `POST` or broken request may have; 421 is the admin listener's, to a name
/// that is not its own.
const DOCUMENTED: &[u16] =
    &[200, 201, 204, 400, 403, 404, 405, 406, 408, 412, 413, 421, 422, 431, 502, 503];
/// Of the static table (RFC 7541, appendix A), from index 8 on.
const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];

/// Of the kinds of scripts, those with frames of random types.
const ANY_FRAMES: std::ops::RangeInclusive<u32> = 3..=4;

/// What goes over one connection.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    pub(crate) frames: usize,
    pub(crate) ending: Ending,
    /// Whether the client says nothing of the table but in the opening.
    keeps_no_table: bool,
}

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let pairs = pairs
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &pairs.collect::<Vec<_>>())
}

/// A preface whose server keeps no table of headers, so that its answers can be read one by one.
pub(crate) fn opening(window: u32) -> Vec<u8> {
    let settings = settings(&[(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, window)]);
    [PREFACE, &settings].concat()
}

/// A text, not in Huffman's code (RFC 7541, section 5.2).
fn text(block: &mut Vec<u8>, text: &[u8]) {
    let mut left = text.len();
    if left < 127 {
        block.push(left as u8);
    } else {
        block.push(127);
        left -= 127;
        while left >= 128 {
            block.push((left % 128 + 128) as u8);
            left /= 128;
        }
        block.push(left as u8);
    }
    block.extend(text);
}

/// Headers as literals that enter no table.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        text(&mut block, name.as_bytes());
        text(&mut block, value.as_bytes());
    }
    block
}

/// A `GET` on stream `id`.
pub(crate) fn get(id: u32, path: &str, accept: &str) -> Vec<u8> {
    let headers = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "sluice.test"),
        (":path", path),
        ("accept", accept),
    ];
    frame(HEADERS, END_STREAM | END_HEADERS, id, &block(&headers))
}

/// Takes back stream `id`.
pub(crate) fn reset(id: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())
}

/// What a client says to the frames in `came`, of which it takes those that are whole: that it has
/// seen settings and pings. It gives no room to any stream.
pub(crate) fn replies(came: &mut Vec<u8>) -> Vec<u8> {
    let mut replies = Vec::new();
    while let Some(head) = came.first_chunk::<9>() {
        let end = 9 + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let Some(payload) = came.get(9..end) else { break };
        if flags & ACK == 0 && kind == PING {
            replies.extend(frame(PING, ACK, 0, payload));
        } else if flags & ACK == 0 && kind == SETTINGS {
            replies.extend(frame(SETTINGS, ACK, 0, &[]));
        }
        came.drain(..end);
    }
    replies
}

fn any_request(id: u32, rng: &mut StdRng) -> Vec<u8> {
    let paths = [
        "/channels/orders",
        "/channels/orders?from=earliest",
        "/channels/orders?last=1000",
        "/channels/orders/a",
        "/channels/none",
        "/channels/%ff",
        "/livez",
        "*",
        "",
        "x",
    ];
    let path = *paths.choose(rng).unwrap();
    let accept = *["text/event-stream", "application/json", "text/html"].choose(rng).unwrap();
    match rng.random_range(0..8) {
        0..4 => get(id, path, accept),
        4 | 5 => {
            let length = rng.random_range(0..200_usize);
            let told = length.to_string();
            let told = if rng.random_bool(0.7) { &told } else { "3" };
            let headers = [
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "x"),
                (":path", "/channels/orders/a"),
                ("content-length", told),
            ];
            let mut bytes = frame(HEADERS, END_HEADERS, id, &block(&headers));
            bytes.extend(frame(DATA, END_STREAM, id, &vec![b'x'; length]));
            bytes
        }
        6 => {
            let odd = [
                ("connection", "close"),
                ("te", "x"),
                (":path", "/"),
                ("Upper", "x"),
                ("a b", "c"),
                ("x", "a\r\nb"),
                (":status", "200"),
                ("content-length", "-1"),
                ("host", "other"),
                ("last-event-id", "x"),
                ("accept", ""),
            ];
            let mut headers =
                vec![(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", path)];
            headers.extend(odd.choose_multiple(rng, 3));
            headers.swap(0, rng.random_range(0..7));
            frame(HEADERS, END_STREAM | END_HEADERS, id, &block(&headers))
        }
        _ => {
            let value = "v".repeat(*[100, 5_000, 16_000].choose(rng).unwrap());
            let headers = [(":method", "GET"), (":path", path), ("x", &value)];
            frame(HEADERS, END_STREAM | END_HEADERS, id, &block(&headers))
        }
    }
}

fn any_frame(rng: &mut StdRng) -> Vec<u8> {
    let length = *[0, 1, 4, 5, 6, 8, 9, 40, 17_000].choose(rng).unwrap();
    let payload: Vec<u8> = (0..length).map(|_| rng.random()).collect();
    let stream = *[0, 0, 1, 2, 3, 5, 7, 99, u32::MAX >> 1, u32::MAX].choose(rng).unwrap();
    frame(rng.random_range(0..12), rng.random(), stream, &payload)
}

/// Odd numbers from 1 on, as a client numbers its streams.
fn ids(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| number * 2 + 1)
}

/// What follows the preface, frame by frame.
fn follows(kind: u32, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let count = rng.random_range(1..60_u32);
    let stream = "/channels/orders?from=earliest";
    match kind {
        0..3 => ids(count).map(|id| any_request(id, rng)).collect(),
        3 | 4 => {
            let any = |id| if id % 4 == 1 { any_request(id, rng) } else { any_frame(rng) };
            ids(count).map(any).collect()
        }
        // Streams that are taken back as they come.
        5 => ids(count * 3).flat_map(|id| [get(id, stream, "*/*"), reset(id)]).collect(),
        // A head that does not end.
        6 => {
            let head = block(&[(":method", "GET"), (":path", stream)]);
            let mut frames = vec![frame(HEADERS, END_STREAM, 1, &head)];
            let more = block(&[("x", &"v".repeat(rng.random_range(0..3_000)))]);
            frames.extend((0..count * 3).map(|_| frame(CONTINUATION, 0, 1, &more)));
            frames
        }
        7 => (0..count * 10).map(|_| frame(PING, 0, 0, &[7; 8])).collect(),
        8 => (0..count * 10).map(|number| settings(&[(HEADER_TABLE_SIZE, number * 64)])).collect(),
        9 => {
            let mut frames = vec![get(1, stream, "*/*")];
            let steps = [0, 1, 65_535, i32::MAX as u32, u32::MAX];
            frames.extend((0..count).map(|number| {
                let step: u32 = *steps.choose(rng).unwrap();
                frame(WINDOW_UPDATE, 0, number % 2, &step.to_be_bytes())
            }));
            frames.extend(ids(count).map(|id| frame(PRIORITY, 0, id, &[0x80, 0, 0, 1, 255])));
            frames
        }
        // Indices of the tables, and changes of their size, at random.
        10 => ids(count)
            .map(|id| {
                let length = rng.random_range(1..30);
                let block: Vec<u8> = (0..length).map(|_| rng.random()).collect();
                frame(HEADERS, END_STREAM | END_HEADERS, id, &block)
            })
            .collect(),
        _ => (0..count).map(|_| frame(DATA, 0, 1, &[])).collect(),
    }
}

impl Script {
    pub(crate) fn random(rng: &mut StdRng) -> Self {
        let window = *[0, 1, 65_535, 1 << 20].choose(rng).unwrap();
        let kind = rng.random_range(0..12);
        let follows = follows(kind, rng);
        let frames = follows.len() + 1;
        let mut bytes = follows.concat();
        let is_mutated = rng.random_bool(0.3);
        if is_mutated {
            mutate(&mut bytes, rng);
        }
        let ending =
            *[Ending::Reads, Ending::Reads, Ending::HalfClose, Ending::Closes].choose(rng).unwrap();
        let keeps_no_table = !is_mutated && !ANY_FRAMES.contains(&kind);
        Self { bytes: [opening(window), bytes].concat(), frames, ending, keeps_no_table }
    }

    /// What is wrong with what came back.
    pub(crate) fn fault(&self, came: &[u8]) -> Option<String> {
        let mut rest = came;
        while let Some((head, payload)) = rest.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if length > 16_384 || head[3] > CONTINUATION {
                return Some(format!("no frame: {:?}", head.escape_ascii().to_string()));
            }
            let (payload, next) = payload.split_at_checked(length)?;
            rest = next;
            if head[3] == HEADERS && self.keeps_no_table {
                match status(payload) {
                    Some(status) if DOCUMENTED.contains(&status) => {}
                    status => {
                        let payload = payload.escape_ascii();
                        return Some(format!("not a documented status: {status:?} in {payload}"));
                    }
                }
            }
        }
        None
    }
}

/// The status that a block of headers begins with.
fn status(block: &[u8]) -> Option<u16> {
    let mut block = block;
    // Changes of the table's size come first.
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        block = if first & 0x1f == 0x1f {
            let end = rest.iter().position(|byte| byte & 0x80 == 0)?;
            &rest[end + 1..]
        } else {
            rest
        };
    }
    match block {
        [first @ 0x88..=0x8e, ..] => Some(STATIC[usize::from(first - 0x88)]),
        [0x08 | 0x18 | 0x48, length, value @ ..] => {
            let value = value.get(..usize::from(length & 0x7f))?;
            let digits = if length & 0x80 == 0 { value.to_vec() } else { digits(value) };
            std::str::from_utf8(&digits).ok()?.parse().ok()
        }
        _ => None,
    }
}

/// Digits in Huffman's code (RFC 7541, appendix B): 5 bits for 0 to 2, 6 for the others.
fn digits(coded: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> =
        coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut digits) = (0, Vec::new());
    let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    while let Some(five) = bits.get(at..at + 5) {
        let five = number(five);
        if five < 3 {
            digits.push(b'0' + five);
            at += 5;
        } else {
            let Some(six) = bits.get(at..at + 6).map(number).filter(|six| (25..32).contains(six))
            else {
                break;
            };
            digits.push(b'3' + six - 25);
            at += 6;
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_each_form_that_it_may_have() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x20, 0x8d]), Some(404));
        assert_eq!(status(&[0x3f, 0xe1, 0x1f, 0x8d]), Some(404));
        assert_eq!(status(&[0x08, 3, b'4', b'0', b'5']), Some(405));
        // 405: 011010 00000 011011, and ones to the end.
        assert_eq!(status(&[0x48, 0x83, 0b0110_1000, 0b0000_1101, 0b1111_1111]), Some(405));
        assert_eq!(status(&[0xbe]), None);
    }
}
