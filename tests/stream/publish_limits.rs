//! What a publish may hold and cost, and what its answers tell of what is inside.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::Value;
use sluice_tests::{
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{NatsServer, Streams, names, stream_config},
    run,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::fixture::{Fixture, ORDERS, SOON};

const LIMIT: Duration = Duration::from_secs(90);

async fn post(plane: &DataPlane, topic: &str, body: impl Into<Vec<u8>>) -> Response {
    let url = plane.url(&format!("{ORDERS}/{topic}"));
    Client::new().post(url).body(body.into()).timeout(SOON).send().await.unwrap()
}

async fn detail(response: Response) -> String {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let problem: Value = response.json().await.unwrap();
    problem["detail"].as_str().unwrap().to_owned()
}

#[test]
fn payloads_on_their_way_have_a_bound_together() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        // Each of the largest size, and never whole.
        let (mut held, mut refused) = (Vec::new(), None);
        while refused.is_none() {
            assert!(held.len() < 100, "100 MB are held");
            let mut socket = TcpStream::connect(fixture.plane.http()).await.unwrap();
            let head =
                format!("POST {ORDERS}/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            // One that is sent away is closed.
            let _ = socket.write_all(&vec![b'x'; 1_040_000]).await;
            held.push(socket);
            if held.len() > 55 {
                let response = post(&fixture.plane, "a", vec![b'x'; 900_000]).await;
                refused = Some(response).filter(|response| response.status().as_u16() == 503);
            }
        }
        let refused = refused.unwrap();
        assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
        drop(held);
        sluice_tests::eventually("there is room again", SOON, async || {
            let response = post(&fixture.plane, "a", vec![b'x'; 900_000]).await;
            (response.status().as_u16() == 201).then_some(())
        })
        .await;
    });
}

#[test]
fn a_payload_that_is_too_large_is_told_by_which_limit() {
    run(LIMIT, async {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), "max_payload: 4096\n").unwrap();
        let nats = NatsServer::start_with(&["--config", config.path().to_str().unwrap()]).await;
        let names = names("orders");
        let streams = Streams::connect(&nats.url()).await;
        streams.create(stream_config(&names)).await;
        let mut channel = channel_config(&names);
        channel.publish.http = true;
        let plane = DataPlane::start(&nats.url(), &ConfigDir::new(&[channel])).await;
        for (length, limit) in [(5_000, "max_payload"), (1_048_577, "1048576 bytes")] {
            let response = post(&plane, "a", vec![b'x'; length]).await;
            assert_eq!(response.status().as_u16(), 413);
            let detail = detail(response).await;
            assert!(detail.contains(limit), "{length}: {detail}");
        }
        assert_eq!(post(&plane, "a", vec![b'x'; 3_000]).await.status().as_u16(), 201);
    });
}

#[test]
fn line_ends_do_not_make_a_frame_many_times_its_payload() {
    run(LIMIT, async {
        let fixture = Fixture::channel(|c| c.publish.http = true).await;
        let mut reader = fixture.open(ORDERS).await;
        let lines = vec![b'\n'; 1_000_000];
        let response = post(&fixture.plane, "a", lines.clone()).await;
        assert_eq!(response.status().as_u16(), 413);
        assert!(detail(response).await.contains("65536 line ends"));
        fixture.publish("a", lines).await;
        let event = reader.event(SOON).await.unwrap();
        assert_eq!(event.name, "channel.invalid");
        assert!(event.data.contains("too many line ends"), "{}", event.data);
        let most = "\n".repeat(65_536);
        assert_eq!(post(&fixture.plane, "a", most.clone()).await.status().as_u16(), 201);
        assert_eq!(reader.event(SOON).await.unwrap().data, most);
    });
}

#[test]
fn no_answer_names_what_is_inside() {
    run(LIMIT, async {
        let mut fixture = Fixture::channel(|c| {
            c.publish.http = true;
            c.stream.subjects = vec![format!("{}orders.>", c.stream.topic_prefix)];
        })
        .await;
        let page = async |fixture: &Fixture| {
            let request = Client::new().get(fixture.plane.url(&format!("{ORDERS}?from=earliest")));
            request.header("accept", "application/json").timeout(SOON).send().await.unwrap()
        };
        let told = detail(post(&fixture.plane, "elsewhere", "x").await).await;
        let mut details = vec![told];
        fixture.publish("orders.a", "x").await;
        fixture.streams.context().delete_stream(fixture.names.stream.as_str()).await.unwrap();
        for response in [post(&fixture.plane, "orders.a", "x").await, page(&fixture).await] {
            assert_eq!(response.status().as_u16(), 503);
            details.push(detail(response).await);
        }
        fixture.nats.stop().await;
        for response in [post(&fixture.plane, "orders.a", "x").await, page(&fixture).await] {
            assert_eq!(response.status().as_u16(), 503);
            details.push(detail(response).await);
        }
        for detail in details {
            let inside =
                [fixture.names.stream.as_str(), fixture.names.prefix.trim_end_matches('.')];
            for word in inside.into_iter().chain(["STREAM.", "API", "JetStream", "nats"]) {
                assert!(!detail.contains(word), "{word}: {detail}");
            }
        }
        let log = fixture.plane.log();
        assert!(log.contains("the store failed a request"), "the log has it");
        fixture.configs.remove("orders");
        let gone = sluice_tests::eventually("it is removed", SOON, async || {
            let response = page(&fixture).await;
            (response.status().as_u16() == 204).then_some(response)
        })
        .await;
        assert_eq!(gone.headers()["cache-control"], "no-store");
    });
}
