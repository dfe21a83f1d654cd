//! Values that are refused, and in what words.

use serde_json::{Value, json};

use crate::helm::template;

/// Values, and the words of which the message must hold all.
fn table() -> Vec<(Value, &'static [&'static str])> {
    vec![
        (json!({"replicas": 3}), &["replicas"]),
        (json!({"replicaCount": "two"}), &["replicaCount", "integer", "string"]),
        (json!({"replicaCount": -1}), &["replicaCount"]),
        (json!({"nats": {"servers": "nats://a:4222"}}), &["nats", "servers", "array"]),
        (json!({"nats": {"server": ["nats://a:4222"]}}), &["server"]),
        (json!({"natsServer": {"enabled": "yes"}}), &["natsServer", "enabled", "boolean"]),
        (
            json!({"natsServer": {"enabled": true, "persistence": {"size": "ten"}}}),
            &["persistence", "size"],
        ),
        (
            json!({"natsServer": {"enabled": true, "image": {"tag": 2.15}}}),
            &["image", "tag", "string"],
        ),
        (json!({"image": {"pullPolicy": "Sometimes"}}), &["pullPolicy", "IfNotPresent"]),
        (json!({"resync": "30"}), &["resync", "pattern"]),
        (json!({"concurrency": 0}), &["concurrency", "minimum"]),
        (json!({"maxRolling": "110%"}), &["maxRolling", "pattern"]),
        (json!({"logFormat": "xml"}), &["logFormat", "json"]),
        (json!({"watchNamespaces": ["Shop"]}), &["watchNamespaces", "pattern"]),
        (json!({"watchNamespaces": ["a", "a"]}), &["watchNamespaces", "equal"]),
        (json!({"leaderElection": {"leaseDuration": 15}}), &["leaseDuration", "string"]),
        (json!({"leaderElection": {"enabled": false}}), &["enabled"]),
        (json!({"resources": {"limit": {"memory": "1Gi"}}}), &["resources", "limit"]),
        (json!({"podLabels": {"app.kubernetes.io/name": "mine"}}), &["podLabels"]),
        (json!({"tolerations": [{"effect": "Never"}]}), &["tolerations", "effect"]),
        (json!({"env": [{"value": "x"}]}), &["env", "name"]),
        (json!({"crds": {"keep": false}}), &["keep"]),
        (json!({"networkPolicy": {"from": [{"cidr": "10.0.0.0/8"}]}}), &["networkPolicy", "cidr"]),
        (json!({"fullnameOverride": "My_Release"}), &["fullnameOverride"]),
        (json!({"podMonitor": {"interval": "often"}}), &["podMonitor", "interval"]),
        (json!({"tenancy": {"mode": "Closed"}}), &["tenancy", "mode", "Isolated"]),
        (json!({"tenancy": {"quota": "much"}}), &["tenancy", "quota"]),
        (json!({"tenancy": {"grants": {"shop": {"subject": "a.>"}}}}), &["grants", "subject"]),
        (json!({"tenancy": {"grants": {"shop": {"subjects": ["a.>"]}}}}), &["grants", "subjects"]),
        (json!({"tenancy": {"grants": {"Shop": {}}}}), &["grants", "Shop"]),
        (json!({"terminationGracePeriodSeconds": 0}), &["terminationGracePeriodSeconds"]),
    ]
}

#[test]
fn what_cannot_be_meant_is_refused_in_words_that_name_it() {
    for (mut values, words) in table() {
        let broken = values.clone();
        if values.get("nats").is_none() && values.get("natsServer").is_none() {
            values["nats"] = json!({"servers": ["nats://nats:4222"]});
        }
        let said = template(&values);
        assert!(!said.ok, "{broken} was taken");
        assert!(
            said.err.contains("values don't meet the specifications of the schema"),
            "{broken}: {}",
            said.err
        );
        for word in words {
            assert!(said.err.contains(word), "{broken}: {word} is not in: {}", said.err);
        }
    }
}

#[test]
fn what_the_programs_would_refuse_when_they_start_is_refused_with_what_to_do() {
    for (mut values, words) in [
        (json!({"resync": "5m"}), ["resync (5m)", "1s to 60s"]),
        (json!({"resync": "61s"}), ["resync (61s)", "1s to 60s"]),
        (json!({"resync": "500ms"}), ["resync (500ms)", "1s to 60s"]),
        (json!({"resync": "0s"}), ["resync (0s)", "1s to 60s"]),
        (json!({"logLevel": "verbose"}), ["logLevel holds \"verbose\"", "a level"]),
        (json!({"logLevel": "info,sluice_operator=loud"}), ["sluice_operator=loud", "a level"]),
        (json!({"dataplane": {"image": "Foo Bar"}}), ["\"Foo Bar\"", "an image reference"]),
        (json!({"dataplane": {"image": "https://a/b"}}), ["dataplane.image", "no scheme"]),
        (json!({"image": {"repository": "Foo"}}), ["image.repository", "lower case"]),
        (json!({"image": {"repository": "foo:1"}}), ["image.repository", "image.tag"]),
        (json!({"image": {"tag": "a b"}}), ["image.tag", "digits"]),
        (json!({"natsServer": {"image": {"tag": "a b"}}}), ["natsServer.image.tag", "digits"]),
        (json!({"nats": {"servers": ["nats.nats.svc:4222"]}}), ["nats.servers", "nats://"]),
        (json!({"nats": {"servers": ["http://a:4222"]}}), ["\"http://a:4222\"", "tls://"]),
        (json!({"nats": {"servers": ["nats://fd00::1:4222"]}}), ["nats.servers", "brackets"]),
        (json!({"nats": {"servers": ["nats://u:p@a"]}}), ["password", "nats.credentialsSecret"]),
        (json!({"dataplane": {"natsServers": ["a:4222"]}}), ["dataplane.natsServers", "nats://"]),
    ] {
        let broken = values.clone();
        if values.get("nats").is_none() {
            values["nats"] = json!({"servers": ["nats://nats:4222"]});
        }
        let said = template(&values);
        assert!(!said.ok, "{broken} was taken");
        for word in words {
            assert!(said.err.contains(word), "{broken}: {word} is not in: {}", said.err);
        }
        // In words: a pattern does not say what to write.
        assert!(!said.err.contains("pattern"), "{broken}: {}", said.err);
    }
}

/// Values that the operator takes and refuses where the schema's patterns end: both must say the
/// same, or Helm calls a release deployed that never starts.
#[test]
fn what_the_operator_takes_is_taken() {
    for values in [
        json!({"resync": "1s"}),
        json!({"resync": "60s"}),
        json!({"resync": "1m"}),
        json!({"resync": "1500ms"}),
        json!({"logLevel": "INFO"}),
        json!({"logLevel": "warn,sluice_operator=debug,kube::client=off"}),
        json!({"dataplane": {"image": "registry.example:5000/team/sluice-dataplane:v2"}}),
        json!({"dataplane": {"image": "[fd00::5]:5000/sluice@sha256:0123456789abcdef0123456789abcdef"}}),
        json!({"leaderElection": {"leaseDuration": "1m", "renewDeadline": "45s", "retryPeriod": "500ms"}}),
    ] {
        let mut given = values.clone();
        given["nats"] = json!({"servers": ["nats://[fd00::4]:4222"]});
        let said = template(&given);
        assert!(said.ok, "{values}: {}", said.err);
    }
}

#[test]
fn times_of_an_election_that_could_not_work_are_refused_with_what_to_change() {
    for (times, words) in [
        (json!({"leaseDuration": "5s"}), ["renewDeadline (10s)", "leaseDuration (5s)"]),
        (json!({"leaseDuration": "10s"}), ["renewDeadline (10s)", "shorter"]),
        (json!({"renewDeadline": "1m"}), ["renewDeadline (1m)", "leaseDuration (15s)"]),
        (json!({"retryPeriod": "10s"}), ["retryPeriod (10s)", "renewDeadline (10s)"]),
        (json!({"retryPeriod": "0s"}), ["retryPeriod (0s)", "more than nothing"]),
        (json!({"leaseDuration": "15500ms"}), ["leaseDuration (15500ms)", "whole seconds"]),
    ] {
        let mut values = json!({"nats": {"servers": ["nats://nats:4222"]}});
        values["leaderElection"] = times;
        let said = template(&values);
        assert!(!said.ok, "{values} was taken");
        for word in words {
            assert!(said.err.contains(word), "{values}: {word} is not in: {}", said.err);
        }
    }
}

#[test]
fn every_object_of_the_schema_is_closed() {
    let schema: Value =
        serde_json::from_str(&crate::helm::read("charts/sluice/values.schema.json")).unwrap();
    let mut open = Vec::new();
    walk(&schema, "", &mut open);
    // What Kubernetes itself defines, and what Helm hands to all charts.
    open.retain(|path| {
        !path.contains("ffinity")
            && !["from", "valueFrom", "objects", "global"].iter().any(|known| path.contains(known))
    });
    assert_eq!(open, [""; 0], "objects that take any key");
}

fn walk(schema: &Value, path: &str, open: &mut Vec<String>) {
    if schema["type"] == "object" && schema.get("additionalProperties").is_none() {
        open.push(path.to_owned());
    }
    match schema {
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| walk(member, &format!("{path}/{name}"), open));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, path, open)),
        _ => {}
    }
}

/// A value without a rule would be taken unseen, and a rule without a value would be undocumented.
#[test]
fn values_and_schema_name_the_same() {
    let schema: Value =
        serde_json::from_str(&crate::helm::read("charts/sluice/values.schema.json")).unwrap();
    let values: Value =
        serde_saphyr::from_str(&crate::helm::read("charts/sluice/values.yaml")).unwrap();
    let mut findings = Vec::new();
    compare(&schema["properties"], &values, "", &mut findings);
    findings.retain(|path| path != ".global");
    assert_eq!(findings, [""; 0]);
}

fn compare(properties: &Value, values: &Value, path: &str, findings: &mut Vec<String>) {
    let (properties, values) = (properties.as_object().unwrap(), values.as_object().unwrap());
    findings.extend(
        properties
            .keys()
            .filter(|name| !values.contains_key(*name))
            .map(|name| format!("{path}.{name}")),
    );
    for (name, value) in values {
        match properties.get(name) {
            None => findings.push(format!("{path}.{name}")),
            Some(property) if property.get("properties").is_some() => {
                compare(&property["properties"], value, &format!("{path}.{name}"), findings);
            }
            Some(_) => {}
        }
    }
}
