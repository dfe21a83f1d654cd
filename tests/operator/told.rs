//! What is told of a channel beside its status: Events, the log, metrics.

use kube::api::DeleteParams;
use serde_json::json;
use sluice_tests::eventually;

use crate::{
    channel,
    fixture::{Fixture, LIMIT, test},
};

/// The operator's series that name a channel of the test's namespace.
async fn series(fixture: &Fixture) -> Vec<String> {
    let text = reqwest::get(fixture.admin_url("/metrics")).await.unwrap().text().await.unwrap();
    let namespace = format!("namespace=\"{}\"", fixture.namespace());
    let ours = |line: &&str| line.contains(&namespace) && line.contains(",name=\"");
    text.lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn a_channels_life_is_told_and_what_counts_it_goes_with_it() {
    test("told", async |fixture| {
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        let ready = format!(
            "sluice_operator_channel_ready{{namespace=\"{}\",name=\"orders\"}} 1",
            fixture.namespace()
        );
        eventually("the channel is counted", LIMIT, async || {
            (series(fixture).await == [ready.clone()]).then_some(())
        })
        .await;

        fixture.api(channel::CHANNEL).delete("orders", &DeleteParams::background()).await.unwrap();
        fixture.until_gone("orders").await;
        eventually("its series has gone", LIMIT, async || {
            series(fixture).await.is_empty().then_some(())
        })
        .await;

        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        eventually("the stream is known again", LIMIT, async || {
            let told = fixture.events("orders").await;
            assert!(!told.iter().any(|(_, why, _)| why == "StreamUpdated"), "{told:?}");
            told.iter()
                .any(|(_, why, note)| why == "StreamReused" && note.contains("kept"))
                .then_some(())
        })
        .await;
        let log = fixture.operator_log();
        let mut rest = log.as_str();
        for step in
            ["channel created", "was created", "channel deleted", "channel created", "used again"]
        {
            let at = rest.find(step).unwrap_or_else(|| panic!("{step:?} is missing:\n{log}"));
            rest = &rest[at + step.len()..];
        }
    });
}
