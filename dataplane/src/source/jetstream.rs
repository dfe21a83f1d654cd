//! The store on NATS JetStream: a pull consumer for the tail, direct gets for history.
//!
//! Sources: ADR-8 (JetStream API), ADR-31 (direct get, batches), ADR-37 (pull consumers).

mod connect;
pub(crate) mod delivery;
mod direct;
pub(crate) mod message;
mod run;
mod tail;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, pull},
    },
};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use serde::Deserialize;
use sluice_channel::{Epoch, Event, StreamName, cursor::EPOCH_METADATA, event};

use delivery::{Numbers, delivery};
use message::Stored;

pub use connect::{Connection, Settings, connect};

use super::{
    Append, Appended, Batch, Error, Lead, Published, REQUEST_TIMEOUT, ReadLimit, Source,
    StreamState, Tail,
};

/// JetStream's `stream not found`.
const STREAM_NOT_FOUND: u64 = 10_059;
/// The server removes a consumer that nothing was asked of for so long: its pod is gone.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);

/// One stream on a shared connection.
#[derive(Debug, Clone)]
pub struct JetStream {
    connection: Connection,
    stream: StreamName,
    /// Begins the lines that the store adds to a message when it answers a direct get.
    first_line: Arc<[u8]>,
    /// What is cut off a subject to make the topic.
    topic_prefix: Arc<str>,
    /// Start of consumer names: shows in `nats consumer ls` which pod they are of.
    reader_name: Arc<str>,
    runs: Arc<run::Runs>,
}

impl JetStream {
    /// The stream `stream` over `connection`; makes no request.
    #[must_use]
    pub fn new(
        connection: Connection,
        stream: StreamName,
        topic_prefix: &str,
        instance: &str,
    ) -> Self {
        let safe: String = instance
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .take(80)
            .collect();
        Self {
            connection,
            first_line: message::first_line(stream.as_str()).into(),
            stream,
            topic_prefix: topic_prefix.into(),
            reader_name: format!("sluice_{safe}").into(),
            runs: Arc::default(),
        }
    }

    fn client(&self) -> Client {
        self.connection.client()
    }

    /// The event of a consumer's delivery with these numbers.
    fn delivered(&self, numbers: Numbers, message: async_nats::Message) -> Event {
        let subject = message.subject_bytes.as_deref().unwrap_or(message.subject.as_bytes());
        let head = message::head(message.header_bytes.as_deref().unwrap_or_default());
        let Numbers { sequence, time_nanos, .. } = numbers;
        let stored = Stored { sequence, time_nanos, subject: subject.into(), head };
        stored.event(&self.topic_prefix, message.payload)
    }

    /// Creates a consumer that delivers from sequence `from` on. A random end of `name` keeps one
    /// that outlived its connection from standing in the way of the next one.
    async fn create_consumer(&self, name: &str, description: &str, from: u64) -> Result<(), Error> {
        let config = pull::Config {
            name: Some(name.to_owned()),
            description: Some(description.to_owned()),
            deliver_policy: if from <= 1 {
                DeliverPolicy::All
            } else {
                DeliverPolicy::ByStartSequence { start_sequence: from }
            },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE_THRESHOLD,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let context = self.connection.context();
        let created = context.create_consumer_on_stream(config, self.stream.as_str());
        self.ask("CONSUMER.CREATE", created).await.map(drop)
    }

    /// Asks `consumer` for its next messages by `request` (ADR-37), which come to `reply`.
    async fn pull(
        &self,
        consumer: &str,
        reply: String,
        request: &serde_json::Value,
    ) -> Result<(), Error> {
        let prefix = self.connection.api_prefix();
        let subject = format!("{prefix}.CONSUMER.MSG.NEXT.{}.{consumer}", self.stream);
        let client = self.client();
        let asked = client.publish_with_reply(subject, reply, request.to_string().into()).await;
        asked.map_err(|e| Error::Unreachable(e.to_string()))
    }

    /// The next answer to `what`. Requests in flight die with the connection: their answers would
    /// never come.
    async fn answer(
        &self,
        answers: &mut async_nats::Subscriber,
        what: &str,
    ) -> Result<async_nats::Message, Error> {
        tokio::select! {
            biased;
            answer = tokio::time::timeout(REQUEST_TIMEOUT, answers.next()) => match answer {
                Ok(Some(message)) => Ok(message),
                Ok(None) => Err(Error::Unreachable("the connection was closed".into())),
                Err(_) => Err(Error::Unreachable(format!("no answer to {what} in time"))),
            },
            () = self.connection.down() => Err(Error::Unreachable("disconnected".into())),
        }
    }

    /// Deletes a consumer before its inactivity threshold does: best effort, ended by its own time
    /// limit.
    fn delete_consumer(&self, consumer: String) {
        let source = self.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let context = source.connection.context();
                let delete = context.delete_consumer_from_stream(consumer, source.stream.as_str());
                let _ = tokio::time::timeout(REQUEST_TIMEOUT, delete).await;
            });
        }
    }

    async fn info(&self) -> Result<Info, Error> {
        let subject = format!("STREAM.INFO.{}", self.stream);
        let context = self.connection.context();
        match self.ask("STREAM.INFO", context.request(subject, &())).await? {
            InfoResponse::Ok(info) => Ok(*info),
            InfoResponse::Err { error } if error.err_code == STREAM_NOT_FOUND => {
                Err(Error::NoStream(self.stream.to_string()))
            }
            // 503: no leader, or JetStream is not ready on this server.
            InfoResponse::Err { error } if error.code == 503 => {
                Err(Error::Unreachable(error.description))
            }
            InfoResponse::Err { error } => Err(Error::Refused(error.description)),
        }
    }

    /// Waits for an answer of the store, but not for one that can no longer come: requests in
    /// flight die with the connection, and the client would keep new ones back until it has
    /// another.
    async fn ask<T, E: std::fmt::Display>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            answer = tokio::time::timeout(REQUEST_TIMEOUT, answer) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(Error::Unreachable(error.to_string())),
                Err(_) => Err(Error::Unreachable(format!("no answer to {what} in time"))),
            },
            () = self.connection.down() => Err(Error::Unreachable("not connected to NATS".into())),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum InfoResponse {
    Err { error: ApiError },
    Ok(Box<Info>),
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Info {
    created: String,
    config: InfoConfig,
    state: InfoState,
    /// Not there on a server of its own.
    cluster: Option<InfoCluster>,
}

#[derive(Deserialize)]
struct InfoCluster {
    /// Empty while there is none.
    leader: Option<String>,
    #[serde(default)]
    replicas: Option<Vec<InfoReplica>>,
}

/// One of those beside the server that answers.
#[derive(Deserialize)]
struct InfoReplica {
    #[serde(default)]
    name: String,
    /// Time since it was last heard of, nanoseconds; 0: not since this leader was elected.
    active: Option<u64>,
}

#[derive(Deserialize)]
struct InfoConfig {
    #[serde(default)]
    metadata: HashMap<String, String>,
}

#[derive(Deserialize)]
struct InfoState {
    messages: u64,
    first_seq: u64,
    last_seq: u64,
}

impl Source for JetStream {
    fn state(&self) -> BoxFuture<'_, Result<StreamState, Error>> {
        async {
            let info = self.info().await?;
            let created = time_nanos(&info.created).ok_or_else(|| {
                Error::Refused(format!("unreadable creation time {:?}", info.created))
            })?;
            let mark = info.config.metadata.get(EPOCH_METADATA).map_or("", String::as_str);
            let InfoState { messages, first_seq, last_seq } = info.state;
            let first = if messages == 0 { last_seq + 1 } else { first_seq };
            let epoch = Epoch::of_stream(i128::from(created), mark);
            self.runs.saw(epoch, last_seq);
            let lead = lead(info.cluster, self.connection.number());
            Ok(StreamState { epoch, first, last: last_seq, lead })
        }
        .boxed()
    }

    fn tail(&self, from: u64) -> BoxFuture<'_, Result<Box<dyn Tail>, Error>> {
        async move { tail::open(self.clone(), from).await.map(|tail| Box::new(tail) as Box<dyn Tail>) }.boxed()
    }

    fn read(&self, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Batch, Error>> {
        run::read(self, from, limit).boxed()
    }

    fn read_leader(&self, from: u64) -> BoxFuture<'_, Result<Option<Event>, Error>> {
        direct::read_leader(self, from).boxed()
    }

    fn first_since(&self, time_nanos: i64) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        direct::first_since(self, time_nanos).boxed()
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, Error>> {
        self.append_event(append).boxed()
    }

    fn published(&self, sequence: u64) -> BoxFuture<'_, Result<Option<Published>, Error>> {
        direct::published(self, sequence).boxed()
    }

    fn connected(&self) -> bool {
        self.connection.is_up()
    }
}

impl JetStream {
    async fn append_event(&self, append: Append) -> Result<Appended, Error> {
        if !self.connected() {
            // Else the client would keep the message, and send it after the publisher was told that
            // it failed.
            return Err(Error::Unreachable("not connected".into()));
        }
        let mut headers = async_nats::HeaderMap::new();
        let fields = [
            (event::NAME_HEADER, append.name),
            (event::CONTENT_TYPE_HEADER, append.content_type),
            ("Nats-Msg-Id", append.idempotency_key),
            ("Nats-Expected-Last-Subject-Sequence", append.expected_last.map(|s| s.to_string())),
            // The stream of this channel and no other may take it, whatever its subjects overlap
            // with.
            ("Nats-Expected-Stream", Some(self.stream.to_string())),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        let context = self.connection.context();
        let publish = async {
            context.publish_with_headers(append.subject, headers, append.payload).await?.await
        };
        match tokio::time::timeout(REQUEST_TIMEOUT * 2, publish).await {
            Ok(Ok(ack)) => Ok(Appended { sequence: ack.sequence, duplicate: ack.duplicate }),
            Ok(Err(error)) => Err(self.append_error(&error)),
            Err(_) => Err(Error::Unreachable("no acknowledgement in time".into())),
        }
    }

    fn append_error(&self, error: &jetstream::context::PublishError) -> Error {
        use jetstream::context::PublishErrorKind as Kind;
        let code = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<jetstream::Error>())
            .map(jetstream::Error::error_code);
        match error.kind() {
            Kind::WrongLastSequence => Error::WrongLastSequence,
            Kind::TimedOut | Kind::BrokenPipe => Error::Unreachable(error.to_string()),
            Kind::MaxPayloadExceeded => {
                Error::TooLargeForServer(self.client().server_info().max_payload)
            }
            _ if code == Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) => Error::TooLarge,
            // The first copy waits for its quorum: what becomes of it is not known yet.
            _ if code == Some(ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT) => {
                Error::Unreachable(error.to_string())
            }
            Kind::StreamNotFound => Error::NoStream(self.stream.to_string()),
            _ => Error::Refused(error.to_string()),
        }
    }
}

/// The leader that an answer names. `current` and `offline` are of no use: a leader that is cut off
/// says `current` of replicas that it has not heard of for ten seconds.
///
/// A leader that has just lost its place answers for some milliseconds more, from its own state,
/// and names its successor: among its replicas. Such an answer is not the leader's.
fn lead(cluster: Option<InfoCluster>, connection: u64) -> Lead {
    let Some(InfoCluster { leader, replicas }) = cluster else {
        return Lead::new(Some(""), connection, Vec::new());
    };
    let others = replicas.unwrap_or_default();
    let answers = |name: &&str| !name.is_empty() && others.iter().all(|other| other.name != *name);
    let leader = leader.as_deref().filter(answers);
    let heard = |replica: &InfoReplica| {
        replica.active.filter(|active| *active > 0).map_or(Duration::MAX, Duration::from_nanos)
    };
    Lead::new(leader, connection, others.iter().map(heard).collect())
}

/// Nanoseconds of Unix time from RFC 3339 text.
fn time_nanos(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().and_then(|t| i64::try_from(t.as_nanosecond()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead_of(cluster: &str) -> Lead {
        lead(Some(serde_json::from_str(cluster).unwrap()), 1)
    }

    #[test]
    fn a_replica_that_a_new_leader_has_never_heard_of_follows_nobody() {
        let lead = lead_of(
            r#"{"leader": "n2", "replicas": [{"name": "n0", "active": 0, "offline": true}, {"name": "n1", "active": 9000000000}]}"#,
        );
        assert_eq!(lead.unheard, Duration::from_secs(9));
        assert_eq!(lead.id, Lead::new(Some("n2"), 1, Vec::new()).id);
        let neither = lead_of(r#"{"leader": "n2", "replicas": [{"name": "n0"}, {"name": "n1"}]}"#);
        assert_eq!(neither.unheard, Duration::MAX);
    }

    #[test]
    fn an_answer_of_a_server_that_names_another_as_leader_is_no_leaders_word() {
        let lead = lead_of(
            r#"{"leader": "n2", "replicas": [{"name": "n1", "active": 10531742434}, {"name": "n2", "active": 401479}]}"#,
        );
        assert_eq!(lead.unheard, Duration::MAX);
        assert_ne!(lead.id, Lead::new(Some("n2"), 1, Vec::new()).id);
    }

    #[test]
    fn one_replica_leads_by_itself() {
        assert_eq!(lead(None, 1).unheard, Duration::ZERO);
        assert_eq!(lead_of(r#"{"leader": "n0"}"#).unheard, Duration::ZERO);
        assert_eq!(lead_of(r#"{"leader": ""}"#).unheard, Duration::MAX);
        assert_eq!(lead_of(r#"{"replicas": null}"#).unheard, Duration::MAX);
    }
}
