//! One page of history as JSON, for clients that do not stream.

use axum::response::{IntoResponse, Response};
use base64::Engine;
use http::{HeaderValue, header};
use serde::Serialize;
use sluice_channel::{Cursor, Epoch, Event, config::Encoding, topic};

use super::{problem::Problem, query::Query};
use crate::{
    channel::Channel,
    frame::{self, Gap, GapReason},
    limits,
    log::Head,
    subscriber,
};

/// Sequences that one page looks at, at most: a filter that matches nothing must not read the whole
/// stream.
const SCAN_EVENTS: u64 = 20_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    events: Vec<PageEvent>,
    /// Where the next page starts: `last_event_id=` of the next request.
    next: String,
    /// Nothing more at this moment.
    up_to_date: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<Gap>,
}

#[derive(Serialize)]
struct PageEvent {
    id: String,
    topic: String,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    data: String,
}

pub(super) async fn page(channel: &Channel, query: &Query) -> Result<Response, Problem> {
    let head = channel.log().head_now();
    let Some(epoch) = head.epoch else {
        return Err(Problem::unavailable("the store has not been reached yet"));
    };
    let unavailable = |e: crate::source::Error| Problem::unavailable(e.to_string());
    let start =
        subscriber::resolve(channel, &query.request.start, &query.request.filter, head, epoch)
            .await
            .map_err(unavailable)?;
    let mut page =
        collect(channel, query, head, epoch, start.position).await.map_err(unavailable)?;
    if start.gap.is_some() || start.lossless {
        page.gap = start.gap;
    }
    if let Some(gap) = page.gap {
        channel.metrics().gap(gap.reason);
    }
    channel.metrics().events_delivered.inc_by(page.events.len() as u64);
    let body = serde_json::to_string(&page).map_err(|e| Problem::unavailable(e.to_string()))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::VARY, HeaderValue::from_static("Accept")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, body).into_response())
}

async fn collect(
    channel: &Channel,
    query: &Query,
    head: Head,
    epoch: Epoch,
    start: u64,
) -> Result<Page, crate::source::Error> {
    let config = channel.config();
    let mut position = start;
    let mut events = Vec::new();
    let mut bytes = 0;
    let mut gap = None;
    'pages: while position < head.next && position - start < SCAN_EVENTS {
        let batch = channel.log().events(position).await?;
        if batch.is_empty() {
            position = head.next;
            break;
        }
        for event in batch {
            if position == start && event.sequence > position && !config.stream.compacted {
                gap = Some(hole(position, event.sequence - 1, head));
            }
            if event.sequence >= head.next {
                position = head.next;
                break 'pages;
            }
            if query.request.filter.matches(&event.topic) {
                if events.len() >= query.limit
                    || (bytes >= limits::PAGE_BYTES && !events.is_empty())
                {
                    break 'pages;
                }
                bytes += event.payload.len();
                events.push(page_event(epoch, &event, config.delivery.encoding));
            }
            position = event.sequence + 1;
        }
    }
    let next = Cursor::new(epoch, position.saturating_sub(1)).to_string();
    Ok(Page { events, next, up_to_date: position >= head.next, gap })
}

fn hole(from: u64, to: u64, head: Head) -> Gap {
    let reason = if to < head.first { GapReason::Expired } else { GapReason::Deleted };
    Gap { from: Some(from), to: Some(to), missed: Some(to + 1 - from), reason }
}

fn page_event(epoch: Epoch, event: &Event, encoding: Encoding) -> PageEvent {
    let base64 = || base64::engine::general_purpose::STANDARD.encode(&event.payload);
    let (opaque, topic) = topic::shown(&event.topic);
    let (name, data) = match (encoding, std::str::from_utf8(&event.payload)) {
        _ if opaque => (Some(frame::INVALID.to_owned()), base64()),
        (Encoding::Base64, _) => (event.name.clone(), base64()),
        (Encoding::Text, Ok(text)) => (event.name.clone(), text.to_owned()),
        (Encoding::Text, Err(_)) => (Some(frame::INVALID.to_owned()), base64()),
    };
    PageEvent {
        id: Cursor::new(epoch, event.sequence).to_string(),
        topic: topic.to_owned(),
        time: frame::rfc3339(event.time_nanos),
        event: name,
        data,
    }
}
