//! Cross-origin rules (Fetch standard, "CORS protocol").

use std::time::Duration;

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
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
