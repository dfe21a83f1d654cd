//! The console: a page for people, on the admin listener. Plain files, no outside assets; it reads
//! channels as any subscriber does, so what it shows is what a subscriber gets.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use super::view;
use crate::{channel::Channel, log::Head, server, state::Shared};

const PAGE: &str = include_str!("console/index.html");
const STYLE: &str = include_str!("console/console.css");
const SCRIPT: &str = include_str!("console/console.js");
/// The page loads and asks nothing but this listener, and no page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, what it asks, and the channels themselves beside it: a page may only read its own
/// origin.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", PAGE)))
        .route("/console.css", get(|| file("text/css; charset=utf-8", STYLE)))
        .route("/console.js", get(|| file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/debug/channels", get(channels))
        .with_state(Arc::clone(&shared))
        .merge(server::router(shared))
}

#[allow(clippy::unused_async)] // axum's handlers are
async fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // An upgraded pod's page must not run with the script of the one before.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

async fn channels(State(shared): State<Arc<Shared>>) -> Json<Value> {
    // All that /readyz tells, and more.
    let more = |(channel, head, mut told): (Arc<Channel>, Head, Value)| {
        let config = channel.config();
        told["first"] = json!(head.first);
        told["maxConnections"] = json!(config.delivery.max_connections);
        told["delivered"] = json!(channel.metrics().events_delivered.get());
        told["publish"] = json!(config.publish.http);
        told["topicPrefix"] = json!(config.stream.topic_prefix);
        told
    };
    let channels: Vec<_> = view::served(&shared).into_iter().map(more).collect();
    let mut told = json!({
        "instance": shared.instance,
        "version": env!("CARGO_PKG_VERSION"),
        "phase": shared.phase.get(),
        "channels": channels,
    });
    view::troubles(&shared, &mut told);
    Json(told)
}
