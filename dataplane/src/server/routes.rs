//! One channel is one resource: `GET` reads its events, `POST` appends one, `HEAD` tells where it
//! stands.

use std::sync::Arc;

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Query as QueryString, Request, State},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use sluice_channel::Cursor;

use super::{
    cors,
    handoff::Link,
    page,
    problem::Problem,
    publish,
    query::{Accepts, Parameters, Query, accepts},
    stream,
};
use crate::{channel::Channel, state::Shared};

/// The public routes. Requests must carry a `Link` extension.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/channels/{name}", any(channel))
        .route("/channels/{name}/{*topic}", any(topic))
        .fallback(|headers: HeaderMap| async move {
            let detail = "there is nothing here; channels are at /channels/<name>";
            Problem::new(StatusCode::NOT_FOUND, detail).answer_anyone(&headers)
        })
        .layer(map_response(uncached))
        .with_state(shared)
}

/// An answer that says nothing of it may be kept by caches, even a 204 (RFC 9111 section 4.2.2).
async fn uncached(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

const READ_METHODS: &str = "GET, HEAD, OPTIONS";
const PUBLISH_METHODS: &str = "POST, OPTIONS";

/// A page of any origin may read this answer: to a `fetch` that may not, it is a broken connection,
/// and it would try for ever.
fn unknown(shared: &Shared, name: &str, method: &Method, headers: &HeaderMap) -> Response {
    let cors = cors::anyone();
    let mut response = if method == Method::OPTIONS {
        cors::preflight(&cors, headers)
    } else if shared.is_known_absent(name) {
        Problem::new(StatusCode::NOT_FOUND, format!("there is no channel {name:?} here"))
            .into_response()
    } else {
        // 404 would keep a client away for ever from a channel that is there.
        Problem::unavailable(format!(
            "it is not known whether there is a channel {name:?}: the configuration cannot be read"
        ))
        .into_response()
    };
    cors::apply(&cors, headers, &mut response);
    response
}

async fn channel(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    QueryString(parameters): QueryString<Parameters>,
    Extension(link): Extension<Link>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Some(channel) = shared.channel(&name) else {
        return unknown(&shared, &name, &method, &headers);
    };
    link.answer.is_of(&channel);
    let mut response = if method == Method::OPTIONS {
        cors::preflight(&channel.config().delivery.cors, &headers)
    } else if method == Method::GET {
        get(&shared, &channel, &link, &parameters, &headers)
            .await
            .unwrap_or_else(IntoResponse::into_response)
    } else if method == Method::HEAD {
        head(&channel)
    } else if method == Method::POST {
        Problem::method_not_allowed(
            READ_METHODS,
            format!("publish to a topic: POST /channels/{name}/<topic>"),
        )
        .into_response()
    } else {
        Problem::method_not_allowed(READ_METHODS, "a channel can be read with GET and HEAD")
            .into_response()
    };
    cors::apply(&channel.config().delivery.cors, &headers, &mut response);
    response
}

async fn get(
    shared: &Shared,
    channel: &Arc<Channel>,
    link: &Link,
    parameters: &Parameters,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    if channel.is_removed() {
        // The one status that tells an EventSource to stop (WHATWG HTML 9.2.3).
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let accepts = accepts(headers).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "Accept must allow text/event-stream or application/json",
        )
    })?;
    let query = Query::read(headers, parameters, channel.config().delivery.start_at)?;
    match accepts {
        Accepts::Page => page::page(shared, channel, &query).await,
        Accepts::Stream => Ok(stream::open(shared, channel, link, query)),
    }
}

/// The headers of a stream and where the channel stands; takes no slot.
fn head(channel: &Channel) -> Response {
    if channel.is_removed() {
        return StatusCode::NO_CONTENT.into_response();
    }
    let head = channel.log().head_now();
    let Some(epoch) = head.epoch else {
        return Problem::unavailable("the store has not been reached yet").into_response();
    };
    let latest = head.next.saturating_sub(1);
    let mut response = Response::new(Body::empty());
    stream::headers(response.headers_mut());
    for (name, sequence) in [("event-cursor", latest), ("event-earliest", head.first.min(latest))] {
        if let Ok(value) = HeaderValue::from_str(&Cursor::new(epoch, sequence).to_string()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn topic(
    State(shared): State<Arc<Shared>>,
    Path((name, topic)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (request, body) = request.into_parts();
    let (method, headers) = (&request.method, &request.headers);
    let Some(channel) = shared.channel(&name).filter(|c| !c.is_removed()) else {
        return unknown(&shared, &name, method, headers);
    };
    let mut response = if *method == Method::OPTIONS {
        cors::preflight(&channel.config().delivery.cors, headers)
    } else if *method != Method::POST {
        let detail = format!("read a topic with GET /channels/{name}?topic={topic}");
        Problem::method_not_allowed(PUBLISH_METHODS, detail).into_response()
    } else if channel.config().publish.http {
        publish::publish(&shared, &channel, &topic, &request, body).await
    } else {
        let detail = "this channel takes no events over HTTP: set spec.publish.mode to Http, or publish over NATS";
        Problem::method_not_allowed("OPTIONS", detail).into_response()
    };
    cors::apply(&channel.config().delivery.cors, headers, &mut response);
    response
}
