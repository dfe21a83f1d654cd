use serde_json::{Value, json};

use super::{common::labels, *};
use crate::controller::validate::{self, tests::channel};

pub(crate) fn settings() -> Settings {
    Settings {
        image: "example.com/sluice-dataplane:1".to_owned(),
        nats: crate::nats::PublicServers::new(vec!["nats://nats.infra:4222".to_owned()]).unwrap(),
        credentials_secret: None,
        ca_secret: None,
        client_certificate_secret: None,
        jetstream_domain: None,
        cluster_domain: "cluster.local".to_owned(),
        operator_namespace: "sluice-system".to_owned(),
    }
}

fn children(spec: &Value) -> Children {
    desired(
        &validate::validate(&channel("orders", spec), "c").unwrap(),
        &settings(),
        Load::default(),
    )
    .unwrap()
}

fn template(spec: &Value) -> Value {
    serde_json::to_value(children(spec).deployment.spec.unwrap().template).unwrap()
}

#[test]
fn a_default_channel() {
    let Children {
        service_account,
        config,
        deployment,
        service,
        disruption_budget,
        network_policy,
        autoscaler,
        ingress,
        http_route,
        pod_monitor,
    } = children(&json!({}));
    assert_eq!(
        (network_policy, autoscaler, ingress, http_route, pod_monitor),
        (None, None, None, None, None)
    );
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
    let Children { service_account, deployment, service, disruption_budget, .. } =
        desired(&channel, &settings, Load::default()).unwrap();
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
        json!({"workload": {"autoscaling": {"maxReplicas": 9, "cpuUtilization": 70, "connectionsPerPod": 100}}}),
        json!({"networkPolicy": {"mode": "Restrict"}, "monitoring": {"podMonitor": "Enabled"}, "exposure": {"ingress": {"host": "a.example"}}}),
    ] {
        assert_eq!(template(&live), before, "{live}");
    }
    assert_ne!(template(&json!({"workload": {"image": "example.com/other:1"}})), before);
}

#[test]
fn channels_whose_names_look_alike_share_nothing() {
    let names = ["a", "a-sse", "a-sse-sse", "b"];
    let objects: std::collections::BTreeSet<_> =
        names.iter().map(|name| object_name(name)).collect();
    let selectors: std::collections::BTreeSet<_> =
        names.iter().map(|name| selector_text(name)).collect();
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

#[test]
fn the_ways_in_from_outside() {
    let tls = children(
        &json!({"exposure": {"ingress": {"className": "nginx", "host": "events.example.com", "tlsSecretName": "events-tls",
        "annotations": {"a/b": "c"}}}}),
    );
    insta::assert_yaml_snapshot!("ingress", tls.ingress);
    let route = children(
        &json!({"exposure": {"httpRoute": {"path": "/live/", "hostnames": ["events.example.com", "*.example.org"],
        "parentRefs": [{"name": "web", "namespace": "infra", "sectionName": "https"}, {"name": "own"}]}}}),
    );
    insta::assert_yaml_snapshot!("http_route", route.http_route);
    assert_eq!((tls.http_route, route.ingress), (None, None));
}

#[test]
fn a_path_above_the_channel_is_not_rewritten_and_addresses_say_where_it_is() {
    for (path, scheme, rewritten, url) in [
        ("", "Https", false, "https://a.example/channels/orders"),
        ("/", "Https", false, "https://a.example/channels/orders"),
        ("/channels", "Http", false, "http://a.example/channels/orders"),
        ("/channels/orders", "Https", false, "https://a.example/channels/orders"),
        ("/chan", "Https", true, "https://a.example/chan"),
        ("/channels/order", "Https", true, "https://a.example/channels/order"),
        ("/channels/orders/deep", "Https", true, "https://a.example/channels/orders/deep"),
    ] {
        let spec = json!({"exposure": {"httpRoute": {"path": path, "scheme": scheme, "hostnames": ["*.a.example", "a.example"], "parentRefs": [{"name": "g"}]}}});
        let valid = validate::validate(&channel("orders", &spec), "c").unwrap();
        let rule = desired(&valid, &settings(), Load::default())
            .unwrap()
            .http_route
            .unwrap()
            .spec
            .rules
            .remove(0);
        assert_eq!(rule.get("filters").is_some(), rewritten, "{path}");
        assert_eq!(rule["timeouts"]["request"], "0s", "streams are not cut");
        assert_eq!(exposure::external_urls(&valid), [url], "{path}");
    }
    let urls = |ingress: Value| {
        exposure::external_urls(
            &validate::validate(
                &channel("orders", &json!({"exposure": {"ingress": ingress}})),
                "c",
            )
            .unwrap(),
        )
    };
    assert_eq!(
        urls(json!({"host": "a.example", "path": "/"})),
        ["http://a.example/channels/orders"]
    );
    assert_eq!(
        urls(json!({"host": "a.example", "tlsSecretName": "t"})),
        ["https://a.example/channels/orders"]
    );
    assert!(urls(json!({"host": "*.a.example"})).is_empty());
}

#[test]
fn network_policies() {
    let open = children(&json!({"networkPolicy": {"mode": "Restrict"}}));
    insta::assert_yaml_snapshot!("network_policy_open", open.network_policy);
    let named = children(
        &json!({"monitoring": {"podMonitor": "Enabled"}, "networkPolicy": {"mode": "Restrict", "from": [
        {"namespaceLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}, "podLabels": {"app": "nginx"}},
        {"namespaceLabels": {"team": "shop"}}, {"podLabels": {"app": "tester"}}, {"cidr": "10.0.0.0/8"}]}}),
    );
    insta::assert_yaml_snapshot!("network_policy_named", named.network_policy);
    insta::assert_yaml_snapshot!("pod_monitor", named.pod_monitor);
}

#[test]
fn who_says_how_many_pods_there_are() {
    let number = |scaling: Value, asked: Option<i32>, deployed: bool| {
        let spec = json!({"workload": {"replicas": 9, "autoscaling": scaling}});
        let valid = validate::validate(&channel("orders", &spec), "c").unwrap();
        let children = desired(&valid, &settings(), Load { asked, deployed }).unwrap();
        let least = children.autoscaler.and_then(|a| a.spec).and_then(|spec| spec.min_replicas);
        (children.deployment.spec.unwrap().replicas, least)
    };
    assert_eq!(number(json!(null), None, true), (Some(9), None));
    // Connections: the operator, within bounds.
    let counted = || json!({"minReplicas": 2, "maxReplicas": 5, "connectionsPerPod": 100});
    for (asked, expected) in [(None, 2), (Some(0), 2), (Some(4), 4), (Some(99), 5)] {
        assert_eq!(number(counted(), asked, true), (Some(expected), None), "{asked:?}");
    }
    // Processor use: the autoscaler, but for the start.
    let measured = || json!({"minReplicas": 3, "maxReplicas": 5, "cpuUtilization": 70});
    assert_eq!(number(measured(), None, false), (Some(3), Some(3)));
    assert_eq!(number(measured(), None, true), (None, Some(3)));
    // Both: connections raise the fewest.
    let both = || json!({"minReplicas": 2, "maxReplicas": 5, "cpuUtilization": 70, "connectionsPerPod": 100});
    assert_eq!(number(both(), Some(4), true), (None, Some(4)));
    assert_eq!(number(both(), Some(9), true), (None, Some(5)));
}

#[test]
fn an_autoscaler() {
    insta::assert_yaml_snapshot!(
        "autoscaler",
        children(&json!({"workload": {"autoscaling": {"maxReplicas": 5, "cpuUtilization": 70}}}))
            .autoscaler
    );
}
