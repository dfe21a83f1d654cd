//! The admin listener: `/livez`, `/readyz`, `/metrics`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{leader::Lead, metrics::Metrics};

/// Why the listener did not come up.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}. Choose another address with --admin")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the listener tells.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) metrics: Arc<Metrics>,
    /// Whether the channels are known, so that changes are acted on.
    pub(crate) ready: Arc<AtomicBool>,
    /// Whether this operator acts, or another.
    pub(crate) lead: Lead,
}

/// Binds `address`.
///
/// # Errors
/// [`Error`] when it is taken or not ours.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error { address, source })
}

/// Serves until `stop`.
///
/// # Errors
/// What the listener said.
pub(crate) async fn serve(
    listener: TcpListener,
    admin: Admin,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    axum::serve(listener, router.with_state(admin))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// A standby is ready, too: it can take over at any time, and a rolling update of a leader waits
/// for it.
async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let role = admin.lead.role();
    if admin.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, format!("ok\n{role}\n"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("channels are not known yet\n{role}\n"))
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.text() {
        Ok(text) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
