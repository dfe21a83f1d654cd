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
        let field = flag.replace('-', "_");
        ["pub", "pub(crate)"].iter().any(|public| code.contains(&format!("{public} {field}:")))
            || code.contains(&format!("long = \"{flag}\""))
    };
    let findings: Vec<_> =
        flags.filter(|flag| !known(flag)).map(|flag| format!("--{flag}")).collect();
    tree::report(
        "An argument in charts/sluice/templates/deployment.yaml is none of sluice-operator's.",
        &findings,
    );
}
