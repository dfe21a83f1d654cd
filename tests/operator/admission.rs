//! What the API server itself makes of manifests: our rules, our messages, our documentation.

use serde_json::{Value, json};

use sluice_tests::eventually;

use crate::{
    channel,
    fixture::{Fixture, LIMIT},
};

/// Runs a test that needs no operator.
fn test(hint: &str, body: impl AsyncFnOnce(&Fixture)) {
    sluice_tests::run(LIMIT, async {
        let fixture = Fixture::new(hint).await;
        body(&fixture).await;
    });
}

/// Each row: a spec, and what the answer must say. The same table runs without a server in the
/// operator's unit tests.
fn refused() -> Vec<(Value, String)> {
    let rows: Vec<Value> = serde_saphyr::from_str(include_str!("refused.yaml")).unwrap();
    let says = |row: &Value| row.get("server").unwrap_or(&row["says"]).as_str().unwrap().to_owned();
    rows.iter().map(|row| (row["spec"].clone(), says(row))).collect()
}

#[test]
fn mistakes_are_refused_with_a_message_that_says_what_to_do() {
    test("refused", async |fixture| {
        for (i, (spec, message)) in refused().into_iter().enumerate() {
            match fixture.try_create(fixture.namespace(), &format!("c{i}"), spec.clone()).await {
                Ok(_) => panic!("taken, but should say {message:?}: {spec}"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains(&message), "{spec}: {said} does not say {message:?}");
                    // A rule that cannot be computed says what its parser thinks.
                    assert!(!said.contains("evaluat"), "{spec}: {said}");
                }
            }
        }
    });
}

#[test]
fn what_is_near_to_a_mistake_and_is_none_is_taken() {
    let rows: Vec<Value> = serde_saphyr::from_str(include_str!("accepted.yaml")).unwrap();
    test("accepted", async |fixture| {
        for (i, spec) in rows.into_iter().enumerate() {
            let made =
                fixture.try_create(fixture.namespace(), &format!("c{i}"), spec.clone()).await;
            assert!(made.is_ok(), "{spec}: {made:?}");
        }
    });
}

#[test]
fn names_that_are_no_dns_label_are_refused() {
    test("names", async |fixture| {
        for name in ["a.b", "1a", &"x".repeat(49)] {
            let error = fixture
                .try_create(fixture.namespace(), name, json!({}))
                .await
                .expect_err(name)
                .to_string();
            assert!(error.contains("DNS label of at most 48 characters"), "{name}: {error}");
        }
        fixture
            .try_create(fixture.namespace(), &"x".repeat(48), json!({}))
            .await
            .expect("48 characters are allowed");
    });
}

#[test]
fn what_is_fixed_for_life_cannot_be_changed() {
    test("fixed", async |fixture| {
        fixture.create("plain", json!({})).await;
        fixture.create("named", json!({"stream": {"name": "mine"}})).await;
        for (channel, stream, message) in [
            ("plain", json!({"name": "a"}), "must not be added, changed or removed"),
            ("named", json!({"name": "other"}), "must not be added, changed or removed"),
            ("named", json!({"name": null}), "must not be added, changed or removed"),
            (
                "plain",
                json!({"storage": "Memory"}),
                "nats-server cannot move a stream between file and memory",
            ),
        ] {
            let error = fixture
                .try_patch(channel::CHANNEL, channel, json!({"spec": {"stream": stream}}))
                .await
                .expect_err("it is refused")
                .to_string();
            assert!(error.contains(message), "{channel} {stream}: {error}");
        }
        // What may change, may.
        fixture
            .change(
                "named",
                json!({"stream": {"maxAge": "48h", "name": "mine", "storage": "File"}}),
            )
            .await;
    });
}

#[test]
fn kubectl_knows_the_resource() {
    test("kubectl", async |fixture| {
        // The API server publishes the documentation a moment after it serves the resource.
        let said = eventually("kubectl explains the resource", LIMIT, async || {
            Some(fixture.kubectl(&["explain", "ssechannel.spec"])).filter(|(ok, _)| *ok)
        })
        .await
        .1;
        assert!(said.contains("managementPolicy") && said.contains("delivery"), "{said}");
        let (ok, said) = fixture.kubectl(&["explain", "sse.spec.stream.deletionPolicy"]);
        assert!(
            ok && said.contains("What becomes of the stream when the channel is deleted")
                && said.contains("Retain"),
            "{said}"
        );
        let (ok, said) = fixture.kubectl(&["explain", "ssechannels", "--recursive"]);
        assert!(ok && !said.contains("<no description>"), "{said}");

        let manifest =
            json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"name": "tried"}, "spec": {}}).to_string();
        let (ok, said) = fixture
            .kubectl_with(&["apply", "--dry-run=server", "-o", "json", "-f", "-"], &manifest);
        assert!(ok, "{said}");
        let tried: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(
            tried["spec"]["stream"]["maxAge"], "24h",
            "the server fills in defaults: {tried:#}"
        );
        assert!(
            fixture.api(channel::CHANNEL).get_opt("tried").await.unwrap().is_none(),
            "a dry run creates nothing"
        );

        let typo = manifest.replace("{}", r#"{"stream": {"maxage": "1h"}}"#);
        let (ok, said) = fixture.kubectl_with(&["apply", "-f", "-"], &typo);
        assert!(!ok && said.contains("unknown field \"spec.stream.maxage\""), "{said}");

        let (ok, said) = fixture.kubectl_with(&["apply", "-f", "-"], &manifest);
        assert!(ok && said.contains("created"), "{said}");
        let (ok, said) = fixture.kubectl_with(&["apply", "-f", "-"], &manifest);
        assert!(ok && said.contains("unchanged"), "defaults are no difference: {said}");
        let (ok, said) = fixture.kubectl_with(&["diff", "-f", "-"], &manifest);
        assert!(ok && said.is_empty(), "{said}");
        let (ok, said) = fixture.kubectl(&["get", "sse"]);
        let columns: Vec<&str> =
            said.lines().next().unwrap_or_default().split_whitespace().collect();
        assert!(
            ok && columns
                == ["NAME", "READY", "REASON", "STREAM", "REPLICAS", "URL", "EXPOSED", "AGE"],
            "{said}"
        );
        let (ok, said) =
            fixture.kubectl(&["get", "sse", "--field-selector", "spec.stream.name=nobody"]);
        assert!(ok && said.contains("No resources found"), "{said}");
        let (ok, said) = fixture.kubectl(&["scale", "sse/tried", "--replicas=3"]);
        assert!(ok && said.contains("scaled"), "{said}");
        assert_eq!(
            fixture.api(channel::CHANNEL).get("tried").await.unwrap().data["spec"]["workload"]["replicas"],
            3
        );
    });
}

#[test]
fn the_examples_are_accepted() {
    test("examples", async |fixture| {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let files = std::fs::read_dir(&dir).expect("the examples").filter(|f| {
            f.as_ref().is_ok_and(|f| f.path().extension().is_some_and(|e| e == "yaml"))
        });
        assert!(files.count() >= 3, "at least three examples");
        let (ok, said) =
            fixture.kubectl(&["apply", "--dry-run=server", "-f", dir.to_str().unwrap()]);
        assert!(ok, "{said}");
    });
}
