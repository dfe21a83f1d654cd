//! A request for events: query string, `Last-Event-ID` and `Accept`. An input's first line is the
//! query, each other one is `name:value` of a header.

use axum::extract::Query;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::ACCEPT};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use sluice_channel::{Cursor, Epoch, config};
use sluice_dataplane::{
    frame::Dialect,
    fuzz,
    fuzz::{Request, Start},
};

use super::filter;
use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "query",
    check,
    valid,
    words: &[
        "&",
        "=",
        "%",
        "%2e",
        "%00",
        "%ff",
        "+",
        "\n",
        "topic=",
        "topic=*",
        "last=",
        "limit=",
        "since=",
        "from=",
        "from=earliest",
        "from=latest",
        "last_event_id=",
        "lastEventId=",
        "Last-Event-ID=",
        "evs_last_event_id=",
        "From=",
        "cursor=",
        "envelope=json",
        "accept:",
        "last-event-id:",
        "text/event-stream",
        "application/json",
        "*/*",
        "text/*",
        ";q=",
        ";q=0",
        ", ",
        "PT1H",
        "-1h",
        "9999999999h",
        "15m",
        "2023-11-14T22:13:20Z",
        "000000ab-5",
    ],
};

fn valid(rng: &mut StdRng) -> Vec<u8> {
    let cursor =
        Cursor::new(Epoch::from_bits(rng.random()), rng.random::<u64>() >> rng.random_range(0..64));
    let mut query = Vec::new();
    for _ in 0..rng.random_range(0..4) {
        query.push(match rng.random_range(0..10) {
            0..=2 => format!("topic={}", filter::pattern(rng)),
            3 => format!("last={}", rng.random_range(1..=1_000)),
            4 => format!("limit={}", rng.random_range(1..=1_000)),
            5 => format!("since={}", rng.random_range(0..2_000_000_000_000_i64)),
            6 => format!("since={}", ["15m", "1h30m", "2023-11-14T22:13:20Z"].choose(rng).unwrap()),
            7 => format!("from={}", ["earliest", "latest"].choose(rng).unwrap()),
            8 => format!(
                "{}={cursor}",
                ["from", "last_event_id", "lastEventId", "Last-Event-ID"].choose(rng).unwrap()
            ),
            _ => "envelope=json&open=1".to_owned(),
        });
    }
    let mut text = query.join("&");
    if rng.random_bool(0.3) {
        text += &format!("\nlast-event-id:{cursor}");
    }
    for _ in 0..rng.random_range(0..3) {
        let ranges = [
            "text/event-stream",
            "application/json",
            "*/*",
            "text/*",
            "application/*",
            "text/html",
        ];
        let ranges = (0..rng.random_range(1..4)).map(|_| {
            let range = ranges.choose(rng).unwrap();
            let weight = rng.random_range(0..=1_000);
            match rng.random_range(0..4) {
                0 => format!("{range};q=0.{weight:03}"),
                1 => format!("{range}; charset=utf-8;q=0.{}", weight / 101),
                2 => format!("{range};q=1"),
                _ => (*range).to_owned(),
            }
        });
        text += &format!("\naccept:{}", ranges.collect::<Vec<_>>().join(", "));
    }
    text.into_bytes()
}

fn check(input: &[u8]) -> bool {
    let mut lines = input.split(|byte| *byte == b'\n');
    let query = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(&line[colon + 1..]);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    assert_eq!(fuzz::accepts(&headers), accepts(&headers), "{headers:?}");
    // What the HTTP library refuses does not come here.
    let Ok(uri) = Uri::try_from([b"/channels/c?", query].concat()) else { return false };
    let Ok(Query(parameters)) = Query::<Vec<(String, String)>>::try_from_uri(&uri) else {
        return false;
    };
    for start_at in [config::Start::Latest, config::Start::Earliest] {
        let expected = request(&headers, &parameters, start_at);
        match (fuzz::query(&headers, &parameters, start_at), expected) {
            (Ok((request, limit)), Some(expected)) => expected.assert(&request, limit),
            (Err(status), None) => assert_eq!(status, 400),
            (read, expected) => {
                panic!("{read:?} where {expected:?} was due: {parameters:?} {headers:?}")
            }
        }
    }
    fuzz::query(&headers, &parameters, config::Start::Latest).is_ok()
}

/// The weight of a media range, thousandths: exact where it is of RFC 9110's grammar, what a
/// number near it says elsewhere.
fn weight(parameters: &[&str]) -> u32 {
    let Some(text) = parameters.iter().find_map(|p| p.strip_prefix("q=").or(p.strip_prefix("Q=")))
    else {
        return 1_000;
    };
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    let of_grammar = digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit());
    let thousandths = format!("{digits:0<3}").parse::<u32>();
    match (whole, thousandths) {
        ("0", Ok(thousandths)) if of_grammar => thousandths,
        ("1", Ok(0)) if of_grammar => 1_000,
        _ => text.parse::<f32>().map_or(1_000, |q| (q.clamp(0.0, 1.0) * 1_000.0) as u32),
    }
}

/// What to answer with: of the ranges that a stream or a page would be one of, the one of the
/// greatest weight, then the most exact, then the stream's.
fn accepts(headers: &HeaderMap) -> Option<&'static str> {
    const KNOWN: [(&str, u8, &str); 5] = [
        ("text/event-stream", 2, "text/event-stream"),
        ("application/json", 2, "application/json"),
        ("text/*", 1, "text/event-stream"),
        ("application/*", 1, "application/json"),
        ("*/*", 0, "text/event-stream"),
    ];
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Vec<&str>> = values
        .flat_map(|value| value.split(','))
        .map(|range| range.trim().split(';').map(str::trim).collect())
        .filter(|range: &Vec<&str>| *range != [""])
        .collect();
    if ranges.is_empty() {
        return Some("text/event-stream");
    }
    let mut offers: Vec<_> = ranges
        .iter()
        .flat_map(|range| {
            KNOWN
                .iter()
                .filter(|(name, ..)| range[0].eq_ignore_ascii_case(name))
                .map(|known| (weight(&range[1..]), known))
        })
        .filter(|(weight, _)| *weight > 0)
        // The media types' own order is the one in which a stream is last.
        .map(|(weight, (_, exactness, offer))| (weight, *exactness, *offer))
        .collect();
    offers.sort_unstable();
    offers.last().map(|(_, _, offer)| *offer)
}

/// What a request must be read as.
#[derive(Debug)]
struct Expected {
    /// `None` where it depends on the clock.
    start: Option<Start>,
    patterns: Vec<String>,
    dialect: Dialect,
    open: bool,
    limit: usize,
}

impl Expected {
    fn assert(&self, request: &Request, limit: usize) {
        match &self.start {
            Some(start) => assert_eq!(&request.start, start),
            None => assert!(matches!(request.start, Start::Since(0..)), "{:?}", request.start),
        }
        assert_eq!((request.dialect, request.open, limit), (self.dialect, self.open, self.limit));
        assert!((1..=fuzz::PAGE_EVENTS).contains(&limit));
        let patterns: Vec<_> = self.patterns.iter().map(String::as_str).collect();
        for topic in ["a", "a.b", "eu.orders.a", "b.ü.a.eu"] {
            assert_eq!(Some(request.filter.matches(topic)), filter::reference(&patterns, topic));
        }
    }
}

/// The request, or `None` where it must be refused.
fn request(
    headers: &HeaderMap,
    parameters: &[(String, String)],
    start_at: config::Start,
) -> Option<Expected> {
    let value = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let all = |name: &str| {
        parameters.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>()
    };
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..=1_000).contains(n));
    let patterns = all("topic");
    filter::reference(&patterns.iter().map(String::as_str).collect::<Vec<_>>(), "a")?;
    let dialect = match value("envelope") {
        None => Dialect::Plain,
        Some(text) => (text == "json").then_some(Dialect::Envelope)?,
    };
    let limit = value("limit").map_or(Some(100), number)?;
    let cursor = |text: &str| text.parse::<Cursor>().ok().map(Start::After);
    let id = headers.get(fuzz::LAST_EVENT_ID).filter(|id| !id.is_empty());
    let word = |name: &str| name.replace(['-', '_'], "").to_ascii_lowercase();
    let is_id = |name: &str| ["lasteventid", "evslasteventid"].contains(&word(name).as_str());
    let named = parameters.iter().find(|(name, v)| is_id(name) && !v.is_empty());
    let named = named.map(|(_, v)| v.as_str());
    let ours = ["from", "since", "last"];
    let strays = parameters.iter().any(|(name, v)| {
        !is_id(name)
            && !ours.contains(&name.as_str())
            && (ours.contains(&word(name).as_str())
                || name != "topic" && v.parse::<Cursor>().is_ok())
    });
    // The first of these that is there: it is never passed over because it cannot be read.
    let start = match (id, named, value("from"), value("since"), value("last")) {
        (Some(id), ..) => {
            Some(id.to_str().ok().and_then(|id| cursor(id.trim())).unwrap_or(Start::Unreadable))
        }
        (None, Some(text), ..) => Some(cursor(text)?),
        (None, None, ..) if strays => return None,
        (None, None, Some("earliest"), ..) => Some(Start::Earliest),
        (None, None, Some("latest"), ..) => Some(Start::Latest),
        (None, None, Some(text), ..) => Some(cursor(text)?),
        (None, None, None, Some(text), _) => since(text)?,
        (None, None, None, None, Some(text)) => Some(Start::Last(number(text)?)),
        (None, None, None, None, None) => Some(match start_at {
            config::Start::Latest => Start::Latest,
            config::Start::Earliest => Start::Earliest,
        }),
    };
    Some(Expected { start, patterns, dialect, open: value("open") == Some("1"), limit })
}

/// A time: `Some(None)` where it depends on the clock, `None` where the text is none.
fn since(text: &str) -> Option<Option<Start>> {
    if let Ok(millis) = text.parse::<i64>() {
        let nanos = u64::try_from(millis).ok()?.checked_mul(1_000_000)?;
        return i64::try_from(nanos).ok().map(|nanos| Some(Start::Since(nanos)));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        let nanos = i64::try_from(time.as_nanosecond().max(0)).ok()?;
        return Some(Some(Start::Since(nanos)));
    }
    let age = text.parse::<jiff::SignedDuration>().ok()?;
    (!age.is_negative()).then_some(None)
}
