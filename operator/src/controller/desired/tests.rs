use serde_json::{Value, json};

use super::*;
use crate::controller::validate::{self, tests::channel};

fn settings() -> Settings {
    Settings {
        image: "example.com/sluice-dataplane:1".to_owned(),
        nats: vec!["nats://nats.infra:4222".to_owned()],
        credentials_secret: None,
        ca_secret: None,
        client_certificate_secret: None,
        jetstream_domain: None,
        cluster_domain: "cluster.local".to_owned(),
    }
}

fn children(spec: &Value) -> Children {
    desired(&validate::validate(&channel("orders", spec), "c").unwrap(), &settings()).unwrap()
}

fn template(spec: &Value) -> Value {
    serde_json::to_value(children(spec).deployment.spec.unwrap().template).unwrap()
}

#[test]
fn a_default_channel() {
    let Children { service_account, config, deployment, service, disruption_budget } = children(&json!({}));
    insta::assert_yaml_snapshot!("service_account", service_account);
    insta::assert_yaml_snapshot!("config", config);
    insta::assert_yaml_snapshot!("deployment", deployment);
    insta::assert_yaml_snapshot!("service", service);
    insta::assert_yaml_snapshot!("disruption_budget", disruption_budget);
}

#[test]
fn a_channel_with_everything() {
    let spec = json!({
        "workload": {"replicas": 5, "image": "example.com/own:2", "resources": {"requests": {"cpu": 1}, "limits": {}},
            "topologySpread": "Required", "disruptionBudget": "Disabled", "terminationGracePeriodSeconds": 300,
            "serviceAccountName": "reader", "priorityClassName": "high", "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "a", "operator": "Exists"}], "imagePullSecrets": [{"name": "pull"}],
            "podAnnotations": {"a/b": "c"}, "podLabels": {"team": "shop"}},
        "service": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "annotations": {"a/b": "c"}},
    });
    let settings = Settings {
        credentials_secret: Some("nats-user".to_owned()),
        ca_secret: Some("nats-ca".to_owned()),
        client_certificate_secret: Some("nats-client".to_owned()),
        jetstream_domain: Some("hub".to_owned()),
        ..settings()
    };
    let channel = validate::validate(&channel("orders", &spec), "c").unwrap();
    let Children { service_account, config: _, deployment, service, disruption_budget } = desired(&channel, &settings).unwrap();
    assert_eq!((service_account, disruption_budget), (None, None));
    insta::assert_yaml_snapshot!("everything_deployment", deployment);
    insta::assert_yaml_snapshot!("everything_service", service);
}

#[test]
fn what_running_pods_can_take_rolls_none() {
    let before = template(&json!({}));
    for live in [
        json!({"delivery": {"heartbeat": "30s", "cors": {"allowedOrigins": ["*"]}, "cache": "1Mi"}}),
        json!({"stream": {"maxAge": "48h", "replicas": 3}}),
        json!({"publish": {"mode": "Http", "allowAnonymous": true}}),
        json!({"service": {"type": "NodePort", "sessionAffinity": "ClientIP"}}),
        json!({"workload": {"replicas": 9, "disruptionBudget": "Disabled"}}),
    ] {
        assert_eq!(template(&live), before, "{live}");
    }
    assert_ne!(template(&json!({"workload": {"image": "example.com/other:1"}})), before);
}

#[test]
fn channels_whose_names_look_alike_share_nothing() {
    let names = ["a", "a-sse", "a-sse-sse", "b"];
    let objects: std::collections::BTreeSet<_> = names.iter().map(|name| object_name(name)).collect();
    let selectors: std::collections::BTreeSet<_> = names.iter().map(|name| selector_text(name)).collect();
    assert_eq!((objects.len(), selectors.len()), (names.len(), names.len()));
}

#[test]
fn names_fit_into_kubernetes_limits() {
    let longest = "x".repeat(48);
    assert!(object_name(&longest).len() <= 63);
    let channel = validate::validate(&channel(&longest, &json!({})), "c").unwrap();
    for value in labels(&channel).values() {
        assert!(value.len() <= 63);
    }
}
