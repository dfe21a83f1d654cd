//! Pages have bounds: on what they cost the store, and on what they hold in memory together.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use reqwest::{Client, Response};
use serde_json::Value;
use sluice_tests::{
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{NatsServer, Streams, names, stream_config},
    process::free_port,
    run,
};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(180);
/// Readers of pages at a time: their reads together are far more than nats-server holds for one
/// connection.
const READERS: usize = 150;

async fn get(client: &Client, plane: &DataPlane, query: &str) -> Response {
    let request = client.get(plane.url(&format!("{ORDERS}{query}")));
    request
        .header("accept", "application/json")
        .timeout(Duration::from_secs(60))
        .send()
        .await
        .unwrap()
}

#[test]
fn a_crowd_of_pages_never_costs_the_connection_to_nats() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.cache_bytes = 1024 * 1024).await;
        let payload = Bytes::from(vec![b'x'; 16 * 1024]);
        let events = (0..9_600).map(|_| ("a".to_owned(), payload.clone()));
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let client = Client::new();
        let newest = fixture.cursor(9_600).to_string();
        sluice_tests::eventually("the pod is at the end", SOON, async || {
            let head = client.head(fixture.plane.url(ORDERS)).send().await.ok()?;
            (head.headers()["event-cursor"] == newest).then_some(())
        })
        .await;
        let mut live = fixture.open(ORDERS).await;
        for round in 0..3 {
            // Half of the crowd at one place, half spread over the stream.
            let queries = (0..READERS).map(|i| match i % 2 {
                0 => "?from=earliest&limit=1000".to_owned(),
                _ => format!("?from={}&limit=1000", fixture.cursor(i as u64 * 60)),
            });
            let pages = queries.map(|query| {
                let (client, plane) = (&client, &fixture.plane);
                async move {
                    let response = get(client, plane, &query).await;
                    let status = response.status().as_u16();
                    if status == 503 {
                        assert!(response.headers()["retry-after"].to_str().unwrap() > "0");
                        return 503;
                    }
                    let length = response.content_length();
                    let body = response.bytes().await.unwrap();
                    assert_eq!(length, Some(body.len() as u64));
                    let page: Value = serde_json::from_slice(&body).unwrap();
                    assert!(body.len() < 4 * 1024 * 1024 + 32 * 1024, "{}", body.len());
                    assert!(page["events"].as_array().unwrap().len() > 200, "{query}");
                    status
                }
            });
            let statuses = join_all(pages).await;
            let served = statuses.iter().filter(|status| **status == 200).count();
            assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
            assert!(served >= 12, "round {round}: {served} served");
        }
        let log = fixture.plane.log();
        for sign in ["disconnected from NATS", "slow consumer", "Slow Consumer"] {
            assert!(!log.contains(sign), "{sign}");
        }
        fixture.publish("a", "live").await;
        assert_eq!(live.event(SOON).await.unwrap().data, "live");
        let page = get(&client, &fixture.plane, "?last=1").await;
        assert_eq!(page.status().as_u16(), 200, "and pages go on");
    });
}

#[test]
fn a_crowd_that_looks_for_its_start_gets_it_or_is_told_to_come_again() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.delivery.heartbeat = Duration::from_millis(500)).await;
        let events = (0..5_000).map(|i| (format!("u.{i}.a.b"), Bytes::from_static(b"x")));
        fixture.streams.publish_all(&fixture.names.prefix, events).await;
        let client = Client::new();
        // Patterns that match nothing but, of streams, what comes later.
        let filter = |name: &str, i: usize| {
            (0..31).map(|n| format!("&topic=*.*.*.{name}{i}n{n}")).collect::<String>()
        };
        let pages = (0..60).map(|i| {
            let (client, plane, query) =
                (&client, &fixture.plane, format!("?last=10{}", filter("p", i)));
            async move {
                let response = get(client, plane, &query).await;
                let status = response.status().as_u16();
                assert!(status == 200 || status == 503, "{status}");
                assert_eq!(status == 503, response.headers().contains_key("retry-after"));
                status
            }
        });
        let streams = (0..20).map(|i| {
            let query = format!("{ORDERS}?last=10&topic=late{}", filter("s", i));
            let fixture = &fixture;
            async move { fixture.open(&query).await }
        });
        let (statuses, streams) = futures::join!(join_all(pages), join_all(streams));
        assert!(statuses.contains(&200), "{statuses:?}");
        fixture.publish("late", "live").await;
        for mut stream in streams {
            assert_eq!(stream.event(SOON * 2).await.unwrap().data, "live");
        }
    });
}

/// Messages that a nats-server has sent.
async fn sent(monitor: u16) -> u64 {
    let url = format!("http://127.0.0.1:{monitor}/varz");
    let varz: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    varz["out_msgs"].as_u64().unwrap()
}

#[test]
fn a_page_costs_the_store_about_what_it_holds() {
    run(LIMIT, async {
        let monitor = free_port();
        let nats = NatsServer::start_with(&["--http_port", &monitor.to_string()]).await;
        let names = names("orders");
        let streams = Streams::connect(&nats.url()).await;
        let epoch = streams.create(stream_config(&names)).await;
        let events = (0..5_000).map(|i| ("a".to_owned(), Bytes::from(format!("{i}"))));
        streams.publish_all(&names.prefix, events).await;
        let plane = DataPlane::start(&nats.url(), &ConfigDir::new(&[channel_config(&names)])).await;
        let client = Client::new();
        let before = sent(monitor).await;
        for from in [10, 700, 1_400, 2_100, 2_800] {
            let page = get(&client, &plane, &format!("?from={epoch}-{from}&limit=1")).await;
            let page: Value = page.json().await.unwrap();
            assert_eq!(page["events"][0]["id"], format!("{epoch}-{}", from + 1));
            assert_eq!(page["events"].as_array().unwrap().len(), 1);
        }
        let cost = sent(monitor).await - before;
        assert!(cost < 100, "{cost} messages for five events");
    });
}
