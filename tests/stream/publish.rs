//! Publishing over HTTP: nothing is acknowledged before the store has it, and nothing is stored
//! twice.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::Value;
use sluice_channel::config::Encoding;
use sluice_tests::run;

use crate::rig::{ORDERS, Rig, SOON};

const LIMIT: Duration = Duration::from_secs(60);

async fn post(
    rig: &Rig,
    topic: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> Response {
    let mut request = Client::new()
        .post(rig.plane.url(&format!("{ORDERS}/{topic}")))
        .body(body.into())
        .timeout(SOON);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn cursor(response: &Response) -> &str {
    response.headers()["event-cursor"].to_str().unwrap()
}

async fn publishing() -> Rig {
    Rig::channel(|c| {
        c.publish.http = true;
        c.stream.max_message_size = 10_000;
    })
    .await
}

async fn stored(rig: &Rig) -> u64 {
    rig.streams.info(rig.names.stream.as_str()).await.state.messages
}

#[test]
fn a_publish_is_answered_with_its_cursor_and_delivered_with_its_name() {
    run(LIMIT, async {
        let rig = publishing().await;
        let mut reader = rig.resume(ORDERS, rig.cursor(0)).await;
        let response = post(
            &rig,
            "eu.1",
            &[("event-name", "order.created"), ("content-type", "application/json")],
            "{\"n\":1}",
        )
        .await;
        assert_eq!(
            (response.status().as_u16(), cursor(&response)),
            (201, rig.cursor(1).to_string().as_str())
        );
        let event = reader.event(SOON).await.unwrap();
        assert_eq!(
            (event.name.as_str(), event.data.as_str(), event.last_event_id),
            ("order.created", "{\"n\":1}", rig.cursor(1).to_string())
        );
        let message =
            rig.streams.get(rig.names.stream.as_str()).await.get_raw_message(1).await.unwrap();
        assert_eq!(message.subject.as_str(), format!("{}eu.1", rig.names.prefix));
        assert_eq!(
            message.headers.get("Content-Type").map(ToString::to_string),
            Some("application/json".to_owned())
        );
        let response = post(&rig, "eu.2", &[], "").await;
        assert_eq!(
            (response.status().as_u16(), cursor(&response)),
            (201, rig.cursor(2).to_string().as_str())
        );
        assert_eq!(reader.event(SOON).await.unwrap().data, "");
        let metrics = rig.plane.metrics().await;
        assert_eq!(metrics.sum("sluice_publishes_total", &[("channel", "orders")]), 2.0);
    });
}

#[test]
fn the_same_idempotency_key_stores_once() {
    run(LIMIT, async {
        let rig = publishing().await;
        let first = post(&rig, "a", &[("idempotency-key", "k-1")], "once").await;
        assert_eq!(first.status().as_u16(), 201);
        assert!(first.headers().get("event-duplicate").is_none());
        post(&rig, "a", &[("idempotency-key", "k-2")], "another").await;
        let again = post(&rig, "a", &[("idempotency-key", "k-1")], "once").await;
        assert_eq!((again.status().as_u16(), cursor(&again)), (200, cursor(&first)));
        assert_eq!(again.headers()["event-duplicate"], "true");
        assert_eq!(stored(&rig).await, 2);
    });
}

#[test]
fn if_match_publishes_only_where_the_topic_has_not_moved() {
    run(LIMIT, async {
        let rig = publishing().await;
        let first = post(&rig, "a", &[], "1").await;
        // Another topic's event does not count.
        post(&rig, "b", &[], "x").await;
        let tag = format!("\"{}\"", cursor(&first));
        let second = post(&rig, "a", &[("if-match", &tag)], "2").await;
        assert_eq!(second.status().as_u16(), 201);
        let moved = post(&rig, "a", &[("if-match", &tag)], "3").await;
        assert_eq!(moved.status().as_u16(), 412);
        assert_eq!(moved.headers()["content-type"], "application/problem+json");
        let other_epoch = post(&rig, "a", &[("if-match", "\"0badcafe-3\"")], "4").await;
        assert_eq!(other_epoch.status().as_u16(), 412);
        for malformed in ["3", "\"x\"", "W/\"x\""] {
            let response = post(&rig, "a", &[("if-match", malformed)], "5").await;
            assert!(
                [400, 412].contains(&response.status().as_u16()),
                "{malformed}: {}",
                response.status()
            );
        }
        assert_eq!(stored(&rig).await, 3);
    });
}

#[test]
fn what_cannot_be_delivered_is_refused() {
    run(LIMIT, async {
        let rig = publishing().await;
        let big = vec![b'x'; 10_001];
        let long = "x".repeat(129);
        /// What, topic, headers, body, statuses that may answer it.
        type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, Vec<u8>, &'a [u16]);
        let cases: Vec<Case<'_>> = vec![
            ("too large", "a", vec![], big, &[413]),
            ("reserved name", "a", vec![("event-name", "channel.gap")], b"x".to_vec(), &[400]),
            ("long name", "a", vec![("event-name", &long)], b"x".to_vec(), &[400]),
            ("long key", "a", vec![("idempotency-key", &long)], b"x".to_vec(), &[400]),
            ("not UTF-8", "a", vec![], b"\xFF\xFE".to_vec(), &[400, 415, 422]),
            ("wildcard", "a.*", vec![], b"x".to_vec(), &[400]),
            ("full wildcard", "%3E", vec![], b"x".to_vec(), &[400]),
            ("empty word", "a..b", vec![], b"x".to_vec(), &[400]),
            ("line end", "a%0d%0ab", vec![], b"x".to_vec(), &[400]),
            ("space", "a%20b", vec![], b"x".to_vec(), &[400]),
        ];
        for (what, topic, headers, body, statuses) in cases {
            let response = post(&rig, topic, &headers, body).await;
            assert!(
                statuses.contains(&response.status().as_u16()),
                "{what}: {}",
                response.status()
            );
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{what}");
            let problem: Value = response.json().await.unwrap();
            assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{what}: {problem}");
        }
        assert_eq!(stored(&rig).await, 0);
        let exactly = post(&rig, "a", &[], vec![b'x'; 10_000]).await;
        assert_eq!(exactly.status().as_u16(), 201, "the greatest allowed size");
    });
}

#[test]
fn a_base64_channel_takes_any_bytes() {
    run(LIMIT, async {
        let rig = Rig::channel(|c| {
            c.publish.http = true;
            c.delivery.encoding = Encoding::Base64;
        })
        .await;
        assert_eq!(post(&rig, "a", &[], b"\xFF\xFE".to_vec()).await.status().as_u16(), 201);
        let mut reader = rig.resume(ORDERS, rig.cursor(0)).await;
        assert_eq!(reader.event(SOON).await.unwrap().data, "//4=");
    });
}

#[test]
fn without_the_store_nothing_is_acknowledged() {
    run(LIMIT, async {
        let mut rig = publishing().await;
        post(&rig, "a", &[], "1").await;
        rig.nats.stop().await;
        let response = post(&rig, "a", &[("idempotency-key", "k")], "2").await;
        assert_eq!(response.status().as_u16(), 503);
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
        rig.nats.restart().await;
        let retried = async || {
            let response = post(&rig, "a", &[("idempotency-key", "k")], "2").await;
            response.status().is_success().then(|| cursor(&response).to_owned())
        };
        let at = sluice_tests::eventually("the publish is taken again", SOON, retried).await;
        assert_eq!(at, rig.cursor(2).to_string());
    });
}
