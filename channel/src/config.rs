//! The file that the operator writes for a channel and the data plane reads: `<channel>.json`.
//!
//! It holds only what can change on a running pod without closing a stream, and the stream's
//! identity, which never changes in a channel's life. What needs a new process (image, resources,
//! NATS address and credentials) is in the pod's arguments, so changing it rolls the pods by
//! itself.
//!
//! A pod may be older than the operator that writes its file. A field that only adds is passed over
//! by a pod that does not know it, and told. What an older pod must not pass over (access, limits,
//! publishing, whatever withholds) is an entry of [`REQUIREMENTS`]: the file lists it in `requires`
//! where the channel makes use of it, and a pod that does not know the entry refuses the file. Only
//! what breaks the form itself takes another [`VERSION`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ChannelName, StreamName, limits};

/// Version of the file's format that this build reads and writes.
pub const VERSION: u32 = 1;

/// Something that a pod must know to serve a file which makes use of it.
#[derive(Debug, Clone, Copy)]
pub struct Requirement {
    /// Its name in `requires`.
    pub name: &'static str,
    /// Paths of the fields that it stands for.
    pub fields: &'static [&'static str],
    /// Whether this channel makes use of it: a file that does not is of use to older pods.
    pub used: fn(&ChannelConfig) -> bool,
}

/// What this build knows of `requires`. The fields of the first release need none: there is no pod
/// that does not know them.
pub const REQUIREMENTS: &[Requirement] = &[];

/// Everything a data plane must know of one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelConfig {
    /// Format version; [`VERSION`].
    pub version: u32,
    /// What a pod must know to serve this file; [`Self::to_json`] fills it in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Name in the URL: `/channels/<name>`.
    pub name: ChannelName,
    /// Kubernetes namespace of the `SseChannel`.
    pub namespace: String,
    /// `metadata.generation` of the `SseChannel` this was made from; reported on the admin
    /// listener.
    pub generation: i64,
    /// Where the events are.
    pub stream: Stream,
    /// How they are served.
    #[serde(default)]
    pub delivery: Delivery,
    /// Whether and how HTTP clients may publish.
    #[serde(default)]
    pub publish: Publish,
}

/// The JetStream stream behind a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    /// Stream name.
    pub name: StreamName,
    /// Subjects the stream takes; a publish must match one.
    pub subjects: Vec<String>,
    /// Prefix removed from the subject to form the topic, including the trailing dot; or empty.
    pub topic_prefix: String,
    /// Largest payload, bytes.
    #[serde(default = "max_message_size")]
    pub max_message_size: u64,
    /// Whether only the newest messages of each subject are kept (`maxMessagesPerTopic`): then
    /// holes in the sequence are compaction, not deletion.
    #[serde(default)]
    pub compacted: bool,
}

/// How events are served. Durations are whole milliseconds in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delivery {
    /// Where a first connection without a cursor starts.
    pub start_at: Start,
    /// Where a subscriber goes on after a gap.
    pub on_gap: Start,
    /// Longest silence on a stream.
    #[serde(rename = "heartbeatMillis", with = "millis")]
    pub heartbeat: Duration,
    /// Least `retry:` handed out.
    #[serde(rename = "retryMinMillis", with = "millis")]
    pub retry_min: Duration,
    /// Greatest `retry:` handed out.
    #[serde(rename = "retryMaxMillis", with = "millis")]
    pub retry_max: Duration,
    /// A stream is closed at 80–100 % of this age; zero = never.
    #[serde(rename = "maxConnectionAgeMillis", with = "millis")]
    pub max_connection_age: Duration,
    /// A socket without progress for this long is closed.
    #[serde(rename = "writeTimeoutMillis", with = "millis")]
    pub write_timeout: Duration,
    /// Streams of this channel on one pod.
    pub max_connections: u32,
    /// Bytes of encoded segments kept in memory per pod.
    pub cache_bytes: u64,
    /// How payloads become `data:`.
    pub encoding: Encoding,
    /// Which other origins may read.
    pub cors: Cors,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            start_at: Start::Latest,
            on_gap: Start::Earliest,
            heartbeat: limits::HEARTBEAT,
            retry_min: limits::RETRY_MIN,
            retry_max: limits::RETRY_MAX,
            max_connection_age: limits::MAX_CONNECTION_AGE,
            write_timeout: limits::WRITE_TIMEOUT,
            max_connections: limits::MAX_CONNECTIONS,
            cache_bytes: limits::CACHE_BYTES,
            encoding: Encoding::Text,
            cors: Cors::default(),
        }
    }
}

/// A place to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// After the newest event.
    Latest,
    /// At the oldest event still kept.
    Earliest,
}

/// How a payload becomes `data:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As UTF-8 text; other bytes become a `channel.invalid` event.
    Text,
    /// As base64 (RFC 4648 section 4), byte for byte.
    Base64,
}

/// Cross-origin rules of a channel (Fetch standard).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// Exact origins, or `*` for any; empty = same origin only.
    pub allowed_origins: Vec<String>,
    /// Whether cookies and other credentials may be used; never with `*`.
    pub allow_credentials: bool,
    /// How long a browser may keep a preflight's answer.
    #[serde(rename = "maxAgeMillis", with = "millis")]
    pub max_age: Duration,
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            allow_credentials: false,
            max_age: limits::CORS_MAX_AGE,
        }
    }
}

/// Whether HTTP clients may publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Publish {
    /// `POST /channels/<name>/<topic>` is taken.
    pub http: bool,
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON this build knows.
    #[error("not a channel configuration: {0}")]
    Parse(#[from] serde_json::Error),
    /// Not what this build knows, and it holds fields that this build does not know: a misspelled
    /// name is both.
    #[error("not a channel configuration: {0}; fields that are not known here: {1}")]
    ParseWithUnknown(serde_json::Error, String),
    /// Written by another version.
    #[error(
        "format version {0} is not the {VERSION} that this build reads; use an operator and a data plane of the same release"
    )]
    Version(u32),
    /// It asks for something that this build does not know and must not pass over.
    #[error(
        "requires {0}, which this build does not know; use a data plane that is as new as the operator"
    )]
    Requires(String),
    /// A value out of its range.
    #[error("{0}")]
    Value(&'static str),
}

/// What a file says, and what of it was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What it says.
    pub config: ChannelConfig,
    /// Paths of the fields that this build does not know, at most [`UNKNOWN_FIELDS`].
    pub unknown: Vec<String>,
}

/// Most unknown fields that are named: a file of a much newer operator must not fill the log.
const UNKNOWN_FIELDS: usize = 8;
/// Longest path of an unknown field that is told, characters.
const UNKNOWN_FIELD_CHARS: usize = 64;

/// The one field that every version of the format has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// What decides whether the rest of a file of this version is read.
#[derive(Deserialize)]
struct Requiring {
    #[serde(default)]
    requires: Vec<String>,
}

/// What can be told of a file that is refused: which channel it is of.
#[derive(Deserialize)]
struct Named {
    name: ChannelName,
}

impl ChannelConfig {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// [`Error`] names what is wrong; nothing is silently corrected.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        Self::read(text).map(|reading| reading.config)
    }

    /// Reads and checks a file's text, and names the fields that are not known here.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn read(text: &[u8]) -> Result<Reading, Error> {
        // First: such files may differ in everything else.
        if let Ok(Versioned { version }) = serde_json::from_slice(text)
            && version != VERSION
        {
            return Err(Error::Version(version));
        }
        if let Ok(Requiring { requires }) = serde_json::from_slice(text) {
            let unknown: Vec<_> = requires.iter().filter(|name| !is_known(name)).collect();
            if !unknown.is_empty() {
                return Err(Error::Requires(named(&unknown)));
            }
        }
        let mut unknown = Vec::new();
        let mut json = serde_json::Deserializer::from_slice(text);
        let read: Result<Self, _> = serde_ignored::deserialize(&mut json, |path| {
            if unknown.len() < UNKNOWN_FIELDS {
                unknown.push(path.to_string().chars().take(UNKNOWN_FIELD_CHARS).collect());
            }
        });
        let config = match read.and_then(|config| json.end().map(|()| config)) {
            Ok(config) => config,
            Err(error) if unknown.is_empty() => return Err(error.into()),
            Err(error) => return Err(Error::ParseWithUnknown(error, unknown.join(", "))),
        };
        config.check()?;
        Ok(Reading { config, unknown })
    }

    /// Which channel a file is of that [`Self::read`] refuses; `None` when it does not tell.
    #[must_use]
    pub fn name_of(text: &[u8]) -> Option<ChannelName> {
        serde_json::from_slice::<Named>(text).ok().map(|named| named.name)
    }

    /// The file's text, for people to read too.
    ///
    /// # Errors
    /// Never for a value of this type; the signature is `serde_json`'s.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let used = REQUIREMENTS.iter().filter(|requirement| (requirement.used)(self));
        let requires = used.map(|requirement| requirement.name.to_owned()).collect();
        serde_json::to_string_pretty(&Self { requires, ..self.clone() }).map(|json| json + "\n")
    }

    fn check(&self) -> Result<(), Error> {
        let delivery = &self.delivery;
        let fail = |message| Err(Error::Value(message));
        if self.version != VERSION {
            return Err(Error::Version(self.version));
        }
        if self.stream.subjects.is_empty()
            || self.stream.subjects.len() > limits::SUBJECTS_PER_CHANNEL
        {
            return fail("stream.subjects must hold 1 to 16 subjects");
        }
        if !(1..=limits::MESSAGE_BYTES).contains(&self.stream.max_message_size) {
            return fail("stream.maxMessageSize must be from 1 byte to 1 MiB");
        }
        if delivery.heartbeat < Duration::from_millis(100) {
            return fail("delivery.heartbeatMillis must be at least 100");
        }
        if delivery.heartbeat > limits::LONGEST || delivery.write_timeout > limits::LONGEST {
            return fail(
                "delivery.heartbeatMillis and delivery.writeTimeoutMillis must be at most 300000",
            );
        }
        if delivery.retry_max > limits::LONGEST {
            return fail("delivery.retryMaxMillis must be at most 300000");
        }
        if delivery.max_connection_age > limits::DAY || delivery.cors.max_age > limits::DAY {
            return fail(
                "delivery.maxConnectionAgeMillis and delivery.cors.maxAgeMillis must be at most 86400000",
            );
        }
        if !(1..=limits::MOST_CONNECTIONS).contains(&delivery.max_connections) {
            return fail("delivery.maxConnections must be from 1 to 1000000");
        }
        if !(limits::LEAST_CACHE_BYTES..=limits::MOST_CACHE_BYTES).contains(&delivery.cache_bytes) {
            return fail("delivery.cacheBytes must be from 1 MiB to 64 GiB");
        }
        if delivery.cors.allowed_origins.len() > limits::ORIGINS {
            return fail("delivery.cors.allowedOrigins must hold at most 64 origins");
        }
        if delivery.retry_min > delivery.retry_max {
            return fail(
                "delivery.retryMinMillis must not be greater than delivery.retryMaxMillis",
            );
        }
        if delivery.write_timeout < Duration::from_millis(100) {
            return fail("delivery.writeTimeoutMillis must be at least 100");
        }
        if delivery.cors.allow_credentials && delivery.cors.allowed_origins.iter().any(|o| o == "*")
        {
            return fail(
                "delivery.cors: allowCredentials must not be combined with the origin '*'",
            );
        }
        Ok(())
    }
}

fn is_known(requirement: &str) -> bool {
    REQUIREMENTS.iter().any(|known| known.name == requirement)
}

/// Names for a message, bounded as unknown fields are.
fn named(names: &[&String]) -> String {
    let short = |name: &&String| name.chars().take(UNKNOWN_FIELD_CHARS).collect::<String>();
    names.iter().take(UNKNOWN_FIELDS).map(short).collect::<Vec<_>>().join(", ")
}

const fn max_message_size() -> u64 {
    limits::MAX_MESSAGE_SIZE
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{
        "version": 1, "name": "orders", "namespace": "shop", "generation": 3,
        "stream": {"name": "sse_shop_orders_00000000", "subjects": ["sse.shop.orders.>"], "topicPrefix": "sse.shop.orders."}
    }"#;

    #[test]
    fn a_minimal_file_has_the_documented_defaults() {
        let config = ChannelConfig::from_json(MINIMAL.as_bytes()).unwrap();
        assert_eq!(config.delivery.heartbeat, Duration::from_secs(15));
        assert_eq!(config.delivery.start_at, Start::Latest);
        assert_eq!(config.delivery.on_gap, Start::Earliest);
        assert_eq!(config.delivery.max_connections, 50_000);
        assert_eq!(config.delivery.cache_bytes, 67_108_864);
        assert_eq!(config.stream.max_message_size, 65_536);
        assert!(!config.publish.http);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = ChannelConfig::from_json(MINIMAL.as_bytes()).unwrap();
        assert_eq!(ChannelConfig::from_json(config.to_json().unwrap().as_bytes()).unwrap(), config);
    }

    #[test]
    fn the_greatest_values_that_a_manifest_may_have_are_taken() {
        let greatest = r#""delivery": {"cacheBytes": 68719476736, "maxConnections": 1000000,
            "heartbeatMillis": 300000, "writeTimeoutMillis": 300000, "retryMaxMillis": 300000,
            "maxConnectionAgeMillis": 86400000, "cors": {"maxAgeMillis": 86400000}}, "stream""#;
        let text = MINIMAL.replacen("\"stream\"", greatest, 1);
        ChannelConfig::from_json(text.as_bytes()).unwrap();
    }

    #[test]
    fn fields_of_a_newer_operator_are_passed_over_and_named() {
        let newer = MINIMAL
            .replacen("\"version\"", "\"tomorrow\": {\"a\": [1]}, \"version\"", 1)
            .replacen("\"subjects\"", "\"shards\": 3, \"subjects\"", 1);
        let reading = ChannelConfig::read(newer.as_bytes()).unwrap();
        assert_eq!(reading.config, ChannelConfig::from_json(MINIMAL.as_bytes()).unwrap());
        assert_eq!(reading.unknown, ["tomorrow", "stream.shards"]);
        let known = ChannelConfig::read(MINIMAL.as_bytes()).unwrap();
        assert!(known.unknown.is_empty());
    }

    #[test]
    fn what_a_file_requires_is_never_passed_over() {
        let asks = |requires: &str| {
            let text = MINIMAL.replacen(
                "\"version\"",
                &format!("\"requires\": {requires}, \"version\""),
                1,
            );
            ChannelConfig::read(text.as_bytes()).map_err(|error| error.to_string())
        };
        assert!(asks("[]").is_ok());
        let refused = asks(r#"["auth.jwt", "delivery.rate"]"#).unwrap_err();
        assert!(
            refused.contains("auth.jwt, delivery.rate") && refused.contains("as new"),
            "{refused}"
        );
        // Whatever else the file holds: what is not understood must not hide what is required.
        let other = r#"{"version": 1, "requires": ["auth.jwt"], "name": "orders", "sources": 3}"#;
        assert!(matches!(ChannelConfig::read(other.as_bytes()), Err(Error::Requires(_))));
        assert!(asks(r#""auth.jwt""#).is_err() && asks("[3]").is_err(), "not a list of names");
        let long = asks(&serde_json::to_string(&vec!["x".repeat(10_000); 1000]).unwrap());
        assert!(long.unwrap_err().len() < 1000);
    }

    /// The file as the first release wrote and read it. Another form would be refused by its pods
    /// that still run, or not be read by new pods under its operator.
    #[test]
    fn a_channel_without_anything_new_has_the_file_of_the_first_release() {
        let first = include_str!("../testdata/first-release.json");
        let reading = ChannelConfig::read(first.as_bytes()).unwrap();
        assert_eq!((reading.unknown.len(), reading.config.requires.len()), (0, 0));
        assert_eq!(reading.config, ChannelConfig::from_json(MINIMAL.as_bytes()).unwrap());
        assert_eq!(reading.config.to_json().unwrap(), first);
    }

    /// Paths of all fields of a file.
    fn paths(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let path =
                        if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    paths(value, &path, found);
                }
            }
            _ => found.push(path.to_owned()),
        }
    }

    /// Fields of the first release, which every pod knows; a list that never grows.
    const OF_THE_FIRST_RELEASE: &[&str] = &[
        "version",
        "name",
        "namespace",
        "generation",
        "stream.name",
        "stream.subjects",
        "stream.topicPrefix",
        "stream.maxMessageSize",
        "stream.compacted",
        "delivery.startAt",
        "delivery.onGap",
        "delivery.heartbeatMillis",
        "delivery.retryMinMillis",
        "delivery.retryMaxMillis",
        "delivery.maxConnectionAgeMillis",
        "delivery.writeTimeoutMillis",
        "delivery.maxConnections",
        "delivery.cacheBytes",
        "delivery.encoding",
        "delivery.cors.allowedOrigins",
        "delivery.cors.allowCredentials",
        "delivery.cors.maxAgeMillis",
        "publish.http",
    ];
    /// Fields that came later and only add.
    const MAY_BE_PASSED_OVER: &[&str] = &[];

    #[test]
    fn a_new_field_says_whether_an_older_pod_may_pass_it_over() {
        let config = ChannelConfig::from_json(MINIMAL.as_bytes()).unwrap();
        let mut found = Vec::new();
        paths(&serde_json::to_value(config).unwrap(), "", &mut found);
        let required = || REQUIREMENTS.iter().flat_map(|known| known.fields);
        for path in found {
            let known = OF_THE_FIRST_RELEASE.iter().chain(MAY_BE_PASSED_OVER).any(|k| *k == path);
            assert!(
                known || required().any(|field| *field == path),
                "{path} is new: name it in REQUIREMENTS if a pod that passes it over would give away \
                 or let through too much, else in MAY_BE_PASSED_OVER"
            );
        }
    }

    #[test]
    fn a_refused_file_tells_its_channel_and_its_version_when_it_can() {
        let other = r#"{"version": 2, "name": "orders", "sources": []}"#;
        assert!(matches!(ChannelConfig::read(other.as_bytes()), Err(Error::Version(2))));
        assert_eq!(ChannelConfig::name_of(other.as_bytes()).unwrap().as_str(), "orders");
        for cannot in ["{", "[]", r#"{"name": "Orders"}"#, r#"{"name": "orders"} x"#] {
            assert!(ChannelConfig::name_of(cannot.as_bytes()).is_none(), "{cannot}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, message) in [
            ("\"version\": 1", "\"version\": 2", "same release"),
            ("\"orders\"", "\"Orders\"", "DNS label"),
            ("\"generation\"", "\"generatoin\"", "generatoin"),
            ("[\"sse.shop.orders.>\"]", "[]", "1 to 16 subjects"),
            ("\"stream\"", "\"delivery\": {\"cacheBytes\": 0}, \"stream\"", "cacheBytes"),
            ("\"stream\"", "\"delivery\": {\"cacheBytes\": 68719476737}, \"stream\"", "64 GiB"),
            ("\"stream\"", "\"delivery\": {\"maxConnections\": 0}, \"stream\"", "maxConnections"),
            ("\"stream\"", "\"delivery\": {\"heartbeatMillis\": 300001}, \"stream\"", "heartbeat"),
            (
                "\"stream\"",
                "\"delivery\": {\"writeTimeoutMillis\": 300001}, \"stream\"",
                "writeTimeout",
            ),
            ("\"stream\"", "\"delivery\": {\"retryMaxMillis\": 300001}, \"stream\"", "retryMax"),
            (
                "\"stream\"",
                "\"delivery\": {\"maxConnectionAgeMillis\": 86400001}, \"stream\"",
                "Age",
            ),
            ("\"topicPrefix\"", "\"maxMessageSize\": 0, \"topicPrefix\"", "maxMessageSize"),
        ] {
            let error = ChannelConfig::from_json(MINIMAL.replacen(from, to, 1).as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
