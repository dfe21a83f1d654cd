//! Cross-origin rules (Fetch standard, "CORS protocol").

use std::time::Duration;

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority};
use sluice_channel::config::Cors;

const ALLOWED_METHODS: &str = "GET, HEAD, POST, OPTIONS";
const ALLOWED_HEADERS: &str = "Last-Event-ID, Authorization, Cache-Control, Content-Type, Idempotency-Key, If-Match, Event-Name";
const EXPOSED_HEADERS: &str = "Event-Cursor, Event-Earliest, Event-Duplicate, Retry-After";

/// A page of any origin may read the answer, and asks anew before the next request.
pub(super) fn anyone() -> Cors {
    Cors {
        allowed_origins: vec!["*".to_owned()],
        allow_credentials: false,
        max_age: Duration::ZERO,
    }
}

/// What `Access-Control-Allow-Origin` says to this request, if anything.
fn allowed_origin(cors: &Cors, request: &HeaderMap) -> Option<HeaderValue> {
    let origin = request.get(header::ORIGIN)?;
    let text = origin.to_str().ok()?;
    if cors.allowed_origins.iter().any(|allowed| allowed == text) {
        return Some(origin.clone());
    }
    // `*` is never combined with credentials: the configuration refuses it.
    let any = !cors.allow_credentials && cors.allowed_origins.iter().any(|allowed| allowed == "*");
    any.then(|| HeaderValue::from_static("*"))
}

/// Whether a page of the request's origin may change something here. A browser sends a simple
/// request, cookies and all, before it asks whether the page may read the answer, so the answer's
/// headers protect nothing. A request without an origin is none of a page's.
pub(super) fn may_change(cors: &Cors, request: &HeaderMap, uri: &Uri) -> bool {
    let mut origins = request.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let is_allowed = || cors.allowed_origins.iter().any(|o| o == "*" || o == origin);
    origins.next().is_none() && (is_allowed() || is_own(origin, request, uri))
}

/// Whether `origin` has the host and port that the request was sent to. Not the scheme: a proxy
/// that ends TLS speaks plain HTTP here. `Forwarded` and `X-Forwarded-Host` anybody may send.
fn is_own(origin: &str, request: &HeaderMap, uri: &Uri) -> bool {
    let (origin, default) = match origin.split_once("://") {
        Some(("http", origin)) => (origin, 80),
        Some(("https", origin)) => (origin, 443),
        _ => return false,
    };
    let mut hosts = request.get_all(header::HOST).iter();
    let host = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, _) => Some(authority.clone()),
        (None, Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
        (None, _, _) => None,
    };
    let origin = Authority::try_from(origin).ok().filter(|origin| !origin.as_str().contains('@'));
    let port = |of: &Authority| of.port_u16().unwrap_or(default);
    host.zip(origin).is_some_and(|(host, origin)| {
        host.host().eq_ignore_ascii_case(origin.host()) && port(&host) == port(&origin)
    })
}

/// Adds what a browser needs to let a page of another origin read the answer.
pub(super) fn apply(cors: &Cors, request: &HeaderMap, response: &mut Response) {
    let headers = response.headers_mut();
    if !cors.allowed_origins.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    let Some(origin) = allowed_origin(cors, request) else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers
        .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    if cors.allow_credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// Answers a preflight; [`apply`] adds the origin.
pub(super) fn preflight(cors: &Cors, request: &HeaderMap) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
    if allowed_origin(cors, request).is_some() {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static(ALLOWED_METHODS),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static(ALLOWED_HEADERS),
        );
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age.as_secs()));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_its_own_host_and_of_allowed_origins_may_change_something() {
        let cors = |allowed: &[&str]| Cors {
            allowed_origins: allowed.iter().map(|o| (*o).to_owned()).collect(),
            ..Cors::default()
        };
        let may = |allowed: &[&str], host: &str, uri: &str, origins: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            if !host.is_empty() {
                headers.insert(header::HOST, host.parse().unwrap());
            }
            for origin in origins {
                headers.append(header::ORIGIN, HeaderValue::from_bytes(origin).unwrap());
            }
            may_change(&cors(allowed), &headers, &uri.parse().unwrap())
        };
        assert!(may(&[], "a.example", "/", &[]));
        for (host, origin) in [
            ("a.example", "http://a.example"),
            ("a.example", "https://a.example"),
            ("A.example", "https://a.example:443"),
            ("a.example:443", "https://a.example"),
            ("a.example:80", "http://a.example"),
            ("a.example:8443", "https://a.example:8443"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert!(may(&[], host, "/", &[origin.as_bytes()]), "{host} {origin}");
        }
        // HTTP/2 has it in the target.
        assert!(may(&[], "", "http://a.example/x", &[b"https://a.example"]));
        assert!(!may(&[], "evil.example", "http://a.example/x", &[b"https://evil.example"]));
        for origin in [
            &b"https://evil.example"[..],
            b"null",
            b"",
            b"a.example",
            b"https://a.example:8443",
            b"https://sub.a.example",
            b"https://a.example.evil.example",
            b"https://a.example@evil.example",
            b"https://evil.example@a.example",
            b"file://a.example",
            b"\xff",
        ] {
            assert!(!may(&[], "a.example", "/", &[origin]), "{origin:?}");
            assert!(!may(&[], "", "/", &[origin]), "{origin:?}");
        }
        assert!(!may(&[], "a.example", "/", &[b"https://a.example", b"https://evil.example"]));
        assert!(may(&["https://b.example"], "a.example", "/", &[b"https://b.example"]));
        assert!(!may(&["https://b.example"], "a.example", "/", &[b"http://b.example"]));
        assert!(may(&["*"], "a.example", "/", &[b"null"]));
    }
}
