//! Whether the first bytes of a connection are a probe's.

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    Live,
    Ready,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// It may be a probe, once all of it is there.
    Partial,
    /// A whole request head; whether its answer has a body.
    Probe(Probe, bool),
    /// Something else.
    Other,
}

/// `GET` and `HEAD` on the paths of the probes.
const TARGETS: [(&[u8], Probe, bool); 4] = [
    (b"GET /livez", Probe::Live, true),
    (b"GET /readyz", Probe::Ready, true),
    (b"HEAD /livez", Probe::Live, false),
    (b"HEAD /readyz", Probe::Ready, false),
];

/// Reads the first `bytes` of a connection, to which `more` may be added.
pub(super) fn read(bytes: &[u8], more: bool) -> Head {
    let is_target = |(target, ..): &&(&[u8], Probe, bool)| {
        let length = bytes.len().min(target.len());
        // `/livezy` is no probe; `/livez?verbose` is.
        bytes[..length] == target[..length]
            && bytes.get(target.len()).is_none_or(|next| b" ?".contains(next))
    };
    let Some(&(_, probe, with_body)) = TARGETS.iter().find(is_target) else { return Head::Other };
    if bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        Head::Probe(probe, with_body)
    } else if more && !bytes.windows(2).any(|end| end == b"\n\n") {
        // A head may end its lines without a CR (RFC 9112 section 2.2): the runtime reads those.
        Head::Partial
    } else {
        Head::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_told_from_the_rest_by_their_first_bytes() {
        let rest = " HTTP/1.1\r\nHost: 10.0.0.1:9090\r\nUser-Agent: kube-probe/1.33\r\n\r\n";
        for (target, probe, with_body) in [
            ("GET /livez", Probe::Live, true),
            ("GET /readyz", Probe::Ready, true),
            ("HEAD /livez", Probe::Live, false),
            ("GET /readyz?verbose", Probe::Ready, true),
        ] {
            let head = format!("{target}{rest}");
            assert_eq!(read(head.as_bytes(), true), Head::Probe(probe, with_body), "{target}");
            for length in 1..head.len() {
                assert_eq!(read(&head.as_bytes()[..length], true), Head::Partial, "{length}");
            }
            assert_eq!(read(&head.as_bytes()[..head.len() - 1], false), Head::Other);
        }
        for other in [
            "GET /livezy HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "POST /livez HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "get /livez HTTP/1.1\r\n\r\n",
            "\r\nGET /livez HTTP/1.1\r\n\r\n",
            "GET /livez HTTP/1.1\nHost: localhost\n\n",
            "GET /m",
        ] {
            assert_eq!(read(other.as_bytes(), true), Head::Other, "{other:?}");
        }
    }
}
