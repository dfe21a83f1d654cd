use serde_json::{Value, json};

use super::*;

fn manifest(spec: &Value) -> Value {
    json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "SseChannel", "metadata": {"name": "orders", "namespace": "shop"}, "spec": spec})
}

fn problems(spec: &Value) -> String {
    manifest::read(&manifest(spec)).err().map(|p| p.to_string()).unwrap_or_default()
}

#[test]
fn the_checked_in_definition_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/ssechannels.yaml");
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        checked_in == yaml().unwrap(),
        "crds/ssechannels.yaml is not what the types say; run `cargo run -p sluice-operator -- crd > crds/ssechannels.yaml`"
    );
}

#[test]
fn the_definition_fits_into_an_annotation_of_kubectl_apply() {
    let size = yaml().unwrap().len();
    assert!(size <= 64 * 1024, "{size} bytes");
}

#[test]
fn an_empty_spec_takes_every_default() {
    let channel = manifest::read(&manifest(&json!({}))).unwrap();
    assert_eq!(channel.spec, SseChannelSpec::default());
    assert_eq!(channel.spec.stream.max_age.0, "24h");
    assert_eq!(channel.spec.workload.replicas, 2);
    assert_eq!(channel.spec.workload.resources.limits["memory"].0, "512Mi");
    assert_eq!(channel.spec.delivery.retry.max.0, "5s");
    assert_eq!(channel.spec.delivery.on_gap, delivery::Position::Earliest);
}

#[test]
fn a_full_spec_is_read() {
    let channel = manifest::read(&manifest(&json!({
        "managementPolicy": "Observe",
        "stream": {"name": "SHOP-orders_1", "subjects": ["shop.orders.>", "shop.*.audit"], "topicPrefix": "shop.", "adoption": "IfUnowned",
            "deletionPolicy": "Delete", "storage": "Memory", "replicas": 3, "maxAge": "8760h", "maxBytes": "10Ti", "maxMessages": 1_000_000,
            "maxMessagesPerTopic": 1, "maxMessageSize": "1Mi", "duplicateWindow": "1h", "compression": "S2",
            "placement": {"cluster": "eu", "tags": ["ssd"]}},
        "delivery": {"startAt": "Earliest", "onGap": "Latest", "heartbeat": "5m", "retry": {"min": "100ms", "max": "5m"}, "maxConnectionAge": "0s",
            "writeTimeout": "1s", "maxConnectionsPerPod": 1, "cache": "64Gi", "encoding": "Base64",
            "cors": {"allowedOrigins": ["https://app.example.com", "http://localhost:3000"], "allowCredentials": true, "maxAge": "0s"}},
        "auth": {"mode": "None"},
        "publish": {"mode": "Http", "allowAnonymous": true},
        "workload": {"replicas": 0, "autoscaling": {"minReplicas": 1, "maxReplicas": 1000, "connectionsPerPod": 1, "cpuUtilization": 100}, "image": "example.com/sluice:1", "resources": {"requests": {"cpu": 2}, "limits": {}}, "topologySpread": "Required",
            "disruptionBudget": "Disabled", "terminationGracePeriodSeconds": 900, "serviceAccountName": "reader", "priorityClassName": "high",
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "a", "operator": "Exists"}], "imagePullSecrets": [{"name": "pull"}],
            "podAnnotations": {"a/b": "c"}, "podLabels": {"team": "shop"}},
        "service": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "annotations": {"a/b": "c"}},
        "exposure": {"httpRoute": {"parentRefs": [{"name": "web", "namespace": "infra", "sectionName": "https"}],
            "hostnames": ["events.example.com", "*.example.org"], "path": "/live", "scheme": "Http"}},
        "networkPolicy": {"mode": "Restrict", "from": [{"namespaceLabels": {"a": "b"}, "podLabels": {"c": "d"}}, {"cidr": "2001:db8::/32"}]},
        "monitoring": {"podMonitor": "Enabled"},
    })))
    .unwrap();
    assert_eq!(channel.spec.workload.resources.requests["cpu"].0, "2");
}

/// The same table runs against a real API server, in tests/operator.
fn refused() -> Vec<(Value, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/operator/refused.yaml");
    let rows: Vec<Value> = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    rows.into_iter()
        .map(|row| (row["spec"].clone(), row["says"].as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn mistakes_are_refused_with_a_message_that_says_what_to_do() {
    let rows = refused();
    assert!(rows.len() > 40, "only {} rows", rows.len());
    for (spec, message) in rows {
        let found = problems(&spec);
        assert!(found.contains(&message), "{spec}: {found:?} does not say {message:?}");
        // A rule that cannot be computed says what its parser thinks.
        assert!(!found.contains("evaluat"), "{spec}: {found}");
    }
}

/// As well in tests/operator.
#[test]
fn what_is_near_to_a_mistake_and_is_none_is_taken() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/operator/accepted.yaml");
    let rows: Vec<Value> = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(rows.len() > 10);
    for spec in rows {
        assert_eq!(problems(&spec), "", "{spec}");
    }
}

/// The definition as it is installed, of the spec.
fn installed() -> Value {
    let definition: Value = serde_saphyr::from_str(&yaml().unwrap()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

#[test]
fn each_field_says_its_default_and_its_range() {
    fn walk(schema: &Value, path: &str, seen: &mut usize) {
        let text = schema["description"].as_str().unwrap_or_default();
        let default = match &schema["default"] {
            Value::String(default) => default.clone(),
            Value::Object(_) | Value::Array(_) | Value::Null => String::new(),
            other => other.to_string(),
        };
        if !default.is_empty() {
            assert!(text.ends_with(&format!("Default: {default}.")), "{path}: {text}");
            *seen += 1;
        }
        for bound in ["minimum", "maximum"] {
            if let Some(bound) = schema[bound].as_f64() {
                assert!(text.contains(&format!(" {bound}")), "{path}: {bound}: {text}");
            }
        }
        // A duration and a size have their range in a rule; a reader of `explain` sees the text.
        let timed = ["maxAge", "heartbeat", "maxConnectionAge", "writeTimeout", "maxBytes"];
        if timed.iter().any(|name| path.ends_with(&format!(".{name}"))) {
            assert!(text.contains(" to "), "{path} does not say its range: {text}");
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            assert!(property["description"].is_string(), "{path}.{name} has no description");
            walk(property, &format!("{path}.{name}"), seen);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), seen);
        }
    }
    let mut seen = 0;
    walk(&installed(), "spec", &mut seen);
    assert!(seen > 25, "only {seen}");
}

#[test]
fn no_field_is_reserved_by_being_refused() {
    let spec = installed();
    let said = spec.to_string();
    assert!(spec["properties"]["auth"]["properties"].get("jwt").is_none());
    assert!(spec["properties"]["workload"]["properties"].get("podOverlay").is_none());
    assert!(!said.contains("x-kubernetes-preserve-unknown-fields"));
}

#[test]
fn a_default_that_says_nothing_is_there_only_where_a_rule_reads_it() {
    let spec = installed();
    let workload = &spec["properties"]["workload"]["properties"];
    for quiet in [
        "image",
        "serviceAccountName",
        "nodeSelector",
        "tolerations",
        "podLabels",
        "podAnnotations",
    ] {
        assert!(workload[quiet].is_object() && workload[quiet].get("default").is_none(), "{quiet}");
    }
    // `size(self.subjects) == 0` fails on a field that is not there.
    assert_eq!(spec["properties"]["stream"]["properties"]["subjects"]["default"], json!([]));
    // What is inside has defaults of its own, which are filled in only where it is there.
    assert!(workload["resources"].get("default").is_some());
}

#[test]
fn an_unknown_field_is_refused_with_a_guess_at_what_was_meant() {
    assert!(problems(&json!({"stream": {"maxage": "1h"}})).contains("did you mean maxAge?"));
}

#[test]
fn names_that_are_no_dns_label_are_refused() {
    for name in ["a.b", "1a", "A", &"x".repeat(49)] {
        let mut manifest = manifest(&json!({}));
        manifest["metadata"]["name"] = json!(name);
        assert!(manifest::read(&manifest).unwrap_err().to_string().contains("DNS label"), "{name}");
    }
}

#[test]
fn what_is_fixed_for_life_cannot_be_changed() {
    let channel = |spec: Value| manifest::read(&manifest(&spec)).unwrap();
    let plain = channel(json!({}));
    for (old, new) in [
        (plain.clone(), channel(json!({"stream": {"name": "a"}}))),
        (channel(json!({"stream": {"name": "a"}})), plain.clone()),
        (channel(json!({"stream": {"name": "a"}})), channel(json!({"stream": {"name": "b"}}))),
        (plain.clone(), channel(json!({"stream": {"storage": "Memory"}}))),
    ] {
        assert!(manifest::rules(&new, Some(&old)).unwrap_err().to_string().contains("must not be"));
    }
    let longer = channel(json!({"stream": {"maxAge": "48h", "replicas": 3}}));
    manifest::rules(&longer, Some(&plain)).unwrap();
}

#[test]
fn every_string_and_list_of_the_spec_is_bounded() {
    fn walk(schema: &Value, path: &str, found: &mut Vec<String>) {
        match schema.get("type").and_then(Value::as_str) {
            Some("string") if schema.get("maxLength").is_none() && schema.get("enum").is_none() => {
                found.push(path.to_owned());
            }
            Some("array") if schema.get("maxItems").is_none() => found.push(path.to_owned()),
            _ => {}
        }
        for (name, property) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            walk(property, &format!("{path}.{name}"), found);
        }
        if let Some(items) = schema.get("items") {
            walk(items, &format!("{path}[]"), found);
        }
    }
    let definition = serde_json::to_value(SseChannel::crd()).unwrap();
    let mut found = Vec::new();
    walk(
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
        "spec",
        &mut found,
    );
    // Kubernetes' own type; the API server checks it when the pod is made.
    found.retain(|path| !path.starts_with("spec.workload.tolerations[]"));
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_spec_has_no_nullable_field() {
    // A null in a manifest is then dropped before defaults, and `has()` in a rule means what it
    // says.
    let definition = serde_json::to_value(SseChannel::crd()).unwrap();
    let spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        .to_string();
    assert!(!spec.contains("nullable"));
}
