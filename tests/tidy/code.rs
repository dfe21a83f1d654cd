//! Rules on the source text.

use crate::tree;

/// Lines of a module without its tests.
const MODULE_LINES: usize = 500;

/// Modules that may be longer, each with its reason.
const LONG_MODULES: &[(&str, &str)] = &[];

#[test]
fn modules_stay_small() {
    let mut findings = Vec::new();
    for file in tree::product() {
        let lines = file.product_lines().len();
        let excused = LONG_MODULES.iter().any(|(path, _)| *path == file.path);
        match (lines > MODULE_LINES, excused) {
            (true, false) => findings.push(format!("{} has {lines} lines", file.path)),
            (false, true) => {
                findings.push(format!("{} is short again: take it off LONG_MODULES", file.path));
            }
            _ => {}
        }
    }
    tree::report(
        &format!(
            "A module has at most {MODULE_LINES} lines without its tests: split it by what it does."
        ),
        &findings,
    );
}

/// Where a task may be started without a tracker: `(path, reason)`.
const SPAWNERS: &[(&str, &str)] = &[];

#[test]
fn every_task_has_an_owner() {
    let mut findings = Vec::new();
    for file in tree::product() {
        if SPAWNERS.iter().any(|(path, _)| *path == file.path) {
            continue;
        }
        for (number, line) in file.product_code() {
            if line.contains("tokio::spawn(")
                || line.contains("task::spawn(")
                || line.contains("thread::spawn(")
            {
                findings.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    tree::report(
        "A bare spawn has no owner that waits for it: use a TaskTracker or a JoinSet (or list the file in SPAWNERS, with a reason).",
        &findings,
    );
}

#[test]
fn no_queue_without_a_bound() {
    let mut findings = Vec::new();
    for file in tree::product() {
        for (number, line) in file.product_code() {
            if line.contains("unbounded_channel")
                || line.contains("mpsc::unbounded")
                || line.contains("mpsc::channel()")
            {
                findings.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    tree::report("A queue has a bound, and a reason for it.", &findings);
}

#[test]
fn no_test_is_ignored() {
    // Written in two parts so that this file does not find itself.
    let mark = concat!("#[", "ignore");
    let findings: Vec<_> = tree::files()
        .iter()
        .filter(|f| f.is("rs") && f.text.contains(mark))
        .map(|f| f.path.clone())
        .collect();
    tree::report("A test runs or is deleted; one that is ignored tells nothing.", &findings);
}

#[test]
fn no_path_of_one_machine() {
    let marks = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
    ];
    let mut findings = Vec::new();
    for file in tree::files() {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|m| line.contains(**m)) {
                findings.push(format!("{}:{}: {mark}", file.path, number + 1));
            }
        }
    }
    tree::report("A path that exists on one machine only must not be in the project.", &findings);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let mut findings = Vec::new();
    // The adapter of clients has a lock of its own, so that what they pin binds no other crate, and
    // is no member.
    let is_member =
        |path: &str| path.ends_with("/Cargo.toml") && !path.starts_with("tests/clients/");
    for member in tree::files().iter().filter(|f| is_member(&f.path)) {
        let mut lines = member.text.lines().skip_while(|l| l.trim() != "[lints]").skip(1);
        if lines.next().map(str::trim) != Some("workspace = true") {
            findings.push(member.path.clone());
        }
    }
    tree::report(
        "Each crate's Cargo.toml has `[lints]` with `workspace = true`, or its code is not held to the rules.",
        &findings,
    );
}

/// Columns of a line of comment; rustfmt sees to the code.
const COLUMNS: usize = 100;

#[test]
fn comments_keep_to_the_width() {
    let mut findings = Vec::new();
    for file in tree::files().iter().filter(|file| file.is("rs")) {
        for (number, line) in file.text.lines().enumerate() {
            // Pictures cannot be wrapped, nor can an address.
            let picture = line.contains('─') || line.contains("://");
            if line.trim_start().starts_with("//") && line.chars().count() > COLUMNS && !picture {
                findings.push(format!("{}:{}", file.path, number + 1));
            }
        }
    }
    tree::report(&format!("A comment has at most {COLUMNS} columns, as the code has."), &findings);
}

#[test]
fn shared_bounds_have_two_users() {
    let text = tree::read("channel/src/limits.rs");
    let product = tree::product();
    let names = text.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
    let mut findings = Vec::new();
    for name in names {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let used = |crate_: &str| {
            product
                .iter()
                .filter(|f| f.path.starts_with(&format!("{crate_}/src/")))
                .filter(|f| f.path != "channel/src/limits.rs")
                .flat_map(|f| f.product_code())
                .any(|(_, line)| line.split(|c| !word(c)).any(|w| w == name))
        };
        let users: Vec<_> =
            ["channel", "dataplane", "operator"].into_iter().filter(|c| used(c)).collect();
        // What `channel` itself checks holds for both programs.
        if users.len() < 2 && users != ["channel"] {
            findings.push(format!("{name}: used by {users:?}"));
        }
    }
    tree::report(
        "channel/src/limits.rs holds what operator and pods agree on; a bound of one crate stands there.",
        &findings,
    );
}
