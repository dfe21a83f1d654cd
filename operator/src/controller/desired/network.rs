//! The NetworkPolicy: the events for the clients that are named, the admin port for the operator
//! and Prometheus only.
//!
//! Nothing is said of what pods may reach: a policy is matched after a Service's address became a
//! pod's, so the ports of NATS and DNS in it would be those behind their Services, which the
//! operator does not know.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::common::{Settings, metadata, selector};
use crate::{
    controller::validate::ValidChannel,
    crd::{network::NetworkPeer, workload::PodMonitor},
};

/// Label that every namespace has, with its name.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn policy(channel: &ValidChannel, settings: &Settings) -> NetworkPolicy {
    // Nodes may always reach their own pods, so probes need no rule.
    let mut admin = vec![namespaces(BTreeMap::from([(
        NAMESPACE_LABEL.to_owned(),
        settings.operator_namespace.clone(),
    )]))];
    if channel.monitoring.pod_monitor == PodMonitor::Enabled {
        // Where Prometheus runs is not known: pods of all namespaces, and no address outside the
        // cluster.
        admin.push(namespaces(BTreeMap::new()));
    }
    let from: Vec<_> = channel.network_policy.from.iter().map(peer).collect();
    NetworkPolicy {
        metadata: metadata(channel),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(channel)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                rule("http", (!from.is_empty()).then_some(from)),
                rule("admin", Some(admin)),
            ]),
            egress: None,
        }),
    }
}

/// `None` = from everywhere.
fn rule(port: &str, from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = NetworkPolicyPort {
        port: Some(IntOrString::String(port.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule { from, ports: Some(vec![port]) }
}

fn peer(peer: &NetworkPeer) -> NetworkPolicyPeer {
    if !peer.cidr.is_empty() {
        return NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: peer.cidr.clone(), except: None }),
            ..NetworkPolicyPeer::default()
        };
    }
    let given =
        |labels: &BTreeMap<String, String>| (!labels.is_empty()).then(|| by_labels(labels.clone()));
    NetworkPolicyPeer {
        namespace_selector: given(&peer.namespace_labels),
        pod_selector: given(&peer.pod_labels),
        ip_block: None,
    }
}

fn namespaces(labels: BTreeMap<String, String>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(by_labels(labels)),
        ..NetworkPolicyPeer::default()
    }
}

fn by_labels(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: (!labels.is_empty()).then_some(labels), match_expressions: None }
}
