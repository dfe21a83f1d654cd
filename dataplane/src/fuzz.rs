//! What reads outside input and is private to its module, for the fuzz targets in `tests/fuzz`:
//! they lie in another crate, so that the product is built without them. Nothing here is for any
//! other use.

use axum::response::IntoResponse;
use http::{HeaderMap, HeaderName};
use sluice_channel::config;

use crate::{
    server::query::{self, Accepts, Query},
    source::jetstream::{delivery, message},
};

pub use crate::{
    limits::{PAGE_EVENTS, SLICE_BYTES},
    subscriber::{Request, Start},
};

/// The header that a browser sends when it comes back.
pub const LAST_EVENT_ID: HeaderName = query::LAST_EVENT_ID;

/// What a `GET` of a channel asks for, and how many events a page of it has.
///
/// # Errors
/// The status of the answer where it is refused.
pub fn query(
    headers: &HeaderMap,
    parameters: &[(String, String)],
    start_at: config::Start,
) -> Result<(Request, usize), u16> {
    Query::read(headers, &parameters.to_vec(), start_at)
        .map(|query| (query.request, query.limit))
        .map_err(|problem| problem.into_response().status().as_u16())
}

/// The media type that `Accept` chooses.
#[must_use]
pub fn accepts(headers: &HeaderMap) -> Option<&'static str> {
    query::accepts(headers).map(|accepts| match accepts {
        Accepts::Stream => "text/event-stream",
        Accepts::Page => "application/json",
    })
}

/// Stream sequence, consumer sequence, time and pending of a delivery's reply subject.
#[must_use]
pub fn reply_subject(reply: &str) -> Option<(u64, u64, i64, u64)> {
    delivery::delivery(reply).map(|n| (n.sequence, n.delivery_sequence, n.time_nanos, n.pending))
}

/// Sequence, topic and name of the event of a delivery with this block of headers and this subject.
#[must_use]
pub fn delivered(sequence: u64, block: &[u8], subject: &[u8]) -> (u64, String, Option<String>) {
    let head = message::head(block);
    parts(&message::Stored { sequence, time_nanos: 0, subject: subject.into(), head })
}

/// The same of the answer to a direct get of the stream `orders`; `None` where it is no message.
#[must_use]
pub fn direct(block: &[u8]) -> Option<(u64, String, Option<String>)> {
    message::direct(block, &message::first_line("orders")).map(|stored| parts(&stored))
}

fn parts(stored: &message::Stored<'_>) -> (u64, String, Option<String>) {
    let event = stored.event("p.", bytes::Bytes::new());
    (event.sequence, event.topic, event.name)
}
