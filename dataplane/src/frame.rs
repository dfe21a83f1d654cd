//! Events as SSE bytes: each is encoded once per pod and dialect (WHATWG HTML 9.2.5 and 9.2.6).

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Serialize, Serializer};
use serde_json::json;
use sluice_channel::{Cursor, Epoch, Event, config::Encoding, topic};

/// Most line ends and control characters of a payload on a text channel. A line of a frame has six
/// bytes before it, and JSON writes a control character as six: a frame is at most 384 KiB larger
/// than its payload, and no payload of up to 64 KiB is refused for them.
pub(crate) const ESCAPES: usize = 64 * 1024;

/// What `data:` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The payload.
    Plain,
    /// A JSON object `{"topic","time","id","data"}` around it (`envelope=json`).
    Envelope,
}

/// Why events are missing, on the wire and as a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Removed by the stream's limits.
    Expired,
    /// Removed one by one, or by a purge of part of the stream.
    Deleted,
    /// Superseded by a newer event of the same topic.
    Compacted,
    /// The stream was recreated or restored: the cursor is of another life.
    Epoch,
    /// The cursor is malformed or names a sequence that does not exist yet.
    Unknown,
}

impl GapReason {
    /// The word on the wire, and the label of the metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Deleted => "deleted",
            Self::Compacted => "compacted",
            Self::Epoch => "epoch",
            Self::Unknown => "unknown",
        }
    }
}

impl Serialize for GapReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The pod stops.
    Drain,
    /// `maxConnectionAge` was reached.
    Age,
    /// The token ran out.
    Token,
    /// The pod has as many streams as it may have.
    Overload,
    /// The socket took nothing for `writeTimeout`.
    Slow,
    /// The channel was removed.
    Removed,
    /// The subscriber went away. Never on the wire.
    Client,
}

impl CloseReason {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Age => "age",
            Self::Token => "token",
            Self::Overload => "overload",
            Self::Slow => "slow",
            Self::Removed => "removed",
            Self::Client => "client",
        }
    }
}

/// The data of `channel.gap`: sequences `from` to `to` are missing. What cannot be known is `null`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// First missing sequence.
    pub from: Option<u64>,
    /// Last missing sequence.
    pub to: Option<u64>,
    /// How many are missing.
    pub missed: Option<u64>,
    /// Why.
    pub reason: GapReason,
}

/// A comment that keeps proxies from taking the stream for dead. No empty line follows it: for each
/// empty line httpx-sse, fetch-event-source and extended-eventsource dispatch an event, even where
/// there was nothing but a comment.
pub const HEARTBEAT: &[u8] = b": hb\n";

/// Name of the event that stands for one that cannot be text.
pub const INVALID: &str = "channel.invalid";

/// Appends the frame of `event` to `out`. Returns `false` where topic or payload cannot be text and
/// a `channel.invalid` event stands for it.
pub fn encode(
    out: &mut Vec<u8>,
    epoch: Epoch,
    event: &Event,
    dialect: Dialect,
    encoding: Encoding,
) -> bool {
    let cursor = Cursor::new(epoch, event.sequence);
    let (opaque, topic) = topic::shown(&event.topic);
    let payload: Result<Cow<'_, str>, _> = match encoding {
        _ if opaque => Err("topic not UTF-8"),
        Encoding::Text if has_too_many_escapes(&event.payload) => {
            Err("too many line ends or control characters")
        }
        Encoding::Base64 => Ok(BASE64_STANDARD.encode(&event.payload).into()),
        Encoding::Text => {
            std::str::from_utf8(&event.payload).map(Cow::from).map_err(|_| "not UTF-8")
        }
    };
    let payload = match payload {
        Ok(payload) => payload,
        Err(reason) => {
            let data = json!({"sequence": event.sequence, "topic": topic, "bytes": event.payload.len(), "reason": reason});
            control(out, INVALID, Some(cursor), &data.to_string(), None);
            return false;
        }
    };
    id(out, cursor);
    if let Some(name) = &event.name {
        field(out, "event", name);
    }
    match dialect {
        Dialect::Plain => data(out, &payload),
        Dialect::Envelope => data(out, &envelope(cursor, event, &payload)),
    }
    out.push(b'\n');
    true
}

/// Whether a payload has more than [`ESCAPES`] bytes that are several in a frame of text.
#[must_use]
pub(crate) fn has_too_many_escapes(payload: &[u8]) -> bool {
    payload.len() > ESCAPES
        && payload.iter().filter(|byte| byte.is_ascii_control()).count() > ESCAPES
}

fn envelope(cursor: Cursor, event: &Event, payload: &str) -> String {
    #[derive(Serialize)]
    struct Envelope<'a> {
        topic: &'a str,
        time: String,
        id: String,
        data: &'a str,
    }
    let envelope = Envelope {
        topic: &event.topic,
        time: rfc3339(event.time_nanos),
        id: cursor.to_string(),
        data: payload,
    };
    // Strings only: serialising cannot fail.
    serde_json::to_string(&envelope).unwrap_or_default()
}

/// Unix nanoseconds as RFC 3339 text in UTC.
#[must_use]
pub fn rfc3339(time_nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(time_nanos))
        .map(|t| t.to_string())
        .unwrap_or_default()
}

/// Appends a control event. `cursor` is `None` only where no place in the stream is known yet.
pub fn control(
    out: &mut Vec<u8>,
    name: &str,
    cursor: Option<Cursor>,
    json: &str,
    retry: Option<Duration>,
) {
    if let Some(cursor) = cursor {
        id(out, cursor);
    }
    if let Some(retry) = retry {
        retry_field(out, retry);
    }
    field(out, "event", name);
    data(out, json);
    out.push(b'\n');
}

/// Appends `channel.close`: the last frame of a stream.
pub fn write_close(
    out: &mut Vec<u8>,
    cursor: Option<Cursor>,
    reason: CloseReason,
    retry: Duration,
) {
    let data = json!({"reason": reason.as_str(), "retry": u64::try_from(retry.as_millis()).unwrap_or(u64::MAX)});
    control(out, "channel.close", cursor, &data.to_string(), Some(retry));
}

/// Appends the line that sets the reconnection time, the head of the block that follows. A browser
/// acts on it before the block ends (WHATWG HTML 9.2.6). In a block of its own, clients that are
/// less exact dispatch an empty event for it (httpx-sse, go-sse, extended-eventsource) or skip it
/// as one without data (sseclient-py).
pub fn retry(out: &mut Vec<u8>, retry: Duration) {
    retry_field(out, retry);
}

fn retry_field(out: &mut Vec<u8>, retry: Duration) {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "{}", retry.as_millis());
    field(out, "retry", &text);
}

fn id(out: &mut Vec<u8>, cursor: Cursor) {
    out.extend_from_slice(b"id: ");
    cursor.append_to(out);
    out.push(b'\n');
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// One `data:` line per line of text, where CR, LF and CRLF each end a line. The space after the
/// colon is always written: a parser strips just one, so a payload's own leading space survives.
fn data(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        out.extend_from_slice(b"data: ");
        let Some(end) = memchr::memchr2(b'\r', b'\n', rest) else {
            out.extend_from_slice(rest);
            out.push(b'\n');
            return;
        };
        out.extend_from_slice(&rest[..end]);
        out.push(b'\n');
        rest = &rest[if rest[end..].starts_with(b"\r\n") { end + 2 } else { end + 1 }..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::from_bits(0x5f3c_01aa);

    fn encoded(payload: &[u8], name: Option<&str>, dialect: Dialect, encoding: Encoding) -> String {
        let event = Event {
            sequence: 7,
            time_nanos: 1_700_000_000_123_456_789,
            topic: "eu.1".into(),
            name: name.map(Into::into),
            payload: payload.to_vec().into(),
        };
        let mut out = Vec::new();
        encode(&mut out, EPOCH, &event, dialect, encoding);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn golden_frames() {
        for (payload, expected) in [
            ("hello", "data: hello\n"),
            ("", "data: \n"),
            (" x", "data:  x\n"),
            (":x", "data: :x\n"),
            ("a\nb", "data: a\ndata: b\n"),
            ("a\rb", "data: a\ndata: b\n"),
            ("a\r\nb", "data: a\ndata: b\n"),
            ("a\n\rb", "data: a\ndata: \ndata: b\n"),
            ("a\n\n", "data: a\ndata: \ndata: \n"),
            ("\r\n", "data: \ndata: \n"),
            ("id: 5\n\nevent: x", "data: id: 5\ndata: \ndata: event: x\n"),
            ("\u{feff}x", "data: \u{feff}x\n"),
        ] {
            assert_eq!(
                encoded(payload.as_bytes(), None, Dialect::Plain, Encoding::Text),
                format!("id: 5f3c01aa-7\n{expected}\n"),
                "{payload:?}"
            );
        }
        assert_eq!(
            encoded(b"x", Some("order.created"), Dialect::Plain, Encoding::Text),
            "id: 5f3c01aa-7\nevent: order.created\ndata: x\n\n"
        );
    }

    #[test]
    fn what_is_not_text_is_named_or_encoded() {
        assert_eq!(
            encoded(b"\xff\xfe", None, Dialect::Plain, Encoding::Text),
            "id: 5f3c01aa-7\nevent: channel.invalid\ndata: {\"bytes\":2,\"reason\":\"not UTF-8\",\"sequence\":7,\"topic\":\"eu.1\"}\n\n"
        );
        assert_eq!(
            encoded(b"\xff\xfe", None, Dialect::Plain, Encoding::Base64),
            "id: 5f3c01aa-7\ndata: //4=\n\n"
        );
    }

    #[test]
    fn a_topic_that_is_not_text_is_named_in_either_encoding() {
        for (encoding, dialect) in
            [(Encoding::Text, Dialect::Plain), (Encoding::Base64, Dialect::Envelope)]
        {
            let event = Event {
                sequence: 7,
                time_nanos: 0,
                topic: topic::opaque(b"a.\xff"),
                name: Some("n".into()),
                payload: "x".into(),
            };
            let mut out = Vec::new();
            assert!(!encode(&mut out, EPOCH, &event, dialect, encoding));
            assert_eq!(
                String::from_utf8(out).unwrap(),
                "id: 5f3c01aa-7\nevent: channel.invalid\ndata: {\"bytes\":1,\"reason\":\"topic not UTF-8\",\"sequence\":7,\"topic\":\"a.%FF\"}\n\n"
            );
        }
    }

    #[test]
    fn no_frame_is_many_times_its_payload() {
        let most = ESCAPES;
        for part in ["\n", "\r", "\r\n", "\0", "\u{1}", "\t", "\u{7f}"] {
            for (times, dialect) in [
                (most / part.len(), Dialect::Plain),
                (most / part.len(), Dialect::Envelope),
                (most + 1, Dialect::Plain),
                (1_000_000, Dialect::Envelope),
            ] {
                let payload = part.repeat(times);
                let frame = encoded(payload.as_bytes(), None, dialect, Encoding::Text);
                assert!(frame.len() <= payload.len() + 6 * most + 256, "{part:?}: {}", frame.len());
                let invalid = frame.contains("event: channel.invalid\n");
                assert_eq!(invalid, payload.len() > most, "{part:?}");
                let base64 = encoded(payload.as_bytes(), None, dialect, Encoding::Base64);
                assert!(!base64.contains("channel.invalid"));
            }
        }
        let text = "a line of text\n".repeat(70_000);
        assert!(
            encoded(text.as_bytes(), None, Dialect::Plain, Encoding::Text)
                .contains("\"reason\":\"too many line ends or control characters\"")
        );
    }

    #[test]
    fn the_envelope_is_one_line_of_json() {
        assert_eq!(
            encoded(b"a\nb", None, Dialect::Envelope, Encoding::Text),
            "id: 5f3c01aa-7\ndata: {\"topic\":\"eu.1\",\"time\":\"2023-11-14T22:13:20.123456789Z\",\"id\":\"5f3c01aa-7\",\"data\":\"a\\nb\"}\n\n"
        );
    }

    #[test]
    fn our_events() {
        let mut out = Vec::new();
        control(&mut out, "channel.cursor", Some(Cursor::new(EPOCH, 9)), "", None);
        control(&mut out, "channel.close", None, "{}", Some(Duration::from_millis(1500)));
        retry(&mut out, Duration::from_secs(2));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "id: 5f3c01aa-9\nevent: channel.cursor\ndata: \n\nretry: 1500\nevent: channel.close\ndata: {}\n\nretry: 2000\n"
        );
    }
}
