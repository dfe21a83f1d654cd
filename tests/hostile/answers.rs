//! Answers of HTTP/1.1, and whether they are what the contract allows.

use serde_json::Value;

/// What docs/wire.md names.
const DOCUMENTED: &[u16] =
    &[100, 200, 201, 204, 400, 403, 404, 405, 406, 408, 412, 413, 422, 502, 503];
/// What the admin listener answers before its routes, as text: to a page of another site, to a name
/// that is not its own.
const BY_GUARD: &[u16] = &[403, 421];
/// What hyper answers itself to a head that it cannot read: no body, and the end of the connection.
const BEFORE_ROUTING: &[u16] = &[400, 414, 431];

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    /// `None` where it has not ended, or has none.
    body: Option<Vec<u8>>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// What is wrong with an answer of the admin listener. `is_channel`: it is of the routes that
    /// the contract is about.
    pub(crate) fn admin_fault(&self, is_channel: bool) -> Option<String> {
        if BY_GUARD.contains(&self.status) { None } else { self.fault(is_channel) }
    }

    /// What is wrong with it. `is_channel`: it is of the routes that the contract is about.
    pub(crate) fn fault(&self, is_channel: bool) -> Option<String> {
        let kind = self.header("content-type").unwrap_or_default();
        let told = || format!("{} {kind:?}", self.status);
        let is_hypers = BEFORE_ROUTING.contains(&self.status)
            && self.body.as_ref().is_none_or(Vec::is_empty)
            && self.header("content-type").is_none();
        if is_hypers {
            return None;
        }
        if !DOCUMENTED.contains(&self.status) {
            return Some(format!("a status that is not documented: {}", told()));
        }
        let body = self.body.as_ref().filter(|_| is_channel)?;
        if self.status == 200 && kind == "application/json" {
            let page = serde_json::from_slice::<Value>(body);
            return page.err().map(|error| format!("a page that is no JSON: {error}"));
        }
        if self.status < 400 {
            return None;
        }
        let problem: Value = serde_json::from_slice(body).unwrap_or_default();
        let is_problem = kind == "application/problem+json"
            && problem["status"] == self.status
            && problem["detail"].as_str().is_some_and(|detail| !detail.is_empty());
        let body = String::from_utf8_lossy(body);
        (!is_problem).then(|| format!("an error that is no problem: {} {body:?}", told()))
    }
}

/// Whether the next answer may begin so.
fn begins(bytes: &[u8]) -> bool {
    b"HTTP/1.".starts_with(&bytes[..bytes.len().min(7)])
}

/// The answers in `bytes`, which may end anywhere. `ends_with_head`: one may have no body, whatever
/// its head says.
///
/// # Errors
/// What is no answer.
pub(crate) fn parse(mut bytes: &[u8], ends_with_head: bool) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = std::str::from_utf8(&bytes[..end]).map_err(|e| e.to_string())?;
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .or(line.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| format!("no status line: {line:?}"))?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers: Option<_> = lines.map(header).collect();
        let mut answer = Answer {
            status,
            headers: headers.ok_or_else(|| format!("no headers: {head:?}"))?,
            body: None,
        };
        if status == 100 {
            continue;
        }
        let length = answer.header("content-length").map(str::parse::<usize>);
        answer.body = match length {
            _ if ends_with_head && begins(bytes) => None,
            _ if status == 204 => Some(Vec::new()),
            Some(Ok(length)) if bytes.len() >= length => {
                let (body, rest) = bytes.split_at(length);
                bytes = rest;
                Some(body.to_vec())
            }
            // Cut off, or a stream: the rest is its.
            _ => {
                bytes = &[];
                None
            }
        };
        answers.push(answer);
    }
    if begins(bytes) {
        Ok(answers)
    } else {
        Err(format!("no answer: {:?}", bytes.escape_ascii().to_string()))
    }
}
