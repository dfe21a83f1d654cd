//! What can be wrong with a stream, each with the reason of its condition and with what to do about
//! it.

use async_nats::jetstream::ErrorCode;
use serde_json::{Map, Value};

use crate::{crd::condition::reason, english::count};

/// A code that async-nats has no name for.
const RECONFIGURE_IN_PROGRESS: ErrorCode = ErrorCode(10_226);

/// What to expect of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The same attempt may succeed soon without a change of channel, stream or server.
    Retry,
    /// Something has to be changed first.
    Fix,
}

impl Class {
    /// By the status of a JetStream response, which follows HTTP's: what the server cannot do
    /// (5xx), or cannot do just now.
    fn of(status: usize) -> Self {
        match status {
            408 | 409 | 429 | 500.. => Self::Retry,
            _ => Self::Fix,
        }
    }
}

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
    /// NATS is there, and the stream is not: its servers are down, or have no majority.
    #[error(
        "NATS is connected, but JetStream did not answer in time: the servers of the stream, or most of the cluster, may be down or overloaded. Running pods keep serving cached events"
    )]
    TimedOut,
    /// NATS is there, and its JetStream is not.
    #[error(
        "JetStream is not enabled, or cannot be reached: its API does not answer. Enable `jetstream` in nats-server's configuration and for the account; where a leaf node is between, check its link"
    )]
    NoResponders,
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
        "{} already takes one of the subjects {subjects}: change spec.stream.subjects, or delete that stream ({text})",
        others(streams)
    )]
    SubjectOverlap {
        /// The subjects asked for.
        subjects: String,
        /// The streams that take them, as far as the server tells.
        streams: Vec<String>,
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
    /// The server refused, or could not, for another reason.
    #[error(
        "{}: {text} (error {code})",
        match class {
            Class::Retry => "nats-server cannot serve the stream now",
            Class::Fix => "nats-server refused the stream",
        }
    )]
    Api {
        /// What to expect of it.
        class: Class,
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

fn others(streams: &[String]) -> String {
    match streams {
        [] => "another stream".to_owned(),
        [one] => format!("stream {one}"),
        several => format!("each of the streams {}", several.join(", ")),
    }
}

impl Error {
    /// What a JetStream response says.
    pub(super) fn of_response(error: &async_nats::jetstream::Error) -> Self {
        Self::Api {
            class: Class::of(error.code()),
            code: error.error_code().0,
            text: error.to_string(),
        }
    }

    /// Reason of the condition `StreamReady`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::NotConnected { .. } | Self::Unproven { .. } => {
                reason::NATS_UNREACHABLE
            }
            Self::TimedOut | Self::Api { class: Class::Retry, .. } => reason::STREAM_UNAVAILABLE,
            Self::AuthFailed { .. } => reason::AUTH_FAILED,
            Self::JetStreamDisabled(_) | Self::NoResponders => reason::JETSTREAM_DISABLED,
            Self::OwnedByOther { .. } | Self::Unowned { .. } => reason::OWNED_BY_OTHER,
            Self::Incompatible { .. } => reason::INCOMPATIBLE,
            Self::ImmutableField { .. } => reason::IMMUTABLE_FIELD,
            Self::SubjectOverlap { .. } => reason::SUBJECT_OVERLAP,
            Self::NotEnoughServers { .. } => reason::NOT_ENOUGH_SERVERS,
            Self::QuotaExceeded(_) => reason::QUOTA_EXCEEDED,
            Self::NotApplied { .. } => reason::NOT_APPLIED,
            Self::ServerTooOld(_) | Self::Api { class: Class::Fix, .. } | Self::Protocol(_) => {
                reason::REJECTED
            }
        }
    }

    /// Whether the stream has, or may have, another owner: then its events must not be served.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::OwnedByOther { .. } | Self::Unowned { .. } | Self::Incompatible { .. })
    }

    /// Whether it says something of the stream, and not only that it could not be seen.
    #[must_use]
    pub const fn was_seen(&self) -> bool {
        !matches!(
            self,
            Self::Unreachable { .. } | Self::NotConnected { .. } | Self::Unproven { .. }
        )
    }

    /// Whether it is the server's word on what it was asked, and not that there was none.
    pub(super) const fn is_an_answer(&self) -> bool {
        !matches!(
            self,
            Self::Unreachable { .. }
                | Self::NotConnected { .. }
                | Self::TimedOut
                | Self::NoResponders
                | Self::AuthFailed { .. }
                | Self::JetStreamDisabled(_)
                | Self::Protocol(_)
        )
    }

    /// What to expect of it.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Api { class, .. } => *class,
            // A cluster's servers come and go; a server that is alone stays so.
            Self::NotEnoughServers { known: Some(1), .. } => Class::Fix,
            Self::Unreachable { .. }
            | Self::TimedOut
            | Self::NoResponders
            | Self::NotConnected { .. }
            | Self::Unproven { .. }
            | Self::AuthFailed { .. }
            | Self::NotEnoughServers { .. }
            | Self::NotApplied { .. }
            | Self::Protocol(_) => Class::Retry,
            Self::JetStreamDisabled(_)
            | Self::ServerTooOld(_)
            | Self::OwnedByOther { .. }
            | Self::Unowned { .. }
            | Self::Incompatible { .. }
            | Self::ImmutableField { .. }
            | Self::SubjectOverlap { .. }
            | Self::QuotaExceeded(_) => Class::Fix,
        }
    }

    /// Whether the same attempt may succeed soon without a change of channel, stream or server.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.class(), Class::Retry)
    }

    /// The same error in words for the user, where the server's error code has a meaning of ours:
    /// what kind of error it is goes before the class of its status, which is 500 for much that is
    /// wrong with a configuration.
    pub(super) fn explained(self, config: &Map<String, Value>) -> Self {
        let Self::Api { code, text, class } = self else { return self };
        let replicas = super::fields::replicas(config);
        match ErrorCode(code) {
            ErrorCode::STREAM_SUBJECT_OVERLAP => Self::SubjectOverlap {
                subjects: config.get("subjects").map(ToString::to_string).unwrap_or_default(),
                streams: Vec::new(),
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
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => {
                Self::NotEnoughServers { replicas, known: Some(1) }
            }
            ErrorCode::CLUSTER_NO_PEERS if replicas > 1 => {
                Self::NotEnoughServers { replicas, known: None }
            }
            // Servers that are down may be the ones that fit; a move or another change ends.
            ErrorCode::CLUSTER_NO_PEERS
            | ErrorCode::STREAM_MOVE_IN_PROGRESS
            | RECONFIGURE_IN_PROGRESS
            | ErrorCode::CLUSTER_SERVER_MEMBER_CHANGE_INFLIGHT => {
                Self::Api { class: Class::Retry, code, text }
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
            ErrorCode::STREAM_INVALID_CONFIG => Self::Api { class: Class::Fix, code, text },
            _ => Self::Api { class, code, text },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: usize, code: u64, text: &str) -> Error {
        let response = serde_json::json!({"code": status, "err_code": code, "description": text});
        Error::of_response(&serde_json::from_value(response).unwrap())
    }

    #[test]
    fn what_passes_is_tried_again_and_never_waits_for_a_change() {
        for (status, code, text) in [
            (500, 10118, "stream is offline"),
            (500, 10194, "stream is offline: unsupported"),
            (503, 10008, "JetStream system temporarily unavailable"),
            (500, 10009, "JetStream cluster can not handle request"),
            (500, 10007, "JetStream cluster not assigned to this server"),
            (500, 10041, "raft: no quorum"),
            (429, 10167, "too many requests"),
            (503, 19_999, "of a later server"),
        ] {
            let error = of(status, code, text);
            assert!(error.is_transient(), "{error}");
            assert_eq!(error.reason(), reason::STREAM_UNAVAILABLE, "{error}");
            let written = error.explained(&Map::new());
            assert!(written.is_transient(), "{written}");
        }
        assert!(
            of(400, 10124, "stream move already in progress").explained(&Map::new()).is_transient()
        );
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_not_tried_again_as_if_it_passed() {
        for (status, code, text) in [
            (500, 10052, "duplicates window can not be larger then max age"),
            (500, 10052, "stream configuration update can not change persist mode"),
            (400, 10065, "subjects overlap with an existing stream"),
            (500, 10047, "insufficient storage resources available"),
            (400, 19_999, "of a later server"),
        ] {
            let error = of(status, code, text).explained(&Map::new());
            assert_eq!(error.class(), Class::Fix, "{error}");
        }
    }

    #[test]
    fn servers_of_a_cluster_may_come_back() {
        let two = Error::NotEnoughServers { replicas: 3, known: Some(2) };
        let alone = Error::NotEnoughServers { replicas: 3, known: Some(1) };
        assert_eq!((two.class(), alone.class()), (Class::Retry, Class::Fix));
    }
}
