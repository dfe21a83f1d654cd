//! What concerns the pods of all channels at once replaces them a few channels at a time.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_tests::eventually;

use crate::{
    channel::{self, DEPLOYMENT},
    fixture::{Fixture, LIMIT, RESYNC, test},
};

const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];
/// The node cannot pull it.
const MISSING: &str = "sluice.test/dataplane:missing";
const NEXT: &str = "sluice.test/dataplane:2";

fn image(deployment: &Value) -> &str {
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap()
}

fn is_complete(deployment: &Value) -> bool {
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && [&status["updatedReplicas"], &status["replicas"], &status["availableReplicas"]]
            .iter()
            .all(|count| **count == deployment["spec"]["replicas"])
}

/// The Deployments of all channels at one moment.
async fn deployments(fixture: &Fixture) -> Vec<Value> {
    let list = fixture.api(DEPLOYMENT).list(&Default::default()).await.unwrap();
    list.items.into_iter().map(|item| serde_json::to_value(item).unwrap()).collect()
}

async fn with_image(fixture: &Fixture, wanted: &str) -> usize {
    deployments(fixture).await.iter().filter(|one| image(one) == wanted).count()
}

/// Values of metrics without labels.
async fn metrics(fixture: &Fixture, names: [&str; 2]) -> Option<[String; 2]> {
    let (_, text) = fixture.get("/metrics").await?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_default().to_owned()
    };
    Some(names.map(value))
}

#[test]
fn a_new_default_image_goes_out_in_turns_and_one_that_fails_stops() {
    test("rollouts", async |fixture| {
        fixture.stop_operator().await;
        fixture.operator_arguments.push("--max-rolling=1".to_owned());
        fixture.start_operator().await;
        for name in CHANNELS {
            fixture.create(name, json!({"workload": {"replicas": 1}})).await;
        }
        for name in CHANNELS {
            fixture.ready(name).await;
        }

        fixture.stop_operator().await;
        fixture.image = MISSING;
        fixture.start_operator().await;
        let counts = ["sluice_operator_rollouts", "sluice_operator_rollouts_held"];
        eventually("one is rolled out, three wait", LIMIT, async || {
            (metrics(fixture, counts).await? == ["1", "3"]).then_some(())
        })
        .await;
        tokio::time::sleep(RESYNC * 2).await;
        assert_eq!(with_image(fixture, MISSING).await, 1, "it stops with the first");

        // What waits is served, and what its spec asks for does not wait.
        let all = deployments(fixture).await;
        let held = all.iter().find(|one| image(one) != MISSING).unwrap();
        let held = held["metadata"]["labels"]["sluice.dev/channel"].as_str().unwrap();
        fixture.ready(held).await;
        fixture.change(held, json!({"workload": {"podLabels": {"team": "shop"}}})).await;
        eventually("what was edited is rolled out", LIMIT, async || {
            (with_image(fixture, MISSING).await == 2).then_some(())
        })
        .await;

        fixture.stop_operator().await;
        fixture.image = NEXT;
        fixture.start_operator().await;
        let deadline = Instant::now() + LIMIT;
        loop {
            let all = deployments(fixture).await;
            let new = all.iter().filter(|one| image(one) == NEXT);
            let (done, rolling): (Vec<_>, Vec<_>) = new.partition(|one| is_complete(one));
            assert!(rolling.len() <= 1, "{} at a time", rolling.len());
            if done.len() == CHANNELS.len() {
                break;
            }
            assert!(Instant::now() < deadline, "{} of {} rolled out", done.len(), CHANNELS.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for name in CHANNELS {
            fixture.until(name, "is ready again", channel::is_ready).await;
        }
    });
}
