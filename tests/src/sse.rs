//! A parser of event streams that follows the WHATWG HTML standard, sections 9.2.5 and 9.2.6, to
//! the letter.
//!
//! It is written from the standard and shares no code with the product, so that it can judge it.

use std::collections::VecDeque;

/// What a stream holds, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event that a browser would dispatch.
    Event(Event),
    /// A valid `retry:` field, milliseconds. A browser acts on it at once, before the block ends.
    Retry(u64),
    /// A comment, without its colon. A browser ignores it.
    Comment(String),
}

/// A dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `MessageEvent.type`: `message` when the block named none.
    pub name: String,
    /// `MessageEvent.data`.
    pub data: String,
    /// `MessageEvent.lastEventId`.
    pub last_event_id: String,
    /// Whether this very block had an `id` field that counts.
    pub has_id: bool,
}

/// The parser's state between chunks.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    /// Whether the stream's first bytes are known to be a byte order mark or not.
    bom_settled: bool,
    data: String,
    name: String,
    id_buffer: String,
    block_has_id: bool,
    last_event_id: String,
    items: VecDeque<Item>,
}

const BOM: &[u8] = b"\xEF\xBB\xBF";

impl Parser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream, cut anywhere.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if !self.bom_settled {
            // Until three bytes are there, what came so far waits in `line`: no line end can be
            // part of a mark.
            while let [first, rest @ ..] = bytes {
                if *first != BOM[self.line.len()] {
                    self.bom_settled = true;
                    break;
                }
                self.line.push(*first);
                bytes = rest;
                if self.line.len() == BOM.len() {
                    self.line.clear();
                    self.bom_settled = true;
                    break;
                }
            }
        }
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|b| matches!(b, b'\r' | b'\n')) {
            let cr = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.take_line(&bytes[..end]);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&bytes[..end]);
                self.take_line(&line);
            }
            bytes = &bytes[end + 1..];
            if cr && bytes.is_empty() {
                self.after_cr = true;
            } else if cr {
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
        }
        self.line.extend_from_slice(bytes);
    }

    /// The next item, if one is complete. What is not complete when the stream ends is discarded
    /// (9.2.6).
    pub fn pop(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// What a browser would send as `Last-Event-ID` when the stream ended now.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    fn take_line(&mut self, line: &[u8]) {
        // UTF-8 decode of a line alone equals that of the stream: no sequence spans CR or LF.
        let line = String::from_utf8_lossy(line);
        if line.is_empty() {
            self.dispatch();
        } else if let Some(comment) = line.strip_prefix(':') {
            self.items.push_back(Item::Comment(comment.to_owned()));
        } else {
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            self.field(field, value.strip_prefix(' ').unwrap_or(value));
        }
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => {
                value.clone_into(&mut self.id_buffer);
                self.block_has_id = true;
            }
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                if let Ok(millis) = value.parse() {
                    self.items.push_back(Item::Retry(millis));
                }
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        self.id_buffer.clone_into(&mut self.last_event_id);
        let has_id = std::mem::take(&mut self.block_has_id);
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        if data.is_empty() {
            return;
        }
        data.pop();
        let name = if name.is_empty() { "message".to_owned() } else { name };
        self.items.push_back(Item::Event(Event {
            name,
            data,
            last_event_id: self.last_event_id.clone(),
            has_id,
        }));
    }
}

/// Parses a whole stream.
pub fn parse(bytes: &[u8]) -> Vec<Item> {
    let mut parser = Parser::new();
    parser.push(bytes);
    parser.items.into()
}

/// What a payload becomes on its way through an event stream: CRLF, CR and LF are all line ends
/// there.
pub fn normalise(payload: &str) -> String {
    payload.replace("\r\n", "\n").replace('\r', "\n")
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use proptest::prelude::*;

    use super::*;

    fn event(name: &str, data: &str, id: &str, has_id: bool) -> Item {
        Item::Event(Event {
            name: name.into(),
            data: data.into(),
            last_event_id: id.into(),
            has_id,
        })
    }

    fn message(data: &str) -> Item {
        event("message", data, "", false)
    }

    /// The examples of section 9.2.6, and the cases of the web platform tests
    /// (`eventsource/format-*`).
    #[test]
    fn the_cases_of_the_standard() {
        let cases: &[(&[u8], Vec<Item>)] = &[
            (b"data: YHOO\ndata: +2\ndata: 10\n\n", vec![message("YHOO\n+2\n10")]),
            (
                b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
                vec![
                    Item::Comment(" test stream".into()),
                    event("message", "first event", "1", true),
                    event("message", "second event", "", true),
                    message(" third event"),
                ],
            ),
            (b"data\n\ndata\ndata\n\ndata:", vec![message(""), message("\n")]),
            (b"data:test\n\ndata: test\n\n", vec![message("test"), message("test")]),
            (b"\xEF\xBB\xBFdata:1\n\n\xEF\xBB\xBFdata:2\n\ndata:3\n\n", vec![message("1"), message("3")]),
            (b"\xEF\xBB\xBF\xEF\xBB\xBFdata:1\n\ndata:2\n\n", vec![message("2")]),
            (b"\xEF\xBBdata:1\n\ndata:2\n\n", vec![message("2")]),
            (b"data:1\r\rdata:2\n\ndata:3\r\n\r\n", vec![message("1"), message("2"), message("3")]),
            (b"data:1\r\ndata:2\rdata:3\n\r", vec![message("1\n2\n3")]),
            (b"data: last, without its blank line\n", vec![]),
            (b"id: 1\0\ndata: x\n\n", vec![message("x")]),
            (b"id: 7\n\ndata: x\n\nid\ndata: y\n\n", vec![event("message", "x", "7", false), event("message", "y", "", true)]),
            (b"event: a\ndata: x\n\ndata: y\n\nevent: b\n\ndata: z\n\n", vec![event("a", "x", "", false), message("y"), message("z")]),
            (b"retry: 3000\nretry: 10s\nretry:\nretry: -1\nretry: 1e3\nretry:7\n\n", vec![Item::Retry(3000), Item::Retry(7)]),
            (b"data: \xFF|\xE2\x82|\n\n", vec![message("\u{FFFD}|\u{FFFD}|")]),
            (b"Data: x\n data: x\ndata : x\nx: y\ndata: z\n\n", vec![message("z")]),
            (b":\n:x\ndata::\n\n", vec![Item::Comment(String::new()), Item::Comment("x".into()), message(":")]),
        ];
        for (bytes, expected) in cases {
            assert_eq!(&parse(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
            for cut in 0..bytes.len() {
                let mut parser = Parser::new();
                parser.push(&bytes[..cut]);
                parser.push(&bytes[cut..]);
                assert_eq!(
                    &Vec::from(parser.items),
                    expected,
                    "{:?} cut at {cut}",
                    String::from_utf8_lossy(bytes)
                );
            }
        }
    }

    #[test]
    fn an_id_counts_only_once_its_block_is_complete() {
        let mut parser = Parser::new();
        parser.push(b"id: 1\ndata: x\n\nid: 2\ndata: y\n");
        assert_eq!(parser.last_event_id(), "1");
        parser.push(b"\n");
        assert_eq!(parser.last_event_id(), "2");
        parser.push(b"id: 3\n\n");
        assert_eq!(parser.last_event_id(), "3");
    }

    #[test]
    fn line_ends_are_normalised_as_the_standard_counts_them() {
        assert_eq!(normalise("a\r\nb\rc\nd\r\r\n\n"), "a\nb\nc\nd\n\n\n");
    }

    proptest! {
        #[test]
        fn cuts_between_chunks_make_no_difference(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'd'), Just(0xEF), Just(0xBB), any::<u8>()], 0..60),
            cuts in proptest::collection::vec(0usize..60, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut parser = Parser::new();
            let mut from = 0;
            for cut in cuts {
                parser.push(&bytes[from..cut]);
                from = cut;
            }
            parser.push(&bytes[from..]);
            prop_assert_eq!(Vec::from(parser.items), parse(&bytes));
        }

        /// On streams of the form that servers send, an independent parser sees the same events.
        #[test]
        fn an_independent_parser_agrees(blocks in proptest::collection::vec(("[a-z.]{0,8}", proptest::collection::vec("[ -~äß🙂]{0,12}", 1..4), "[a-z0-9-]{1,12}"), 0..8)) {
            let mut text = String::from("retry: 1500\n\n");
            for (name, lines, id) in &blocks {
                text += &format!("id: {id}\n");
                if !name.is_empty() {
                    text += &format!("event: {name}\n");
                }
                for line in lines {
                    text += &format!("data: {line}\n");
                }
                text += "\n";
            }
            let ours: Vec<(String, String, String)> = parse(text.as_bytes())
                .into_iter()
                .filter_map(|i| if let Item::Event(e) = i { Some((e.name, e.data, e.last_event_id)) } else { None })
                .collect();
            let chunks = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from(text))]);
            let theirs: Vec<(String, String, String)> = futures::executor::block_on(sse_stream::SseStream::from_bytes_stream(chunks).collect::<Vec<_>>())
                .into_iter()
                .filter_map(Result::ok)
                .filter(|e| e.data.is_some())
                .map(|e| (e.event.filter(|n| !n.is_empty()).unwrap_or_else(|| "message".into()), e.data.unwrap_or_default(), e.id.unwrap_or_default()))
                .collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
