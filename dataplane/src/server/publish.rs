//! Publishing over HTTP: nothing is acknowledged before JetStream has it.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use sluice_channel::{
    ChannelConfig, Cursor, Epoch, Topic, config::Encoding, event, topic::Pattern,
};
use tokio::time::timeout;

use super::{cors, problem::Problem};
use crate::{
    budget::{Budget, Share},
    channel::Channel,
    frame, limits,
    source::{Append, Appended, Error, REQUEST_TIMEOUT},
    state::Shared,
};

/// Time for a client to send its payload.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time to find out where an event is that the store has: of all questions together.
const PLACE_TIMEOUT: Duration = REQUEST_TIMEOUT;

const EVENT_NAME: HeaderName = HeaderName::from_static("event-name");
const EVENT_CURSOR: HeaderName = HeaderName::from_static("event-cursor");
const EVENT_DUPLICATE: HeaderName = HeaderName::from_static("event-duplicate");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Why an event was not stored.
#[derive(Debug)]
enum Refusal {
    /// The request can never be stored as it is.
    Invalid(Problem),
    /// A page of an origin that may not publish has sent it.
    ForeignOrigin,
    /// The topic has an event after the one that `If-Match` names.
    Conflict,
    /// The payload alone has more than `max` bytes.
    PayloadTooLarge { max: usize },
    /// The payload fits, but not with its headers: only the store can tell.
    MessageTooLarge,
    /// The message with its headers has more than `max` bytes, which its server takes.
    TooLargeForServer { max: usize },
    /// So many line ends and control characters would be many times their size as a frame.
    TooManyEscapes,
    /// Another event has the same `Idempotency-Key`.
    OtherEvent(Cursor),
    /// The store cannot be asked, did not answer, or this pod has no room.
    Unavailable(&'static str),
    /// The store said no.
    Refused,
}

impl Refusal {
    /// `result` of the metric `sluice_publishes`.
    const fn label(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::ForeignOrigin => "forbidden",
            Self::Conflict => "conflict",
            Self::PayloadTooLarge { .. }
            | Self::MessageTooLarge
            | Self::TooLargeForServer { .. }
            | Self::TooManyEscapes => "too_large",
            Self::OtherEvent(_) => "key_reused",
            Self::Unavailable(_) => "unavailable",
            Self::Refused => "refused",
        }
    }

    /// What the store said, without its words: those go to the log.
    fn of(channel: &Channel, error: &Error) -> Self {
        match error {
            Error::WrongLastSequence => return Self::Conflict,
            Error::TooLarge => return Self::MessageTooLarge,
            Error::TooLargeForServer(max) => return Self::TooLargeForServer { max: *max },
            _ => channel.note_failure("publish", error),
        }
        match error {
            Error::NoStream(_) => Self::Unavailable(error.told()),
            Error::Refused(_) => Self::Refused,
            _ => Self::Unavailable(UNACKNOWLEDGED),
        }
    }
}

/// Said where an event may be stored or not.
const UNACKNOWLEDGED: &str = "the store did not acknowledge the event; it may or may not be stored: send it again with the same Idempotency-Key";
/// Said where it is, but not under which cursor, or as which event.
const UNPLACED: &str = "the event is stored, but the store does not say where at this moment: send it again with the same Idempotency-Key";

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let too_large = |detail: String| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail);
        let problem = match self {
            Self::Invalid(problem) => problem,
            Self::ForeignOrigin => Problem::new(
                StatusCode::FORBIDDEN,
                "pages of this origin may not publish here: delivery.cors.allowedOrigins names those that may",
            ),
            Self::Conflict => Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "the topic has moved on since the cursor in If-Match; read it again",
            ),
            Self::PayloadTooLarge { max } => {
                too_large(format!("the payload must be at most {max} bytes"))
            }
            Self::MessageTooLarge => too_large(
                "the payload and its headers together are larger than spec.stream.maxMessageSize"
                    .to_owned(),
            ),
            Self::TooLargeForServer { max } => too_large(format!(
                "the payload and its headers together are larger than the {max} bytes that the NATS server takes (max_payload), though spec.stream.maxMessageSize may allow more"
            )),
            Self::TooManyEscapes => too_large(format!(
                "the payload must have at most {} line ends and control characters: each is up to six bytes more in a frame",
                frame::ESCAPES
            )),
            Self::OtherEvent(cursor) => {
                let detail = "this Idempotency-Key was used for another event of this topic, whose cursor is in Event-Cursor; nothing was stored";
                let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
                return with_cursor(problem.into_response(), cursor);
            }
            Self::Unavailable(detail) => Problem::unavailable(detail),
            Self::Refused => Problem::new(
                StatusCode::BAD_GATEWAY,
                "the store refused the event; the log of the data plane says why",
            ),
        };
        problem.into_response()
    }
}

pub(super) async fn publish(
    shared: &Shared,
    channel: &Channel,
    topic: &str,
    request: &Parts,
    body: Body,
) -> Response {
    let (result, response) = match append(shared, channel, topic, request, body).await {
        Ok((cursor, false)) => ("stored", stored(cursor, StatusCode::CREATED)),
        Ok((cursor, true)) => {
            let mut response = stored(cursor, StatusCode::OK);
            response.headers_mut().insert(EVENT_DUPLICATE, HeaderValue::from_static("true"));
            ("duplicate", response)
        }
        Err(refusal) => (refusal.label(), refusal.into_response()),
    };
    channel.metrics().publish(result);
    response
}

fn stored(cursor: Cursor, status: StatusCode) -> Response {
    with_cursor(status.into_response(), cursor)
}

fn with_cursor(mut response: Response, cursor: Cursor) -> Response {
    if let Ok(value) = HeaderValue::from_str(&cursor.to_string()) {
        response.headers_mut().insert(EVENT_CURSOR, value);
    }
    response
}

/// The event's cursor, and whether it was stored before.
async fn append(
    shared: &Shared,
    channel: &Channel,
    topic: &str,
    request: &Parts,
    body: Body,
) -> Result<(Cursor, bool), Refusal> {
    let config = channel.config().clone();
    if !cors::may_change(&config.delivery.cors, &request.headers, &request.uri) {
        return Err(Refusal::ForeignOrigin);
    }
    let (request, expected) = read(channel, topic, &request.headers)?;
    let (payload, _share) = payload(&config, &shared.budgets.payloads, body).await?;
    let request = Append { payload, ..request };
    let log = channel.log();
    let Some(known) = log.head_now().epoch else {
        let detail = "the store has not been reached yet; nothing was stored";
        return Err(Refusal::Unavailable(detail));
    };
    let failed = |error: Error| Refusal::of(channel, &error);
    // The store compares numbers, and those begin anew with each life of the stream.
    if let Some(cursor) = expected
        && log.epoch().await.map_err(failed)? != cursor.epoch
    {
        return Err(Refusal::Conflict);
    }
    let appended = log.source().append(request.clone()).await.map_err(failed)?;
    let unplaced = |error: Error| {
        channel.note_failure("publish", &error);
        Refusal::Unavailable(UNPLACED)
    };
    let placed = async {
        let epoch = epoch_of(channel, &request, appended, known).await?;
        let first = match appended.duplicate {
            true => log.source().published(appended.sequence).await?,
            false => None,
        };
        Ok((Cursor::new(epoch, appended.sequence), first))
    };
    let late = |_| Err(Error::Unreachable("it did not answer in time".into()));
    let placed = timeout(PLACE_TIMEOUT, placed).await.unwrap_or_else(late);
    let (cursor, first) = placed.map_err(unplaced)?;
    if first.is_some_and(|first| !first.is(&request)) {
        return Err(Refusal::OtherEvent(cursor));
    }
    Ok((cursor, appended.duplicate))
}

/// The life of the stream that took the event. An acknowledgement does not say, and
/// this pod may not have seen yet that the life that it has `known` is over. Epochs do not come
/// back: where the store is still in the known one afterwards, it was in between.
async fn epoch_of(
    channel: &Channel,
    request: &Append,
    appended: Appended,
    known: Epoch,
) -> Result<Epoch, Error> {
    let now = channel.log().epoch().await?;
    if now == known {
        return Ok(known);
    }
    let there = channel.log().source().published(appended.sequence).await?;
    let is_there = there.is_some_and(|event| appended.duplicate || event.is(request));
    Ok(if is_there { now } else { known })
}

/// Takes the payload in, and its share of the memory for payloads with each part of it.
async fn payload(
    config: &ChannelConfig,
    budget: &Budget,
    body: Body,
) -> Result<(Bytes, Option<Share>), Refusal> {
    let max = usize::try_from(config.stream.max_message_size).unwrap_or(usize::MAX);
    let (payload, share) =
        timeout(BODY_TIMEOUT, collect(body, max, budget)).await.map_err(|_| {
            let detail = "the payload did not arrive in time; nothing was stored";
            Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
        })??;
    if config.delivery.encoding == Encoding::Text {
        if std::str::from_utf8(&payload).is_err() {
            let detail = "the payload must be UTF-8; a channel with delivery.encoding Base64 takes any bytes";
            return Err(Problem::bad_request(detail).into());
        }
        if frame::has_too_many_escapes(&payload) {
            return Err(Refusal::TooManyEscapes);
        }
    }
    Ok((payload, share))
}

async fn collect(
    mut body: Body,
    max: usize,
    budget: &Budget,
) -> Result<(Bytes, Option<Share>), Refusal> {
    // What says at once that it is too large need not come.
    if http_body::Body::size_hint(&body).lower() > max as u64 {
        return Err(Refusal::PayloadTooLarge { max });
    }
    let mut payload = BytesMut::new();
    let mut share: Option<Share> = None;
    while let Some(part) = body.frame().await {
        let broken = || Problem::bad_request("the payload did not come whole; nothing was stored");
        let Ok(part) = part.map_err(|_| broken())?.into_data() else { continue };
        if payload.len() + part.len() > max {
            return Err(Refusal::PayloadTooLarge { max });
        }
        let more = budget.take_now(part.len()).ok_or(Refusal::Unavailable(
            "this pod takes in as many payloads as it can at this moment; nothing was stored",
        ))?;
        match &mut share {
            Some(share) => share.add(more),
            None => share = Some(more),
        }
        payload.extend_from_slice(&part);
    }
    Ok((payload.freeze(), share))
}

/// What the head of the request says: the event but for its payload, and the cursor in `If-Match`.
fn read(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
) -> Result<(Append, Option<Cursor>), Refusal> {
    let config = channel.config().clone();
    let topic = Topic::new(topic).map_err(|e| Problem::bad_request(e.to_string()))?;
    let subject = format!("{}{topic}", config.stream.topic_prefix);
    let taken = config
        .stream
        .subjects
        .iter()
        .any(|s| Pattern::new(s.as_str()).is_ok_and(|pattern| pattern.matches(&subject)));
    if !taken {
        let detail = format!("topic {topic} is none of this channel's");
        return Err(Problem::bad_request(detail).into());
    }
    let name = text(headers, &EVENT_NAME)?;
    if let Some(name) = &name {
        event::check_name(name).map_err(|e| Problem::bad_request(format!("Event-Name: {e}")))?;
    }
    let key = text(headers, &IDEMPOTENCY_KEY)?;
    if key.as_ref().is_some_and(|key| key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES) {
        let detail =
            format!("Idempotency-Key must be 1 to {} bytes", limits::IDEMPOTENCY_KEY_BYTES);
        return Err(Problem::bad_request(detail).into());
    }
    let expected = expected(headers)?;
    let append = Append {
        subject,
        name,
        content_type: text(headers, &header::CONTENT_TYPE)?,
        idempotency_key: key.map(|key| message_id(topic.as_str(), &key)),
        expected_last: expected.map(|cursor| cursor.sequence),
        payload: Bytes::new(),
    };
    Ok((append, expected))
}

/// JetStream knows keys by stream; clients that count their events each for themselves mean theirs
/// by topic. What begins it tells later ways to make it apart from this one.
fn message_id(topic: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    // No topic has a NUL.
    for part in [topic.as_bytes(), b"\0", key.as_bytes()] {
        hash.update(part);
    }
    format!("sluice1-{:x}", hash.finalize())
}

/// The cursor in `If-Match: "<cursor>"`.
fn expected(headers: &HeaderMap) -> Result<Option<Cursor>, Refusal> {
    let Some(value) = text(headers, &header::IF_MATCH)? else { return Ok(None) };
    let tag = value.trim().strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let cursor = tag.and_then(|tag| tag.parse().ok()).ok_or_else(|| {
        let detail = "If-Match must be one cursor in double quotes, as the Event-Cursor of an earlier answer has it";
        Problem::bad_request(detail)
    })?;
    Ok(Some(cursor))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    // Header values are bytes; NATS's are text.
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Problem::bad_request(format!("{name} must be UTF-8")))?;
    Ok(Some(text.to_owned()))
}
