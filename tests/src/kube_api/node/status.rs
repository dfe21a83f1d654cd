//! A pod's status, written when it differs from what was written last.

use std::net::Ipv4Addr;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

pub(super) struct Reporter {
    api: Api<Pod>,
    name: String,
    container: String,
    image: String,
    start_time: String,
    ready_since: String,
    restarts: u32,
    last: Option<Value>,
}

impl Reporter {
    pub(super) fn new(api: Api<Pod>, pod: &Pod) -> Self {
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        Self {
            api,
            name: pod.name_any(),
            container: container.map(|c| c.name.clone()).unwrap_or_default(),
            image: container.and_then(|c| c.image.clone()).unwrap_or_default(),
            start_time: now(),
            ready_since: now(),
            restarts: 0,
            last: None,
        }
    }

    /// The container cannot start.
    pub(super) async fn waiting(&mut self, reason: &str, message: &str) {
        self.report(
            "Pending",
            None,
            false,
            &json!({"waiting": {"reason": reason, "message": message}}),
        )
        .await;
    }

    /// The container ended and will be started again.
    pub(super) async fn restarting(&mut self, address: Ipv4Addr) {
        self.restarts += 1;
        let state =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "the program ended"}});
        self.report("Running", Some(address), false, &state).await;
    }

    /// The container runs.
    pub(super) async fn running(&mut self, address: Ipv4Addr, ready: bool) {
        let state = json!({"running": {"startedAt": self.start_time}});
        self.report("Running", Some(address), ready, &state).await;
    }

    async fn report(&mut self, phase: &str, address: Option<Ipv4Addr>, ready: bool, state: &Value) {
        let what = json!([phase, address, ready, state, self.restarts]);
        if self.last.as_ref() == Some(&what) {
            return;
        }
        self.ready_since = now();
        let condition = |kind: &str, is: bool| json!({"type": kind, "status": if is { "True" } else { "False" }, "lastTransitionTime": self.ready_since});
        let mut status = json!({
            "phase": phase,
            "startTime": self.start_time,
            "hostIP": "127.0.0.1",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": self.start_time},
                {"type": "Initialized", "status": "True", "lastTransitionTime": self.start_time},
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "containerStatuses": [{
                "name": self.container, "image": self.image, "imageID": "", "ready": ready, "started": address.is_some(),
                "restartCount": self.restarts, "state": state,
            }],
        });
        if let Some(address) = address {
            status["podIP"] = json!(address);
            status["podIPs"] = json!([{"ip": address}]);
        }
        // A merge patch replaces lists whole.
        let patch = json!({"status": status});
        match self
            .api
            .patch_status(&self.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => self.last = Some(what),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => eprintln!("node stand-in: status of {}: {error}", self.name),
        }
    }
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
