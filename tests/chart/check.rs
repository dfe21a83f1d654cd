//! `sluice-operator check`, which is what `helm test` runs.

use std::{path::Path, process::Command, time::Duration};

use sluice_tests::{
    eventually,
    process::{Process, free_port, tool, workspace_program},
};

use crate::helm::Said;

/// Runs the check.
pub(crate) fn check(kubeconfig: &Path, nats: &str, operator: &str, more: &[&str]) -> Said {
    let mut command = Command::new(workspace_program("sluice-operator"));
    command
        .args(["check", "--nats", nats, "--operator", operator, "--timeout=1s"])
        .args(more)
        .env("KUBECONFIG", kubeconfig);
    Said::of(&mut command)
}

/// The line about one of what is asked.
pub(crate) fn line<'a>(said: &'a Said, what: &str) -> &'a str {
    said.out
        .lines()
        .find(|line| line.contains(&format!(" {what}: ")))
        .unwrap_or_else(|| panic!("nothing of {what}: {said:?}"))
}

#[test]
fn where_nothing_is_it_says_so_of_each() {
    let nowhere = |scheme: &str| format!("{scheme}://127.0.0.1:{}", free_port());
    let said = check(Path::new("/nonexistent"), &nowhere("nats"), &nowhere("http"), &[]);
    assert!(!said.ok && said.err.contains("3 of 3 checks failed"), "{said:?}");
    for (what, words) in [
        ("operator", "does not answer (Connection refused"),
        ("Kubernetes", "no cluster"),
        ("NATS", "cannot be reached"),
    ] {
        let line = line(&said, what);
        assert!(line.starts_with("failed") && line.contains(words), "{line}");
    }
}

#[test]
fn a_nats_without_jetstream_is_told_apart() {
    sluice_tests::run(Duration::from_secs(60), async {
        let port = free_port();
        let mut command = Command::new(tool("nats-server"));
        command.args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
        let _server = Process::spawn("nats-server", command);
        let limit = Duration::from_secs(20);
        let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok();
        eventually("nats-server listens", limit, listens).await;
        let said = check(
            Path::new("/nonexistent"),
            &format!("nats://127.0.0.1:{port}"),
            "http://127.0.0.1:1",
            &[],
        );
        assert!(line(&said, "NATS").contains("JetStream is not enabled"), "{said:?}");
    });
}
