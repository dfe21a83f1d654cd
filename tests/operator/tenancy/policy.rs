//! The chart's admission policies.

use kube::api::DeleteParams;
use serde_json::{Value, json};
use sluice_tests::{docs::block, eventually};

use super::{annotate, attacks, here, install_policy, spec_here};
use crate::{
    channel::CHANNEL,
    fixture::{Fixture, LIMIT, TEST_LIMIT},
};

/// Runs a test that needs no operator.
fn test(hint: &str, values: &[&str], body: impl AsyncFnOnce(&Fixture)) {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(hint).await;
        install_policy(&fixture, values).await;
        body(&fixture).await;
        remove_policy(&fixture);
    });
}

fn remove_policy(fixture: &Fixture) {
    for name in ["sluice-tenancy", "sluice-tenancy-grants"] {
        for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
            let name = format!("{}.{name}", fixture.namespace());
            let (ok, said) = fixture.kubectl(&["delete", kind, &name]);
            assert!(ok, "{said}");
        }
    }
}

/// What is said to a channel that is made, if it is refused.
async fn said_to(fixture: &Fixture, name: &str, spec: Value) -> Option<String> {
    match fixture.try_create(fixture.namespace(), name, spec).await {
        Err(error) => Some(error.to_string()),
        Ok(_) => {
            fixture.api(CHANNEL).delete(name, &DeleteParams::default()).await.unwrap();
            None
        }
    }
}

#[test]
fn every_attack_is_refused_by_the_api_server() {
    test("policy", &[], async |fixture| {
        for (what, spec, says) in attacks() {
            let said = said_to(fixture, "attack", spec_here(fixture, &spec)).await;
            let said = said.unwrap_or_else(|| panic!("{what}: it was taken"));
            assert!(said.contains(&here(fixture, says)), "{what}: {said} does not say {says}");
            assert!(!said.contains("expression"), "{what}: {said}");
        }
        // As the page has it.
        let payments = json!({"stream": {"subjects": ["payments.>"]}});
        let said = said_to(fixture, "attack", payments).await.expect("it is refused");
        let page = block("operator", "refusal").text.replace("team-b", fixture.namespace());
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&page), "{said} does not say {page}");
        // The same by a change.
        fixture.create("orders", json!({})).await;
        for (what, mut spec, _) in attacks() {
            // The name is fixed for other reasons.
            if spec["stream"].as_object_mut().unwrap().remove("name").is_some() {
                continue;
            }
            let patch = json!({"spec": spec_here(fixture, &spec)});
            let error = fixture.try_patch(CHANNEL, "orders", patch).await.expect_err(what);
            assert!(error.to_string().contains("ValidatingAdmissionPolicy"), "{what}: {error}");
        }
        // What is a namespace's own is taken, and so is what it means to change otherwise.
        let namespace = fixture.namespace();
        let own = json!({"stream": {"name": format!("sse_{namespace}_mine"), "subjects": [format!("sse.{namespace}.>")], "maxBytes": "10Gi"}});
        fixture.create("own", own).await;
        fixture.change("orders", json!({"stream": {"maxAge": "1h"}})).await;
        let (ok, said) = fixture.kubectl(&["scale", "sse/orders", "--replicas=3"]);
        assert!(ok, "{said}");
    });
}

/// Grants, each with a channel that it allows and one that it does not. The same table is asked of
/// the operator in its unit tests.
fn grants() -> Vec<(Value, Value, Value)> {
    let rows: Vec<Value> = serde_saphyr::from_str(include_str!("grants.yaml")).unwrap();
    let stream = |row: &Value, key: &str| json!({"stream": row[key]});
    rows.iter().map(|row| (row["grant"].clone(), stream(row, "good"), stream(row, "bad"))).collect()
}

#[test]
fn a_grant_allows_what_it_says_and_no_more() {
    test("policy-grant", &[], async |fixture| {
        let keys = ["subjects", "adopt", "take-over", "max-bytes"];
        for (grant, good, bad) in grants() {
            let mut all: serde_json::Map<_, _> =
                keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
            all.extend(grant.as_object().unwrap().clone());
            annotate(fixture, spec_here(fixture, &Value::Object(all))).await;
            // The policy sees annotations a moment later.
            let (good, bad) = (spec_here(fixture, &good), spec_here(fixture, &bad));
            eventually(&format!("{grant}: {good} is taken"), LIMIT, async || {
                said_to(fixture, "good", good.clone()).await.is_none().then_some(())
            })
            .await;
            let said = said_to(fixture, "bad", bad.clone()).await;
            let said = said.unwrap_or_else(|| panic!("{grant}: {bad} was taken"));
            assert!(said.contains("ValidatingAdmissionPolicy"), "{grant}: {bad}: {said}");
            assert!(!said.contains("expression"), "{grant}: {bad}: {said}");
        }
    });
}

#[test]
fn values_of_the_release_grant_as_annotations_do() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new("policy-values").await;
        let of = |key: &str, value: &str| {
            format!("--set-string=tenancy.grants.{}.{key}={value}", fixture.namespace())
        };
        let values = [of("subjects", "telemetry.>"), of("max-bytes", "20Gi")];
        install_policy(&fixture, &values.each_ref().map(String::as_str)).await;
        for (spec, good) in [
            (json!({"stream": {"subjects": ["telemetry.a"], "maxBytes": "20Gi"}}), true),
            (json!({"stream": {"subjects": ["payments.a"]}}), false),
            (json!({"stream": {"maxBytes": "21Gi"}}), false),
        ] {
            let said = said_to(&fixture, "orders", spec.clone()).await;
            assert_eq!(said.is_none(), good, "{spec}: {said:?}");
        }
        remove_policy(&fixture);
    });
}

/// Makes a user that may do `rules` in the whole cluster.
fn allow(fixture: &Fixture, user: &str, verbs: &str, resource: &str) {
    let role = resource.split([',', '.']).next().unwrap();
    let role = format!("{}-{user}-{role}", fixture.namespace());
    let made = ["create", "clusterrole", &role, &format!("--verb={verbs}")];
    let (ok, said) = fixture.kubectl(&[&made[..], &[&format!("--resource={resource}")]].concat());
    assert!(ok, "{said}");
    bind(fixture, &role, user);
}

fn bind(fixture: &Fixture, role: &str, user: &str) {
    let (ok, said) = fixture.kubectl(&[
        "create",
        "clusterrolebinding",
        role,
        &format!("--clusterrole={role}"),
        &format!("--user={user}"),
    ]);
    assert!(ok, "{said}");
}

/// An editor's update of the whole Namespace to its subresource, with a grant in it.
fn finalized(fixture: &Fixture) -> (bool, String) {
    let namespace = fixture.namespace();
    let said = fixture.kubectl(&["get", "namespace", namespace, "-o", "json"]).1;
    let mut object: Value = serde_json::from_str(&said).unwrap();
    object["metadata"]["annotations"]["tenancy.sluice.dev/subjects"] = json!(">");
    let path = format!("/api/v1/namespaces/{namespace}/finalize");
    let arguments = ["replace", "--as=editor", "--raw", &path, "-f", "-"];
    fixture.kubectl_with(&arguments, &object.to_string())
}

#[test]
fn grants_are_set_and_taken_by_those_alone_that_may_grant() {
    test("policy-grants", &[], async |fixture| {
        allow(
            fixture,
            "editor",
            "get,create,patch,update",
            "namespaces,namespaces/status,namespaces/finalize",
        );
        allow(fixture, "granter", "get,create,patch,update", "namespaces");
        // As the page has it.
        let role = format!("{}-granter", fixture.namespace());
        let page = block("operator", "granter").text.replace("sluice-granter", &role);
        let (ok, said) = fixture.kubectl_with(&["apply", "-f", "-"], &page);
        assert!(ok, "{said}");
        bind(fixture, &role, "granter");
        // All that a namespace's own roles may give.
        let (ok, said) = fixture.kubectl(&[
            "create",
            "role",
            "all",
            "--verb=*",
            "--resource=ssechannels.sluice.dev",
        ]);
        assert!(ok, "{said}");
        let (ok, said) =
            fixture.kubectl(&["create", "rolebinding", "all", "--role=all", "--user=editor"]);
        assert!(ok, "{said}");
        let namespace = fixture.namespace().to_owned();
        let patch = |user: &str, annotations: &Value, more: &[&str]| {
            let patch = json!({"metadata": {"annotations": annotations}}).to_string();
            let user = format!("--as={user}");
            let mut arguments =
                vec!["patch", "namespace", &namespace, &user, "--type=merge", "-p", &patch];
            arguments.extend(more);
            fixture.kubectl(&arguments)
        };
        let grant = json!({"tenancy.sluice.dev/subjects": "telemetry.>"});
        let is_refused = |(ok, said): (bool, String)| {
            assert!(!ok && said.contains("needs the verb grant on ssechannels"), "{said}");
        };
        is_refused(patch("editor", &grant, &[]));
        is_refused(patch("editor", &grant, &["--subresource=status"]));
        is_refused(patch("editor", &json!({"tenancy.sluice.dev/of-later": "x"}), &[]));
        let (ok, said) = patch("editor", &json!({"team": "shop"}), &[]);
        assert!(ok, "another annotation is an editor's: {said}");
        let page = block("operator", "grant").command().replace("shop", &namespace);
        let mut words = page.split_whitespace().map(|word| word.replace('\'', ""));
        assert_eq!(words.next().as_deref(), Some("kubectl"));
        let words: Vec<_> = words.chain(["--as=granter".to_owned()]).collect();
        let (ok, said) = fixture.kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(ok, "{said}");
        let (ok, said) = patch("editor", &json!({"team": "other"}), &[]);
        assert!(ok, "beside a grant, too: {said}");
        is_refused(patch("editor", &json!({"tenancy.sluice.dev/subjects": ">"}), &[]));
        is_refused(patch("editor", &json!({"tenancy.sluice.dev/subjects": null}), &[]));
        let (ok, said) = patch("granter", &json!({"tenancy.sluice.dev/subjects": null}), &[]);
        assert!(ok, "{said}");

        let made = |user: &str, name: &str| {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": grant}});
            let user = format!("--as={user}");
            fixture.kubectl_with(&["create", &user, "-f", "-"], &object.to_string())
        };
        is_refused(made("editor", &format!("{namespace}-new")));
        let (ok, said) = made("granter", &format!("{namespace}-new"));
        assert!(ok, "{said}");
        is_refused(finalized(fixture));
    });
}

#[test]
fn the_api_server_finds_no_mistake_in_the_policies() {
    test("policy-types", &[], async |fixture| {
        for name in ["sluice-tenancy", "sluice-tenancy-grants"] {
            let name = format!("{}.{name}", fixture.namespace());
            let checked = eventually(&format!("{name} is checked"), LIMIT, async || {
                let (ok, said) =
                    fixture.kubectl(&["get", "validatingadmissionpolicy", &name, "-o", "json"]);
                assert!(ok, "{said}");
                let policy: Value = serde_json::from_str(&said).unwrap();
                Some(policy["status"]["typeChecking"].clone()).filter(|checked| !checked.is_null())
            })
            .await;
            assert_eq!(checked["expressionWarnings"], Value::Null, "{name}: {checked:#}");
        }
    });
}
