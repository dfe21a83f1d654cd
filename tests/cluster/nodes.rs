//! The nodes and their processes, where they are on this machine.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use rustix::process::{Pid, Signal, kill_process};
use sluice_tests::eventually;
use tokio::process::Command;

use crate::{
    fixture::{Fixture, node_of},
    kubectl,
};

/// Longest until the API server knows that a node is gone or back: it takes 20 s.
const NODE_LIMIT: Duration = Duration::from_secs(90);

/// Ends a node at once, as a power cut does.
pub(crate) async fn power_off(node: &str) {
    script("down", node).await;
}

/// Starts it again; its disk is as it was.
pub(crate) async fn power_on(node: &str) {
    script("up", node).await;
}

async fn script(verb: &str, node: &str) {
    let number =
        node.strip_prefix("node-").unwrap_or_else(|| panic!("{node} is not one of machine/up.sh"));
    let mut command = Command::new(Fixture::root().join("tests/cluster/machine/node.sh"));
    // What it starts must not have the test's output open: a runner waits until that is closed.
    let said = kubectl::run(command.args([verb, number])).await;
    assert!(said.ok, "node.sh {verb} {number}: {}{}", said.out, said.err);
}

/// Waits until the API server calls a node ready, or not.
pub(crate) async fn until_node(fixture: &Fixture, node: &str, ready: bool) {
    let nodes: Api<Node> = Api::all(fixture.client().await);
    eventually(&format!("{node}: ready is {ready}"), NODE_LIMIT, async || {
        let conditions = nodes.get_opt(node).await.ok()??.status?.conditions?;
        let is_ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        (is_ready == ready).then_some(())
    })
    .await;
}

/// Processes of a pod whose command line begins with `program`, by the cgroup that the kubelet made
/// for the pod.
fn processes(pod: &Pod, program: &str) -> Vec<i32> {
    let group = format!("/pod{}/", pod.uid().expect("a pod has a uid"));
    let of =
        |path: PathBuf, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let entries = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let mine = entries.filter(|entry| of(entry.path(), "cgroup").contains(&group));
    let named = mine.filter(|entry| {
        of(entry.path(), "cmdline").split('\0').next().is_some_and(|name| name.ends_with(program))
    });
    named.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// SIGKILL to the program of a pod.
pub(crate) fn kill(pod: &Pod, program: &str) {
    let found = processes(pod, program);
    assert!(
        !found.is_empty(),
        "no process {program} of pod {} on {}",
        pod.name_any(),
        node_of(pod)
    );
    for id in found.into_iter().filter_map(Pid::from_raw) {
        kill_process(id, Signal::KILL).expect("the process is killed");
    }
}
