//! The requests of JetStream's API that streams need.

use std::{collections::BTreeSet, time::Duration};

use async_nats::{
    ServerInfo,
    connection::State,
    jetstream::{self, ErrorCode, context::RequestErrorKind, response::Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{error::Error, fields};
use crate::nats;

/// First nats-server with batch direct get and reliable stream metadata, major and minor.
const OLDEST_SERVER: (u32, u32) = (2, 11);
/// Most streams that are named as taking a channel's subjects: a message stays readable.
const OTHERS_NAMED: usize = 5;

/// How long the cause of an outage is waited for: several attempts to connect fail in it.
const CAUSE_LIMIT: Duration = Duration::from_secs(1);

/// A stream as the server describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Observed {
    pub(super) name: String,
    pub(super) config: Map<String, Value>,
    pub(super) created: String,
    pub(super) last_sequence: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// Subjects of its messages.
    pub(super) subjects: u64,
    /// Age of its oldest message when it was asked.
    pub(super) oldest_age: Duration,
    /// The NATS cluster that holds it; none where a server is alone.
    pub(super) cluster: Option<String>,
    /// The server that leads the stream; none outside of a cluster.
    pub(super) leader: Option<String>,
    /// How long ago its leader heard of each of the others.
    heard: Vec<Duration>,
}

impl Observed {
    pub(super) fn created_nanos(&self) -> Result<i128, Error> {
        let time = async_nats::datetime::parse_rfc3339(&self.created);
        time.map(|t| t.unix_timestamp_nanos())
            .map_err(|e| Error::Protocol(format!("creation time {:?}: {e}", self.created)))
    }

    /// Whether a majority has followed the leader within `time`. A leader that is cut off goes on
    /// answering, with what it had.
    pub(super) fn is_followed_within(&self, time: Duration) -> bool {
        let heard = self.heard.iter().filter(|heard| **heard < time).count();
        heard >= fields::replicas(&self.config) / 2
    }
}

#[derive(Deserialize)]
struct Info {
    config: Map<String, Value>,
    created: String,
    state: InfoState,
    cluster: Option<Cluster>,
    /// The server's clock.
    #[serde(default)]
    ts: String,
}

#[derive(Deserialize)]
struct Cluster {
    name: Option<String>,
    leader: Option<String>,
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    #[serde(default)]
    offline: bool,
    /// Nanoseconds since it was heard of.
    #[serde(default)]
    active: u64,
}

/// Where a message is, and when it was stored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Stored {
    #[serde(rename = "seq")]
    pub(super) sequence: u64,
    pub(super) time: String,
}

#[derive(Deserialize)]
struct InfoState {
    messages: u64,
    bytes: u64,
    last_seq: u64,
    #[serde(default)]
    first_ts: String,
    #[serde(default)]
    num_subjects: u64,
}

fn heard(cluster: Option<&Cluster>) -> Vec<Duration> {
    let replicas = cluster.iter().flat_map(|cluster| &cluster.replicas);
    replicas.filter(|r| !r.offline).map(|r| Duration::from_nanos(r.active)).collect()
}

/// Between two times of one server; zero where one of them is none.
fn age(then: &str, now: &str) -> Duration {
    let nanos = |text| {
        async_nats::datetime::parse_rfc3339(text).ok().map(|time| time.unix_timestamp_nanos())
    };
    let age = nanos(now).zip(nanos(then)).map_or(0, |(now, then)| now - then);
    Duration::from_nanos(u64::try_from(age).unwrap_or_default())
}

pub(super) struct Server {
    reached: Reached,
    servers: String,
}

/// How the server is reached.
pub(super) enum Reached {
    /// By this client for ever.
    Directly(jetstream::Context),
    /// By the client of the moment; the connection's troubles make errors clearer.
    Over(nats::Connection),
}

impl Server {
    pub(super) fn new(reached: Reached, servers: &str) -> Self {
        Self { reached, servers: servers.to_owned() }
    }

    fn context(&self) -> jetstream::Context {
        match &self.reached {
            Reached::Directly(context) => context.clone(),
            Reached::Over(connection) => connection.jetstream(),
        }
    }

    fn state(&self) -> Option<nats::State> {
        match &self.reached {
            Reached::Directly(_) => None,
            Reached::Over(connection) => Some(connection.state().borrow().clone()),
        }
    }

    /// Largest message that the server takes, bytes; `None` before it was reached.
    pub(super) fn max_payload(&self) -> Option<u64> {
        let bytes = self.context().client().server_info().max_payload;
        u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
    }

    /// Why there is no answer. The text stays the same for the whole of an outage, or the channel's
    /// status would be written again and again: so the cause is waited for, which is known once an
    /// attempt has failed.
    async fn unreachable(&self) -> Error {
        if let Reached::Over(connection) = &self.reached {
            let mut state = connection.state();
            let known = state.wait_for(|state| state.up || state.trouble.is_some());
            // Later it is told as it is found.
            let _ = tokio::time::timeout(CAUSE_LIMIT, known).await;
        }
        let servers = self.servers.clone();
        match self.state().and_then(|state| state.trouble) {
            Some(trouble) if trouble.refused => {
                Error::AuthFailed { servers, trouble: trouble.to_string() }
            }
            Some(trouble) => Error::NotConnected { servers, trouble: trouble.to_string() },
            None => Error::Unreachable { servers },
        }
    }

    /// Resolves when the server refuses a request to JetStream on `subject`.
    fn denied(&self, subject: &str) -> impl Future<Output = Error> + use<> {
        let denied = match &self.reached {
            Reached::Directly(_) => None,
            Reached::Over(connection) => {
                Some(connection.denied(format!("{}.{subject}", connection.api_prefix())))
            }
        };
        let servers = self.servers.clone();
        async move {
            match denied {
                Some(denied) => Error::AuthFailed { servers, trouble: denied.await.to_string() },
                None => std::future::pending().await,
            }
        }
    }

    /// Refuses servers that would take our requests and then not serve history.
    pub(super) async fn check_version(&self) -> Result<(), Error> {
        let context = self.context();
        let client = context.client();
        if client.connection_state() != State::Connected {
            return Err(self.unreachable().await);
        }
        let version = client.server_info().version;
        let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) < OLDEST_SERVER => {
                Err(Error::ServerTooOld(version))
            }
            _ => Ok(()),
        }
    }

    /// Whether the servers can hold `replicas` copies, as far as can be told before asking: some
    /// versions take more copies than there are servers in an update, and then do not start again.
    /// Behind a leaf node the servers are others than the one that is connected to; then the
    /// refusal of the domain's own leader must do.
    pub(super) async fn check_cluster_size(
        &self,
        replicas: usize,
        observed: Option<&Observed>,
    ) -> Result<(), Error> {
        if replicas <= 1 {
            return Ok(());
        }
        let info = self.context().client().server_info();
        let here = info.cluster.as_deref().filter(|cluster| !cluster.is_empty());
        let known = match observed.map(|observed| observed.cluster.as_deref()) {
            Some(None) => 1,
            Some(holds) if holds != here => return Ok(()),
            None if !self.is_of(&info).await? => return Ok(()),
            Some(_) | None if here.is_none() => 1,
            Some(_) | None => info.connect_urls.len(),
        };
        // Empty when servers do not tell their addresses.
        if known > 0 && known < replicas {
            Err(Error::NotEnoughServers { replicas, known: Some(known) })
        } else {
            Ok(())
        }
    }

    /// Whether the JetStream that answers is that of the server with this `info`.
    async fn is_of(&self, info: &ServerInfo) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Account {
            #[serde(default)]
            domain: String,
        }
        let account: Account = self.request("INFO", &json!({})).await?;
        Ok(info.jetstream && account.domain == info.domain.as_deref().unwrap_or_default())
    }

    /// Version of the server as it said when the connection was made.
    pub(super) fn version(&self) -> String {
        self.context().client().server_info().version
    }

    /// Whether JetStream answers for the operator's account.
    pub(super) async fn account(&self) -> Result<(), Error> {
        match self.request::<_, Value>("INFO", &json!({})).await {
            Err(Error::Api { code, text, .. })
                if code == ErrorCode::JETSTREAM_NOT_ENABLED.0
                    || code == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT.0 =>
            {
                Err(Error::JetStreamDisabled(text))
            }
            other => other.map(|_| ()),
        }
    }

    pub(super) async fn info(&self, name: &str) -> Result<Option<Observed>, Error> {
        match self.request::<_, Info>(&format!("STREAM.INFO.{name}"), &json!({})).await {
            Err(Error::Api { code, .. }) if code == ErrorCode::STREAM_NOT_FOUND.0 => Ok(None),
            Err(error) => Err(error),
            Ok(info) => Ok(Some(Observed {
                cluster: info.cluster.as_ref().and_then(|c| c.name.clone()),
                heard: heard(info.cluster.as_ref()),
                leader: info.cluster.and_then(|c| c.leader),
                name: name.to_owned(),
                config: info.config,
                created: info.created,
                last_sequence: info.state.last_seq,
                messages: info.state.messages,
                bytes: info.state.bytes,
                subjects: info.state.num_subjects,
                oldest_age: match info.state.messages {
                    0 => Duration::ZERO,
                    _ => age(&info.state.first_ts, &info.ts),
                },
            })),
        }
    }

    /// A message, by its leader's word: `{"seq": 7}`, or the newest of a subject.
    pub(super) async fn message(&self, name: &str, which: Value) -> Result<Option<Stored>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            message: Stored,
        }
        match self.request::<_, Answer>(&format!("STREAM.MSG.GET.{name}"), &which).await {
            Err(Error::Api { code, .. }) if code == ErrorCode::NO_MESSAGE_FOUND.0 => Ok(None),
            answer => answer.map(|answer| Some(answer.message)),
        }
    }

    /// How often NATS was connected.
    pub(super) fn connects(&self) -> u64 {
        self.state().map_or(0, |state| state.connects)
    }

    pub(super) async fn create(&self, config: &Map<String, Value>) -> Result<(), Error> {
        let config: Map<_, _> = config.iter().filter(|(_, v)| !v.is_null()).collect_map();
        self.write("CREATE", &config).await
    }

    pub(super) async fn update(&self, config: &Map<String, Value>) -> Result<(), Error> {
        self.write("UPDATE", config).await
    }

    async fn write(&self, how: &str, config: &Map<String, Value>) -> Result<(), Error> {
        let subject = format!("STREAM.{how}.{}", name(config));
        let Err(error) = self.request::<_, Value>(&subject, config).await else { return Ok(()) };
        match error.explained(config) {
            Error::SubjectOverlap { subjects, text, .. } => {
                let streams = self.overlapping(config).await;
                Err(Error::SubjectOverlap { subjects, streams, text })
            }
            error => Err(error),
        }
    }

    /// The other streams that take subjects of this one, as far as the server tells.
    async fn overlapping(&self, config: &Map<String, Value>) -> Vec<String> {
        #[derive(Deserialize)]
        struct Names {
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let mut others = BTreeSet::new();
        let subjects = config.get("subjects").and_then(Value::as_array);
        for subject in subjects.into_iter().flatten() {
            let asked = json!({"subject": subject});
            if let Ok(names) = self.request::<_, Names>("STREAM.NAMES", &asked).await {
                others.extend(names.streams.into_iter().flatten());
            }
        }
        others.remove(name(config));
        others.into_iter().take(OTHERS_NAMED).collect()
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.request::<_, Value>(&format!("STREAM.DELETE.{name}"), &json!({})).await {
            Err(Error::Api { code, .. }) if code == ErrorCode::STREAM_NOT_FOUND.0 => Ok(()),
            other => other.map(|_| ()),
        }
    }

    pub(super) async fn request<T: Serialize + ?Sized, V: serde::de::DeserializeOwned>(
        &self,
        subject: &str,
        payload: &T,
    ) -> Result<V, Error> {
        // A request while disconnected would wait for its whole time limit.
        let context = self.context();
        if context.client().connection_state() != State::Connected {
            return Err(self.unreachable().await);
        }
        let denied = self.denied(subject);
        let answer = tokio::select! {
            answer = context.request(subject.to_owned(), payload) => answer,
            // It would get no answer, and be told as a server that does not answer.
            error = denied => return Err(error),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => Error::NoResponders,
                    RequestErrorKind::TimedOut
                        if context.client().connection_state() == State::Connected =>
                    {
                        Error::TimedOut
                    }
                    RequestErrorKind::TimedOut => self.unreachable().await,
                    RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                        Error::Protocol(error.to_string())
                    }
                });
            }
        };
        match answer {
            Response::Ok(value) => Ok(value),
            Response::Err { error } => Err(Error::of_response(&error)),
        }
    }
}

fn name(config: &Map<String, Value>) -> &str {
    config.get("name").and_then(Value::as_str).unwrap_or_default()
}

trait CollectMap<'m> {
    fn collect_map(self) -> Map<String, Value>;
}

impl<'m, I: Iterator<Item = (&'m String, &'m Value)>> CollectMap<'m> for I {
    fn collect_map(self) -> Map<String, Value> {
        self.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}
