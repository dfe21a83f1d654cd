//! Generated files are current.

use crate::tree;

#[test]
fn the_chart_installs_the_generated_crd() {
    assert!(
        tree::read("charts/sluice/files/ssechannels.yaml") == tree::read("crds/ssechannels.yaml"),
        "charts/sluice/files/ssechannels.yaml is a copy of crds/ssechannels.yaml: run `make crds`"
    );
}
