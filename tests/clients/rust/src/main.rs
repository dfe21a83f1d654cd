//! `rust-adapter '{"client", "url", "names"}'`: runs one client until it is ended; prints what
//! happens, one JSON object a line.

use std::{error::Error, time::Duration};

use eventsource_client::{Client as _, SSE};
use futures::StreamExt as _;
use serde_json::{Value, json};

fn put(line: &Value) {
    println!("{line}");
}

fn event(id: &str, name: &str, data: &str) {
    put(&json!({"t": "event", "id": id, "event": if name.is_empty() { "message" } else { name }, "data": data}));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options: Value = serde_json::from_str(&std::env::args().nth(1).ok_or("one argument")?)?;
    let (client, url) = (options["client"].as_str().ok_or("client")?, options["url"].as_str().ok_or("url")?);
    match client {
        "eventsource-client" => eventsource_client(url).await?,
        "sse-stream" => sse_stream(url).await?,
        other => return Err(format!("no client {other}").into()),
    }
    // Given up: the driver wants to see that it stays so.
    std::future::pending().await
}

/// Reconnects by itself.
async fn eventsource_client(url: &str) -> Result<(), Box<dyn Error>> {
    let transport = launchdarkly_sdk_transport::HyperTransport::builder().build_http()?;
    let client = eventsource_client::ClientBuilder::for_url(url)?.build_with_transport(transport);
    let mut stream = client.stream();
    let mut cursor = String::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(SSE::Connected(_)) => put(&json!({"t": "open"})),
            Ok(SSE::Event(e)) => {
                cursor = e.id.unwrap_or(cursor);
                event(&cursor, &e.event_type, &e.data);
            }
            Ok(SSE::Comment(_)) => {}
            Err(error) => put(&json!({"t": "error", "message": error.to_string()})),
        }
    }
    put(&json!({"t": "close", "message": "the stream of events ended"}));
    Ok(())
}

/// A parser: the loop around it is what an application writes (WHATWG HTML 9.2.3).
async fn sse_stream(url: &str) -> Result<(), Box<dyn Error>> {
    let http = reqwest::Client::new();
    let (mut cursor, mut retry) = (String::new(), 3000);
    loop {
        let mut request = http.get(url).header("accept", "text/event-stream");
        if !cursor.is_empty() {
            request = request.header("last-event-id", &cursor);
        }
        match request.send().await {
            Ok(response) if response.status() == 200 => {
                put(&json!({"t": "open"}));
                let mut events = sse_stream::SseStream::from_bytes_stream(response.bytes_stream());
                while let Some(item) = events.next().await {
                    match item {
                        Ok(e) => {
                            retry = e.retry.unwrap_or(retry);
                            if let Some(data) = e.data {
                                cursor = e.id.unwrap_or(cursor);
                                event(&cursor, &e.event.unwrap_or_default(), &data);
                            }
                        }
                        Err(error) => put(&json!({"t": "error", "message": error.to_string()})),
                    }
                }
            }
            Ok(response) => {
                put(&json!({"t": "close", "message": format!("status {}", response.status().as_u16())}));
                return Ok(());
            }
            Err(error) => put(&json!({"t": "error", "message": error.to_string()})),
        }
        tokio::time::sleep(Duration::from_millis(retry)).await;
    }
}
