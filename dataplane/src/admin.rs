//! The admin listener: probes and metrics for everything in the cluster; what is connected, the
//! console and the drain for this host (`guard.rs`). Never routed to from outside.

mod console;
pub(crate) mod guard;
pub(crate) mod probes;
mod view;

use std::{cmp::Reverse, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_channel::config;

use self::guard::Guard;
use crate::{phase::Phase, state::Shared};

pub(crate) fn router(shared: Arc<Shared>, guard: Guard) -> Router {
    let routes = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/subscribers", get(subscribers))
        .route("/drain", post(drain))
        .with_state(Arc::clone(&shared));
    guard.before(routes.merge(console::router(shared)))
}

/// Ready = all that the pod was started with is in force, every log covered its tail once, and no
/// drain has begun. A store that goes away later does not take the pod out: its streams and its
/// memory are still of use. Neither does a file that is refused later: what it held before is in
/// force.
fn readiness(shared: &Shared) -> (bool, Value) {
    let phase = shared.phase.get();
    let channels: Vec<_> = view::served(shared).into_iter().map(|(_, _, told)| told).collect();
    let mut told = json!({"phase": phase, "channels": channels, "reads": reads()});
    view::troubles(shared, &mut told);
    (phase == Phase::Ready, told)
}

/// Which files this build reads: an operator of another release sees what it may write.
fn reads() -> Value {
    let requires: Vec<_> = config::REQUIREMENTS.iter().map(|known| known.name).collect();
    json!({"version": config::VERSION, "requires": requires})
}

/// As the thread of the [`probes`] answers it.
async fn live(State(shared): State<Arc<Shared>>) -> Response {
    let (alive, text) = probes::liveness(shared.dead().as_deref().map(String::as_str));
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}

/// What comes by a connection that did not begin with a probe; others are of [`probes`].
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let (ready, told) = readiness(&shared);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(told)).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    for channel in shared.channels() {
        let metrics = channel.metrics();
        metrics.reader_lag.set(i64::try_from(channel.log().status().lag).unwrap_or(i64::MAX));
        metrics
            .invalid_payloads
            .set(i64::try_from(channel.log().invalid_payloads()).unwrap_or(i64::MAX));
    }
    match shared.metrics.encode() {
        Ok(text) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What `/debug/subscribers` may be asked to leave out.
#[derive(Debug, Deserialize)]
struct Selection {
    /// Only this channel's.
    channel: Option<String>,
    /// So many, the furthest behind first. Default: all.
    limit: Option<usize>,
}

async fn subscribers(
    State(shared): State<Arc<Shared>>,
    Query(selection): Query<Selection>,
) -> Response {
    let mut subscribers = shared.registry.view(selection.channel.as_deref());
    let total = subscribers.len();
    if let Some(limit) = selection.limit {
        subscribers.sort_by_key(|s| Reverse(s.lag()));
        subscribers.truncate(limit);
    }
    Json(json!({"subscribers": subscribers, "total": total})).into_response()
}

async fn drain(State(shared): State<Arc<Shared>>) -> Response {
    shared.drain.cancel();
    (StatusCode::ACCEPTED, "draining\n").into_response()
}
