//! Which requests the admin listener answers.
//!
//! It has no passwords, so it must not be a way round those that others have: for a page in a
//! browser on a machine that reaches it, or for any pod of a cluster.
//!
//! - Under which name: a page whose own name is made to point here (DNS rebinding) is of the same
//!   origin to its browser. So a `Host` is answered that no stranger can own: an address,
//!   `localhost`, the pod's own name, and those that were configured.
//! - From which page: none but the console. A browser names the page's origin in `Origin` where it
//!   matters, and its relation in `Sec-Fetch-Site` to trustworthy addresses.
//! - From where: probes and metrics from everywhere. What shows events and subscribers, and what
//!   changes something, from this host, which is where `kubectl port-forward` comes from and what
//!   the right to it protects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use clap::ValueEnum;
use http::{Method, StatusCode, header, uri::Authority};

use crate::server::handoff::Link;

/// What peers on other hosts are answered too.
const EVERYWHERE: [&str; 3] = ["/livez", "/readyz", "/metrics"];
/// What peers on other hosts are never answered.
const NEVER_FROM_AFAR: &str = "/drain";

/// From where the console, `/debug` and channels on the admin listener are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// From this host: 127.0.0.1 and `::1`.
    #[default]
    Local,
    /// From everywhere. `/drain` stays local.
    Any,
}

/// The rules, as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// From where.
    pub access: Access,
    /// Host names to answer to, beside addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Host,
    Page,
    Peer,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "this host name is not answered here: use an address, localhost, or name it with --admin-host\n",
            ),
            Self::Page => {
                (StatusCode::FORBIDDEN, "requests from pages of other sites are refused here\n")
            }
            Self::Peer => (
                StatusCode::FORBIDDEN,
                "answered on this host only: use kubectl port-forward, or start with --admin-access any (never for /drain)\n",
            ),
        }
        .into_response()
    }
}

impl Guard {
    /// Puts the rules before `router`.
    pub(super) fn before(self, router: Router) -> Router {
        router.layer(from_fn_with_state(self, check))
    }

    fn refusal(&self, request: &Request) -> Option<Refusal> {
        let named = authorities(request);
        if !named.iter().all(|name| name.as_ref().is_some_and(|name| self.answers_to(name))) {
            return Some(Refusal::Host);
        }
        if is_of_another_page(request, named.iter().flatten()) {
            return Some(Refusal::Page);
        }
        let path = request.uri().path();
        let everywhere =
            EVERYWHERE.contains(&path) || (self.access == Access::Any && path != NEVER_FROM_AFAR);
        let local = || request.extensions().get::<Link>().is_some_and(|link| is_here(&link.peer));
        (!everywhere && !local()).then_some(Refusal::Peer)
    }

    /// Whether a request of this head is answered, of those that are answered everywhere: it names
    /// no host that a stranger can own, and no page sent it.
    pub(super) fn lets_in(&self, head: &[u8]) -> bool {
        let mut hosts = 0;
        for line in head.split(|byte| *byte == b'\n').skip(1) {
            if line.starts_with(b" ") || line.starts_with(b"\t") {
                // It goes on with the one before (RFC 9112 section 5.2), whatever that said.
                return false;
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"origin") {
                return false;
            }
            if name.eq_ignore_ascii_case(b"host") {
                hosts += 1;
                if !Authority::try_from(value).is_ok_and(|name| self.answers_to(&name)) {
                    return false;
                }
            }
        }
        hosts <= 1
    }

    fn answers_to(&self, name: &Authority) -> bool {
        let host = name.host();
        // No user before it, and nothing but a port behind it.
        let port =
            name.as_str().strip_prefix(host).map(|rest| rest.strip_prefix(':').unwrap_or(rest));
        if !port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit())) {
            return false;
        }
        let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let host = host.strip_suffix('.').unwrap_or(host);
        address.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.refusal(&request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

/// Each name that the request gives this listener; `None` for what is no name. A tool that speaks
/// HTTP/1.0 may give none, a browser always does.
fn authorities(request: &Request) -> Vec<Option<Authority>> {
    let mut names: Vec<_> = request
        .headers()
        .get_all(header::HOST)
        .iter()
        .map(|value| Authority::try_from(value.as_bytes()).ok())
        .collect();
    names.extend(request.uri().authority().cloned().map(Some));
    names
}

fn is_of_another_page<'a>(
    request: &Request,
    mut named: impl Iterator<Item = &'a Authority>,
) -> bool {
    let headers = request.headers();
    let own = named.next();
    let is_own = |origin: &[u8]| {
        let origin = str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(scheme, name)| {
            own.is_some_and(|own| {
                without_default_port(scheme, own.as_str()).eq_ignore_ascii_case(name)
            })
        })
    };
    if headers.get_all(header::ORIGIN).iter().any(|origin| !is_own(origin.as_bytes())) {
        return true;
    }
    // Fetch Metadata: sent by browsers to trustworthy addresses such as loopback, never by tools.
    // A link from another site may be followed; what changes something may not be sent.
    let foreign = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| site != "same-origin" && site != "none");
    foreign && ![Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method())
}

/// As a browser writes it in an origin.
fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return authority,
    };
    authority.strip_suffix(port).unwrap_or(authority)
}

/// Whether the connection came from this host itself. Not all of 127.0.0.0/8: service meshes hand
/// connections of other hosts on from such addresses (Istio's sidecar from 127.0.0.6).
fn is_here(peer: &crate::peer::Peer) -> bool {
    let address = peer.address.ip().to_canonical();
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(method: &str, path: &str, headers: &[(&str, &str)], peer: &str) -> Request {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(Link::from(format!("{peer}:1").parse().unwrap()));
        request
    }

    fn guard(access: Access) -> Guard {
        Guard { access, hosts: vec!["orders-sse-0".to_owned(), "metrics.example".to_owned()] }
    }

    #[test]
    fn a_probe_of_a_page_or_for_a_strange_name_is_not_let_in() {
        let guard = guard(Access::Local);
        for (head, expected) in [
            ("GET /readyz HTTP/1.1\r\nHost: 10.0.0.1:9090\r\nUser-Agent: kube-probe\r\n\r\n", true),
            ("GET /readyz HTTP/1.0\r\n\r\n", true),
            ("GET /readyz HTTP/1.1\r\nhost:localhost\r\n\r\n", true),
            ("GET /readyz HTTP/1.1\r\nHost: evil.example:9090\r\n\r\n", false),
            ("GET /readyz HTTP/1.1\r\nHost: localhost\r\nHOST: evil.example\r\n\r\n", false),
            (
                "GET /readyz HTTP/1.1\r\nHost: localhost\r\norigin: http://evil.example\r\n\r\n",
                false,
            ),
            ("GET /readyz HTTP/1.1\r\nHost:\r\n\r\n", false),
            ("GET /readyz HTTP/1.1\r\nHost: localhost\r\n .evil.example\r\n\r\n", false),
        ] {
            assert_eq!(guard.lets_in(head.as_bytes()), expected, "{head}");
        }
    }

    #[test]
    fn a_name_that_a_stranger_can_own_is_not_answered() {
        for host in [
            "localhost",
            "LocalHost:9090",
            "localhost.",
            "127.0.0.1:9090",
            "10.0.0.5",
            "[::1]:9090",
            "[fd00::5]",
            "orders-sse-0:9090",
            "METRICS.example",
        ] {
            let asked = request("GET", "/metrics", &[("host", host)], "10.0.0.9");
            assert_eq!(guard(Access::Local).refusal(&asked), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "xlocalhost",
            "metrics.example.evil",
            "",
            "user@evil.example",
            "[::1].evil",
            "a b",
        ] {
            for (path, peer) in [("/metrics", "10.0.0.9"), ("/", "127.0.0.1"), ("/drain", "[::1]")]
            {
                let asked = request("GET", path, &[("host", host)], peer);
                assert_eq!(guard(Access::Any).refusal(&asked), Some(Refusal::Host), "{host:?}");
            }
        }
        // The name in an absolute URI, which HTTP/2 has for all, counts beside the header.
        for (uri, headers) in [
            ("http://evil.example/", &[][..]),
            ("http://evil.example/", &[("host", "localhost")]),
            ("http://localhost/", &[("host", "evil.example")]),
            ("/", &[("host", "localhost"), ("host", "evil.example")]),
        ] {
            let asked = request("GET", uri, headers, "127.0.0.1");
            assert_eq!(guard(Access::Local).refusal(&asked), Some(Refusal::Host), "{uri}");
        }
        let old = request("GET", "/livez", &[], "10.0.0.9");
        assert_eq!(guard(Access::Local).refusal(&old), None, "HTTP/1.0");
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let own = ("host", "localhost:9090");
        for (method, header, refused) in [
            ("POST", ("origin", "http://evil.example"), true),
            ("GET", ("origin", "http://evil.example"), true),
            ("POST", ("origin", "null"), true),
            ("POST", ("origin", "http://localhost:8080"), true),
            ("POST", ("origin", "http://localhost"), true),
            ("POST", ("origin", ""), true),
            ("POST", ("origin", "http://localhost:9090"), false),
            ("POST", ("origin", "http://LOCALHOST:9090"), false),
            ("POST", ("sec-fetch-site", "cross-site"), true),
            ("POST", ("sec-fetch-site", "same-site"), true),
            ("GET", ("sec-fetch-site", "cross-site"), false),
            ("POST", ("sec-fetch-site", "same-origin"), false),
        ] {
            let asked = request(method, "/channels/orders/a", &[own, header], "127.0.0.1");
            let expected = refused.then_some(Refusal::Page);
            assert_eq!(guard(Access::Local).refusal(&asked), expected, "{method} {header:?}");
        }
        let default = [("host", "10.0.0.5:80"), ("origin", "http://10.0.0.5")];
        assert_eq!(guard(Access::Any).refusal(&request("POST", "/x", &default, "10.0.0.9")), None);
    }

    #[test]
    fn what_shows_events_or_changes_something_is_local() {
        let host = [("host", "10.0.0.5:9090")];
        for path in
            ["/", "/console.js", "/debug/subscribers", "/debug/channels", "/channels/a", "/drain"]
        {
            for peer in ["10.0.0.9", "127.0.0.2", "127.0.0.6", "[fd00::9]", "[::ffff:10.0.0.9]"] {
                let asked = request("POST", path, &host, peer);
                assert_eq!(
                    guard(Access::Local).refusal(&asked),
                    Some(Refusal::Peer),
                    "{path} {peer}"
                );
                let open = (path == "/drain").then_some(Refusal::Peer);
                assert_eq!(guard(Access::Any).refusal(&asked), open, "{path} {peer}");
            }
            for peer in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
                let asked = request("POST", path, &host, peer);
                assert_eq!(guard(Access::Local).refusal(&asked), None, "{path} {peer}");
            }
        }
        for path in EVERYWHERE {
            let asked = request("GET", path, &host, "10.0.0.9");
            assert_eq!(guard(Access::Local).refusal(&asked), None, "{path}");
        }
    }
}
