//! What a request says of where to start, what to select and in which form. Nothing that cannot be
//! read is ignored.

use std::time::Duration;

use http::{HeaderMap, HeaderName, header};
use sluice_channel::{Cursor, Filter, config};

use super::problem::Problem;
use crate::{
    frame::Dialect,
    limits,
    subscriber::{Request, Start},
};

/// The header a browser sends when it comes back (WHATWG HTML 9.2.4).
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Query parameters in the order they came.
pub(crate) type Parameters = Vec<(String, String)>;

/// What kind of answer the client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepts {
    /// `text/event-stream`.
    Stream,
    /// `application/json`: one page of history.
    Page,
}

/// A request for events, read.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) request: Request,
    /// Events of a page.
    pub(crate) limit: usize,
}

fn value<'p>(parameters: &'p Parameters, name: &str) -> Option<&'p str> {
    parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

impl Query {
    /// Reads headers and parameters; the channel's `start_at` is the last resort.
    pub(crate) fn read(
        headers: &HeaderMap,
        parameters: &Parameters,
        start_at: config::Start,
    ) -> Result<Self, Problem> {
        let topics =
            parameters.iter().filter(|(name, _)| name == "topic").map(|(_, topic)| topic.as_str());
        let filter = Filter::new(topics).map_err(|e| Problem::bad_request(e.to_string()))?;
        let dialect = match value(parameters, "envelope") {
            None => Dialect::Plain,
            Some("json") => Dialect::Envelope,
            Some(other) => {
                return Err(Problem::bad_request(format!(
                    "envelope={other:?} must be \"json\" or left out"
                )));
            }
        };
        let limit = match value(parameters, "limit") {
            None => 100,
            Some(text) => bounded("limit", text)?,
        };
        let start = start(headers, parameters, start_at)?;
        let open = value(parameters, "open").is_some_and(|v| v == "1");
        Ok(Self { request: Request { start, filter, dialect, open }, limit })
    }
}

fn start(
    headers: &HeaderMap,
    parameters: &Parameters,
    start_at: config::Start,
) -> Result<Start, Problem> {
    // An empty last event ID is none (WHATWG HTML 9.2.4: the header is only sent when it is not
    // empty).
    if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
        return Ok(id
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map_or(Start::Unreadable, Start::After));
    }
    let cursor = |name: &str, text: &str| {
        text.parse()
            .map(Start::After)
            .map_err(|e| Problem::bad_request(format!("{name}={text:?}: {e}")))
    };
    let mut ids = parameters.iter().filter(|(name, _)| is_last_event_id(name));
    if let Some((name, text)) = ids.find(|(_, text)| !text.is_empty()) {
        return cursor(name, text);
    }
    if let Some((name, text)) = parameters.iter().find(|(name, text)| is_a_position(name, text)) {
        return Err(Problem::bad_request(format!(
            "{name}={text:?} looks like a position; those are last_event_id, from, since and last"
        )));
    }
    match value(parameters, "from") {
        Some("earliest") => return Ok(Start::Earliest),
        Some("latest") => return Ok(Start::Latest),
        Some(text) => return cursor("from", text),
        None => {}
    }
    if let Some(text) = value(parameters, "since") {
        return since(text).map(Start::Since);
    }
    if let Some(text) = value(parameters, "last") {
        return bounded("last", text).map(Start::Last);
    }
    Ok(match start_at {
        config::Start::Latest => Start::Latest,
        config::Start::Earliest => Start::Earliest,
    })
}

/// A parameter's name without what its spellings differ in.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).collect::<String>().to_ascii_lowercase()
}

/// `last_event_id`, `lastEventId`, `Last-Event-ID` and however else clients that cannot set headers
/// write it; a polyfill has a prefix of its own.
fn is_last_event_id(name: &str) -> bool {
    matches!(plain(name).as_str(), "lasteventid" | "evslasteventid")
}

/// Whether a parameter that is none of ours is meant as a position: one of our names in another
/// spelling, or a cursor under any name.
fn is_a_position(name: &str, text: &str) -> bool {
    const OURS: [&str; 4] = ["last_event_id", "from", "since", "last"];
    let is_ours = OURS.contains(&name) || is_last_event_id(name) || name == "topic";
    let is_meant = || OURS.contains(&plain(name).as_str()) || text.parse::<Cursor>().is_ok();
    !is_ours && is_meant()
}

fn bounded(name: &str, text: &str) -> Result<usize, Problem> {
    text.parse().ok().filter(|n| (1..=limits::PAGE_EVENTS).contains(n)).ok_or_else(|| {
        Problem::bad_request(format!(
            "{name}={text:?} must be a number from 1 to {}",
            limits::PAGE_EVENTS
        ))
    })
}

/// A time in Unix nanoseconds from RFC 3339 text, Unix milliseconds, or an age such as `15m`.
fn since(text: &str) -> Result<i64, Problem> {
    let problem = || {
        Problem::bad_request(format!(
            "since={text:?} must be an RFC 3339 time, Unix milliseconds, or an age such as 15m or 1h30m"
        ))
    };
    if let Ok(millis) = text.parse::<i64>() {
        return millis.checked_mul(1_000_000).filter(|_| millis >= 0).ok_or_else(problem);
    }
    let nanos = if let Ok(time) = text.parse::<jiff::Timestamp>() {
        time.as_nanosecond()
    } else {
        let age: jiff::SignedDuration = text.parse().map_err(|_| problem())?;
        let age = Duration::try_from(age).map_err(|_| problem())?;
        jiff::Timestamp::now().as_nanosecond()
            - i128::try_from(age.as_nanos()).map_err(|_| problem())?
    };
    i64::try_from(nanos.max(0)).map_err(|_| problem())
}

/// Chooses by `Accept` (RFC 9110 section 12.5.1): the greater weight wins, then the more exact
/// range, then the stream. `None` when the client takes neither.
pub(crate) fn accepts(headers: &HeaderMap) -> Option<Accepts> {
    let mut best: Option<((u32, u8, u8), Accepts)> = None;
    let mut any = false;
    for text in headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()) {
        for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            any = true;
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts
                .find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")))
                .and_then(|q| q.parse::<f32>().ok());
            // Thousandths, as the grammar has at most three digits.
            let weight = (weight.unwrap_or(1.0).clamp(0.0, 1.0) * 1_000.0) as u32;
            let offers: &[(u8, Accepts)] = match media.as_str() {
                "text/event-stream" => &[(2, Accepts::Stream)],
                "application/json" => &[(2, Accepts::Page)],
                "text/*" => &[(1, Accepts::Stream)],
                "application/*" => &[(1, Accepts::Page)],
                "*/*" => &[(0, Accepts::Stream)],
                _ => &[],
            };
            for (exactness, offer) in offers.iter().filter(|_| weight > 0) {
                let rank = (weight, *exactness, u8::from(*offer == Accepts::Stream));
                if best.is_none_or(|(known, _)| rank > known) {
                    best = Some((rank, *offer));
                }
            }
        }
    }
    if any { best.map(|(_, offer)| offer) } else { Some(Accepts::Stream) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_channel::Epoch;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    fn start_of(headers: &HeaderMap, query: &[(&str, &str)]) -> Result<Start, Problem> {
        let parameters: Parameters =
            query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Query::read(headers, &parameters, config::Start::Latest).map(|q| q.request.start)
    }

    #[test]
    fn accept() {
        for (value, expected) in [
            ("text/event-stream", Some(Accepts::Stream)),
            ("*/*", Some(Accepts::Stream)),
            ("application/json", Some(Accepts::Page)),
            ("application/json, text/plain, */*", Some(Accepts::Page)),
            ("text/event-stream;q=0.5, application/json", Some(Accepts::Page)),
            ("application/json;q=0.1, text/event-stream", Some(Accepts::Stream)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Accepts::Stream)),
            ("text/html", None),
            ("text/event-stream;q=0", None),
        ] {
            assert_eq!(accepts(&headers(header::ACCEPT, value)), expected, "{value}");
        }
        assert_eq!(accepts(&HeaderMap::new()), Some(Accepts::Stream));
    }

    #[test]
    fn the_first_start_that_is_present_wins() {
        let cursor = |sequence| Start::After(Cursor::new(Epoch::from_bits(0xab), sequence));
        let none = HeaderMap::new();
        let header = headers(LAST_EVENT_ID, "000000ab-5");
        assert_eq!(
            start_of(&header, &[("last_event_id", "000000ab-9"), ("from", "earliest")]).unwrap(),
            cursor(5)
        );
        assert_eq!(
            start_of(&none, &[("from", "earliest"), ("lastEventId", "000000ab-9")]).unwrap(),
            cursor(9)
        );
        assert_eq!(start_of(&none, &[("last", "3"), ("from", "000000ab-4")]).unwrap(), cursor(4));
        assert_eq!(
            start_of(&none, &[("last", "3"), ("since", "1700000000000")]).unwrap(),
            Start::Since(1_700_000_000_000_000_000)
        );
        assert_eq!(start_of(&none, &[("last", "3")]).unwrap(), Start::Last(3));
        assert_eq!(start_of(&none, &[]).unwrap(), Start::Latest);
        assert_eq!(
            start_of(&none, &[("since", "2023-11-14T22:13:20Z")]).unwrap(),
            Start::Since(1_700_000_000_000_000_000)
        );
        assert!(matches!(start_of(&none, &[("since", "1h30m")]).unwrap(), Start::Since(_)));
    }

    #[test]
    fn a_parameter_that_looks_like_a_position_is_taken_or_refused() {
        let none = HeaderMap::new();
        let after = Start::After(Cursor::new(Epoch::from_bits(0xab), 5));
        for name in [
            "last_event_id",
            "lastEventId",
            "lastEventID",
            "Last-Event-ID",
            "last-event-id",
            "LAST_EVENT_ID",
            "lasteventid",
            "evs_last_event_id",
        ] {
            assert_eq!(start_of(&none, &[(name, "000000ab-5")]).unwrap(), after, "{name}");
            assert!(start_of(&none, &[(name, "5")]).is_err(), "{name}");
            assert_eq!(start_of(&none, &[(name, ""), ("last", "3")]).unwrap(), Start::Last(3));
        }
        for (name, text) in [
            ("From", "earliest"),
            ("SINCE", "15m"),
            ("Last", "3"),
            ("cursor", "000000ab-5"),
            ("after", "000000ab-5"),
            ("x", "000000ab-5"),
        ] {
            assert!(start_of(&none, &[(name, text)]).is_err(), "{name}");
            assert!(start_of(&none, &[("from", "earliest"), (name, text)]).is_err(), "{name}");
        }
        for (name, text) in [("_", "1700000000"), ("token", "abc"), ("topic", "000000ab-5")] {
            assert_eq!(start_of(&none, &[(name, text)]).unwrap(), Start::Latest, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_never_ignored() {
        for bad in ["x", "000000ab", "000000ab-5 x", &"1".repeat(129)] {
            assert_eq!(
                start_of(&headers(LAST_EVENT_ID, bad), &[]).unwrap(),
                Start::Unreadable,
                "{bad}"
            );
            assert!(start_of(&HeaderMap::new(), &[("last_event_id", bad)]).is_err(), "{bad}");
            assert!(start_of(&HeaderMap::new(), &[("from", bad)]).is_err(), "{bad}");
        }
        for (name, bad) in [
            ("last", "0"),
            ("last", "1001"),
            ("last", "-1"),
            ("since", "yesterday"),
            ("since", "-5"),
            ("since", ""),
            ("topic", "a..b"),
            ("envelope", "xml"),
            ("limit", "x"),
            ("from", ""),
        ] {
            assert!(start_of(&HeaderMap::new(), &[(name, bad)]).is_err(), "{name}={bad}");
        }
        assert_eq!(start_of(&headers(LAST_EVENT_ID, ""), &[]).unwrap(), Start::Latest);
    }
}
