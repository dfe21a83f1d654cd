//! What a channel looks like over HTTP: headers, methods, pages, cross-origin rules, overload,
//! versions of HTTP.

use std::{collections::HashSet, time::Duration};

use futures::StreamExt;
use reqwest::{Client, Method, Response, header::HeaderValue};
use serde_json::Value;
use sluice_tests::{
    clients::{Connection, Reader, Request},
    run,
    sse::{Item, Parser},
};

use crate::fixture::{Fixture, ORDERS, SOON, Setup};

const LIMIT: Duration = Duration::from_secs(90);

async fn request(
    fixture: &Fixture,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Response {
    let mut request = Client::new().request(method, fixture.plane.url(path)).timeout(SOON);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

async fn page(fixture: &Fixture, query: &str) -> Value {
    let response = request(
        fixture,
        Method::GET,
        &format!("{ORDERS}{query}"),
        &[("accept", "application/json")],
    )
    .await;
    assert_eq!(response.status().as_u16(), 200, "{query}");
    assert_eq!(response.headers()["content-type"], "application/json");
    response.json().await.unwrap()
}

#[track_caller]
fn assert_problem(response: &Response, status: u16, what: &str) {
    assert_eq!(response.status().as_u16(), status, "{what}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{what}");
}

#[test]
fn the_head_of_a_stream_is_as_written_and_its_first_frame_comes_at_once() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut connection =
            Connection::open(fixture.plane.http(), &Request::get(ORDERS)).await.unwrap();
        assert_eq!(connection.status(), 200);
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(connection.header(name), Some(value), "{name}");
        }
        assert!(connection.list("vary").contains("accept"), "Vary: {}", connection.list("vary"));
        assert_eq!(connection.header("content-encoding"), None);
        assert_eq!(connection.header("access-control-allow-origin"), None);
        let first = tokio::time::timeout(Duration::from_secs(2), connection.item())
            .await
            .expect("a first frame at once");
        assert!(matches!(first, Some(Item::Retry(1_000..=5_000))), "retry comes first: {first:?}");
    });
}

#[test]
fn the_accept_header_decides_between_stream_and_page() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        for accept in [
            Some("text/event-stream"),
            Some("*/*"),
            Some("text/*"),
            Some("text/html, */*;q=0.1"),
            None,
        ] {
            let plain = Request {
                headers: accept.map(|a| ("Accept".to_owned(), a.to_owned())).into_iter().collect(),
                ..Request::get(ORDERS)
            };
            let connection = Connection::open(fixture.plane.http(), &plain).await.unwrap();
            assert_eq!(
                (connection.status(), connection.header("content-type")),
                (200, Some("text/event-stream")),
                "{accept:?}"
            );
        }
        let response =
            request(&fixture, Method::GET, ORDERS, &[("accept", "application/json")]).await;
        assert_eq!(response.headers()["content-type"], "application/json");
        for accept in ["text/html", "image/png, text/plain"] {
            assert_problem(
                &request(&fixture, Method::GET, ORDERS, &[("accept", accept)]).await,
                406,
                accept,
            );
        }
    });
}

#[test]
fn what_is_not_there_or_not_allowed_is_said_as_a_problem() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        for path in ["/channels/nothing", "/channels/", "/nothing", "/channels/Not-A-Name"] {
            assert_problem(
                &request(&fixture, Method::GET, path, &[("accept", "text/event-stream")]).await,
                404,
                path,
            );
        }
        for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::POST] {
            let response = request(&fixture, method.clone(), ORDERS, &[]).await;
            assert_problem(&response, 405, method.as_str());
            let allow = response.headers()["allow"].to_str().unwrap().to_owned();
            let allowed: HashSet<&str> = allow.split(',').map(str::trim).collect();
            assert!(
                allowed.contains("GET") && allowed.contains("HEAD") && allowed.contains("OPTIONS"),
                "Allow: {allow}"
            );
        }
        // Publishing over HTTP is not on here.
        let response = request(&fixture, Method::POST, "/channels/orders/a", &[]).await;
        assert_problem(&response, 405, "publish disabled");
        assert!(!response.headers()["allow"].to_str().unwrap().contains("POST"));
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["status"], 405, "{problem}");
    });
}

#[test]
fn a_page_of_any_origin_can_tell_that_a_channel_is_not_there() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let origin =
            [("origin", "https://anywhere.example"), ("access-control-request-method", "GET")];
        for path in ["/channels/invoices", "/channels/invoices/created"] {
            let preflight = request(&fixture, Method::OPTIONS, path, &origin).await;
            assert_eq!(
                (preflight.status().as_u16(), &preflight.headers()["access-control-allow-origin"]),
                (204, &HeaderValue::from_static("*"))
            );
            assert_eq!(
                preflight.headers()["access-control-max-age"],
                "0",
                "a channel of that name may come, with rules of its own"
            );
            let response = request(&fixture, Method::GET, path, &origin[..1]).await;
            assert_eq!(
                (response.status().as_u16(), &response.headers()["access-control-allow-origin"]),
                (404, &HeaderValue::from_static("*"))
            );
            assert!(!response.headers().contains_key("access-control-allow-credentials"));
        }
    });
}

#[test]
fn the_admin_pages_are_not_on_the_public_listener() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        for path in ["/metrics", "/livez", "/readyz", "/debug/subscribers"] {
            assert_eq!(
                request(&fixture, Method::GET, path, &[]).await.status().as_u16(),
                404,
                "{path}"
            );
        }
        assert_eq!(request(&fixture, Method::POST, "/drain", &[]).await.status().as_u16(), 404);
    });
}

#[test]
fn head_tells_where_the_channel_stands_and_takes_no_slot() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.max_connections = 1).await;
        let head = async || {
            let connection = Connection::open(
                fixture.plane.http(),
                &Request { method: "HEAD", ..Request::get(ORDERS) },
            )
            .await
            .unwrap();
            assert_eq!(connection.status(), 200);
            connection
        };
        assert_eq!(
            head().await.header("event-cursor"),
            Some(fixture.cursor(0).to_string().as_str()),
            "an empty stream"
        );
        fixture.publish_many("a", 30).await;
        fixture.streams.purge_before(fixture.names.stream.as_str(), 11).await;
        sluice_tests::eventually("HEAD shows what is kept", SOON, async || {
            let connection = head().await;
            let (newest, oldest) = (
                connection.header("event-cursor")?.to_owned(),
                connection.header("event-earliest")?.to_owned(),
            );
            // The oldest is named by its own cursor.
            (newest == fixture.cursor(30).to_string() && oldest == fixture.cursor(11).to_string())
                .then_some(())
        })
        .await;
        let connection = head().await;
        assert_eq!(connection.header("content-type"), Some("text/event-stream"));
        assert_eq!(connection.header("cache-control"), Some("no-store, no-transform"));
        // Many HEADs later the one slot is still free.
        for _ in 0..5 {
            head().await;
        }
        let mut reader = fixture.resume(ORDERS, fixture.cursor(29)).await;
        reader.until_sequence(30, SOON).await;
    });
}

#[test]
fn pages_of_json_walk_through_2_500_events() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let log = fixture.publish_many("a", 2_500).await;
        let mut sequence = 0;
        let mut query = "?from=earliest&limit=1000".to_owned();
        for (expected, last) in [(1_000, false), (1_000, false), (500, true)] {
            let page = page(&fixture, &query).await;
            let events = page["events"].as_array().unwrap();
            assert_eq!(
                (events.len(), page["upToDate"].as_bool()),
                (expected, Some(last)),
                "{query}"
            );
            for event in events {
                sequence += 1;
                assert_eq!(event["id"], fixture.cursor(sequence).to_string());
                assert_eq!(event["topic"], "a");
                assert_eq!(event["data"].as_str().unwrap().as_bytes(), &log[&sequence].payload[..]);
                assert!(event["event"].is_null());
                assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
            }
            assert_eq!(page["next"], fixture.cursor(sequence).to_string());
            query = format!("?from={}&limit=1000", page["next"].as_str().unwrap());
        }
        let empty = page(&fixture, &query).await;
        assert_eq!(
            (empty["events"].as_array().unwrap().len(), &empty["upToDate"], &empty["next"]),
            (0, &Value::Bool(true), &fixture.cursor(2_500).to_string().into())
        );
        // A page's `next` is a cursor for a stream too.
        fixture.streams.publish_named(&fixture.names.prefix, "b", "made", "x").await;
        let mut reader = fixture.resume(ORDERS, empty["next"].as_str().unwrap()).await;
        reader.until_sequence(2_501, SOON).await;
        let named = page(&fixture, "?last=1").await;
        assert_eq!(
            (&named["events"][0]["event"], &named["events"][0]["topic"]),
            (&"made".into(), &"b".into())
        );
        let filtered = page(&fixture, "?from=earliest&topic=b").await;
        assert_eq!(filtered["events"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&filtered["next"], &filtered["upToDate"]),
            (&fixture.cursor(2_501).to_string().into(), &Value::Bool(true))
        );
        for bad in ["?limit=1001", "?limit=0", "?limit=x", "?from=zzz"] {
            let response = request(
                &fixture,
                Method::GET,
                &format!("{ORDERS}{bad}"),
                &[("accept", "application/json")],
            )
            .await;
            assert_problem(&response, 400, bad);
        }
    });
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn only_listed_origins_may_read() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            c.delivery.cors.allowed_origins =
                vec!["https://shop.example".into(), "http://localhost:5173".into()];
            c.delivery.cors.allow_credentials = true;
            c.publish.http = true;
        })
        .await;
        let get = async |origin: &str| {
            Connection::open(fixture.plane.http(), &Request::get(ORDERS).header("Origin", origin))
                .await
                .unwrap()
        };
        for origin in ["https://shop.example", "http://localhost:5173"] {
            let connection = get(origin).await;
            assert_eq!(connection.header("access-control-allow-origin"), Some(origin));
            assert_eq!(connection.header("access-control-allow-credentials"), Some("true"));
            assert!(
                connection.list("vary").contains("origin")
                    && connection.list("vary").contains("accept"),
                "Vary: {}",
                connection.list("vary")
            );
        }
        for origin in [
            "https://evil.example",
            "https://shop.example.evil.example",
            "http://shop.example",
            "https://shop.example:8443",
            "null",
        ] {
            let connection = get(origin).await;
            assert_eq!(connection.header("access-control-allow-origin"), None, "{origin}");
            assert_eq!(connection.header("access-control-allow-credentials"), None, "{origin}");
            assert!(
                connection.list("vary").contains("origin"),
                "a cache must not give this answer to another origin"
            );
        }
        let preflight = async |origin: &str, path: &str| {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", "GET"),
                ("access-control-request-headers", "last-event-id,authorization"),
            ];
            request(&fixture, Method::OPTIONS, path, &headers).await
        };
        for path in [ORDERS, "/channels/orders/a"] {
            let answer = preflight("https://shop.example", path).await;
            assert!(answer.status().is_success(), "{path}: {}", answer.status());
            let header = |name: &str| {
                answer
                    .headers()
                    .get(name)
                    .map(|v| v.to_str().unwrap().to_ascii_lowercase())
                    .unwrap_or_default()
            };
            assert_eq!(header("access-control-allow-origin"), "https://shop.example");
            assert_eq!(header("access-control-allow-credentials"), "true");
            assert_eq!(header("access-control-max-age"), "3600");
            for name in [
                "last-event-id",
                "authorization",
                "cache-control",
                "content-type",
                "idempotency-key",
                "if-match",
            ] {
                assert!(header("access-control-allow-headers").contains(name), "{name}");
            }
            assert!(header("access-control-allow-methods").contains(if path == ORDERS {
                "get"
            } else {
                "post"
            }));
        }
        let refused = preflight("https://evil.example", ORDERS).await;
        assert_eq!(refused.headers().get("access-control-allow-origin"), None);
        // A page in another origin must be able to read where it stands.
        let head =
            request(&fixture, Method::HEAD, ORDERS, &[("origin", "https://shop.example")]).await;
        let exposed =
            head.headers()["access-control-expose-headers"].to_str().unwrap().to_ascii_lowercase();
        assert!(
            exposed.contains("event-cursor") && exposed.contains("event-earliest"),
            "{exposed}"
        );
        // Errors too, or the page sees nothing but a network error.
        let error = request(
            &fixture,
            Method::GET,
            "/channels/orders?from=zzz",
            &[("origin", "https://shop.example")],
        )
        .await;
        assert_eq!(error.status().as_u16(), 400);
        assert_eq!(error.headers()["access-control-allow-origin"], "https://shop.example");
    });
}

#[test]
fn any_origin_means_no_credentials() {
    run(LIMIT, async {
        let fixture =
            Fixture::channel(|c| c.delivery.cors.allowed_origins = vec!["*".into()]).await;
        let connection = Connection::open(
            fixture.plane.http(),
            &Request::get(ORDERS).header("Origin", "https://any.example"),
        )
        .await
        .unwrap();
        let allowed = connection.header("access-control-allow-origin");
        assert!(matches!(allowed, Some("*" | "https://any.example")), "{allowed:?}");
        assert_eq!(connection.header("access-control-allow-credentials"), None);
    });
}

#[test]
fn over_budget_is_a_stream_that_says_when_to_come_back() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.max_connections = 2).await;
        fixture.publish_many("a", 5).await;
        let first = fixture.open(ORDERS).await;
        let mut second = fixture.open(ORDERS).await;
        let mut retries = HashSet::new();
        for _ in 0..5 {
            let mut third = fixture.resume(ORDERS, fixture.cursor(3)).await;
            let event = third.event(SOON).await.expect("channel.close before the end");
            assert_eq!(event.name, "channel.close");
            let data: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(data["reason"], "overload");
            assert!(data["retry"].is_u64(), "{data}");
            third.until_end(SOON).await;
            assert!(third.connection.ended_cleanly());
            assert!(
                third.ledger.retries.iter().all(|ms| (1_000..=5_000).contains(ms)),
                "{:?}",
                third.ledger.retries
            );
            retries.extend(third.ledger.retries.last().copied());
            // Sent back with the cursor it came with: it lost nothing.
            assert!(
                ["", fixture.cursor(3).to_string().as_str()]
                    .contains(&third.connection.last_event_id())
            );
            assert_eq!(third.ledger.sequences(), [0; 0]);
        }
        assert!(retries.len() > 1, "each its own retry: {retries:?}");
        assert!(second.read_for(Duration::from_millis(100)).await, "subscribers that are in stay");
        drop(first);
        let admitted = async || {
            let mut reader = fixture.resume(ORDERS, fixture.cursor(3)).await;
            let event = reader.event(SOON).await?;
            (event.name == "message").then_some(reader)
        };
        let mut third = sluice_tests::eventually("the third gets in", SOON, admitted).await;
        third.until_sequence(5, SOON).await;
        let closes =
            fixture.plane.metrics().await.sum("sluice_closes_total", &[("reason", "overload")]);
        assert!(closes >= 5.0, "{closes}");
    });
}

/// Opens streams until one is told to come back later; returns those that are in, and the one.
async fn until_overload(fixture: &Fixture, most: usize) -> (Vec<Reader>, Reader) {
    let mut open = Vec::new();
    loop {
        let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
        let event = reader.event(SOON).await.expect("an event");
        if event.name == "channel.close" {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(data["reason"], "overload");
            return (open, reader);
        }
        open.push(reader);
        assert!(open.len() <= most, "no subscriber was told to come back later");
    }
}

#[test]
fn file_descriptors_are_never_used_up() {
    run(LIMIT, async {
        let fixture = Fixture::with(Setup { open_files: Some(128), ..Setup::default() }).await;
        fixture.publish("a", "1").await;
        let (mut open, _) = until_overload(&fixture, 64).await;
        assert_eq!(open.len(), 64, "half of them are for other things");
        // The admin port and NATS have theirs.
        fixture.plane.ready().await;
        fixture.publish("a", "2").await;
        for reader in &mut open {
            reader.until_sequence(2, SOON).await;
        }
        drop(open);
        let admitted = async || {
            let mut reader = fixture.resume(ORDERS, fixture.cursor(0)).await;
            reader.event(SOON).await.filter(|event| event.name == "message")
        };
        sluice_tests::eventually("there is room again", SOON, admitted).await;
    });
}

#[test]
fn nobody_comes_in_while_memory_is_scarce() {
    run(LIMIT, async {
        let fixture =
            Fixture::with(Setup { arguments: &["--memory-limit", "1Mi"], ..Setup::default() })
                .await;
        fixture.publish("a", "1").await;
        let (open, mut refused) = until_overload(&fixture, 0).await;
        assert_eq!(open.len(), 0);
        refused.until_end(SOON).await;
        assert!(refused.connection.ended_cleanly());
        let rich =
            Fixture::with(Setup { arguments: &["--memory-limit", "64Gi"], ..Setup::default() })
                .await;
        rich.publish("a", "1").await;
        let mut reader = rich.resume(ORDERS, rich.cursor(0)).await;
        reader.until_sequence(1, SOON).await;
    });
}

#[test]
fn a_stream_ends_at_its_age_and_resumes_exactly() {
    run(LIMIT, async {
        let fixture =
            Fixture::channel(|c| c.delivery.max_connection_age = Duration::from_secs(3)).await;
        let start = tokio::time::Instant::now();
        let mut reader = fixture.open(ORDERS).await;
        let first = fixture.publish("a", "1").await;
        reader.until_end(SOON).await;
        let age = start.elapsed();
        assert!(
            (Duration::from_millis(2_300)..Duration::from_millis(4_500)).contains(&age),
            "{age:?}"
        );
        assert_eq!(reader.ledger.control_names(), ["channel.close"]);
        let data: Value = serde_json::from_str(&reader.ledger.controls[0].data).unwrap();
        assert_eq!(data["reason"], "age");
        assert_eq!(reader.ledger.sequences(), [first.sequence]);
        assert!(reader.connection.ended_cleanly());
        let second = fixture.publish("a", "2").await;
        let mut reader = fixture.resume(ORDERS, reader.connection.last_event_id()).await;
        reader.until_sequence(second.sequence, SOON).await;
        assert_eq!(reader.ledger.sequences(), [second.sequence]);
    });
}

#[test]
fn each_stream_begins_with_a_retry_of_its_own() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| {
            (c.delivery.retry_min, c.delivery.retry_max) =
                (Duration::from_millis(1_500), Duration::from_millis(4_000));
        })
        .await;
        let mut retries = HashSet::new();
        for _ in 0..30 {
            let mut reader = fixture.open(ORDERS).await;
            match reader.item(SOON).await {
                Some(Item::Retry(millis)) => {
                    assert!((1_500..=4_000).contains(&millis), "{millis}");
                    retries.insert(millis);
                }
                other => panic!("retry comes first, not {other:?}"),
            }
        }
        assert!(retries.len() >= 20, "30 streams shared {} values: {retries:?}", retries.len());
    });
}

#[test]
fn an_envelope_carries_topic_time_and_id() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let published = fixture
            .streams
            .publish_named(&fixture.names.prefix, "eu.1", "made", "{\"n\":1}\r\n2")
            .await;
        let mut reader = fixture.open("/channels/orders?from=earliest&envelope=json").await;
        let event = reader.event(SOON).await.unwrap();
        assert_eq!(event.name, "made");
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(data["topic"], "eu.1");
        assert_eq!(data["id"], fixture.cursor(published.sequence).to_string());
        assert_eq!(data["data"], "{\"n\":1}\r\n2", "an envelope keeps line ends as they are");
        assert!(data["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(data.as_object().unwrap().len(), 4);
        // Plain subscribers of the same channel get the payload.
        let mut plain = fixture.open("/channels/orders?from=earliest").await;
        assert_eq!(plain.event(SOON).await.unwrap().data, "{\"n\":1}\n2");
        let refused = request(&fixture, Method::GET, "/channels/orders?envelope=xml", &[]).await;
        assert_problem(&refused, 400, "envelope=xml");
    });
}

#[test]
fn a_stream_can_be_asked_to_introduce_itself() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 5).await;
        let mut reader = fixture.open("/channels/orders?open=1&last=2").await;
        let open = reader.event(SOON).await.unwrap();
        assert_eq!(open.name, "channel.open");
        assert_eq!(open.last_event_id, fixture.cursor(3).to_string(), "where the stream starts");
        assert!(serde_json::from_str::<Value>(&open.data).unwrap().is_object());
        reader.until_sequence(5, SOON).await;
        assert_eq!(reader.ledger.sequences(), [4, 5]);
    });
}

#[test]
fn an_http_1_0_client_gets_an_unframed_stream() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let log = fixture.publish_many("a", 10).await;
        let request =
            Request { version: "HTTP/1.0", ..Request::get("/channels/orders?from=earliest") };
        let mut reader = Reader::open(fixture.plane.http(), &request).await;
        assert_eq!(reader.connection.header("transfer-encoding"), None);
        reader.until_sequence(10, SOON).await;
        reader
            .ledger
            .assert_exactly("HTTP/1.0", &sluice_tests::clients::expected(&log, 0, 10, &[]));
        let live = fixture.publish("a", "live").await;
        reader.until_sequence(live.sequence, SOON).await;
    });
}

#[test]
fn twenty_streams_share_one_http_2_connection() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        fixture.publish_many("a", 500).await;
        let client = Client::builder().http2_prior_knowledge().build().unwrap();
        let mut streams = Vec::new();
        for i in 0..20u64 {
            let response = client
                .get(fixture.plane.url(ORDERS))
                .header("accept", "text/event-stream")
                .header("last-event-id", fixture.cursor(i * 20).to_string());
            let response = response.send().await.unwrap();
            assert_eq!(
                (response.status().as_u16(), response.version()),
                (200, reqwest::Version::HTTP_2)
            );
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            assert!(
                response.headers().get("connection").is_none()
                    && response.headers().get("transfer-encoding").is_none()
            );
            streams.push((i, response));
        }
        let live = fixture.publish("a", "live").await;
        // One that is not read holds up none of the others; one that is dropped frees its slot.
        let unread = streams.remove(7);
        drop(streams.remove(3));
        for (i, response) in streams {
            let mut ledger = sluice_tests::clients::Ledger::default();
            let (mut parser, mut bytes) = (Parser::new(), response.bytes_stream());
            while ledger.last() != Some(live.sequence) {
                parser.push(
                    &tokio::time::timeout(SOON, bytes.next())
                        .await
                        .expect("more soon")
                        .expect("the stream is open")
                        .unwrap(),
                );
                while let Some(item) = parser.pop() {
                    ledger.record(&item);
                }
            }
            assert_eq!(ledger.sequences(), (i * 20 + 1..=live.sequence).collect::<Vec<_>>());
        }
        drop(unread);
        sluice_tests::eventually("all slots are free", SOON, async || {
            (fixture.plane.metrics().await.sum("sluice_connections", &[]) == 0.0).then_some(())
        })
        .await;
    });
}

#[test]
fn a_subscriber_that_leaves_frees_its_slot() {
    run(LIMIT, async {
        let fixture = Fixture::new().await;
        let mut readers = Vec::new();
        for _ in 0..10 {
            readers.push(fixture.open(ORDERS).await);
        }
        let local: HashSet<String> = readers
            .iter()
            .filter_map(|r| r.connection.local_address())
            .map(|a| a.to_string())
            .collect();
        let listed = fixture.plane.subscribers().await;
        let peers: HashSet<String> =
            listed.iter().map(|s| s["peer"].as_str().unwrap().to_owned()).collect();
        assert_eq!(peers, local);
        for subscriber in &listed {
            assert_eq!(subscriber["channel"], "orders");
            for field in ["cursor", "lag", "age_ms", "state", "filter"] {
                assert!(subscriber.get(field).is_some(), "{field} of {subscriber}");
            }
        }
        assert_eq!(
            fixture.plane.metrics().await.sum("sluice_connections", &[("channel", "orders")]),
            10.0
        );
        drop(readers);
        sluice_tests::eventually("no subscriber is left", SOON, async || {
            fixture.plane.subscribers().await.is_empty().then_some(())
        })
        .await;
        assert_eq!(
            fixture.plane.metrics().await.sum("sluice_connections", &[("channel", "orders")]),
            0.0
        );
    });
}
