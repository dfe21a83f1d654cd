//! The admin listener: `/livez`, `/readyz`, `/metrics`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::Mutex;
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
    pub(crate) scopes: Arc<Scopes>,
    /// Whether this operator acts, or another.
    pub(crate) lead: Lead,
}

/// The namespaces whose channels are followed, or `*` for all of them at once, and whether each
/// one's channels are known.
#[derive(Debug)]
pub(crate) struct Scopes(Mutex<BTreeMap<String, bool>>);

impl Scopes {
    /// None of `namespaces` is known yet; empty = all namespaces, as one.
    pub(crate) fn of(namespaces: &[String]) -> Self {
        let namespaces =
            if namespaces.is_empty() { vec!["*".to_owned()] } else { namespaces.to_vec() };
        Self(Mutex::new(namespaces.into_iter().map(|namespace| (namespace, false)).collect()))
    }

    /// The channels of `namespace`, or of all, are known.
    pub(crate) fn know(&self, namespace: Option<&str>) {
        self.0.lock().insert(namespace.unwrap_or("*").to_owned(), true);
    }

    fn missing(&self) -> Vec<String> {
        let scopes = self.0.lock();
        scopes.iter().filter(|(_, known)| !**known).map(|(name, _)| name.clone()).collect()
    }
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
///
/// Ready is one that knows the channels of *all* its namespaces: one that lacks a right in one of
/// them must not take the place of one that has it.
async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let (role, missing) = (admin.lead.role(), admin.scopes.missing());
    if missing.is_empty() {
        return (StatusCode::OK, format!("ok\n{role}\n"));
    }
    let of = match missing.as_slice() {
        [all] if all == "*" => String::new(),
        some => format!(" in {}", some.join(", ")),
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("channels are not known yet{of}\n{role}\n"))
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(scopes: &Arc<Scopes>) -> (StatusCode, String) {
        let admin =
            Admin { metrics: Arc::default(), scopes: Arc::clone(scopes), lead: Lead::alone() };
        readyz(State(admin)).await
    }

    #[tokio::test]
    async fn it_is_ready_when_the_channels_of_all_its_namespaces_are_known() {
        let scopes = Arc::new(Scopes::of(&["a".to_owned(), "b".to_owned(), "c".to_owned()]));
        scopes.know(Some("a"));
        let (status, text) = asked(&scopes).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.starts_with("channels are not known yet in b, c\n"), "{text}");
        scopes.know(Some("c"));
        scopes.know(Some("b"));
        assert_eq!(asked(&scopes).await.0, StatusCode::OK);
        let all = Arc::new(Scopes::of(&[]));
        let (status, text) = asked(&all).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.starts_with("channels are not known yet\n"), "{text}");
        all.know(None);
        assert_eq!(asked(&all).await.0, StatusCode::OK);
    }
}
