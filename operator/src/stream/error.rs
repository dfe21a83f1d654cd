//! What can be wrong with a stream, each with the reason of its condition and with what to do about
//! it.

use async_nats::jetstream::ErrorCode;
use serde_json::{Map, Value};

use crate::{crd::condition::reason, english::count};

/// Why a stream is not as desired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// NATS does not answer.
    #[error(
        "NATS at {servers} cannot be reached. Running pods keep serving cached events. Check that NATS is running and that nats.servers (--nats) is correct"
    )]
    Unreachable {
        /// Where it was looked for.
        servers: String,
    },
    /// There is no connection to NATS.
    #[error(
        "NATS at {servers} cannot be reached: {trouble}. Running pods keep serving cached events"
    )]
    NotConnected {
        /// Where it was looked for.
        servers: String,
        /// Why, and what mends it.
        trouble: String,
    },
    /// NATS refuses the operator.
    #[error("NATS at {servers} refuses the operator: {trouble}")]
    AuthFailed {
        /// Where.
        servers: String,
        /// Why, and what mends it.
        trouble: String,
    },
    /// JetStream is off.
    #[error(
        "JetStream is not enabled: {0}. Enable `jetstream` in nats-server's configuration and for the account"
    )]
    JetStreamDisabled(String),
    /// The server is too old.
    #[error(
        "nats-server {0} is too old: history is served by batch direct get, which needs 2.11 or newer"
    )]
    ServerTooOld(String),
    /// The stream is another channel's.
    #[error(
        "stream {stream} belongs to {owner}; it is left alone. Create the channel under another name, or with another spec.stream.name"
    )]
    OwnedByOther {
        /// Name of the stream.
        stream: String,
        /// The channel that its metadata names.
        owner: String,
    },
    /// The stream has no owner, and may not be adopted.
    #[error(
        "stream {stream} exists already and belongs to no channel; it is left alone. Set spec.stream.adoption: IfUnowned to take it over, or choose another name"
    )]
    Unowned {
        /// Name of the stream.
        stream: String,
    },
    /// The stream may be adopted but cannot be.
    #[error("stream {stream} cannot be adopted: {why}")]
    Incompatible {
        /// Name of the stream.
        stream: String,
        /// What stands against it.
        why: String,
    },
    /// A field that the server never changes.
    #[error(
        "{field} is {observed} and nats-server cannot change it to {desired}; set it back. The stream goes on serving"
    )]
    ImmutableField {
        /// Path of the field.
        field: String,
        /// What it should be.
        desired: String,
        /// What it is.
        observed: String,
    },
    /// Another stream takes one of the subjects.
    #[error(
        "another stream already takes one of the subjects {subjects}: change spec.stream.subjects, or delete that stream ({text})"
    )]
    SubjectOverlap {
        /// The subjects asked for.
        subjects: String,
        /// The server's words.
        text: String,
    },
    /// More copies than servers.
    #[error(
        "spec.stream.replicas is {replicas}, but the NATS cluster has {}; lower it or add servers",
        known.map_or("fewer servers".to_owned(), |n| count(n, "server"))
    )]
    NotEnoughServers {
        /// Copies asked for.
        replicas: usize,
        /// Servers known.
        known: Option<usize>,
    },
    /// A limit of server or account.
    #[error(
        "a limit of the NATS server or account is reached: {0}. Lower spec.stream.maxBytes, or raise the limit"
    )]
    QuotaExceeded(String),
    /// The server refused for another reason.
    #[error("nats-server refused the stream: {text} (error {code})")]
    Api {
        /// `err_code` of JetStream's API.
        code: u64,
        /// The server's words.
        text: String,
    },
    /// What was written is not what was read.
    #[error("nats-server took the configuration but did not apply it: {fields}")]
    NotApplied {
        /// The fields, with both values.
        fields: String,
    },
    /// The stream seems to have lost events, by the word of a server that may be cut off.
    #[error(
        "stream {stream} seems to be set back to an older state; whether it is cannot be told while its leader has no majority"
    )]
    Unproven {
        /// Name of the stream.
        stream: String,
    },
    /// The answer made no sense.
    #[error("unexpected answer from nats-server: {0}")]
    Protocol(String),
}

impl Error {
    /// Reason of the condition `StreamReady`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::NotConnected { .. } | Self::Unproven { .. } => {
                reason::NATS_UNREACHABLE
            }
            Self::AuthFailed { .. } => reason::AUTH_FAILED,
            Self::JetStreamDisabled(_) => reason::JETSTREAM_DISABLED,
            Self::OwnedByOther { .. } | Self::Unowned { .. } => reason::OWNED_BY_OTHER,
            Self::Incompatible { .. } => reason::INCOMPATIBLE,
            Self::ImmutableField { .. } => reason::IMMUTABLE_FIELD,
            Self::SubjectOverlap { .. } => reason::SUBJECT_OVERLAP,
            Self::NotEnoughServers { .. } => reason::NOT_ENOUGH_SERVERS,
            Self::QuotaExceeded(_) => reason::QUOTA_EXCEEDED,
            Self::NotApplied { .. } => reason::NOT_APPLIED,
            Self::ServerTooOld(_) | Self::Api { .. } | Self::Protocol(_) => reason::REJECTED,
        }
    }

    /// Whether the stream has, or may have, another owner: then its events must not be served.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::OwnedByOther { .. } | Self::Unowned { .. } | Self::Incompatible { .. })
    }

    /// Whether the same attempt may succeed soon without a change of channel, stream or server.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::NotConnected { .. }
            | Self::Unproven { .. }
            | Self::AuthFailed { .. }
            | Self::NotApplied { .. }
            | Self::Protocol(_) => true,
            // 10124: a move of the stream is under way.
            Self::Api { code, .. } => {
                [ErrorCode::CLUSTER_NOT_LEADER, ErrorCode::STREAM_MOVE_IN_PROGRESS]
                    .iter()
                    .any(|c| c.0 == *code)
            }
            Self::JetStreamDisabled(_)
            | Self::ServerTooOld(_)
            | Self::OwnedByOther { .. }
            | Self::Unowned { .. }
            | Self::Incompatible { .. }
            | Self::ImmutableField { .. }
            | Self::SubjectOverlap { .. }
            | Self::NotEnoughServers { .. }
            | Self::QuotaExceeded(_) => false,
        }
    }

    /// The same error in words for the user, where the server's error code has a meaning of ours.
    pub(super) fn explained(self, config: &Map<String, Value>) -> Self {
        let Self::Api { code, text } = self else { return self };
        let replicas = super::fields::replicas(config);
        match ErrorCode(code) {
            ErrorCode::STREAM_SUBJECT_OVERLAP => Self::SubjectOverlap {
                subjects: config.get("subjects").map(ToString::to_string).unwrap_or_default(),
                text,
            },
            ErrorCode::STREAM_NAME_EXIST => {
                // Another client made a stream of this name between our read and our write.
                Self::Unowned {
                    stream: config
                        .get("name")
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned(),
                }
            }
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED | ErrorCode::CLUSTER_NO_PEERS
                if replicas > 1 =>
            {
                Self::NotEnoughServers { replicas, known: None }
            }
            ErrorCode::INSUFFICIENT_RESOURCES
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::MEMORY_RESOURCES_EXCEEDED
            | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
            | ErrorCode::MAXIMUM_STREAMS_LIMIT
            | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED
            | ErrorCode::STREAM_LIMITS
            | ErrorCode::NO_LIMITS => Self::QuotaExceeded(text),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                Self::JetStreamDisabled(text)
            }
            _ if text.contains("stream configuration update can not") => Self::ImmutableField {
                field: "a setting of the stream".to_owned(),
                desired: text,
                observed: "fixed".to_owned(),
            },
            _ => Self::Api { code, text },
        }
    }
}
