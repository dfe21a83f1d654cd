//! History: direct gets in batches (any replica answers), single reads by the leader.

use base64::Engine;
use serde::Deserialize;
use serde_json::json;
use sluice_channel::{Event, event};

use super::{ApiError, JetStream, STREAM_NOT_FOUND, message, message::Stored, time_nanos};
use crate::source::{Batch, Error, Published, ReadLimit};

/// JetStream's `no message found`.
const MESSAGE_NOT_FOUND: u64 = 10_037;

/// Reads events from `from` on with one request (ADR-31). The answer is a run of messages that ends
/// with a message of status 204; 404 says that the replica has nothing there.
pub(super) async fn read(source: &JetStream, from: u64, limit: ReadLimit) -> Result<Batch, Error> {
    // `next_by_subj`, because a plain `seq` answers 404 when just that one message is deleted.
    let request = json!({"seq": from.max(1), "next_by_subj": ">", "batch": limit.events, "max_bytes": limit.bytes});
    batch(source, &request).await
}

/// The first event stored at or after a time. By the leader's word: a replica may lack some.
pub(super) async fn first_since(source: &JetStream, time_nanos: i64) -> Result<Option<u64>, Error> {
    let time = jiff::Timestamp::from_nanosecond(i128::from(time_nanos))
        .map_err(|e| Error::Refused(e.to_string()))?;
    let request = json!({"start_time": time.to_string(), "next_by_subj": ">"});
    let Some(raw) = get(source, &request).await? else { return Ok(None) };
    if self::time_nanos(&raw.time).is_some_and(|stored| stored >= time_nanos) {
        return Ok(Some(raw.seq));
    }
    // A server that does not know `start_time` there answers with its first one.
    let request = json!({"start_time": time.to_string(), "next_by_subj": ">", "batch": 1});
    Ok(batch(source, &request).await?.events.first().map(|e| e.sequence))
}

async fn batch(source: &JetStream, request: &serde_json::Value) -> Result<Batch, Error> {
    let client = source.client();
    let inbox = client.new_inbox();
    let mut answers =
        client.subscribe(inbox.clone()).await.map_err(|e| Error::Unreachable(e.to_string()))?;
    let subject = format!("{}.DIRECT.GET.{}", source.connection.api_prefix(), source.stream);
    client
        .publish_with_reply(subject, inbox, request.to_string().into())
        .await
        .map_err(|e| Error::Unreachable(e.to_string()))?;
    let mut batch = Batch::default();
    loop {
        let message = source.answer(&mut answers, "a direct get").await?;
        let block = message.header_bytes.as_deref().unwrap_or_default();
        // Not by its status first: a publisher may have written one into the message.
        if let Some(stored) = message::direct(block, &source.first_line) {
            let last = batch.events.last().map_or(0, |event: &Event| event.sequence);
            if stored.sequence <= last {
                let what = format!("sequence {} after {last} in a batch", stored.sequence);
                return Err(Error::Refused(what));
            }
            batch.events.push(stored.event(&source.topic_prefix, message.payload.clone()));
            // It has no end of batch.
            if request.get("batch").is_none() {
                return Ok(batch);
            }
            continue;
        }
        match message.status.map(|status| status.as_u16()) {
            Some(204) => {
                let pending = message.headers.as_ref().and_then(|h| h.get("Nats-Num-Pending"));
                batch.more = pending.is_some_and(|n| n.as_str() != "0");
                return Ok(batch);
            }
            Some(404) => return Ok(batch),
            Some(503) => return Err(Error::NoStream(source.stream.to_string())),
            Some(_) => return Err(Error::Refused(message.description.unwrap_or_default())),
            None => return Err(Error::Refused("a direct get answer without its headers".into())),
        }
    }
}

#[derive(Deserialize)]
struct MessageResponse {
    error: Option<ApiError>,
    message: Option<Raw>,
}

#[derive(Deserialize)]
struct Raw {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    hdrs: Option<String>,
    time: String,
}

/// The first event at or after `from` by `STREAM.MSG.GET`, which only the stream's leader answers.
pub(super) async fn read_leader(source: &JetStream, from: u64) -> Result<Option<Event>, Error> {
    let request = json!({"seq": from.max(1), "next_by_subj": ">"});
    match get(source, &request).await? {
        Some(raw) if raw.subject.contains(char::REPLACEMENT_CHARACTER) => {
            exact(source, raw.seq).await.map(Some)
        }
        Some(raw) => raw_event(source, &raw).map(Some),
        None => Ok(None),
    }
}

/// The message at `sequence` as it was published, by the leader's word.
pub(super) async fn published(
    source: &JetStream,
    sequence: u64,
) -> Result<Option<Published>, Error> {
    let Some(raw) = get(source, &json!({"seq": sequence})).await? else { return Ok(None) };
    let (payload, block) = raw.content()?;
    let head = message::head(&block);
    let header = |name| message::header(head, name).map(str::to_owned);
    let (name, content_type) = (header(event::NAME_HEADER), header(event::CONTENT_TYPE_HEADER));
    Ok(Some(Published { subject: raw.subject, name, content_type, payload: payload.into() }))
}

async fn get(source: &JetStream, request: &serde_json::Value) -> Result<Option<Raw>, Error> {
    let subject = format!("STREAM.MSG.GET.{}", source.stream);
    let context = source.connection.context();
    let answer: MessageResponse =
        source.ask("STREAM.MSG.GET", context.request(subject, request)).await?;
    match (answer.message, answer.error) {
        (Some(raw), _) => Ok(Some(raw)),
        (None, Some(error)) if error.err_code == MESSAGE_NOT_FOUND => Ok(None),
        (None, Some(error)) if error.err_code == STREAM_NOT_FOUND => {
            Err(Error::NoStream(source.stream.to_string()))
        }
        (None, Some(error)) if error.code == 503 => Err(Error::Unreachable(error.description)),
        (None, Some(error)) => Err(Error::Refused(error.description)),
        (None, None) => Err(Error::Refused("an empty STREAM.MSG.GET answer".into())),
    }
}

/// The message at `sequence`, which is there: JSON shows U+FFFD for what is not UTF-8 in its
/// subject, and two topics would be one.
async fn exact(source: &JetStream, sequence: u64) -> Result<Event, Error> {
    let found = batch(source, &json!({"seq": sequence})).await?.events.pop();
    let lags = || Error::Unreachable(format!("a replica does not have message {sequence} yet"));
    found.ok_or_else(lags)
}

fn unreadable(what: &str) -> Error {
    Error::Refused(format!("unreadable {what} in a STREAM.MSG.GET answer"))
}

impl Raw {
    /// Payload and block of headers.
    fn content(&self) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text);
        let payload = decode(&self.data).map_err(|_| unreadable("payload"))?;
        let block = self.hdrs.as_deref().map(decode).transpose();
        Ok((payload, block.map_err(|_| unreadable("headers"))?.unwrap_or_default()))
    }
}

fn raw_event(source: &JetStream, raw: &Raw) -> Result<Event, Error> {
    let (payload, block) = raw.content()?;
    let stored = Stored {
        sequence: raw.seq,
        time_nanos: time_nanos(&raw.time).ok_or_else(|| unreadable("time"))?,
        subject: raw.subject.as_bytes().into(),
        head: message::head(&block),
    };
    Ok(stored.event(&source.topic_prefix, payload.into()))
}
