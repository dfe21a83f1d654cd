//! The admin listener: `/livez`, `/readyz`, `/metrics`.

use std::{
    net::{Ipv4Addr, SocketAddr},
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
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
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

/// Connections that the kernel queues before they are accepted: probes and scrapes.
const BACKLOG: i32 = 128;

/// Binds `address`. `[::]` takes connections of both families, and those of IPv4 where the kernel
/// has no IPv6.
///
/// # Errors
/// [`Error`] when it is taken or not ours.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let any = address.is_ipv6() && address.ip().is_unspecified();
    let bound = match bind_one(address) {
        // As it says on a kernel that was built or started without IPv6.
        Err(error) if any && is_without_family(&error) => {
            bind_one((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    };
    bound.map_err(|source| Error { address, source })
}

fn bind_one(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // The default is the host's to set: `net.ipv6.bindv6only`.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn is_without_family(error: &std::io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw_os_error)
        .is_some_and(|errno| [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].contains(&errno))
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
