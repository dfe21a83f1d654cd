//! Requests of HTTP/1.1 as bytes: a grammar of what clients send, right and wrong, and mutations of
//! it.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

/// What goes over one connection.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    /// Requests in it, before mutations.
    pub(crate) requests: usize,
    /// Path of the last request.
    pub(crate) path: String,
    /// Whether the last request is one whose answer has no body, whatever its head says of one.
    pub(crate) ends_with_head: bool,
    /// Whether the bytes are what the grammar made.
    pub(crate) is_mutated: bool,
    pub(crate) ending: Ending,
}

/// What the client does after its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Waits for the answers.
    Reads,
    /// Says that it sends no more, and waits for the answers.
    HalfClose,
    /// Goes at once.
    Closes,
}

/// Paths that a data plane has on its public listener, and some that it has not.
const PATHS: &[&str] = &[
    "/channels/orders",
    "/channels/orders",
    "/channels/orders",
    "/channels/%6frders",
    "/channels/orders/a",
    "/channels/orders/a.b.c",
    "/channels/orders/a/b",
    "/channels/orders/%3E",
    "/channels/orders/*",
    "/channels/orders/a..b",
    "/channels/orders/%ff",
    "/channels/orders/%00",
    "/channels/orders/",
    "/channels/none",
    "/channels/none/a",
    "/channels/%ff",
    "/channels/%",
    "/channels/%zz",
    "/channels/",
    "/channels",
    "/channels/..%2f..%2fetc%2fpasswd",
    "/",
    "//",
    "*",
    "http://other/channels/orders",
    "http://",
    "other:443",
    "",
    "/\u{f6}",
];

/// Paths of the admin listener. `/drain` is not among them: it would do what it says.
const ADMIN_PATHS: &[&str] = &[
    "/livez",
    "/readyz",
    "/metrics",
    "/debug/subscribers",
    "/debug/subscribers?limit=1",
    "/debug/subscribers?limit=x",
    "/debug/subscribers?channel=%ff",
    "/debug/channels",
    "/",
    "/console.js",
    "/console.css",
    "/none",
    "/channels/orders",
    "/channels/orders/a",
    "/channels/none",
    "/channels/%ff",
];

const PARAMETERS: &[(&str, &[&str])] = &[
    ("topic", &["a", "a.*", "*.%3E", "%3E", ">", "a..b", "", "%ff", "%00", "*", "a.b.c.d.e.f"]),
    (
        "from",
        &["earliest", "latest", "00000000-1", "ffffffff-18446744073709551615", "x", "%ff", ""],
    ),
    ("last_event_id", &["00000000-1", "x", "", "00000000-99999999999999999999"]),
    ("lastEventId", &["00000000-1", "-", ""]),
    (
        "since",
        &["15m", "0", "-1", "9223372036854775807", "2001-01-01T00:00:00Z", "9999999999h", "x"],
    ),
    ("last", &["1", "1000", "0", "1001", "-1", "x", "1e3", ""]),
    ("limit", &["1", "1000", "0", "1001", "18446744073709551616", ""]),
    ("envelope", &["json", "xml", "", "%ff"]),
    ("open", &["1", "0", ""]),
    ("unknown", &["x", "%", "%f", "+", "%20"]),
    ("", &["", "="]),
];

const HEADERS: &[(&str, &[&str])] = &[
    ("Host", &["sluice.test", "", "a b", "[::1]:1", "x:99999", "\u{f6}"]),
    (
        "Accept",
        &[
            "text/event-stream",
            "application/json",
            "application/json;q=0.1",
            "*/*;q=x",
            "text/html",
            "",
            ",,,",
        ],
    ),
    ("Last-Event-ID", &["00000000-1", "x", "", "\u{f6}", "ffffffff-18446744073709551615"]),
    ("Origin", &["https://shop.example.com", "https://evil.example", "null", "", "\u{f6}"]),
    ("Sec-Fetch-Site", &["cross-site", "same-origin", "none", ""]),
    ("Access-Control-Request-Method", &["GET", "POST", "x y"]),
    ("Access-Control-Request-Headers", &["last-event-id", ""]),
    ("Content-Type", &["application/json", "text/plain", "", "\u{f6}"]),
    ("Idempotency-Key", &["1", "2", "", "\u{f6}", "k k"]),
    ("If-Match", &["\"00000000-1\"", "*", "\"x\"", "", "W/\"00000000-1\""]),
    ("Event-Name", &["created", "channel.gap", "", "a\tb", "\u{f6}"]),
    ("Connection", &["close", "keep-alive", "upgrade", "Host", ""]),
    ("Upgrade", &["h2c", "websocket", ""]),
    ("HTTP2-Settings", &["AAMAAABkAAQAAP__", "x"]),
    ("Expect", &["100-continue", "200-ok"]),
    ("TE", &["trailers", "chunked"]),
    ("Trailer", &["Event-Name"]),
    ("Content-Length", &["0", "-1", "+1", "18446744073709551616", "1, 1", "1, 2", "x", ""]),
    (
        "Transfer-Encoding",
        &["chunked", "gzip, chunked", "chunked, gzip", "identity", "xchunked", "chunked, chunked"],
    ),
    ("Range", &["bytes=0-1"]),
    ("Cookie", &["a=b"]),
    ("X", &["y", "", "a\tb"]),
];

/// Header lines that are none.
const ODD_LINES: &[&str] =
    &["no colon", ": no name", " folded", "a b: c", "X : y", "X:\0", "\u{f6}: y", "X: a\rY: b", ""];

/// Bodies in the chunked coding, most of them broken.
const CHUNKED: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"5\r\nhel",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"x\r\nhello\r\n0\r\n\r\n",
    b"-1\r\n\r\n",
    b"\r\n",
    b"5\nhello\n0\n\n",
    b"FFFFFFFFFFFFFFFF\r\nhello",
    b"10000000000000000\r\nhello",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"00000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    b"5;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

fn query(rng: &mut StdRng) -> String {
    let count = match rng.random_range(0..20) {
        0..8 => return String::new(),
        8 => 40,
        _ => rng.random_range(1..4),
    };
    let parameter = |rng: &mut StdRng| {
        let (name, values) = PARAMETERS.choose(rng).unwrap();
        match rng.random_range(0..12) {
            0 => (*name).to_owned(),
            1 => format!("{name}={}", rng.random::<u32>()),
            2 => format!("{name}={}", values.choose(rng).unwrap().repeat(rng.random_range(0..60))),
            _ => format!("{name}={}", values.choose(rng).unwrap()),
        }
    };
    let all: Vec<_> = (0..count).map(|_| parameter(rng)).collect();
    format!("?{}", all.join(["&", "&", "&&", ";"].choose(rng).unwrap()))
}

/// A request, without one that the server would wait for, unless it is the last.
fn request(rng: &mut StdRng, paths: &[&str], is_last: bool) -> (Vec<u8>, String, bool) {
    let method = match rng.random_range(0..30) {
        0..16 => "GET",
        16..23 => "POST",
        23 | 24 => "OPTIONS",
        25 if is_last => "HEAD",
        26 => "PUT",
        27 => "CONNECT",
        _ => ["DELETE", "TRACE", "get", "G@T", "", "PRI", "X-Y"].choose(rng).unwrap(),
    };
    let path = *paths.choose(rng).unwrap();
    let target = if path.contains('?') { path.to_owned() } else { format!("{path}{}", query(rng)) };
    let version = match rng.random_range(0..20) {
        0 => ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "http/1.1", ""].choose(rng).unwrap(),
        _ => "HTTP/1.1",
    };
    let mut bytes = format!("{method} {target} {version}\r\n").into_bytes();
    if rng.random_bool(0.95) {
        bytes.extend(b"Host: localhost\r\n");
    }
    for _ in 0..if rng.random_bool(0.01) { 150 } else { rng.random_range(0..5) } {
        bytes.extend(header(rng));
    }
    let body = body(rng, method);
    bytes.extend(body);
    (bytes, path.to_owned(), method == "HEAD")
}

fn header(rng: &mut StdRng) -> Vec<u8> {
    let (name, values) = HEADERS.choose(rng).unwrap();
    // Those that decide where a request ends would leave most connections waiting.
    let frames = ["Content-Length", "Transfer-Encoding", "Expect"].contains(name);
    if frames && rng.random_bool(0.8) {
        return Vec::new();
    }
    let value = values.choose(rng).unwrap();
    match rng.random_range(0..60) {
        0 => format!("{name}: {}\r\n", "v".repeat(*[300, 5_000, 20_000].choose(rng).unwrap())),
        1 => format!("{}\r\n", ODD_LINES.choose(rng).unwrap()),
        2 => format!("{name}: {value}\r\n{name}: {value}\r\n"),
        3 => format!("{}: {value}\n", name.to_ascii_uppercase()),
        _ => format!("{name}: {value}\r\n"),
    }
    .into_bytes()
}

/// The end of the head, and the body.
fn body(rng: &mut StdRng, method: &str) -> Vec<u8> {
    if method != "POST" && rng.random_bool(0.9) {
        return b"\r\n".to_vec();
    }
    let text = "x".repeat(*[0, 1, 5, 5, 5, 300, 70_000].choose(rng).unwrap());
    match rng.random_range(0..10) {
        0..5 => format!("Content-Length: {}\r\n\r\n{text}", text.len()).into_bytes(),
        5 => format!("Content-Length: {}\r\n\r\n{text}", text.len() + 3).into_bytes(),
        6 => format!("Content-Length: 3\r\n\r\n{text}").into_bytes(),
        7 => [b"Content-Length: 4\r\n\r\n\xff\xfe\x00\x01", text.as_bytes()].concat(),
        _ => {
            let chunked: &[u8] = CHUNKED.choose(rng).unwrap();
            [b"Transfer-Encoding: chunked\r\n\r\n", chunked].concat()
        }
    }
}

/// Changes some bytes, wherever they are.
pub(crate) fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len().min(at + 30));
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.insert(at, rng.random()),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let piece = bytes[at..end].repeat(rng.random_range(1..20));
                bytes.splice(at..at, piece);
            }
            5 => drop(bytes.splice(at..end, *b"\r\n")),
            _ => drop(bytes.splice(at..at, (0..8).map(|_| rng.random::<u8>()))),
        }
    }
}

impl Script {
    /// Several requests in a row for the public listener.
    pub(crate) fn public(rng: &mut StdRng) -> Self {
        let requests = if rng.random_bool(0.3) { rng.random_range(2..6) } else { 1 };
        Self::of(rng, PATHS, requests)
    }

    /// One request for the admin listener.
    pub(crate) fn admin(rng: &mut StdRng) -> Self {
        Self::of(rng, ADMIN_PATHS, 1)
    }

    fn of(rng: &mut StdRng, paths: &[&str], requests: usize) -> Self {
        let mut script = Self {
            bytes: Vec::new(),
            requests,
            path: String::new(),
            ends_with_head: false,
            is_mutated: rng.random_bool(0.3),
            ending: *[Ending::Reads, Ending::Reads, Ending::HalfClose, Ending::Closes]
                .choose(rng)
                .unwrap(),
        };
        for number in 1..=requests {
            let (bytes, path, is_head) = request(rng, paths, number == requests);
            script.bytes.extend(bytes);
            (script.path, script.ends_with_head) = (path, is_head);
        }
        if script.is_mutated {
            mutate(&mut script.bytes, rng);
        }
        if rng.random_bool(0.02) {
            script.bytes = (0..rng.random_range(0..3_000)).map(|_| rng.random()).collect();
            (script.is_mutated, script.requests) = (true, 1);
        }
        script
    }
}
