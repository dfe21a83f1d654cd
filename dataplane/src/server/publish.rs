//! Publishing over HTTP: nothing is acknowledged before JetStream has it.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::LengthLimitError;
use sluice_channel::{Cursor, Topic, config::Encoding, event, topic::Pattern};

use tokio::time::timeout;

use super::problem::Problem;
use crate::{
    channel::Channel,
    limits,
    source::{Append, Error},
};

/// Time for a client to send its payload.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

const EVENT_NAME: HeaderName = HeaderName::from_static("event-name");
const EVENT_CURSOR: HeaderName = HeaderName::from_static("event-cursor");
const EVENT_DUPLICATE: HeaderName = HeaderName::from_static("event-duplicate");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Why an event was not stored.
#[derive(Debug)]
enum Refusal {
    /// The request can never be stored as it is.
    Invalid(Problem),
    /// The topic has an event after the one that `If-Match` names.
    Conflict,
    /// The payload alone has more than `max` bytes.
    PayloadTooLarge { max: usize },
    /// The payload fits, but not with its headers: only the store can tell.
    MessageTooLarge,
    /// The store cannot be asked, or did not answer.
    Unavailable(String),
    /// The store said no.
    Refused(String),
}

impl Refusal {
    /// `result` of the metric `sluice_publishes`.
    const fn label(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Conflict => "conflict",
            Self::PayloadTooLarge { .. } | Self::MessageTooLarge => "too_large",
            Self::Unavailable(_) => "unavailable",
            Self::Refused(_) => "refused",
        }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::WrongLastSequence => Self::Conflict,
            Error::TooLarge => Self::MessageTooLarge,
            Error::Unreachable(reason) | Error::TailEnded(reason) => Self::Unavailable(format!(
                "the store did not acknowledge the event ({reason}); it may or may not be stored: send it again with the same Idempotency-Key"
            )),
            Error::NoStream(_) => Self::Unavailable(error.to_string()),
            Error::Refused(reason) => Self::Refused(reason),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = match self {
            Self::Invalid(problem) => problem,
            Self::Conflict => Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "the topic has moved on since the cursor in If-Match; read it again",
            ),
            Self::PayloadTooLarge { max } => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the payload must be at most {max} bytes"),
            ),
            Self::MessageTooLarge => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the payload and its headers together are larger than spec.stream.maxMessageSize",
            ),
            Self::Unavailable(detail) => Problem::unavailable(detail),
            Self::Refused(reason) => Problem::new(
                StatusCode::BAD_GATEWAY,
                format!("the store refused the event: {reason}"),
            ),
        };
        problem.into_response()
    }
}

pub(super) async fn publish(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let (result, response) = match append(channel, topic, headers, body).await {
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
    let mut response =
        (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]).into_response();
    if let Ok(value) = HeaderValue::from_str(&cursor.to_string()) {
        response.headers_mut().insert(EVENT_CURSOR, value);
    }
    response
}

/// The event's cursor, and whether it was stored before.
async fn append(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Cursor, bool), Refusal> {
    let request = read(channel, topic, headers, body).await?;
    let Some(epoch) = channel.log().head_now().epoch else {
        let detail = "the store has not been reached yet; nothing was stored";
        return Err(Refusal::Unavailable(detail.to_owned()));
    };
    let appended = channel.log().source().append(request).await?;
    Ok((Cursor::new(epoch, appended.sequence), appended.duplicate))
}

async fn read(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Append, Refusal> {
    let config = channel.config().clone();
    let topic = Topic::new(topic).map_err(|e| Problem::bad_request(e.to_string()))?;
    let subject = format!("{}{topic}", config.stream.topic_prefix);
    let taken = config
        .stream
        .subjects
        .iter()
        .any(|s| Pattern::new(s.as_str()).is_ok_and(|pattern| pattern.matches(&subject)));
    if !taken {
        let detail = format!(
            "topic {topic} is none of this channel's: its subjects are {}",
            config.stream.subjects.join(", ")
        );
        return Err(Problem::bad_request(detail).into());
    }
    let name = text(headers, &EVENT_NAME)?;
    if let Some(name) = &name {
        event::check_name(name).map_err(|e| Problem::bad_request(format!("Event-Name: {e}")))?;
    }
    let idempotency_key = text(headers, &IDEMPOTENCY_KEY)?;
    if idempotency_key
        .as_ref()
        .is_some_and(|key| key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES)
    {
        let detail =
            format!("Idempotency-Key must be 1 to {} bytes", limits::IDEMPOTENCY_KEY_BYTES);
        return Err(Problem::bad_request(detail).into());
    }
    let expected_last = expected(channel, headers)?;
    let content_type = text(headers, &header::CONTENT_TYPE)?;
    let max = usize::try_from(config.stream.max_message_size).unwrap_or(usize::MAX);
    let payload = match timeout(BODY_TIMEOUT, to_bytes(body, max)).await {
        Ok(payload) => payload.map_err(|error| unreadable(&error, max))?,
        Err(_) => {
            let detail = "the payload did not arrive in time; nothing was stored";
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail).into());
        }
    };
    if config.delivery.encoding == Encoding::Text && std::str::from_utf8(&payload).is_err() {
        let detail =
            "the payload must be UTF-8; a channel with delivery.encoding Base64 takes any bytes";
        return Err(Problem::bad_request(detail).into());
    }
    Ok(Append { subject, name, content_type, idempotency_key, expected_last, payload })
}

/// Why a payload could not be read: it is longer than `max` bytes, or did not come whole.
fn unreadable(error: &axum::Error, max: usize) -> Refusal {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<LengthLimitError>() {
            return Refusal::PayloadTooLarge { max };
        }
        source = error.source();
    }
    let detail = format!("the payload did not come whole ({error}); nothing was stored");
    Problem::bad_request(detail).into()
}

/// The sequence in `If-Match: "<cursor>"`; a cursor of another epoch cannot match.
fn expected(channel: &Channel, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = text(headers, &header::IF_MATCH)? else { return Ok(None) };
    let tag = value.trim().strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let cursor: Cursor = tag.and_then(|tag| tag.parse().ok()).ok_or_else(|| {
        let detail = "If-Match must be one cursor in double quotes, as the Event-Cursor of an earlier answer has it";
        Problem::bad_request(detail)
    })?;
    if channel.log().head_now().epoch.is_some_and(|epoch| epoch != cursor.epoch) {
        return Err(Refusal::Conflict);
    }
    Ok(Some(cursor.sequence))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    // Header values are bytes; NATS's are text.
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Problem::bad_request(format!("{name} must be UTF-8")))?;
    Ok(Some(text.to_owned()))
}
