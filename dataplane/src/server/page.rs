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
    source::{Error, REQUEST_TIMEOUT},
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
    let head = caught_up(channel, head, start.position).await?;
    let mut page =
        collect(channel, query, head, epoch, start.position).await.map_err(unavailable)?;
    // A reader that begins anew has missed nothing before the first event.
    let is_loss = |gap: &Gap| gap.reason == GapReason::Compacted || !start.lossless;
    page.gap = start.gap.or(page.gap.filter(is_loss));
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

/// The head once it is at `position`, which the store has come to: before, this pod cannot say
/// whether there is more.
async fn caught_up(channel: &Channel, head: Head, position: u64) -> Result<Head, Problem> {
    let mut heads = channel.log().head();
    let reached = heads.wait_for(|now| now.life != head.life || now.next >= position);
    match tokio::time::timeout(REQUEST_TIMEOUT, reached).await {
        Ok(Ok(now)) if now.life == head.life => Ok(*now),
        _ => Err(Problem::unavailable("this pod has not come to that event yet")),
    }
}

async fn collect(
    channel: &Channel,
    query: &Query,
    head: Head,
    epoch: Epoch,
    start: u64,
) -> Result<Page, Error> {
    let config = channel.config();
    let compacted = config.stream.compacted;
    let mut position = start;
    let mut events = Vec::new();
    let mut bytes = 0;
    let mut gap = None;
    'pages: while position < head.next && position - start < SCAN_EVENTS {
        let stretch = channel.log().events(position).await?;
        for event in stretch.events.iter().take_while(|event| event.sequence < head.next) {
            if event.sequence > position {
                // The next page begins with it: its `gap` says what comes before its events.
                if position > start && !compacted {
                    break 'pages;
                }
                add_hole(&mut gap, position, event.sequence - 1, head, compacted);
                position = event.sequence;
            }
            if query.request.filter.matches(&event.topic) {
                if events.len() >= query.limit
                    || (bytes >= limits::PAGE_BYTES && !events.is_empty())
                {
                    break 'pages;
                }
                bytes += event.payload.len();
                events.push(page_event(epoch, event, config.delivery.encoding));
            }
            position = event.sequence + 1;
        }
        let end = stretch.end.min(head.next);
        if end > position {
            if position > start && !compacted {
                break;
            }
            add_hole(&mut gap, position, end - 1, head, compacted);
            position = end;
        }
    }
    let is_away = head.down_since.is_some();
    if is_away && position == start {
        // Else a client that goes on until it is up to date would ask again at once.
        return Err(Error::Unreachable("what comes next is not known".into()));
    }
    let next = Cursor::new(epoch, position.saturating_sub(1)).to_string();
    Ok(Page { events, next, up_to_date: position >= head.next && !is_away, gap })
}

/// Names what is missing from `from` to `to`; compaction leaves many holes, and one gap names all
/// of a page's.
fn add_hole(gap: &mut Option<Gap>, from: u64, to: u64, head: Head, compacted: bool) {
    let reason = match () {
        () if compacted => GapReason::Compacted,
        () if to < head.first => GapReason::Expired,
        () => GapReason::Deleted,
    };
    let before = gap.and_then(|gap| gap.missed).unwrap_or_default();
    let from_first = gap.and_then(|gap| gap.from).unwrap_or(from);
    let missed = before + to + 1 - from;
    *gap = Some(Gap { from: Some(from_first), to: Some(to), missed: Some(missed), reason });
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
