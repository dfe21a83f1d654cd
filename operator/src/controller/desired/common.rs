//! What all objects of a channel have in common: names, labels, owner, and the operator's settings.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource as _;

use crate::{controller::validate::ValidChannel, crd::SseChannel, nats::PublicServers};

/// Label on every object of a channel, with the channel's name.
const CHANNEL_LABEL: &str = "sluice.dev/channel";
/// Value of the label `app.kubernetes.io/managed-by`.
pub(crate) const MANAGED_BY: &str = "sluice-operator";
/// What follows the channel's name in the names of its objects.
const SUFFIX: &str = "-sse";

/// What the operator was told about the pods it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Image of the data plane for channels that name none.
    pub(crate) image: String,
    /// NATS servers as pods reach them.
    pub(crate) nats: PublicServers,
    /// Secret in each channel's namespace whose key `nats.creds` holds NATS credentials.
    pub(crate) credentials_secret: Option<String>,
    /// Secret in each channel's namespace whose key `ca.crt` holds the NATS servers' authority.
    pub(crate) ca_secret: Option<String>,
    /// Secret of type `kubernetes.io/tls` in each channel's namespace with the client certificate
    /// for NATS.
    pub(crate) client_certificate_secret: Option<String>,
    pub(crate) jetstream_domain: Option<String>,
    pub(crate) cluster_domain: String,
    /// Namespace of the operator's own pod, which asks the pods of channels what they serve.
    pub(crate) operator_namespace: String,
}

/// Name of all objects of the channel `name`: `orders` → `orders-sse`.
#[must_use]
pub(crate) fn object_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// Selector of a channel's pods, as text.
#[must_use]
pub(crate) fn selector_text(name: &str) -> String {
    selector_labels(name)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Never changes in a channel's life: a Deployment's selector is immutable.
pub(super) fn selector_labels(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "sluice".to_owned()),
        (CHANNEL_LABEL.to_owned(), name.to_owned()),
    ])
}

pub(super) fn selector(channel: &ValidChannel) -> LabelSelector {
    LabelSelector {
        match_labels: Some(selector_labels(channel.name.as_str())),
        match_expressions: None,
    }
}

pub(super) fn labels(channel: &ValidChannel) -> BTreeMap<String, String> {
    let mut labels = selector_labels(channel.name.as_str());
    labels.insert("app.kubernetes.io/instance".to_owned(), channel.name.to_string());
    labels.insert("app.kubernetes.io/component".to_owned(), "dataplane".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned());
    labels
}

pub(super) fn metadata(channel: &ValidChannel) -> ObjectMeta {
    ObjectMeta {
        name: Some(object_name(channel.name.as_str())),
        namespace: Some(channel.namespace.clone()),
        labels: Some(labels(channel)),
        owner_references: Some(vec![OwnerReference {
            api_version: SseChannel::api_version(&()).into_owned(),
            kind: SseChannel::kind(&()).into_owned(),
            name: channel.name.to_string(),
            uid: channel.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
