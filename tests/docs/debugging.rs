//! The commands of docs/debugging.md, against the programs as `make run` starts them.

use std::time::Duration;

use serde_json::Value;
use sluice_channel::ChannelConfig;
use sluice_tests::{docs::block, eventually};

use crate::{
    local::{Desk, TEST_LIMIT, until_nothing_runs},
    terminal::data,
};

/// Longest until the admin listener tells of what a subscriber has seen already.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn what_the_debugging_page_shows() {
    sluice_tests::run(TEST_LIMIT, async {
        let mut desk = Desk::new();
        desk.is_here(".data", desk.data.path().display().to_string());
        desk.is_here("127.0.0.1:4222", format!("127.0.0.1:{}", desk.nats));
        let mut server = desk.types(&block("local", "debug-run").command());
        server.serves().await;
        let mut subscriber = desk.types(&block("local", "try-it").commands()[0]);
        subscriber.events("the stream is open", |seen| !seen.is_empty()).await;
        desk.nats_client().await.publish("sse.default.orders.", "created", "x").await;
        subscriber.events("the event", |seen| data(seen).len() == 1).await;

        let stream = files(&desk).await;
        admin(&desk).await;
        jetstream(&desk, &stream).await;

        server.interrupt().await;
        until_nothing_runs(&desk).await;
    });
}

/// The logs, and the file that the operator wrote; returns the stream that it names.
async fn files(desk: &Desk) -> String {
    let [logs, file] =
        <[String; 2]>::try_from(block("local", "debug-logs").commands()).expect("two commands");
    let said = desk.types(&logs).output().await;
    assert!(
        said.contains(" DEBUG sluice_dataplane"),
        "RUST_LOG is for the data plane, too\n{said}"
    );
    assert!(said.contains("nats-server.log"), "{said}");
    let config = ChannelConfig::from_json(desk.types(&file).output().await.as_bytes()).unwrap();
    config.stream.name.to_string()
}

/// What the pod says of its channels and subscribers.
async fn admin(desk: &Desk) {
    let said = desk.types(&block("local", "debug-readyz").command()).output().await;
    let ready: Value = serde_json::from_str(&said).unwrap();
    let channels = ready["channels"].as_array().unwrap();
    let orders = channels.iter().find(|channel| channel["name"] == "orders").unwrap();
    assert_eq!((&ready["phase"], &orders["reader"]), (&"Ready".into(), &"Tailing".into()));
    assert_eq!((&orders["last"], &orders["error"]), (&1.into(), &Value::Null), "{orders}");

    let command = block("local", "debug-subscribers").command();
    eventually("one subscriber, live and at the head", SOON, async || {
        let view: Value = serde_json::from_str(&desk.types(&command).output().await).unwrap();
        let one = &view["subscribers"][0];
        let told = (&view["total"], &one["state"], &one["lag"], &one["blocked_ms"]);
        (told == (&1.into(), &"Live".into(), &0.into(), &0.into())).then_some(())
    })
    .await;
}

/// What NATS says of the stream and its consumers.
async fn jetstream(desk: &Desk, stream: &str) {
    let [info, consumers] =
        <[String; 2]>::try_from(block("local", "debug-stream").commands()).expect("two commands");
    for command in [&info, &consumers] {
        assert!(command.contains(stream), "the page should name {stream}: {command}");
    }
    let said = desk.types(&info).output().await;
    assert!(said.contains(r#""last_seq":1,"#), "{said}");
    let said = desk.types(&consumers).output().await;
    for part in [r#""name":"sluice_local_"#, r#""stream_seq":1,"#, r#""num_waiting":1"#, "tail of"]
    {
        assert!(said.contains(part), "no {part} in {said}");
    }
}
