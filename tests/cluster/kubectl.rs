//! The commands that a user runs.

use std::{process::Stdio, time::Duration};

use sluice_tests::process::tool;
use tokio::process::Command;

/// Longest that a command may take; those that wait have limits of their own below this.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Whether it ended with 0.
    pub(crate) ok: bool,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// Runs `kubectl`, whatever comes of it.
pub(crate) async fn try_kubectl(arguments: &[&str]) -> Said {
    run(Command::new(tool("kubectl")).args(arguments)).await
}

/// Runs `kubectl`, which must succeed; its output.
#[track_caller]
pub(crate) fn kubectl(arguments: &[&str]) -> impl Future<Output = String> {
    let mut command = Command::new(tool("kubectl"));
    command.args(arguments);
    expect(format!("kubectl {}", arguments.join(" ")), command)
}

async fn expect(what: String, mut command: Command) -> String {
    let said = run(&mut command).await;
    assert!(said.ok, "{what}\n{}{}", said.out, said.err);
    said.out
}

/// Runs a command with `input` on its standard input.
pub(crate) async fn kubectl_with(arguments: &[&str], input: &str) -> Said {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), input).expect("the file is written");
    let mut command = Command::new(tool("kubectl"));
    command.args(arguments).stdin(std::fs::File::open(file.path()).expect("the file"));
    run_with_input(&mut command).await
}

/// Runs a command without input.
pub(crate) async fn run(command: &mut Command) -> Said {
    run_with_input(command.stdin(Stdio::null())).await
}

async fn run_with_input(command: &mut Command) -> Said {
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(COMMAND_LIMIT, output)
        .await
        .unwrap_or_else(|_| panic!("no end within {COMMAND_LIMIT:?}"));
    let output = output.expect("the command starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { ok: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) }
}
