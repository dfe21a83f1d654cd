//! Documentation points to what exists.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

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
        let kept = title
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .collect::<String>();
        kept.replace(' ', "-")
    };
    text.lines()
        .filter(|l| l.starts_with('#'))
        .map(|l| slug(l.trim_start_matches('#').trim()))
        .collect()
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
            let goal =
                if path.is_empty() { PathBuf::from(&file.path) } else { resolve(&file.path, path) };
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
fn the_map_names_every_module_and_nothing_else() {
    let map = tree::read("ARCHITECTURE.md");
    let mut findings = Vec::new();
    for crate_ in ["channel", "dataplane", "operator"] {
        let folder = format!("{crate_}/src/");
        let section = map.split(&format!("| in `{crate_}/src` |")).nth(1).unwrap_or_default();
        let section = section.split("\n\n").next().unwrap_or_default();
        let first_cells = section.lines().filter_map(|l| l.strip_prefix("| `")?.split(" |").next());
        let named: Vec<String> = first_cells
            .flat_map(|cell| {
                cell.split(", ").map(|n| n.trim_matches('`').to_owned()).collect::<Vec<_>>()
            })
            .collect();
        findings.extend(
            named
                .iter()
                .filter(|n| !tree::root().join(&folder).join(n).exists())
                .map(|n| format!("{folder}{n} does not exist")),
        );
        let modules = tree::product()
            .into_iter()
            .filter_map(|f| f.path.strip_prefix(&folder).map(str::to_owned));
        let top = modules.filter(|m| !m.contains('/') && m != "lib.rs");
        findings.extend(
            top.filter(|m| !named.contains(m)).map(|m| format!("{folder}{m} is not on the map")),
        );
    }
    tree::report(
        "ARCHITECTURE.md is the map: each module has its line in the table of its crate.",
        &findings,
    );
}

#[test]
fn every_make_target_that_is_written_down_exists() {
    let makefile = tree::read("Makefile");
    let is_target = |word: &str| {
        makefile.lines().any(|l| l.strip_prefix(word).is_some_and(|rest| rest.starts_with(':')))
    };
    let mut findings = Vec::new();
    for file in tree::files().iter().filter(|f| f.is("md") || f.path == ".ci/run") {
        for (at, _) in file.text.match_indices("`make ") {
            let word: String = file.text[at + 6..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            // `test-stream` is one of a pattern's.
            let exists = is_target(&word) || word.split('-').next().is_some_and(is_target);
            if !word.is_empty() && !exists {
                findings.push(format!("{}: make {word}", file.path));
            }
        }
    }
    tree::report("A command that is written down is not in the Makefile.", &findings);
}

/// The names of metrics that are registered in `file`, with the prefix of its registry.
fn registered_metrics(file: &File) -> Vec<String> {
    let code: String =
        file.product_code().into_iter().map(|(_, line)| format!("{}\n", line.trim())).collect();
    let quoted = |after: &str| {
        code.split(after)
            .skip(1)
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
            .collect::<Vec<_>>()
    };
    let prefixes = quoted("with_prefix(");
    let prefix = prefixes.first().map(|p| format!("{p}_")).unwrap_or_default();
    let mut names: Vec<_> =
        quoted(".register(").into_iter().map(|name| format!("{prefix}{name}")).collect();
    // The encoder appends the unit; this project has no other than seconds.
    names.extend(
        quoted(".register_with_unit(").into_iter().map(|name| format!("{prefix}{name}_seconds")),
    );
    names
}

/// How names of metrics begin: ours, and those that controllers share.
const PREFIXES: [&str; 3] = ["sluice_", "controller_runtime_", "workqueue_"];

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let text = tree::read("docs/operations.md");
    // The first cell of a table's row: `sluice_x_total`, or several; the suffix is the encoder's.
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let cells = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let documented: Vec<_> = cells
        .filter(|c| PREFIXES.iter().any(|prefix| c.starts_with(prefix)))
        .map(|c| c.trim_end_matches("_total").to_owned())
        .collect();
    let in_code: Vec<_> = tree::product().iter().flat_map(registered_metrics).collect();
    assert!(in_code.len() > 5, "only {in_code:?} found in the code: does the search still work?");
    let mut findings: Vec<_> = in_code
        .iter()
        .filter(|n| !documented.contains(n))
        .map(|n| format!("{n} is not in docs/operations.md"))
        .collect();
    findings.extend(
        documented
            .iter()
            .filter(|n| !in_code.contains(n))
            .map(|n| format!("{n} is documented, but no code registers it")),
    );
    tree::report("docs/operations.md lists the metrics, all of them.", &findings);
}

#[test]
fn every_reason_of_a_condition_has_its_advice() {
    let advice = tree::read("docs/operations.md");
    let code = tree::read("operator/src/crd/condition.rs");
    let reasons = code
        .split("pub mod reason {")
        .nth(1)
        .and_then(|m| m.split("\n}").next())
        .expect("the module of reasons");
    let reasons: Vec<_> = reasons
        .lines()
        .filter_map(|l| l.trim().strip_prefix("pub const ")?.split('"').nth(1))
        .collect();
    assert!(reasons.len() > 10, "only {reasons:?} found");
    let findings: Vec<_> = reasons
        .iter()
        .filter(|r| !advice.contains(&format!("`{r}`")))
        .map(|r| (*r).to_owned())
        .collect();
    tree::report("docs/operations.md says for each reason what to do.", &findings);
}

#[test]
fn every_event_of_the_server_itself_is_in_the_contract() {
    let contract = tree::read("docs/wire.md");
    let mut findings = Vec::new();
    for file in tree::product().iter().filter(|f| f.path.starts_with("dataplane/")) {
        for (number, line) in file.product_code() {
            for (at, _) in line.match_indices("\"channel.") {
                let name: String = line[at + 1..]
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '.')
                    .collect();
                if name != "channel." && !contract.contains(&format!("`{name}`")) {
                    findings.push(format!("{}:{number}: {name}", file.path));
                }
            }
        }
    }
    tree::report("docs/wire.md names every event that the data plane sends of itself.", &findings);
}

#[test]
fn every_field_of_the_resource_is_documented() {
    let reference = tree::read("docs/channel.md");
    let words: Vec<&str> = reference.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let definition: Value =
        serde_saphyr::from_str(&tree::read("crds/ssechannels.yaml")).expect("YAML");
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut findings = Vec::new();
    for part in ["spec", "status"] {
        fields(&schema[part], part, &words, &mut findings);
    }
    tree::report("docs/channel.md is the reference of the resource: all its fields.", &findings);
}

/// Notes the fields below `schema` that no word names. What is not supported yet is named only at
/// its top, and what Kubernetes defines itself is left to Kubernetes.
fn fields(schema: &Value, path: &str, words: &[&str], findings: &mut Vec<String>) {
    let nested = schema.get("properties").or_else(|| schema["items"].get("properties"));
    for (name, field) in nested.and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        if !words.contains(&name.as_str()) {
            findings.push(path.clone());
        }
        let refused = format!("!has(self.{name})");
        let mut rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
        let is_refused = rules.any(|rule| rule["rule"] == refused.as_str());
        let unsupported = is_refused
            || field["description"]
                .as_str()
                .is_some_and(|d| d.to_lowercase().contains("not supported yet"));
        if !unsupported
            && !["tolerations", "conditions", "endpoints", "drift", "imagePullSecrets"]
                .contains(&name.as_str())
        {
            fields(field, &path, words, findings);
        }
    }
}
