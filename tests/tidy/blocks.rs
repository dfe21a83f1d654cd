//! Every block of code in the documentation is run by a test, as it stands there.

use std::collections::{BTreeMap, BTreeSet};

use sluice_tests::docs::{self, Block, Mark};

use crate::tree;

/// What runs blocks: name, the folder of its code, and what stands there before the name of a block
/// that it runs.
const RUNNERS: &[(&str, &str, &str)] = &[
    ("local", "tests/docs/", "block(\"local\", \""),
    ("cluster", "tests/cluster/", "block(\"cluster\", \""),
    ("chart", "tests/chart/", "block(\"chart\", \""),
    ("operator", "tests/operator/", "block(\"operator\", \""),
    ("clients", "tests/clients/matrix/", "@recipe(\""),
    ("proxies", "tests/clients/matrix/", "documented(\""),
];

/// How many blocks may say that they are not run: `make test` itself, and the values of NATS's own
/// chart.
const NOT_RUN: usize = 2;

/// Names of the blocks that a runner's code takes.
fn taken(folder: &str, before: &str) -> BTreeSet<String> {
    let files = tree::files().into_iter().filter(|file| file.path.starts_with(folder));
    let names = |text: String| {
        text.split(before)
            .skip(1)
            .filter_map(|rest| rest.split('"').next().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    files.flat_map(|file| names(file.text)).collect()
}

/// What is wrong with the mark of a block; `seen` are the names that each runner has so far.
fn finding(block: &Block, seen: &mut BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let place = block.place();
    let is_text = block.language == "text";
    match &block.mark {
        _ if block.language.is_empty() => Some(format!(
            "{place}: no language behind the fence (`text` for a picture or an output)"
        )),
        Mark::Missing if is_text => {
            let commands = ["curl ", "make ", "kubectl ", "helm ", "docker ", "$ "];
            let is_command =
                |line: &str| commands.iter().any(|command| line.trim_start().starts_with(command));
            block
                .text
                .lines()
                .any(is_command)
                .then(|| format!("{place}: commands are `sh`, not `text`"))
        }
        Mark::Missing => {
            Some(format!("{place}: the line before it must be `<!-- run: RUNNER NAME -->`"))
        }
        Mark::NotRun(reason) => (reason.len() < 20).then(|| format!("{place}: a reason, please")),
        Mark::Run { runner, .. } if runner == "manifest" => {
            (block.language != "yaml").then(|| format!("{place}: a manifest is YAML"))
        }
        Mark::Run { runner, name } if RUNNERS.iter().any(|(known, ..)| known == runner) => {
            let is_new = seen.entry(runner.clone()).or_default().insert(name.clone());
            (name.is_empty() || !is_new)
                .then(|| format!("{place}: `{runner}` needs a name for it that no other block has"))
        }
        Mark::Run { runner, .. } => Some(format!("{place}: there is no runner `{runner}`")),
    }
}

#[test]
fn every_block_of_code_is_run() {
    let blocks = docs::all();
    let mut on_pages = BTreeMap::new();
    let mut findings: Vec<String> =
        blocks.iter().filter_map(|block| finding(block, &mut on_pages)).collect();
    let not_run = blocks.iter().filter(|block| matches!(block.mark, Mark::NotRun(_))).count();
    if not_run > NOT_RUN {
        findings.push(format!("{not_run} blocks are not run, {NOT_RUN} may be"));
    }
    for (runner, folder, before) in RUNNERS {
        let (on_page, taken) =
            (on_pages.remove(*runner).unwrap_or_default(), taken(folder, before));
        assert!(!taken.is_empty(), "no block is taken by {folder}: does the search still work?");
        findings.extend(
            on_page.difference(&taken).map(|name| {
                format!("`{runner} {name}` is on a page, but {folder} does not run it")
            }),
        );
        findings.extend(
            taken
                .difference(&on_page)
                .map(|name| format!("{folder} wants `{runner} {name}`, which is on no page")),
        );
    }
    assert!(blocks.len() > 20, "only {} blocks found", blocks.len());
    tree::report("What the documentation shows has been run, as it stands there.", &findings);
}
