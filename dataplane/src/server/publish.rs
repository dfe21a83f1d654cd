//! Publishing over HTTP: nothing is acknowledged before JetStream has it.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
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

pub(super) async fn publish(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let (result, response) = match append(channel, topic, headers, body).await {
        Ok((true, response)) => ("duplicate", response),
        Ok((false, response)) => ("stored", response),
        Err((result, problem)) => (result, problem.into_response()),
    };
    channel.metrics().publish(result);
    response
}

async fn append(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<(bool, Response), (&'static str, Problem)> {
    let request = read(channel, topic, headers, body).await?;
    let Some(epoch) = channel.log().head_now().epoch else {
        return Err((
            "unavailable",
            Problem::unavailable("the store has not been reached yet; nothing was stored"),
        ));
    };
    let appended = channel.log().source().append(request).await.map_err(refusal)?;
    let cursor = Cursor::new(epoch, appended.sequence).to_string();
    let status = if appended.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    let mut response =
        (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]).into_response();
    if let Ok(value) = HeaderValue::from_str(&cursor) {
        response.headers_mut().insert(EVENT_CURSOR, value);
    }
    if appended.duplicate {
        response.headers_mut().insert(EVENT_DUPLICATE, HeaderValue::from_static("true"));
    }
    Ok((appended.duplicate, response))
}

fn refusal(error: Error) -> (&'static str, Problem) {
    match error {
        Error::WrongLastSequence => (
            "conflict",
            Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "the topic has moved on since the cursor in If-Match; read it again",
            ),
        ),
        Error::TooLarge => (
            "too_large",
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the payload and its headers together are larger than spec.stream.maxMessageSize",
            ),
        ),
        Error::Unreachable(reason) | Error::TailEnded(reason) => {
            let detail = format!(
                "the store did not acknowledge the event ({reason}); it may or may not be stored: send it again with the same Idempotency-Key"
            );
            ("unavailable", Problem::unavailable(detail))
        }
        Error::NoStream(_) => ("unavailable", Problem::unavailable(error.to_string())),
        Error::Refused(reason) => (
            "refused",
            Problem::new(StatusCode::BAD_GATEWAY, format!("the store refused the event: {reason}")),
        ),
    }
}

async fn read(
    channel: &Channel,
    topic: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Append, (&'static str, Problem)> {
    let invalid = |problem: Problem| ("invalid", problem);
    let config = channel.config().clone();
    let topic = Topic::new(topic).map_err(|e| invalid(Problem::bad_request(e.to_string())))?;
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
        return Err(invalid(Problem::bad_request(detail)));
    }
    let name = text(headers, &EVENT_NAME).map_err(invalid)?;
    if let Some(name) = &name {
        event::check_name(name)
            .map_err(|e| invalid(Problem::bad_request(format!("Event-Name: {e}"))))?;
    }
    let idempotency_key = text(headers, &IDEMPOTENCY_KEY).map_err(invalid)?;
    if idempotency_key
        .as_ref()
        .is_some_and(|key| key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES)
    {
        let detail =
            format!("Idempotency-Key must be 1 to {} bytes", limits::IDEMPOTENCY_KEY_BYTES);
        return Err(invalid(Problem::bad_request(detail)));
    }
    let expected_last = expected(channel, headers)?;
    let content_type = text(headers, &header::CONTENT_TYPE).map_err(invalid)?;
    let max = usize::try_from(config.stream.max_message_size).unwrap_or(usize::MAX);
    let too_large = || {
        (
            "too_large",
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the payload must be at most {max} bytes"),
            ),
        )
    };
    let payload = match timeout(BODY_TIMEOUT, to_bytes(body, max)).await {
        Ok(payload) => payload.map_err(|_| too_large())?,
        Err(_) => {
            return Err(invalid(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "the payload did not arrive in time; nothing was stored",
            )));
        }
    };
    if config.delivery.encoding == Encoding::Text && std::str::from_utf8(&payload).is_err() {
        let detail =
            "the payload must be UTF-8; a channel with delivery.encoding Base64 takes any bytes";
        return Err(invalid(Problem::bad_request(detail)));
    }
    Ok(Append { subject, name, content_type, idempotency_key, expected_last, payload })
}

/// The sequence in `If-Match: "<cursor>"`; a cursor of another epoch cannot match.
fn expected(
    channel: &Channel,
    headers: &HeaderMap,
) -> Result<Option<u64>, (&'static str, Problem)> {
    let Some(value) = text(headers, &header::IF_MATCH).map_err(|p| ("invalid", p))? else {
        return Ok(None);
    };
    let tag = value.trim().strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let cursor: Cursor = tag.and_then(|tag| tag.parse().ok()).ok_or_else(|| {
        let detail = "If-Match must be one cursor in double quotes, as the Event-Cursor of an earlier answer has it";
        ("invalid", Problem::bad_request(detail))
    })?;
    if channel.log().head_now().epoch.is_some_and(|epoch| epoch != cursor.epoch) {
        return Err(refusal(Error::WrongLastSequence));
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
