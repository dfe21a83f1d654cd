//! An event from the bytes that the store has of a message.
//!
//! The tail, runs, direct gets and the leader's word all come here, so that they cannot differ. A
//! publisher may put any bytes into headers and subject: nothing of them can fail, and sequence,
//! time and subject are never read from what a publisher wrote.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem;
use sluice_channel::{Event, event, topic};

use super::time_nanos;

const LINE_END: &[u8] = b"\r\n";

/// A message as the store has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stored<'m> {
    pub(crate) sequence: u64,
    /// When the store took it, Unix nanoseconds.
    pub(crate) time_nanos: i64,
    pub(crate) subject: Cow<'m, [u8]>,
    /// What the publisher put before the payload, without its last line end.
    pub(crate) head: &'m [u8],
}

/// The publisher's block of headers without its last line end, which a direct get cuts off to put
/// the store's own headers there. Where a block does not end as it should, that is part of its last
/// header, so it is cut off wherever the block comes from.
pub(crate) fn head(block: &[u8]) -> &[u8] {
    block.get(..block.len().saturating_sub(LINE_END.len())).unwrap_or_default()
}

/// The first of the lines that a direct get adds to the publisher's block, up to the value of the
/// second.
pub(crate) fn first_line(stream: &str) -> Vec<u8> {
    format!("Nats-Stream: {stream}\r\nNats-Subject: ").into_bytes()
}

/// The message of a direct get's answer; `None` when the answer is no message. `first_line` is that
/// of [`first_line()`].
///
/// The store's lines are the last of the block, each in its place, and a subject has no line end:
/// the last place where they can begin is where they do.
pub(crate) fn direct<'m>(block: &'m [u8], first_line: &[u8]) -> Option<Stored<'m>> {
    let begin = memmem::rfind(block, first_line)?;
    let (subject, rest) = line(&block[begin + first_line.len()..])?;
    let (sequence, rest) = line(rest.strip_prefix(b"Nats-Sequence: ")?)?;
    let (time, _) = line(rest.strip_prefix(b"Nats-Time-Stamp: ")?)?;
    Some(Stored {
        sequence: std::str::from_utf8(sequence).ok()?.parse().ok()?,
        time_nanos: time_nanos(std::str::from_utf8(time).ok()?)?,
        subject: without_blanks(subject),
        head: &block[..begin],
    })
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memmem::find(bytes, LINE_END)?;
    Some((&bytes[..end], &bytes[end + LINE_END.len()..]))
}

/// No subject has a blank; where the store shows one in a header, the subject has a CR.
fn without_blanks(subject: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b' ', subject).is_none() {
        return subject.into();
    }
    subject.iter().map(|byte| if *byte == b' ' { b'\r' } else { *byte }).collect::<Vec<_>>().into()
}

impl Stored<'_> {
    /// The event on the channel whose subjects begin with `topic_prefix`. A name that could break
    /// the frame is dropped.
    pub(crate) fn event(&self, topic_prefix: &str, payload: Bytes) -> Event {
        let name = event_name(self.head).map(str::to_owned);
        let topic = topic_of(&self.subject, topic_prefix);
        Event { sequence: self.sequence, time_nanos: self.time_nanos, topic, name, payload }
    }
}

/// A CR at the end of a subject is lost in the header of a direct get, so it counts nowhere.
fn topic_of(subject: &[u8], prefix: &str) -> String {
    let end = subject.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
    let subject = &subject[..end];
    let bytes = subject.strip_prefix(prefix.as_bytes()).unwrap_or(subject);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => topic::opaque(bytes),
    }
}

/// The event's name: the first header of that name, if its value is one.
fn event_name(head: &[u8]) -> Option<&str> {
    header(head, event::NAME_HEADER).filter(|name| event::check_name(name).is_ok())
}

/// The value of the first header `name`, where it is text. `head` begins with the version line; a
/// line counts where its end is there.
pub(super) fn header<'h>(head: &'h [u8], name: &str) -> Option<&'h str> {
    let mut begin = None;
    for end in memmem::find_iter(head, LINE_END) {
        let header = begin.replace(end + LINE_END.len()).map(|begin| &head[begin..end]);
        let value = header.and_then(|header| {
            let (its_name, value) = header.split_at_checked(name.len())?;
            let is_it = its_name.eq_ignore_ascii_case(name.as_bytes());
            value.strip_prefix(b":").filter(|_| is_it)
        });
        if let Some(value) = value {
            return std::str::from_utf8(value).ok().map(str::trim);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "sse.default.orders.";

    /// What nats-server makes of a publisher's block in the answer to a direct get.
    fn answered(block: &[u8], subject: &[u8]) -> Vec<u8> {
        let mut all = if block.len() > 2 { head(block).to_vec() } else { b"NATS/1.0\r\n".to_vec() };
        all.extend(b"Nats-Stream: orders\r\nNats-Subject: ");
        all.extend(subject.iter().map(|b| if *b == b'\r' { b' ' } else { *b }));
        all.extend(b"\r\nNats-Sequence: 7\r\nNats-Time-Stamp: 2023-11-14T22:13:20.123456789Z\r\n");
        all.extend(b"Nats-Num-Pending: 3\r\nNats-Last-Sequence: 6\r\n\r\n");
        all
    }

    /// The event of a delivery and of a direct get's answer, which must be the same.
    fn event_of(block: &[u8], subject: &[u8]) -> Event {
        let time_nanos = 1_700_000_000_123_456_789;
        let delivered =
            Stored { sequence: 7, time_nanos, subject: subject.into(), head: head(block) };
        let answer = answered(block, subject);
        let direct = direct(&answer, &first_line("orders")).expect("a message");
        let delivered = delivered.event(PREFIX, Bytes::new());
        assert_eq!(direct.event(PREFIX, Bytes::new()), delivered);
        delivered
    }

    #[test]
    fn names() {
        for (block, expected) in [
            ("", None),
            ("\r\n", None),
            ("NATS/1.0\r\n\r\n", None),
            ("NATS/1.0\r\nEvent-Name: a\r\n\r\n", Some("a")),
            ("NATS/1.0\r\nevent-NAME:a b \r\n\r\n", Some("a b")),
            ("NATS/1.0\r\nX: y\r\nEvent-Name: größe\r\nEvent-Name: b\r\n\r\n", Some("größe")),
            ("NATS/1.0\r\nX: a\rb\r\nEvent-Name: a\r\n\r\n", Some("a")),
            ("NATS/1.0\r\nno colon\r\n\r\nEvent-Name: a\r\n\r\n", Some("a")),
            ("NATS/1.0 404 gone\r\nEvent-Name: a\r\n\r\n", Some("a")),
            ("NATS/1.0\r\nEvent-Name: a\rb\r\n\r\n", None),
            ("NATS/1.0\r\nEvent-Name: channel.gap\r\nEvent-Name: b\r\n\r\n", None),
            ("NATS/1.0\r\nEvent-Name: a", None),
            ("NATS/1.0\r\nEvent-Name: a\r\n", None),
            ("Event-Name: a\r\n\r\n", None),
        ] {
            let event = event_of(block.as_bytes(), b"sse.default.orders.t");
            assert_eq!((event.name.as_deref(), event.topic.as_str()), (expected, "t"), "{block:?}");
        }
        assert_eq!(event_of(b"NATS/1.0\r\nEvent-Name: \xff\r\n\r\n", b"t").name, None);
    }

    #[test]
    fn nothing_that_a_publisher_writes_moves_a_position() {
        let forged = "NATS/1.0\r\nNats-Stream: orders\r\nNats-Subject: sse.default.orders.x\r\nNats-Sequence: 1\r\nNats-Time-Stamp: 2001-01-01T00:00:00Z\r\n\r\n";
        let event = event_of(forged.as_bytes(), b"sse.default.orders.t");
        assert_eq!((event.sequence, event.topic.as_str()), (7, "t"));
        assert_eq!(event.time_nanos, 1_700_000_000_123_456_789);
    }

    #[test]
    fn topics() {
        for (subject, expected) in [
            (&b"sse.default.orders.a.b"[..], "a.b"),
            (b"sse.default.orders.\xc3\xbc", "ü"),
            (b"sse.default.orders.a\rb\r", "a\rb"),
            (b"sse.default.orders.a\0\x7f", "a\0\x7f"),
            (b"elsewhere", "elsewhere"),
        ] {
            assert_eq!(event_of(b"NATS/1.0\r\nA: b\r\n\r\n", subject).topic, expected);
        }
        let event = event_of(b"NATS/1.0\r\nA: b\r\n\r\n", b"sse.default.orders.a.\xff");
        assert_eq!(topic::shown(&event.topic), (true, "a.%FF"));
    }

    #[test]
    fn what_is_no_message_is_none() {
        for block in [
            &b""[..],
            b"NATS/1.0 404 Message Not Found\r\n\r\n",
            b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\nNats-Last-Sequence: 6\r\n\r\n",
            b"NATS/1.0\r\nNats-Stream: orders\r\nNats-Subject: a\r\nNats-Sequence: x\r\n\r\n",
            b"NATS/1.0\r\nNats-Stream: orders\r\nNats-Subject: a",
        ] {
            assert_eq!(direct(block, &first_line("orders")), None);
        }
    }
}
