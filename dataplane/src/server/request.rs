//! What must be so of a request, whatever it is for.

use axum::response::Response;
use http::{HeaderMap, Request, Version, header, uri::Authority};

use super::problem::Problem;

/// The answer to a request that no route should see.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<Response> {
    let detail = if request.version() == Version::HTTP_11 && !has_host(request.headers()) {
        "a request of HTTP/1.1 must have one Host header that names a host (RFC 9112, section 3.2)"
    } else if !is_text(request.uri().path()) {
        "the path must be UTF-8, percent-encoded"
    } else {
        return None;
    };
    Some(Problem::bad_request(detail).answer_anyone(request.headers()))
}

/// Whether there is one `Host`, which may be empty: a target need not have an authority.
fn has_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let is_authority =
        |host: &str| host.is_empty() || (!host.contains('@') && host.parse::<Authority>().is_ok());
    host.to_str().is_ok_and(|host| is_authority(host.trim()))
}

/// Whether `path` is UTF-8 once it is percent-decoded.
fn is_text(path: &str) -> bool {
    if !path.contains('%') {
        return true;
    }
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let (mut decoded, bytes) = (Vec::with_capacity(path.len()), path.as_bytes());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| Some(digit(bytes.get(at + 1))? * 16 + digit(bytes.get(at + 2))?))
            .flatten()
            .and_then(|byte| u8::try_from(byte).ok());
        decoded.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    std::str::from_utf8(&decoded).is_ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn one_host_that_is_a_host() {
        let with = |hosts: &[&'static str]| {
            let each = |host: &&'static str| (header::HOST, HeaderValue::from_static(host));
            has_host(
                &hosts.iter().map(each).collect::<Vec<(HeaderName, _)>>().into_iter().collect(),
            )
        };
        for good in [
            "a",
            "a.example:8080",
            "10.0.0.1:80",
            "[::1]:8080",
            "",
            "a:",
            "a_b",
            "orders-sse.default.svc",
        ] {
            assert!(with(&[good]), "{good:?}");
        }
        for bad in [&["a b"][..], &["a@b"], &["a/b"], &["a?b"], &["a", "a"], &[]] {
            assert!(!with(bad), "{bad:?}");
        }
    }

    #[test]
    fn paths_are_text_once_decoded() {
        for good in ["/", "/channels/a", "/%C3%BC", "/a%2Fb", "/100%", "/%zz", "/%e", "/ü"] {
            assert!(is_text(good), "{good}");
        }
        for bad in ["/%ff", "/a/%C3", "/%c3%28", "/channels/orders/%ff"] {
            assert!(!is_text(bad), "{bad}");
        }
    }
}
