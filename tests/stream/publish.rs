//! Publishing over HTTP: nothing is acknowledged before the store has it, and nothing is stored
//! twice.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use reqwest::{Client, Response};
use serde_json::Value;
use sluice_channel::config::Encoding;
use sluice_tests::{
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{NatsCluster, Streams, names, stream_config},
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(90);

async fn post(
    fixture: &Fixture,
    topic: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> Response {
    let mut request = Client::new()
        .post(fixture.plane.url(&format!("{ORDERS}/{topic}")))
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

async fn publishing() -> Fixture {
    Fixture::channel(|c| {
        c.publish.http = true;
        c.stream.max_message_size = 10_000;
    })
    .await
}

async fn stored(fixture: &Fixture) -> u64 {
    fixture.streams.info(fixture.names.stream.as_str()).await.state.messages
}

#[test]
fn a_publish_is_answered_with_its_cursor_and_delivered_with_its_name() {
    run(LIMIT, async {
        let fixture = publishing().await;
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        let response = post(
            &fixture,
            "eu.1",
            &[("event-name", "order.created"), ("content-type", "application/json")],
            "{\"n\":1}",
        )
        .await;
        assert_eq!(
            (response.status().as_u16(), cursor(&response)),
            (201, fixture.cursor(1).to_string().as_str())
        );
        let event = reader.event(SOON).await.unwrap();
        assert_eq!(
            (event.name.as_str(), event.data.as_str(), event.last_event_id),
            ("order.created", "{\"n\":1}", fixture.cursor(1).to_string())
        );
        let message = fixture
            .streams
            .get(fixture.names.stream.as_str())
            .await
            .get_raw_message(1)
            .await
            .unwrap();
        assert_eq!(message.subject.as_str(), format!("{}eu.1", fixture.names.prefix));
        assert_eq!(
            message.headers.get("Content-Type").map(ToString::to_string),
            Some("application/json".to_owned())
        );
        let response = post(&fixture, "eu.2", &[], "").await;
        assert_eq!(
            (response.status().as_u16(), cursor(&response)),
            (201, fixture.cursor(2).to_string().as_str())
        );
        assert_eq!(reader.event(SOON).await.unwrap().data, "");
        let metrics = fixture.plane.metrics().await;
        assert_eq!(metrics.sum("sluice_publishes_total", &[("channel", "orders")]), 2.0);
    });
}

#[test]
fn the_same_idempotency_key_stores_once() {
    run(LIMIT, async {
        let fixture = publishing().await;
        let first = post(&fixture, "a", &[("idempotency-key", "k-1")], "once").await;
        assert_eq!(first.status().as_u16(), 201);
        assert!(first.headers().get("event-duplicate").is_none());
        post(&fixture, "a", &[("idempotency-key", "k-2")], "another").await;
        let again = post(&fixture, "a", &[("idempotency-key", "k-1")], "once").await;
        assert_eq!((again.status().as_u16(), cursor(&again)), (200, cursor(&first)));
        assert_eq!(again.headers()["event-duplicate"], "true");
        assert_eq!(stored(&fixture).await, 2);
    });
}

#[test]
fn an_idempotency_key_is_of_one_topic_and_of_one_event() {
    run(LIMIT, async {
        let fixture = publishing().await;
        let json = [("idempotency-key", "k"), ("content-type", "application/json")];
        let first = post(&fixture, "a", &json, "once").await;
        assert_eq!(first.status().as_u16(), 201);
        // Another topic's clients count for themselves; and no key and topic are taken for others.
        for (topic, key) in [("b", "k"), ("a.k", "x"), ("a", "k.x"), ("a", "kx")] {
            let other = post(&fixture, topic, &[("idempotency-key", key)], "else").await;
            assert_eq!(other.status().as_u16(), 201, "{topic} {key}");
        }
        assert_eq!(stored(&fixture).await, 5);
        let named = [json[0], json[1], ("event-name", "n")];
        for (headers, body) in
            [(&json[..], "other"), (&named, "once"), (&json[..1], "once"), (&json, "")]
        {
            let other = post(&fixture, "a", headers, body).await;
            assert_eq!((other.status().as_u16(), cursor(&other)), (422, cursor(&first)), "{body}");
            assert_eq!(other.headers()["content-type"], "application/problem+json");
            assert!(other.headers().get("event-duplicate").is_none());
        }
        let again = post(&fixture, "a", &json, "once").await;
        assert_eq!((again.status().as_u16(), cursor(&again)), (200, cursor(&first)));
        assert_eq!(stored(&fixture).await, 5, "nothing was stored twice");
        // What is gone cannot be compared.
        fixture.streams.delete_message(fixture.names.stream.as_str(), 1).await;
        let gone = post(&fixture, "a", &json, "other").await;
        assert_eq!((gone.status().as_u16(), cursor(&gone)), (200, cursor(&first)));
        let metrics = fixture.plane.metrics().await;
        assert_eq!(metrics.sum("sluice_publishes_total", &[("result", "key_reused")]), 4.0);
    });
}

#[test]
fn a_retry_while_the_first_copy_waits_for_its_quorum_is_told_to_come_again() {
    run(LIMIT, async {
        let mut cluster = NatsCluster::start(3).await;
        let names = names("orders");
        let streams = Streams::connect(&cluster.urls()).await;
        let stream = names.stream.as_str();
        streams.create(Config { num_replicas: 3, ..stream_config(&names) }).await;
        let leader = cluster.leader_of(&streams, stream).await;
        cluster.in_sync(&streams, stream).await;
        let mut channel = channel_config(&names);
        channel.publish.http = true;
        let configs = ConfigDir::new(&[channel]);
        let plane = DataPlane::start(&cluster.servers[leader].url(), &configs).await;
        let publish = async || {
            let request = Client::new().post(plane.url(&format!("{ORDERS}/a"))).body("7");
            request.header("idempotency-key", "order-7").timeout(SOON).send().await.unwrap()
        };
        let others: Vec<_> = (0..3).filter(|server| *server != leader).collect();
        others.iter().for_each(|server| cluster.servers[*server].process().pause());
        for _ in 0..2 {
            let response = publish().await;
            assert_eq!(response.status().as_u16(), 503, "{:?}", response.text().await);
            assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
        }
        others.iter().for_each(|server| cluster.servers[*server].process().resume());
        sluice_tests::eventually("it is stored, once", SOON, async || {
            let response = publish().await;
            response.status().is_success().then_some(())
        })
        .await;
        assert_eq!(streams.info(stream).await.state.messages, 1);
    });
}

#[test]
fn a_publish_has_the_epoch_that_it_was_stored_under() {
    run(LIMIT, async {
        let fixture = publishing().await;
        for payload in ["1", "2", "3"] {
            post(&fixture, "a", &[], payload).await;
        }
        // Faster than the pod looks. The third life's numbers are those of the second.
        let (stream, mut epoch) = (fixture.names.stream.as_str(), fixture.epoch);
        for life in 2..=4 {
            fixture.streams.context().delete_stream(stream).await.unwrap();
            let former = format!("\"{epoch}-3\"");
            epoch = fixture.streams.create(stream_config(&fixture.names)).await;
            for payload in ["4", "5"] {
                fixture.publish("a", payload).await;
            }
            let response = post(&fixture, "a", &[], "6").await;
            assert_eq!(response.status().as_u16(), 201);
            assert_eq!(cursor(&response), format!("{epoch}-3"), "life {life}");
            let matched = post(&fixture, "a", &[("if-match", &former)], "7").await;
            assert_eq!(matched.status().as_u16(), 412, "{former}: a cursor of a former life");
            let own = format!("\"{epoch}-3\"");
            let response = post(&fixture, "a", &[("if-match", &own)], "8").await;
            assert_eq!(
                (response.status().as_u16(), cursor(&response)),
                (201, &*format!("{epoch}-4"))
            );
            fixture.streams.delete_message(stream, 4).await;
        }
    });
}

#[test]
fn only_pages_of_its_own_host_and_of_allowed_origins_may_publish() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            c.publish.http = true;
            c.delivery.cors.allowed_origins = vec!["https://shop.example".to_owned()];
        })
        .await;
        let own = fixture.plane.url("");
        let simple = ("content-type", "text/plain");
        for foreign in ["https://evil.example", "null", "http://shop.example", "https://127.0.0.1"]
        {
            let headers = [("origin", foreign), simple, ("sec-fetch-site", "cross-site")];
            let response = post(&fixture, "a", &headers, "x").await;
            assert_eq!(response.status().as_u16(), 403, "{foreign}");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert!(response.headers().get("access-control-allow-origin").is_none());
        }
        let forwarded = [("origin", "https://evil.example"), ("x-forwarded-host", "evil.example")];
        assert_eq!(post(&fixture, "a", &forwarded, "x").await.status().as_u16(), 403);
        assert_eq!(stored(&fixture).await, 0);
        for allowed in [&own, "https://shop.example"] {
            let response = post(&fixture, "a", &[("origin", allowed), simple], "x").await;
            assert_eq!(response.status().as_u16(), 201, "{allowed}");
        }
        let behind_a_proxy = [("origin", "https://a.example"), ("host", "a.example")];
        assert_eq!(post(&fixture, "a", &behind_a_proxy, "x").await.status().as_u16(), 201);
        assert_eq!(post(&fixture, "a", &[], "x").await.status().as_u16(), 201, "no page");
        // HTTP/2 names the host in another place.
        let http2 = Client::builder().http2_prior_knowledge().build().unwrap();
        for (origin, status) in [(&*own, 201), ("https://evil.example", 403)] {
            let request = http2.post(fixture.plane.url(&format!("{ORDERS}/a"))).body("x");
            let response = request.header("origin", origin).timeout(SOON).send().await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{origin}");
        }
        let metrics = fixture.plane.metrics().await;
        assert_eq!(metrics.sum("sluice_publishes_total", &[("result", "forbidden")]), 6.0);
    });
}

#[test]
fn if_match_publishes_only_where_the_topic_has_not_moved() {
    run(LIMIT, async {
        let fixture = publishing().await;
        let first = post(&fixture, "a", &[], "1").await;
        // Another topic's event does not count.
        post(&fixture, "b", &[], "x").await;
        let tag = format!("\"{}\"", cursor(&first));
        let second = post(&fixture, "a", &[("if-match", &tag)], "2").await;
        assert_eq!(second.status().as_u16(), 201);
        let moved = post(&fixture, "a", &[("if-match", &tag)], "3").await;
        assert_eq!(moved.status().as_u16(), 412);
        assert_eq!(moved.headers()["content-type"], "application/problem+json");
        let other_epoch = post(&fixture, "a", &[("if-match", "\"0badcafe-3\"")], "4").await;
        assert_eq!(other_epoch.status().as_u16(), 412);
        for malformed in ["3", "\"x\"", "W/\"x\""] {
            let response = post(&fixture, "a", &[("if-match", malformed)], "5").await;
            assert!(
                [400, 412].contains(&response.status().as_u16()),
                "{malformed}: {}",
                response.status()
            );
        }
        assert_eq!(stored(&fixture).await, 3);
    });
}

#[test]
fn what_cannot_be_delivered_is_refused() {
    run(LIMIT, async {
        let fixture = publishing().await;
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
            let response = post(&fixture, topic, &headers, body).await;
            assert!(
                statuses.contains(&response.status().as_u16()),
                "{what}: {}",
                response.status()
            );
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{what}");
            let problem: Value = response.json().await.unwrap();
            assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{what}: {problem}");
        }
        assert_eq!(stored(&fixture).await, 0);
        let exactly = post(&fixture, "a", &[], vec![b'x'; 10_000]).await;
        assert_eq!(exactly.status().as_u16(), 201, "the greatest allowed size");
    });
}

#[test]
fn a_base64_channel_takes_any_bytes() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            c.publish.http = true;
            c.delivery.encoding = Encoding::Base64;
        })
        .await;
        assert_eq!(post(&fixture, "a", &[], b"\xFF\xFE".to_vec()).await.status().as_u16(), 201);
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        assert_eq!(reader.event(SOON).await.unwrap().data, "//4=");
    });
}

#[test]
fn without_the_store_nothing_is_acknowledged() {
    run(LIMIT, async {
        let mut fixture = publishing().await;
        post(&fixture, "a", &[], "1").await;
        fixture.nats.stop().await;
        let response = post(&fixture, "a", &[("idempotency-key", "k")], "2").await;
        assert_eq!(response.status().as_u16(), 503);
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
        fixture.nats.restart().await;
        let retried = async || {
            let response = post(&fixture, "a", &[("idempotency-key", "k")], "2").await;
            response.status().is_success().then(|| cursor(&response).to_owned())
        };
        let at = sluice_tests::eventually("the publish is taken again", SOON, retried).await;
        assert_eq!(at, fixture.cursor(2).to_string());
    });
}
