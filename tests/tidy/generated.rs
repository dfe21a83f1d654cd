//! Generated files are current.

use crate::tree;

#[test]
fn the_chart_installs_the_generated_crd() {
    assert!(
        tree::read("charts/sluice/files/ssechannels.yaml") == tree::read("crds/ssechannels.yaml"),
        "charts/sluice/files/ssechannels.yaml is a copy of crds/ssechannels.yaml: run `make crds`"
    );
}

#[test]
fn the_chart_starts_the_operator_with_arguments_that_it_has() {
    let template = tree::read("charts/sluice/templates/deployment.yaml");
    let code = tree::read("operator/src/args.rs");
    let flags =
        template.lines().filter_map(|line| line.trim().strip_prefix("- --")?.split('=').next());
    let known = |flag: &str| {
        code.contains(&format!("pub(crate) {}:", flag.replace('-', "_")))
            || code.contains(&format!("pub {}:", flag.replace('-', "_")))
            || code.contains(&format!("long = \"{flag}\""))
    };
    let findings: Vec<_> =
        flags.filter(|flag| !known(flag)).map(|flag| format!("--{flag}")).collect();
    tree::report(
        "An argument in charts/sluice/templates/deployment.yaml is none of sluice-operator's.",
        &findings,
    );
}

/// The workspace's version, which `Cargo.toml` says once for all crates.
fn version() -> String {
    let manifest = tree::read("Cargo.toml");
    let package =
        manifest.split("[workspace.package]").nth(1).expect("the workspace has a version");
    let line = package.lines().find_map(|line| line.strip_prefix("version = ")).expect("a version");
    line.trim_matches('"').to_owned()
}

#[test]
fn there_is_one_version() {
    let version = version();
    let mut findings = Vec::new();
    let chart = tree::read("charts/sluice/Chart.yaml");
    for key in ["version", "appVersion"] {
        if !chart.lines().any(|line| line == format!("{key}: {version}")) {
            findings.push(format!("charts/sluice/Chart.yaml: {key} is not {version}"));
        }
    }
    // An image with a written version would stay behind at the next release.
    let fixture = |path: &str| path.ends_with("/tests.rs") || path.ends_with(".snap");
    for file in tree::files().into_iter().filter(|file| !fixture(&file.path)) {
        for (number, line) in file.text.lines().enumerate() {
            for image in ["sluice-operator:", "sluice-dataplane:"] {
                let tagged = line
                    .split(image)
                    .skip(1)
                    .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
                if tagged {
                    findings.push(format!("{}:{}: {image}<version>", file.path, number + 1));
                }
            }
        }
    }
    tree::report(
        &format!(
            "Cargo.toml says the version, {version}; Helm makes Chart.yaml repeat it, nothing else does."
        ),
        &findings,
    );
}
