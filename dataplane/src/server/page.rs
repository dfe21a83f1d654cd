//! One page of history as JSON, for clients that do not stream.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use base64::Engine;
use bytes::Bytes;
use http::{HeaderValue, header};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use sluice_channel::{Cursor, Epoch, Event, config::Encoding, topic};
use tokio::time::{Instant, timeout_at};

use super::{problem::Problem, query::Query};
use crate::{
    budget::Share,
    channel::Channel,
    frame::{self, Gap, GapReason},
    limits,
    log::Head,
    source::{Error, REQUEST_TIMEOUT},
    state::Shared,
    subscriber,
};

/// Sequences that one page looks at, at most: a filter that matches nothing must not read the whole
/// stream.
const SCAN_EVENTS: u64 = 20_000;
/// What a page in the making may hold: what it becomes, and the events of one read.
const MAKING_BYTES: usize = limits::PAGE_BYTES + limits::SEGMENT_BYTES;
/// Longest time that a page may take, of all its reads: a store that answers each of them late must
/// not add up to more than a client waits. Then it ends with what it has.
const PAGE_TIMEOUT: Duration = Duration::from_secs(9);
/// Longest wait of a page for its turn. Short: a client that polls comes again anyway.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// A page, of which the events are JSON already: each is let go once it is written.
struct Page {
    /// `{"events":[` and the events.
    events: Vec<u8>,
    count: usize,
    rest: Rest,
}

/// What follows the events.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rest {
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

pub(super) async fn page(
    shared: &Shared,
    channel: &Channel,
    query: &Query,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + PAGE_TIMEOUT;
    let head = channel.log().head_now();
    let Some(epoch) = head.epoch else {
        return Err(Problem::unavailable("the store has not been reached yet"));
    };
    let unavailable = |error: Error| {
        channel.note_failure("page", &error);
        Problem::unavailable(error.told())
    };
    let start =
        subscriber::resolve(channel, &query.request.start, &query.request.filter, head, epoch);
    let start = timeout_at(deadline, start).await.unwrap_or_else(|_| Err(late()));
    let start = start.map_err(unavailable)?;
    let head = caught_up(channel, head, start.position).await?;
    // A client that polls and is up to date needs none.
    let bytes = if start.position < head.next { MAKING_BYTES } else { 0 };
    let Some(mut share) = shared.budgets.pages.take(bytes, TURN_TIMEOUT).await else {
        return Err(Problem::unavailable("this pod makes as many pages as it can at this moment"));
    };
    let page = collect(channel, query, head, epoch, start.position, deadline).await;
    let mut page = page.map_err(unavailable)?;
    // A reader that begins anew has missed nothing before the first event.
    let is_loss = |gap: &Gap| gap.reason == GapReason::Compacted || !start.lossless;
    page.rest.gap = start.gap.or(page.rest.gap.filter(is_loss));
    if let Some(gap) = page.rest.gap {
        channel.metrics().gap(gap.reason);
    }
    channel.metrics().events_delivered.inc_by(page.count as u64);
    let body = page.json().map_err(|e| unavailable(Error::Refused(e.to_string())))?;
    share.shrink_to(body.len());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::VARY, HeaderValue::from_static("Accept")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::new(Held { rest: body, _share: share })).into_response())
}

/// A body that holds its share of memory until nearly all of it is written: hyper asks for more
/// once the socket has taken what it was given.
struct Held {
    rest: Bytes,
    _share: Share,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.rest.len().min(limits::WRITE_BYTES);
        let part = (length > 0).then(|| Ok(Frame::data(self.rest.split_to(length))));
        Poll::Ready(part)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Page {
    fn new(epoch: Epoch, position: u64) -> Self {
        let next = Cursor::new(epoch, position.saturating_sub(1)).to_string();
        let rest = Rest { next, up_to_date: false, gap: None };
        Self { events: b"{\"events\":[".to_vec(), count: 0, rest }
    }

    fn add(&mut self, event: &PageEvent) -> Result<(), Error> {
        if self.count > 0 {
            self.events.push(b',');
        }
        self.count += 1;
        serde_json::to_writer(&mut self.events, event).map_err(|e| Error::Refused(e.to_string()))
    }

    fn json(mut self) -> serde_json::Result<Bytes> {
        self.events.push(b']');
        let rest = serde_json::to_vec(&self.rest)?;
        // The rest goes on in the same object.
        self.events.push(b',');
        self.events.extend_from_slice(rest.strip_prefix(b"{").unwrap_or(&rest));
        Ok(self.events.into())
    }
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

fn late() -> Error {
    Error::Unreachable(format!("it did not answer within {} s", PAGE_TIMEOUT.as_secs()))
}

async fn collect(
    channel: &Channel,
    query: &Query,
    head: Head,
    epoch: Epoch,
    start: u64,
    deadline: Instant,
) -> Result<Page, Error> {
    let config = channel.config().clone();
    let compacted = config.stream.compacted;
    let filter = &query.request.filter;
    let mut position = start;
    let mut page = Page::new(epoch, start);
    let mut gap = None;
    'pages: while position < head.next && position - start < SCAN_EVENTS {
        // A filter may select none of them; without one, each that is read is one of the page.
        let wanted = match filter.is_all() {
            true => query.limit.saturating_sub(page.count).max(1),
            false => limits::PAGE_EVENTS,
        };
        let stretch = channel.log().events(head.life, position, wanted as u64);
        let stretch = match timeout_at(deadline, stretch).await {
            Ok(stretch) => stretch?,
            Err(_) if position > start => break,
            Err(_) => return Err(late()),
        };
        for event in stretch.events.iter().take_while(|event| event.sequence < head.next) {
            if event.sequence > position {
                // The next page begins with it: its `gap` says what comes before its events.
                if position > start && !compacted {
                    break 'pages;
                }
                add_hole(&mut gap, position, event.sequence - 1, head, compacted);
                position = event.sequence;
            }
            if filter.matches(&event.topic) {
                let is_full = page.events.len() >= limits::PAGE_BYTES && page.count > 0;
                if page.count >= query.limit || is_full {
                    break 'pages;
                }
                page.add(&page_event(epoch, event, config.delivery.encoding))?;
            }
            position = event.sequence + 1;
        }
        // What comes after a page that has all it may have is the next one's, holes too.
        if page.count >= query.limit {
            break;
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
    page.rest.next = Cursor::new(epoch, position.saturating_sub(1)).to_string();
    page.rest.up_to_date = position >= head.next && !is_away;
    page.rest.gap = gap;
    Ok(page)
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
        (Encoding::Text, _) if frame::has_too_many_escapes(&event.payload) => {
            (Some(frame::INVALID.to_owned()), base64())
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_channel::{ChannelConfig, Filter};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        frame::Dialect,
        metrics::Metrics,
        source::memory::MemorySource,
        subscriber::{Request, Start},
    };

    const CONFIG: &str = r#"{"version":1,"name":"c","namespace":"n","generation":1,
        "stream":{"name":"s","subjects":["c.>"],"topicPrefix":"c.","maxMessageSize":65536},
        "delivery":{"cacheBytes":1048576,"encoding":"Text"},"publish":{"http":false}}"#;

    /// A page of nothing: each of its reads is late, and no event is one of the filter's.
    async fn page_of_a_store_that_takes(latency: Duration) -> (Result<Page, Error>, Duration) {
        let memory = MemorySource::default();
        (0..20_000).for_each(|i| {
            memory.put("t", format!("event {i} {}", "x".repeat(100)));
        });
        let config = ChannelConfig::from_json(CONFIG.as_bytes()).unwrap();
        let metrics = Metrics::default().channel("c");
        let channel = Channel::new(config, Arc::new(memory.clone()), metrics);
        let stop = CancellationToken::new();
        #[allow(clippy::disallowed_methods)]
        let running = tokio::spawn(Arc::clone(channel.log()).run(stop.clone()));
        channel.log().head().wait_for(|head| head.next == 20_001).await.unwrap();
        memory.set_latency(latency);
        let filter = Filter::new(["none"]).unwrap();
        let (start, dialect) = (Start::Earliest, Dialect::Plain);
        let request = Request { start, filter, dialect, open: false };
        let query = Query { request, limit: 100 };
        let (head, began) = (channel.log().head_now(), Instant::now());
        let epoch = head.epoch.unwrap();
        let page = collect(&channel, &query, head, epoch, 1, began + PAGE_TIMEOUT).await;
        stop.cancel();
        running.await.unwrap();
        (page, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_of_a_slow_store_ends_in_time_with_what_it_has() {
        let (page, took) = page_of_a_store_that_takes(Duration::from_secs(2)).await;
        let page = page.unwrap();
        assert_eq!(took, PAGE_TIMEOUT);
        let next: Cursor = page.rest.next.parse().unwrap();
        assert_eq!((page.count, page.rest.up_to_date), (0, false));
        assert_eq!(next.sequence, 4_000, "four reads of a thousand events each");

        let (page, took) = page_of_a_store_that_takes(Duration::from_secs(60)).await;
        assert!(matches!(page, Err(Error::Unreachable(_))));
        assert_eq!(took, PAGE_TIMEOUT);
    }
}
