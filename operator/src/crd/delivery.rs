//! `spec.delivery`, `spec.auth` and `spec.publish`: how a channel behaves over HTTP.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    defaults::of_nothing,
    text::{DurationText, Origin, SizeText},
};

/// How events are delivered. Every field takes effect on running pods without closing a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.heartbeat.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.heartbeat) >= duration('1s') && duration(self.heartbeat) <= duration('5m'))")
        .message("must be from 1s to 5m; proxies close idle connections after 30 to 60 s").field_path(".heartbeat"),
    validation = Rule::new("!self.maxConnectionAge.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.maxConnectionAge) == duration('0s') || (duration(self.maxConnectionAge) >= duration('1m') && duration(self.maxConnectionAge) <= duration('24h')))")
        .message("must be from 1m to 24h, or 0s for never").field_path(".maxConnectionAge"),
    validation = Rule::new("!self.writeTimeout.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.writeTimeout) >= duration('1s') && duration(self.writeTimeout) <= duration('5m'))")
        .message("must be from 1s to 5m").field_path(".writeTimeout"),
    validation = Rule::new("!self.cache.matches('^[0-9]{1,16}(k|M|G|T|Ki|Mi|Gi|Ti)?$') || (quantity(self.cache).compareTo(quantity('1Mi')) >= 0 && quantity(self.cache).compareTo(quantity('64Gi')) <= 0)")
        .message("must be from 1Mi to 64Gi, and well below the pod's memory limit").field_path(".cache"),
)]
pub struct DeliverySpec {
    /// Where a connection without a cursor starts, if its request does not say.
    #[serde(default = "latest")]
    pub start_at: Position,
    /// Where a subscriber goes on when what follows its cursor is gone, after being told so by
    /// channel.gap.
    #[serde(default = "earliest")]
    pub on_gap: Position,
    /// Longest silence on a stream: then a comment is sent, so that proxies keep the connection.
    /// From 1s to 5m.
    #[serde(default = "heartbeat")]
    pub heartbeat: DurationText,
    /// Bounds of the reconnection time that each client is given at random.
    #[serde(default)]
    pub retry: Retry,
    /// A stream is ended, to be resumed elsewhere, at 80 to 100 % of this age. From 1m to 24h, or
    /// 0s for never.
    #[serde(default = "max_connection_age")]
    pub max_connection_age: DurationText,
    /// A socket that takes nothing for this long is closed; its client comes back with its cursor.
    /// From 1s to 5m.
    #[serde(default = "write_timeout")]
    pub write_timeout: DurationText,
    /// Streams of this channel on one pod; more are answered 503 with Retry-After.
    #[serde(default = "max_connections_per_pod")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections_per_pod: i32,
    /// Memory of each pod for encoded events, bytes: half for the newest, half for history that is
    /// read. From 1Mi to 64Gi, and well below the memory limit.
    #[serde(default = "cache")]
    pub cache: SizeText,
    /// How payloads become data lines.
    #[serde(default)]
    pub encoding: Encoding,
    /// Which other origins may read the channel.
    #[serde(default)]
    pub cors: Cors,
}

impl Default for DeliverySpec {
    fn default() -> Self {
        of_nothing()
    }
}

fn latest() -> Position {
    Position::Latest
}
fn earliest() -> Position {
    Position::Earliest
}
fn heartbeat() -> DurationText {
    "15s".into()
}
fn max_connection_age() -> DurationText {
    "1h".into()
}
fn write_timeout() -> DurationText {
    "10s".into()
}
fn max_connections_per_pod() -> i32 {
    50_000
}
fn cache() -> SizeText {
    "64Mi".into()
}

/// A place in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Position {
    /// After the newest event.
    Latest,
    /// At the oldest event still kept.
    Earliest,
}

/// How payloads become data lines.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Encoding {
    /// As UTF-8 text; other bytes become a channel.invalid event.
    #[default]
    Text,
    /// As base64, byte for byte.
    Base64,
}

/// Bounds of the reconnection time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.max.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || !self.min.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.min) >= duration('100ms') && duration(self.min) <= duration(self.max))")
        .message("must be from 100ms to retry.max").field_path(".min"),
    validation = Rule::new("!self.max.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.max) <= duration('5m'))").message("must be at most 5m").field_path(".max"),
)]
pub struct Retry {
    /// Least reconnection time. From 100ms to retry.max.
    #[serde(default = "retry_min")]
    pub min: DurationText,
    /// Greatest reconnection time. From retry.min to 5m.
    #[serde(default = "retry_max")]
    pub max: DurationText,
}

impl Default for Retry {
    fn default() -> Self {
        of_nothing()
    }
}

fn retry_min() -> DurationText {
    "1s".into()
}
fn retry_max() -> DurationText {
    "5s".into()
}

/// Cross-origin rules (Fetch standard).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.allowCredentials || !self.allowedOrigins.exists(o, o == '*')")
        .message("must not be combined with the origin '*': name the origins that may send cookies").field_path(".allowCredentials"),
    validation = Rule::new("!self.maxAge.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || (duration(self.maxAge) <= duration('24h'))").message("must be at most 24h").field_path(".maxAge"),
)]
pub struct Cors {
    /// Exact origins, or '*' for any. Default: same origin only.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub allowed_origins: Vec<Origin>,
    /// Whether browsers may send cookies and other credentials; never with the origin '*'.
    #[serde(default)]
    pub allow_credentials: bool,
    /// How long a browser may keep a preflight's answer. From 0s to 24h.
    #[serde(default = "cors_max_age")]
    pub max_age: DurationText,
}

impl Default for Cors {
    fn default() -> Self {
        of_nothing()
    }
}

fn cors_max_age() -> DurationText {
    "1h".into()
}

/// Which clients may read and publish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthSpec {
    /// How callers authenticate.
    #[serde(default)]
    pub mode: AuthMode,
}

/// How callers authenticate.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum AuthMode {
    /// Every client that can reach the channel may read it.
    #[default]
    None,
}

/// Whether events may be published over HTTP. Publishing over NATS is always possible.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublishSpec {
    /// Disabled, or Http for POST /channels/<name>/<topic>.
    #[serde(default)]
    pub mode: PublishMode,
    /// Confirms that every client that can reach the channel may publish; needed for mode Http
    /// without auth.
    #[serde(default)]
    pub allow_anonymous: bool,
}

/// How events may be published besides NATS.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum PublishMode {
    /// Only over NATS.
    #[default]
    Disabled,
    /// Also by HTTP POST.
    Http,
}
