//! A channel that is made anew under a name that was used before is another channel.

use std::time::Duration;

use serde_json::json;
use sluice_tests::eventually;

use crate::{
    channel,
    fixture::{LIMIT, test},
};

#[test]
fn it_inherits_nothing_of_the_one_before() {
    test("anew", async |fixture| {
        fixture.create("again", json!({"workload": {"replicas": 0}})).await;
        let before = fixture
            .until("again", "has its stream", |o| {
                channel::current_condition(o, "StreamReady").is_some_and(|c| c["status"] == "True")
            })
            .await;
        let stream = channel::stream(&before);
        // With `Retain`, the default, the stream stays, and no finalizer holds the channel up.
        fixture.kubectl(&["delete", "sse", "again"]);
        fixture.until_gone("again").await;
        let streams = fixture.streams().await;
        streams.info(&stream).await;
        streams.context().delete_stream(&stream).await.expect("it can be deleted");
        // The delete is on its way to the operator.
        tokio::time::sleep(Duration::from_secs(1)).await;
        fixture.create("again", json!({"workload": {"replicas": 0}})).await;
        eventually("the new channel's stream is told", LIMIT, async || {
            let created = |events: &[(String, String, String)], reason: &str| {
                events.iter().filter(|(_, of, _)| of == reason).count()
            };
            let events = fixture.events("again").await;
            assert_eq!(
                created(&events, "StreamRecreated"),
                0,
                "its events are not lost, it never had any: {events:?}"
            );
            (created(&events, "StreamCreated") == 2).then_some(())
        })
        .await;
    });
}
