//! `spec.stream` and `spec.nats`: where the events of a channel are kept.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults::of_nothing,
    text::{DurationText, SizeText, Subject, Text},
};

/// The JetStream stream that keeps a channel's events. Retention by limits, discarding the oldest,
/// and direct reads are fixed: history could not be served otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.name == oldSelf.name")
        .message("must not be added, changed or removed: the events would stay behind in the old stream. Create another channel instead")
        .field_path(".name").reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.storage == oldSelf.storage")
        .message("must not be changed: nats-server cannot move a stream between file and memory. Create another channel instead")
        .field_path(".storage").reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.topicPrefix == '' || size(self.subjects) == 0 || self.subjects.all(s, s.startsWith(self.topicPrefix))")
        .message("every one of stream.subjects must begin with topicPrefix; shorten the prefix or leave it out")
        .field_path(".topicPrefix"),
    validation = Rule::new("!self.maxAge.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.maxAge) >= duration('10s') && duration(self.maxAge) <= duration('8760h'))")
        .message("must be from 10s to 8760h").field_path(".maxAge"),
    validation = Rule::new("!self.duplicateWindow.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || !self.maxAge.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.duplicateWindow) >= duration('100ms') && duration(self.duplicateWindow) <= duration(self.maxAge))")
        .message("must be from 100ms to maxAge; lower duplicateWindow or raise maxAge").field_path(".duplicateWindow"),
    validation = Rule::new("!self.maxBytes.matches('^[0-9]{1,16}(k|M|G|T|Ki|Mi|Gi|Ti)?$') || (quantity(self.maxBytes).compareTo(quantity('1Mi')) >= 0 && quantity(self.maxBytes).compareTo(quantity('10Ti')) <= 0)")
        .message("must be from 1Mi to 10Ti").field_path(".maxBytes"),
    validation = Rule::new("!self.maxMessageSize.matches('^[0-9]{1,16}(k|M|G|T|Ki|Mi|Gi|Ti)?$') || (quantity(self.maxMessageSize).compareTo(quantity('1Ki')) >= 0 && quantity(self.maxMessageSize).compareTo(quantity('1Mi')) <= 0)")
        .message("must be from 1Ki to 1Mi (nats-server's own limit for one message)").field_path(".maxMessageSize"),
)]
pub struct StreamSpec {
    /// Name of the stream: letters, digits, '_' and '-'. Fixed for the channel's life. Default:
    /// derived from namespace and name.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]*$')").message("must consist of letters, digits, '_' and '-'"))]
    pub name: String,
    /// NATS subjects the stream takes. Default: sse.<namespace>.<name>.>
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub subjects: Vec<Subject>,
    /// Prefix removed from the NATS subject to form the topic, including the trailing dot (e.g.
    /// "telemetry."). Default: the fixed head of the default subject; with subjects set, none.
    #[serde(default)]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self == '' || self.matches('^([^ \\t\\r\\n.*>]+[.])+$')")
        .message("must be whole words of a subject, ending with '.', without wildcards"))]
    pub topic_prefix: String,
    /// Whether a stream that already exists and has no owner may be taken over.
    #[serde(default)]
    pub adoption: Adoption,
    /// What becomes of the stream when the channel is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Where nats-server keeps the events. Fixed for the channel's life.
    #[serde(default)]
    pub storage: Storage,
    /// Copies of each event in the NATS cluster: 1, 3 or 5, and not more than it has servers.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 5))]
    #[x_kube(validation = Rule::new("self in [1, 3, 5]").message("must be 1, 3 or 5: a stream needs a majority of its copies"))]
    pub replicas: i32,
    /// Events older than this are dropped. From 10s to 8760h; there is no unit above h.
    #[serde(default = "max_age")]
    pub max_age: DurationText,
    /// Beyond this many bytes the oldest events are dropped. From 1Mi to 10Ti.
    #[serde(default = "max_bytes")]
    pub max_bytes: SizeText,
    /// Beyond this many events the oldest are dropped. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 1))]
    pub max_messages: Option<i64>,
    /// Events kept of each topic; 1 keeps only the latest value. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 1))]
    pub max_messages_per_topic: Option<i64>,
    /// The largest event, bytes, headers included; larger ones are refused. From 1Ki to 1Mi.
    #[serde(default = "max_message_size")]
    pub max_message_size: SizeText,
    /// How long an Idempotency-Key (Nats-Msg-Id) is remembered. From 100ms to maxAge.
    #[serde(default = "duplicate_window")]
    pub duplicate_window: DurationText,
    /// Compression of what is stored on disk; readers see no difference.
    #[serde(default)]
    pub compression: Compression,
    /// Where in a NATS super-cluster the stream lives. Default: nats-server chooses.
    #[serde(default)]
    pub placement: Placement,
}

impl Default for StreamSpec {
    fn default() -> Self {
        of_nothing()
    }
}

fn replicas() -> i32 {
    1
}
fn max_age() -> DurationText {
    "24h".into()
}
fn max_bytes() -> SizeText {
    "1Gi".into()
}
fn max_message_size() -> SizeText {
    "64Ki".into()
}
fn duplicate_window() -> DurationText {
    "2m".into()
}

/// Whether an existing stream may be taken over.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Adoption {
    /// Only a stream that this operator made for this channel is used.
    #[default]
    Never,
    /// A stream without an owner whose configuration is compatible is taken over.
    IfUnowned,
}

/// What becomes of the stream when its channel is deleted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum DeletionPolicy {
    /// The stream and its events stay.
    #[default]
    Retain,
    /// The stream is deleted with all its events.
    Delete,
}

/// Where events are kept.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In memory: lost when the servers stop.
    Memory,
}

/// Compression of stored events.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// S2, nats-server's fast compression.
    S2,
}

/// Where in a NATS super-cluster a stream lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Name of the NATS cluster.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub cluster: String,
    /// Server tags that must all match.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub tags: Vec<Text>,
}

/// A NATS connection of the channel's own. Not supported yet: leave it out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("size(self.servers) > 0 || (self.credentialsRef.name == '' && self.tls.caRef.name == '' && self.tls.clientCertRef.name == '')")
        .message("credentials must come with servers of their own: they are never sent to the operator's servers").field_path(".servers"),
)]
pub struct NatsSpec {
    /// Addresses (nats://, tls:// or wss://) without user or password.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.all(u, u.matches('^(nats|tls|wss)://[^@ ]+$'))")
        .message("must be nats://, tls:// or wss:// addresses without user and password; put credentials into a Secret and name it in credentialsRef"))]
    pub servers: Vec<Text>,
    /// Secret with a NATS credentials file.
    #[serde(default)]
    pub credentials_ref: CredentialsRef,
    /// TLS towards the servers.
    #[serde(default)]
    pub tls: NatsTls,
    /// JetStream domain.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub jet_stream_domain: String,
}

/// A key of a Secret with a NATS credentials file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsRef {
    /// Name of the Secret in the channel's namespace.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[serde(default = "credentials_key")]
    #[schemars(length(max = 253))]
    pub key: String,
}

impl Default for CredentialsRef {
    fn default() -> Self {
        of_nothing()
    }
}

fn credentials_key() -> String {
    "nats.creds".to_owned()
}

/// TLS towards NATS servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatsTls {
    /// Secret with the certificate authority of the servers.
    #[serde(default)]
    pub ca_ref: CaRef,
    /// Secret of type kubernetes.io/tls with a client certificate.
    #[serde(default)]
    pub client_cert_ref: SecretRef,
}

/// A key of a Secret with a certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// Name of the Secret in the channel's namespace.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[serde(default = "ca_key")]
    #[schemars(length(max = 253))]
    pub key: String,
}

impl Default for CaRef {
    fn default() -> Self {
        of_nothing()
    }
}

fn ca_key() -> String {
    "ca.crt".to_owned()
}

/// A Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret in the channel's namespace.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
}
