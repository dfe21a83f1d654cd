//! The live stream: headers at once, then whatever the subscriber yields.

use std::{convert::Infallible, sync::Arc};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, header};
use sluice_channel::Cursor;

use super::{handoff::Link, query::Query};
use crate::{
    channel::Channel,
    frame::{self, CloseReason},
    phase::Phase,
    state::Shared,
    subscriber::{Frames, Start, Subscriber},
};

/// Headers of every stream, and of `HEAD`.
pub(super) fn headers(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        // `no-transform` makes compressing proxies step aside (RFC 9111 section 5.2.2.6).
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::VARY, "Accept"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    headers(response.headers_mut());
    response
}

/// Opens a stream, or says within one why not now: an EventSource that gets an error status never
/// comes back.
pub(super) fn open(shared: &Shared, channel: &Arc<Channel>, link: &Link, query: Query) -> Response {
    let refused =
        if shared.phase.get() >= Phase::Closing { Some(CloseReason::Drain) } else { None };
    let registration = match refused {
        None if shared.admission.has_room(shared.registry.len()) => {
            shared.registry.register(channel, &link.peer, query.request.filter.to_string())
        }
        _ => None,
    };
    let Some(registration) = registration else {
        return refuse(channel, &query, refused.unwrap_or(CloseReason::Overload));
    };
    link.answer.is_stream(registration.entry());
    let subscriber = Subscriber::new(registration, query.request);
    let mut response = match &link.handoff {
        Some(handoff) => response(handoff.put(subscriber)),
        None => {
            let frames = stream::unfold(Frames::new(subscriber), |mut frames| async {
                let bytes = frames.next().await?;
                Some((Ok::<Bytes, Infallible>(bytes), frames))
            });
            response(Body::from_stream(frames))
        }
    };
    if link.is_http1 {
        // What comes behind the request is read and dropped; a client that pools connections has
        // to know (RFC 9112 section 9.6).
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn refuse(channel: &Channel, query: &Query, reason: CloseReason) -> Response {
    channel.metrics().close(reason);
    let retry = channel.retry();
    let mut out = Vec::new();
    frame::retry(&mut out, retry);
    frame::write_close(&mut out, kept_cursor(channel, &query.request.start), reason, retry);
    response(Body::from(out))
}

/// The cursor to hand back with a refusal, so that the next try starts where this one would have.
fn kept_cursor(channel: &Channel, start: &Start) -> Option<Cursor> {
    let head = channel.log().head_now();
    match start {
        Start::After(cursor) => Some(*cursor),
        Start::Latest => head.epoch.map(|epoch| Cursor::new(epoch, head.next.saturating_sub(1))),
        Start::Unreadable | Start::Earliest | Start::Since(_) | Start::Last(_) => None,
    }
}
