//! What people read from the API server before anything runs.

use crate::{
    fixture::{Fixture, SHOP},
    kubectl::{kubectl, kubectl_with, try_kubectl},
};

/// `kubectl diff` after `kubectl apply` is empty: defaults and operator write nothing into a spec.
pub(crate) async fn what_is_applied_does_not_differ(_bed: &'static Fixture) {
    let example = Fixture::root().join("examples/orders.yaml").display().to_string();
    let said = try_kubectl(&["diff", "-n", SHOP, "-f", &example]).await;
    assert!(said.ok && said.out.is_empty(), "{}{}", said.out, said.err);
}

/// `--dry-run=server` says what is wrong, where, and what to do.
pub(crate) async fn refusals_say_what_to_do(_bed: &'static Fixture) {
    let cases = [
        (
            "refused",
            "{stream: {replicas: 2}}",
            "must be 1, 3 or 5: a stream needs a majority of its copies",
        ),
        (
            "refused",
            "{publish: {mode: Http}}",
            "set publish.allowAnonymous: true if that is meant, or use mode Disabled",
        ),
        ("refused", "{delivery: {heartbeat: 10}}", "must be of type string"),
        ("refused", "{delivery: {heartbeat: 500ms}}", "spec.delivery.heartbeat"),
        ("refused", "{streams: {}}", "unknown field \"spec.streams\""),
        ("a.b", "{}", "metadata.name must be a DNS label of at most 48 characters"),
    ];
    for (name, spec, wanted) in cases {
        let manifest = format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        );
        let said = kubectl_with(
            &["apply", "-n", SHOP, "--dry-run=server", "--validate=strict", "-f", "-"],
            &manifest,
        )
        .await;
        assert!(!said.ok && said.err.contains(wanted), "{spec}: {}{}", said.out, said.err);
    }
    let manifest =
        "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: good}\nspec: {}\n";
    let said = kubectl_with(&["apply", "-n", SHOP, "--dry-run=server", "-f", "-"], manifest).await;
    assert!(said.ok && said.out.contains("created (server dry run)"), "{}{}", said.out, said.err);
    assert!(
        !try_kubectl(&["get", "sse/good", "-n", SHOP]).await.ok,
        "a dry run leaves nothing behind"
    );
}

/// `kubectl explain` has a sentence for every field of the first level, and the defaults' meaning.
pub(crate) async fn explain_reads_well(_bed: &'static Fixture) {
    let spec = kubectl(&["explain", "ssechannel.spec"]).await;
    let wanted = [
        "`spec: {}` is a working",
        "The JetStream stream that keeps the events",
        "The pods that serve the channel",
        "How events are delivered",
    ];
    for phrase in wanted {
        assert!(spec.contains(phrase), "{phrase:?} is not in:\n{spec}");
    }
    let described = |text: &str| {
        let fields = text.split("FIELDS:").nth(1).unwrap_or("");
        // A field's line is followed by its description, further in.
        let lines: Vec<&str> = fields.lines().filter(|l| !l.trim().is_empty()).collect();
        let is_field =
            |line: &str| line.starts_with("  ") && !line.starts_with("   ") && line.contains("\t<");
        let bare = lines
            .windows(2)
            .filter(|w| is_field(w[0]) && is_field(w[1]))
            .map(|w| w[0].to_owned())
            .collect::<Vec<_>>();
        (lines.len(), bare)
    };
    for path in [
        "ssechannel.spec",
        "ssechannel.spec.stream",
        "ssechannel.spec.delivery",
        "ssechannel.spec.workload",
    ] {
        let text = kubectl(&["explain", path]).await;
        let (lines, bare) = described(&text);
        assert!(
            lines > 8 && bare.is_empty(),
            "{path}: fields without a description: {bare:?}\n{text}"
        );
    }
    let heartbeat = kubectl(&["explain", "ssechannel.spec.delivery.heartbeat"]).await;
    assert!(heartbeat.contains("Longest silence on a stream"), "{heartbeat}");
}
