//! When nothing happens, nothing is written.

use std::time::Duration;

use serde_json::json;
use sluice_tests::kube_api::audit::Entry;

use crate::{
    channel,
    fixture::{RESYNC, test},
};

/// As the promise says: a minute.
const QUIET: Duration = Duration::from_secs(60);

#[test]
fn a_quiet_minute_has_no_write_to_the_api() {
    test("quiet", async |fixture| {
        let specs = [
            json!({}),
            json!({"stream": {"deletionPolicy": "Delete", "maxMessagesPerTopic": 1, "maxBytes": "1048576", "maxAge": "90m"}, "workload": {"replicas": 1}}),
            json!({"stream": {"subjects": ["a.>", "b.*"]}, "workload": {"replicas": 1, "podLabels": {"team": "shop"}}, "service": {"sessionAffinity": "ClientIP"}}),
            json!({"managementPolicy": "Observe"}),
            // These do not become ready; that must not make a loop either.
            json!({"workload": {"replicas": 1, "image": "sluice.test/dataplane:missing"}}),
            json!({"stream": {"replicas": 3}, "workload": {"replicas": 1}}),
            // Everything around the pods; PodMonitors are not known here, and the Ingress has no
            // address.
            json!({"workload": {"autoscaling": {"minReplicas": 1, "maxReplicas": 3, "cpuUtilization": 70, "connectionsPerPod": 100}},
                "exposure": {"ingress": {"host": "events.example.com"}}, "monitoring": {"podMonitor": "Enabled"},
                "networkPolicy": {"mode": "Restrict", "from": [{"cidr": "10.0.0.0/8"}]}}),
            json!({"workload": {"autoscaling": {"minReplicas": 1, "maxReplicas": 3, "connectionsPerPod": 100}}}),
        ];
        for (i, spec) in specs.into_iter().enumerate() {
            fixture.create(&format!("c{i}"), spec).await;
        }
        for name in ["c0", "c1", "c2", "c6", "c7"] {
            fixture.ready(name).await;
        }
        fixture.condition("c4", "WorkloadAvailable", "False", "ImagePullFailed").await;
        fixture.condition("c5", "StreamReady", "False", "NotEnoughServers").await;
        // Two resyncs, for what is still to be settled.
        tokio::time::sleep(RESYNC * 2).await;

        let before = fixture.requests().len();
        tokio::time::sleep(QUIET).await;
        let entries = fixture.requests();
        let writes: Vec<String> =
            entries[before..].iter().filter(|e| e.is_write()).map(Entry::brief).collect();
        assert!(writes.is_empty(), "{writes:#?}");
        // It did look: the next change is taken within a moment, and reads are bounded (a look each
        // resync and channel).
        let reads = entries.len() - before;
        // Six plain channels, and two of which one has every kind of object.
        let looks = usize::try_from(QUIET.as_secs() / RESYNC.as_secs()).unwrap() + 1;
        assert!(reads <= looks * (7 * 8 + 13), "{reads} reads in {looks} looks at each channel");
        fixture.change("c1", json!({"delivery": {"heartbeat": "9s"}})).await;
        fixture.until("c1", "is ready again", channel::is_ready).await;
    });
}
