//! What the store has, by its own word, and what a channel must make of it.

use base64::prelude::{BASE64_STANDARD, Engine};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use sluice_channel::event::check_name;
use sluice_tests::sse::normalise;

use crate::{fixture::Fixture, raw::Sent};

/// JetStream's `err_code` of a message that is not there.
const NOT_FOUND: u64 = 10037;

/// What a channel must make of a message that the store has.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) sequence: u64,
    pub(crate) topic: String,
    pub(crate) is_text: bool,
    pub(crate) name: Option<String>,
    pub(crate) time: String,
    pub(crate) payload: Vec<u8>,
}

impl Due {
    /// Name and data on a stream of a text channel.
    pub(crate) fn on_stream(&self) -> (String, String) {
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
    pub(crate) fn on_page(&self) -> Value {
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
fn topic_of(topic: &[u8]) -> (String, bool) {
    let mut topic = topic;
    while let [rest @ .., b'\r'] = topic {
        topic = rest;
    }
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

/// What the store has, by its own word in JSON, and the last sequence that it gave. JSON cannot say
/// what a subject is that is no text; a payload begins with the number of its message, which
/// `published` was sent under. (A CR in a subject is not always there: the server drops it where
/// what it reads ends within the line.)
pub(crate) async fn truth(fixture: &Fixture, published: &str, sent: &[Sent]) -> (Vec<Due>, u64) {
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
            if answer["error"]["err_code"] == NOT_FOUND {
                return None;
            }
            let message = &answer["message"];
            let bytes = |key: &str| {
                BASE64_STANDARD.decode(message[key].as_str().unwrap_or_default()).unwrap()
            };
            let payload = bytes("data");
            let told = message["subject"].as_str().unwrap_or_else(|| panic!("{answer}"));
            let subject = if told.contains(char::REPLACEMENT_CHARACTER) {
                let number = std::str::from_utf8(&payload[..6]).unwrap().parse::<usize>().unwrap();
                sent[number].subject[published.len()..].to_vec()
            } else {
                told.as_bytes()[fixture.names.prefix.len()..].to_vec()
            };
            let (topic, is_text) = topic_of(&subject);
            let time = message["time"].as_str().unwrap().to_owned();
            Some(Due { sequence, topic, is_text, name: name_in(&bytes("hdrs")), time, payload })
        }
    };
    let due = stream::iter((1..=last).map(ask)).buffered(64).filter_map(async |due| due);
    (due.collect().await, last)
}
