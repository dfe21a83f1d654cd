//! Users with exactly what `sluice-operator permissions` prints.

use std::process::Command;

use super::secured::Permissions;
use crate::process::workspace_program;

/// What the program prints for these arguments.
///
/// # Panics
/// When it fails.
pub fn printed(arguments: &[&str]) -> String {
    let mut command = Command::new(workspace_program("sluice-operator"));
    let output = command.arg("permissions").args(arguments).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The arguments for `nsc` of what was printed, as a shell would hand them over.
///
/// # Panics
/// When there are none.
pub fn nsc(printed: &str) -> Permissions {
    let line = printed.lines().find(|line| line.starts_with("# nsc add user"));
    let words: Vec<_> = line.expect("a line for nsc").split(' ').collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag).expect("the flag");
        words[at + 1].trim_matches('\'').split(',').map(str::to_owned).collect()
    };
    Permissions { publish: after("--allow-pub"), subscribe: after("--allow-sub") }
}
