//! Cursors and other places to start: exact sequences from each.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use sluice_channel::{Cursor, Epoch, config::Start};
use sluice_tests::{
    clients::{Ledger, Reader, Request, expected},
    nats::{events, log},
    run,
};

use crate::{
    fixture::{Fixture, ORDERS, SOON, Setup},
    history::{BEFORE_PAUSE, HISTORY_PATH, STORED, history, on_history},
};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn resume_from_before_the_oldest_replays_all_100_000() {
    on_history(async |h| h.reads_on_from(&history("").resume(h.cursor(0)), 0, &[]).await);
}

#[test]
fn resume_from_the_oldest_replays_all_after_it() {
    on_history(async |h| h.reads_on_from(&history("").resume(h.cursor(1)), 1, &[]).await);
}

#[test]
fn resume_from_the_middle_replays_all_after_it() {
    on_history(async |h| {
        // Around the borders of what data planes read from the store in one go, and somewhere else.
        for from in [1_023, 1_024, 1_025, 65_536, 77_777, 99_000, STORED - 1] {
            h.reads_on_from(&history("").resume(h.cursor(from)), from, &[]).await;
        }
    });
}

#[test]
fn resume_from_the_newest_replays_nothing() {
    on_history(async |h| h.reads_on_from(&history("").resume(h.cursor(STORED)), STORED, &[]).await);
}

#[test]
fn the_cursor_is_taken_from_the_query_too() {
    on_history(async |h| {
        for name in ["last_event_id", "lastEventId", "from"] {
            h.reads_on_from(&history(&format!("?{name}={}", h.cursor(99_500))), 99_500, &[]).await;
        }
    });
}

#[test]
fn from_earliest_and_latest() {
    on_history(async |h| {
        h.reads_on_from(&history("?from=earliest"), 0, &[]).await;
        h.reads_on_from(&history("?from=latest"), STORED, &[]).await;
        h.reads_on_from(&history(""), STORED, &[]).await;
    });
}

#[test]
fn since_a_time_as_rfc_3339_and_as_unix_milliseconds() {
    on_history(async |h| {
        let millis = h.pause.as_millis();
        h.reads_on_from(&history(&format!("?since={millis}")), BEFORE_PAUSE, &[]).await;
        let time = Timestamp::from_millisecond(i64::try_from(millis).unwrap()).unwrap();
        h.reads_on_from(&history(&format!("?since={time}")), BEFORE_PAUSE, &[]).await;
        h.reads_on_from(&history("?since=2020-01-01T00:00:00Z"), 0, &[]).await;
        h.reads_on_from(&history("?since=2100-01-01T00:00:00Z"), STORED, &[]).await;
    });
}

#[test]
fn since_an_age_that_covers_all() {
    on_history(async |h| h.reads_on_from(&history("?since=15m"), 0, &[]).await);
}

#[test]
fn last_ten_events() {
    on_history(async |h| {
        h.reads_on_from(&history("?last=10"), STORED - 10, &[]).await;
        h.reads_on_from(&history("?last=1000"), STORED - 1000, &[]).await;
    });
}

#[test]
fn last_ten_events_of_a_topic() {
    on_history(async |h| {
        let of_topic = expected(&h.log, 0, STORED, &["t7"]);
        let from = of_topic[of_topic.len() - 11].0;
        h.reads_on_from(&history("?last=10&topic=t7"), from, &["t7"]).await;
    });
}

#[test]
fn a_filter_applies_to_a_replay_of_all() {
    on_history(async |h| {
        h.reads_on_from(&history("?from=earliest&topic=t7&topic=t9"), 0, &["t7", "t9"]).await;
        h.reads_on_from(&history("?from=earliest&topic=nothing.here"), STORED, &[]).await;
    });
}

#[test]
fn the_header_wins_over_the_query_and_the_query_over_time() {
    on_history(async |h| {
        let query = format!("?last_event_id={}&from=earliest&since=15m&last=3", h.cursor(99_200));
        h.reads_on_from(&history(&query).resume(h.cursor(99_900)), 99_900, &[]).await;
        h.reads_on_from(&history(&query), 99_200, &[]).await;
        h.reads_on_from(
            &history(&format!("?from={}&since=15m&last=3", h.cursor(99_300))),
            99_300,
            &[],
        )
        .await;
        h.reads_on_from(&history("?since=2100-01-01T00:00:00Z&last=3"), STORED, &[]).await;
    });
}

#[test]
fn an_empty_last_event_id_header_is_no_cursor() {
    on_history(async |h| {
        // A browser has none to send then (WHATWG HTML 9.2.3), so it is as if it were absent.
        h.reads_on_from(&history("").resume(""), STORED, &[]).await;
        h.reads_on_from(&history("?last=5").resume(""), STORED - 5, &[]).await;
    });
}

#[test]
fn a_query_that_cannot_be_read_is_refused_with_a_problem() {
    on_history(async |h| {
        let long = format!("?last_event_id={}-{}", h.epoch, "1".repeat(120));
        for query in [
            "?last_event_id=zzz",
            "?lastEventId=12",
            "?from=yesterday",
            "?from=0000000-1",
            "?since=yesterday",
            "?since=15x",
            "?since=2026-13-01T00:00:00Z",
            "?last=ten",
            "?last=-1",
            "?last=1001",
            "?topic=a..b",
            "?topic=a.%3E.b",
            &long,
        ] {
            let response =
                reqwest::get(h.plane.url(&format!("{HISTORY_PATH}{query}"))).await.unwrap();
            assert_eq!(response.status().as_u16(), 400, "{query}");
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{query}");
            let problem: Value = response.json().await.unwrap();
            assert_eq!(problem["status"], 400, "{query}: {problem}");
            assert!(
                problem["detail"].is_string() || problem["title"].is_string(),
                "{query}: {problem}"
            );
        }
    });
}

/// Headers that name no place of this stream's life, with the reason that the gap must give.
fn foreign_cursors(epoch: Epoch) -> Vec<(&'static str, String, &'static str)> {
    let long = format!("{epoch}-{}", "1".repeat(120));
    assert_eq!(long.len(), 129);
    vec![
        ("malformed", "42".to_owned(), "unknown"),
        ("malformed", "urn:uuid:5e94c686-2c0b-4f9b-958c-92ccc3bbb4eb".to_owned(), "unknown"),
        ("129 bytes", long, "unknown"),
        ("future", Cursor::new(epoch, 1_000_000).to_string(), "unknown"),
        ("other epoch", Cursor::new(Epoch::from_bits(0x0bad_cafe), 3).to_string(), "epoch"),
    ]
}

#[test]
fn a_cursor_of_no_place_here_is_a_gap_and_then_the_oldest_event() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let log = fixture.publish_many("a", 20).await;
        for (what, cursor, reason) in foreign_cursors(fixture.epoch) {
            let mut reader = fixture.resume(ORDERS, &cursor).await;
            reader.until_sequence(20, SOON).await;
            assert_one_gap(what, &reader.ledger, reason);
            reader.ledger.assert_exactly(what, &expected(&log, 0, 20, &[]));
        }
    });
}

#[test]
fn a_cursor_of_no_place_here_is_a_gap_and_then_only_new_events_where_the_channel_says_so() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.on_gap = Start::Latest).await;
        fixture.publish_many("a", 20).await;
        // The newest event is what this pod knows as such.
        fixture.open("/channels/orders?from=earliest").await.until_sequence(20, SOON).await;
        for (what, cursor, reason) in foreign_cursors(fixture.epoch) {
            let mut reader = fixture.resume(ORDERS, &cursor).await;
            reader.until("the gap", SOON, |l| !l.gaps.is_empty()).await;
            let next = fixture.publish("a", "new").await;
            reader.until_sequence(next.sequence, SOON).await;
            assert_one_gap(what, &reader.ledger, reason);
            assert_eq!(reader.ledger.sequences(), [next.sequence], "{what}");
        }
    });
}

#[track_caller]
fn assert_one_gap(what: &str, ledger: &Ledger, reason: &str) {
    let reasons: Vec<&str> = ledger.gaps.iter().map(|g| g.reason.as_str()).collect();
    assert_eq!(reasons, [reason], "{what}");
    assert_eq!(ledger.gaps[0].after, 0, "{what}: the gap comes first");
}

/// `from`, `to`, `missed` and `reason` of a gap.
#[track_caller]
fn assert_gap(ledger: &Ledger, index: usize, from: u64, to: u64, reason: &str) {
    let data = &ledger.gaps[index].data;
    let got = (
        data["from"].as_u64(),
        data["to"].as_u64(),
        data["missed"].as_u64(),
        data["reason"].as_str(),
    );
    assert_eq!(got, (Some(from), Some(to), Some(to - from + 1), Some(reason)), "{data}");
}

#[test]
fn a_cursor_before_what_is_kept_is_told_what_it_missed() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let log = fixture.publish_many("a", 100).await;
        fixture.streams.purge_before(fixture.names.stream.as_str(), 51).await;
        let plane = fixture.another().await;
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(10))).await;
        reader.until_sequence(100, SOON).await;
        assert_one_gap("evicted", &reader.ledger, "expired");
        assert_gap(&reader.ledger, 0, 11, 50, "expired");
        reader.ledger.assert_exactly("evicted", &expected(&log, 50, 100, &[]));
        // A subscriber that missed nothing is told nothing.
        for request in [
            Request::get(ORDERS).resume(fixture.cursor(50)),
            Request::get("/channels/orders?from=earliest"),
        ] {
            let mut reader = Reader::open(plane.http(), &request).await;
            reader.until_sequence(100, SOON).await;
            assert_eq!(reader.ledger.gaps, []);
            reader.ledger.assert_exactly("kept", &expected(&log, 50, 100, &[]));
        }
    });
}

#[test]
fn limits_that_evict_events_are_told_to_a_cursor_before_them() {
    run(LIMIT, async {
        let limited =
            Setup { stream: &|s: &mut Config| s.max_messages = 1_000, ..Setup::default() };
        let fixture = Fixture::with(limited).await;
        let log = fixture.publish_many("a", 5_000).await;
        let plane = fixture.another().await;
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(3_000))).await;
        reader.until_sequence(5_000, SOON).await;
        assert_eq!(reader.ledger.gaps.len(), 1);
        assert_gap(&reader.ledger, 0, 3_001, 4_000, "expired");
        reader.ledger.assert_exactly("limited", &expected(&log, 4_000, 5_000, &[]));
    });
}

#[test]
fn an_evicted_cursor_goes_on_with_new_events_where_the_channel_says_so() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.on_gap = Start::Latest).await;
        fixture.publish_many("a", 100).await;
        fixture.streams.purge_before(fixture.names.stream.as_str(), 51).await;
        let plane = fixture.another().await;
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(10))).await;
        reader.until("the gap", SOON, |l| !l.gaps.is_empty()).await;
        let next = fixture.publish("a", "new").await;
        reader.until_sequence(next.sequence, SOON).await;
        assert_one_gap("evicted", &reader.ledger, "expired");
        assert_eq!(reader.ledger.sequences(), [next.sequence]);
    });
}

#[test]
fn a_purge_of_everything_is_told_and_new_events_follow() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 100).await;
        fixture.streams.purge_before(fixture.names.stream.as_str(), 101).await;
        let plane = fixture.another().await;
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(10))).await;
        reader.until("the gap", SOON, |l| !l.gaps.is_empty()).await;
        assert_gap(&reader.ledger, 0, 11, 100, "expired");
        let next = fixture.publish("a", "new").await;
        assert_eq!(next.sequence, 101);
        reader.until_sequence(101, SOON).await;
        assert_eq!((reader.ledger.sequences(), reader.ledger.gaps.len()), (vec![101], 1));
        // A cursor at the end missed nothing.
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(100))).await;
        reader.until_sequence(101, SOON).await;
        assert_eq!(reader.ledger.gaps, []);
    });
}

#[test]
fn single_deleted_events_are_named_and_the_rest_is_exact() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut log = fixture.publish_many("a", 50).await;
        for sequence in [20, 21, 33] {
            fixture.streams.delete_message(fixture.names.stream.as_str(), sequence).await;
            log.remove(&sequence);
        }
        // A data plane that has them in memory may still serve them; one that starts now cannot.
        let plane = fixture.another().await;
        let mut reader =
            Reader::open(plane.http(), &Request::get("/channels/orders?from=earliest")).await;
        reader.until_sequence(50, SOON).await;
        assert_eq!(reader.ledger.gaps.len(), 2);
        assert_gap(&reader.ledger, 0, 20, 21, "deleted");
        assert_gap(&reader.ledger, 1, 33, 33, "deleted");
        assert_eq!(
            (reader.ledger.gaps[0].after, reader.ledger.gaps[1].after),
            (19, 30),
            "each gap stands in its place"
        );
        reader.ledger.assert_exactly("deleted", &expected(&log, 0, 50, &[]));
    });
}

#[test]
fn a_latest_value_channel_serves_the_newest_of_each_topic() {
    run(LIMIT, async {
        let setup = Setup {
            stream: &|s: &mut Config| s.max_messages_per_subject = 1,
            channel: &|c| c.stream.compacted = true,
            ..Setup::default()
        };
        let fixture = Fixture::with(setup).await;
        let published =
            fixture.streams.publish_all(&fixture.names.prefix, events(2_000, 50, 100, 3)).await;
        let newest: std::collections::HashMap<_, _> =
            published.iter().map(|p| (p.topic.clone(), p.clone())).collect();
        let log = log(newest.into_values());
        let plane = fixture.another().await;
        let mut reader =
            Reader::open(plane.http(), &Request::get("/channels/orders?from=earliest")).await;
        reader.until_sequence(2_000, SOON).await;
        reader.ledger.assert_exactly("newest of each", &expected(&log, 0, 2_000, &[]));
        assert!(
            reader.ledger.gaps.iter().all(|g| g.reason == "compacted"),
            "{:?}",
            reader.ledger.gaps
        );
        // A cursor whose successor was superseded.
        let mut reader =
            Reader::open(plane.http(), &Request::get(ORDERS).resume(fixture.cursor(5))).await;
        reader.until_sequence(2_000, SOON).await;
        reader.ledger.assert_exactly("resumed", &expected(&log, 5, 2_000, &[]));
        assert!(
            reader.ledger.gaps.iter().all(|g| g.reason == "compacted"),
            "{:?}",
            reader.ledger.gaps
        );
    });
}

#[test]
fn since_an_age_starts_after_what_is_older() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 5).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        fixture.publish_many("a", 5).await;
        let mut reader = fixture.open("/channels/orders?since=3s").await;
        reader.until_sequence(10, SOON).await;
        assert_eq!(reader.ledger.sequences(), [6, 7, 8, 9, 10]);
    });
}

#[test]
fn start_at_earliest_is_the_start_of_a_first_connection() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.start_at = Start::Earliest).await;
        let log = fixture.publish_many("a", 30).await;
        let mut reader = fixture.open(ORDERS).await;
        reader.until_sequence(30, SOON).await;
        reader.ledger.assert_exactly("earliest", &expected(&log, 0, 30, &[]));
    });
}

#[test]
fn an_empty_stream_is_a_place_to_start_too() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut readers = Vec::new();
        for query in ["", "?from=earliest", "?from=latest", "?since=15m", "?last=10", "?topic=a"] {
            readers.push((query, fixture.open(&format!("{ORDERS}{query}")).await));
        }
        readers.push(("cursor 0", fixture.resume(ORDERS, fixture.cursor(0)).await));
        for (_, reader) in &mut readers {
            assert!(reader.read_for(Duration::from_millis(100)).await);
        }
        let first = fixture.publish("a", "first").await;
        for (query, mut reader) in readers {
            reader.until_sequence(first.sequence, SOON).await;
            assert_eq!(
                (reader.ledger.sequences(), reader.ledger.gaps.len()),
                (vec![1], 0),
                "{query}"
            );
        }
    });
}
