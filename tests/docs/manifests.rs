//! The manifests on the pages and in `examples/`, by the rules of the definition.

use serde_json::Value;
use sluice_operator::crd::manifest;
use sluice_tests::docs;

#[test]
fn every_manifest_is_one() {
    let examples = std::fs::read_dir(docs::root().join("examples"))
        .expect("examples")
        .map(|entry| entry.expect("an entry").path());
    let examples: Vec<_> = examples
        .map(|path| {
            (path.display().to_string(), std::fs::read_to_string(&path).expect("a manifest"))
        })
        .collect();
    let pages = docs::manifests().into_iter().map(|block| (block.place(), block.text));
    let all: Vec<(String, String)> = pages.chain(examples).collect();
    assert!(all.len() > 6, "only {} manifests found", all.len());
    for (place, text) in all {
        let manifest: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{place}: {e}"));
        assert_eq!(
            (&manifest["apiVersion"], &manifest["kind"]),
            (&"sluice.dev/v1alpha1".into(), &"SseChannel".into()),
            "{place}"
        );
        manifest::read(&manifest).unwrap_or_else(|problems| panic!("{place}: {problems}"));
    }
}
