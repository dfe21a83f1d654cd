//! Documentation points to what exists.

use std::path::{Component, Path, PathBuf};

use crate::tree::{self, File};

/// `(line, target)` of each inline link and each reference definition outside code blocks.
fn links(file: &File) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            if let Some((target, _)) = line[at + 2..].split_once(')') {
                found.push((number + 1, target));
            }
        }
    }
    found
}

/// The path of `target` as seen from the folder of `from`, without `.` and `..`.
fn resolve(from: &str, target: &str) -> PathBuf {
    let mut path = PathBuf::new();
    let joined = Path::new(from).parent().unwrap_or(Path::new("")).join(target);
    for part in joined.components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

/// The anchors of a Markdown file, as GitHub makes them from headings.
fn anchors(text: &str) -> Vec<String> {
    let slug = |title: &str| -> String {
        let kept = title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>();
        kept.replace(' ', "-")
    };
    text.lines().filter(|l| l.starts_with('#')).map(|l| slug(l.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_relative_link_resolves() {
    let files = tree::files();
    let mut findings = Vec::new();
    let mut seen = 0;
    for file in files.iter().filter(|f| f.is("md")) {
        for (line, target) in links(file) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let goal = if path.is_empty() { PathBuf::from(&file.path) } else { resolve(&file.path, path) };
            if !tree::root().join(&goal).exists() {
                findings.push(format!("{}:{line}: {target}", file.path));
            } else if !anchor.is_empty() {
                let text = tree::read(&goal.to_string_lossy());
                if !anchors(&text).iter().any(|a| a == anchor) {
                    findings.push(format!("{}:{line}: {target}: no such heading", file.path));
                }
            }
        }
    }
    assert!(seen > 5, "only {seen} links found: does the search still work?");
    tree::report("A link in a Markdown file leads nowhere.", &findings);
}

#[test]
fn every_make_target_that_is_written_down_exists() {
    let makefile = tree::read("Makefile");
    let is_target = |word: &str| makefile.lines().any(|l| l.strip_prefix(word).is_some_and(|rest| rest.starts_with(':')));
    let mut findings = Vec::new();
    for file in tree::files().iter().filter(|f| f.is("md") || f.path == ".ci/run") {
        for (at, _) in file.text.match_indices("`make ") {
            let word: String = file.text[at + 6..].chars().take_while(char::is_ascii_lowercase).collect();
            if !word.is_empty() && !is_target(&word) {
                findings.push(format!("{}: make {word}", file.path));
            }
        }
    }
    tree::report("A command that is written down is not in the Makefile.", &findings);
}

/// Product metrics are documented, and only those that exist.
#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let documented = metric_names(&tree::read("docs/operations.md"));
    let code: String =
        tree::product().iter().flat_map(|f| f.product_code().into_iter().map(|(_, l)| format!("{l}\n")).collect::<Vec<_>>()).collect();
    let in_code = metric_names(&code);
    let base = |name: &String| name.trim_end_matches("_total").to_owned();
    let has = |all: &[String], name: &String| all.iter().any(|other| base(other) == base(name));
    let mut findings: Vec<_> =
        in_code.iter().filter(|n| !has(&documented, n)).map(|n| format!("{n} is not in docs/operations.md")).collect();
    findings.extend(documented.iter().filter(|n| !has(&in_code, n)).map(|n| format!("{n} is documented, but no code has it")));
    tree::report("docs/operations.md lists the metrics, all of them.", &findings);
}

/// Words that look like a metric of this product.
fn metric_names(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|w| w.starts_with("sluice_"));
    let crates = ["sluice_channel", "sluice_operator", "sluice_dataplane", "sluice_tests"];
    let mut names: Vec<_> = words.filter(|w| !crates.contains(w)).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}
