//! Real nats-servers with JetStream, streams with the settings that the operator gives them, and a
//! fast publisher.

pub mod cut;
pub mod permitted;
pub mod secured;

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use async_nats::{
    ConnectOptions, HeaderMap,
    jetstream::{
        self,
        stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream},
    },
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use sluice_channel::{
    ChannelName, Cursor, Epoch, StreamName, cursor::EPOCH_METADATA, event::NAME_HEADER, name,
};
use tempfile::TempDir;

use crate::process::{Process, free_port, tool};

/// Namespace of all channels of the tests.
pub const NAMESPACE: &str = "test";
/// Publishes without an answer yet: far below the 10,000 that nats-server queues for a stream.
const IN_FLIGHT: usize = 512;
/// How long a server may take to serve JetStream.
const START_LIMIT: Duration = Duration::from_secs(20);

/// One nats-server with a store of its own, stopped with the guard.
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    port: u16,
    store: TempDir,
    /// Further arguments (cluster settings).
    arguments: Vec<String>,
    process: Option<Process>,
}

impl NatsServer {
    /// A server on a free port with an empty store, ready for JetStream.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self::new("nats", arguments);
        server.launch();
        server.ready().await;
        server
    }

    fn new(name: &str, arguments: Vec<String>) -> Self {
        let store = TempDir::with_prefix("sluice-store-").expect("a directory for the store");
        Self { name: name.to_owned(), port: free_port(), store, arguments, process: None }
    }

    fn launch(&mut self) {
        let mut command = Command::new(tool("nats-server"));
        command.args([
            "--addr",
            "127.0.0.1",
            "--port",
            &self.port.to_string(),
            "--jetstream",
            "--name",
            &self.name,
        ]);
        command.arg("--store_dir").arg(self.store.path()).args(&self.arguments);
        self.process = Some(Process::spawn(&self.name, command));
    }

    async fn ready(&self) {
        let client = connect(&self.url()).await;
        let context = jetstream::new(client);
        crate::eventually("nats-server serves JetStream", START_LIMIT, async || {
            context.query_account().await.ok()
        })
        .await;
    }

    /// `nats://…` of it.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Directory of its store.
    pub fn store(&self) -> &std::path::Path {
        self.store.path()
    }

    /// Its server name, as it stands in a stream's cluster information.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process, while it runs.
    ///
    /// # Panics
    /// When it is stopped.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("nats-server runs")
    }

    /// Ends it in order (SIGTERM); the store stays.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("nats-server runs");
        process.terminate();
        assert!(process.wait(Duration::from_secs(20)).await.is_some(), "nats-server did not end");
    }

    /// Ends it at once (SIGKILL); the store stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port with the same store, and does not wait.
    ///
    /// # Panics
    /// When it runs.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "nats-server still runs");
        self.launch();
    }

    /// Starts it again on the same port with the same store, and waits until it serves.
    ///
    /// # Panics
    /// When it runs, or does not come up.
    pub async fn restart(&mut self) {
        self.start_again();
        self.ready().await;
    }

    /// Starts it again on the same port with an empty store.
    ///
    /// # Panics
    /// When it runs, or does not come up.
    pub async fn restart_empty(&mut self) {
        self.store = TempDir::with_prefix("sluice-store-").expect("a directory for the store");
        self.restart().await;
    }
}

/// Servers that form one JetStream cluster.
#[derive(Debug)]
pub struct NatsCluster {
    /// The members.
    pub servers: Vec<NatsServer>,
}

impl NatsCluster {
    /// `size` servers with routes to each other, with a JetStream leader elected.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start(size: usize) -> Self {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let routes =
            ports.iter().map(|p| format!("nats://127.0.0.1:{p}")).collect::<Vec<_>>().join(",");
        let mut servers = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            let listen = format!("nats://127.0.0.1:{port}");
            let arguments = ["--cluster_name", "test", "--cluster", &listen, "--routes", &routes]
                .map(str::to_owned)
                .to_vec();
            let mut server = NatsServer::new(&format!("nats{i}"), arguments);
            server.launch();
            servers.push(server);
        }
        for server in &servers {
            server.ready().await;
        }
        Self { servers }
    }

    /// All addresses, comma-separated, as `--nats` takes them.
    pub fn urls(&self) -> String {
        self.servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// The index of the server that leads `stream` now; waits for one.
    ///
    /// # Panics
    /// When none leads within 30 s.
    pub async fn leader_of(&self, streams: &Streams, stream: &str) -> usize {
        crate::eventually("the stream has a leader", Duration::from_secs(30), async || {
            let info = streams.try_info(stream).await?;
            let leader = info.cluster?.leader?;
            self.servers.iter().position(|s| s.name == leader && s.process.is_some())
        })
        .await
    }
}

impl NatsCluster {
    /// Waits until all replicas of `stream` are there and current, so that another server may be
    /// taken away.
    ///
    /// # Panics
    /// When they are not within 60 s.
    pub async fn in_sync(&self, streams: &Streams, stream: &str) {
        crate::eventually("the replicas are current", Duration::from_secs(60), async || {
            let cluster = streams.try_info(stream).await?.cluster?;
            let current = cluster.replicas.iter().filter(|r| r.current && !r.offline).count();
            (cluster.leader.is_some() && current + 1 == self.servers.len()).then_some(())
        })
        .await;
    }
}

/// Connects, and keeps trying: the server may be starting, or be away later.
///
/// # Panics
/// When it cannot be reached for 20 s.
pub async fn connect(urls: &str) -> async_nats::Client {
    let urls: Vec<&str> = urls.split(',').collect();
    crate::eventually("a connection to NATS", START_LIMIT, async || {
        let options = ConnectOptions::new()
            .reconnect_delay_callback(|_| Duration::from_millis(100))
            .connection_timeout(Duration::from_secs(2))
            .request_timeout(Some(Duration::from_secs(5)));
        options.connect(&urls[..]).await.ok()
    })
    .await
}

/// An event that JetStream has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The subject after the channel's prefix.
    pub topic: String,
    /// The payload.
    pub payload: Bytes,
}

/// A connection for the test itself: administers streams and publishes.
#[derive(Debug, Clone)]
pub struct Streams {
    context: jetstream::Context,
}

impl Streams {
    /// Connects to the server(s).
    pub async fn connect(urls: &str) -> Self {
        Self {
            context: jetstream::ContextBuilder::new()
                .timeout(Duration::from_secs(5))
                .max_ack_inflight(IN_FLIGHT * 4)
                .build(connect(urls).await),
        }
    }

    /// The underlying JetStream context.
    pub fn context(&self) -> &jetstream::Context {
        &self.context
    }

    /// Creates the stream of `config`; keeps trying while the cluster settles.
    ///
    /// # Panics
    /// When it cannot be created within 20 s.
    pub async fn create(&self, config: Config) -> Epoch {
        crate::eventually("the stream is created", START_LIMIT, async || {
            self.context.create_stream(config.clone()).await.ok()
        })
        .await;
        self.epoch(&config.name).await
    }

    /// The stream by its name.
    ///
    /// # Panics
    /// When it is not there.
    pub async fn get(&self, stream: &str) -> Stream {
        self.context.get_stream(stream).await.expect("the stream is there")
    }

    /// Its information now.
    ///
    /// # Panics
    /// When it is not there.
    pub async fn info(&self, stream: &str) -> Info {
        self.get(stream).await.cached_info().clone()
    }

    async fn try_info(&self, stream: &str) -> Option<Info> {
        Some(self.context.get_stream(stream).await.ok()?.cached_info().clone())
    }

    /// The epoch that cursors of the stream carry.
    pub async fn epoch(&self, stream: &str) -> Epoch {
        let info = self.info(stream).await;
        let mark = info.config.metadata.get(EPOCH_METADATA).map_or("", String::as_str);
        Epoch::of_stream(info.created.unix_timestamp_nanos(), mark)
    }

    /// A cursor of the stream.
    pub async fn cursor(&self, stream: &str, sequence: u64) -> Cursor {
        Cursor::new(self.epoch(stream).await, sequence)
    }

    /// Removes all events before `sequence`, as retention limits do.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn purge_before(&self, stream: &str, sequence: u64) {
        self.get(stream).await.purge().sequence(sequence).await.expect("a purge");
    }

    /// Deletes one event.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn delete_message(&self, stream: &str, sequence: u64) {
        assert!(
            self.get(stream).await.delete_message(sequence).await.expect("an answer"),
            "message {sequence} was not deleted"
        );
    }

    /// Publishes one event and waits for its acknowledgement.
    ///
    /// # Panics
    /// When JetStream does not take it.
    pub async fn publish(&self, prefix: &str, topic: &str, payload: impl Into<Bytes>) -> Published {
        let payload = payload.into();
        let ack = self
            .context
            .publish(format!("{prefix}{topic}"), payload.clone())
            .await
            .expect("a publish")
            .await
            .expect("an acknowledgement");
        Published { sequence: ack.sequence, topic: topic.to_owned(), payload }
    }

    /// Publishes one event with an SSE name.
    ///
    /// # Panics
    /// When JetStream does not take it.
    pub async fn publish_named(
        &self,
        prefix: &str,
        topic: &str,
        name: &str,
        payload: impl Into<Bytes>,
    ) -> Published {
        let payload = payload.into();
        let mut headers = HeaderMap::new();
        headers.insert(NAME_HEADER, name);
        let publish =
            self.context.publish_with_headers(format!("{prefix}{topic}"), headers, payload.clone());
        let ack = publish.await.expect("a publish").await.expect("an acknowledgement");
        Published { sequence: ack.sequence, topic: topic.to_owned(), payload }
    }

    /// Publishes as fast as the server acknowledges, with a bounded number in flight. In order of
    /// sequence.
    ///
    /// # Panics
    /// When JetStream does not take one.
    pub async fn publish_all(
        &self,
        prefix: &str,
        events: impl IntoIterator<Item = (String, Bytes)>,
    ) -> Vec<Published> {
        let mut published: Vec<Published> = stream::iter(events)
            .map(|(topic, payload)| async move { self.publish(prefix, &topic, payload).await })
            .buffered(IN_FLIGHT)
            .collect()
            .await;
        published.sort_unstable_by_key(|p| p.sequence);
        published
    }

    /// Publishes one event through outages: it is sent again under the same `Nats-Msg-Id` until it
    /// is acknowledged, so it is stored exactly once.
    ///
    /// # Panics
    /// When it is not acknowledged within `limit`.
    pub async fn publish_through_outages(
        &self,
        prefix: &str,
        topic: &str,
        id: &str,
        payload: Bytes,
        limit: Duration,
    ) -> Published {
        let deadline = Instant::now() + limit;
        loop {
            let publish =
                jetstream::message::PublishMessage::build().payload(payload.clone()).message_id(id);
            let attempt = async {
                self.context
                    .send_publish(format!("{prefix}{topic}"), publish)
                    .await
                    .ok()?
                    .await
                    .ok()
            };
            if let Ok(Some(ack)) = tokio::time::timeout(Duration::from_secs(2), attempt).await {
                return Published { sequence: ack.sequence, topic: topic.to_owned(), payload };
            }
            assert!(Instant::now() < deadline, "event {id} was not acknowledged within {limit:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The names that belong to a channel of the tests.
#[derive(Debug, Clone)]
pub struct Names {
    /// The channel.
    pub channel: ChannelName,
    /// Its stream.
    pub stream: StreamName,
    /// The one subject it takes.
    pub subject: String,
    /// Prefix removed from a subject to form a topic.
    pub prefix: String,
}

/// The names that the operator derives for `channel` in [`NAMESPACE`].
///
/// # Panics
/// When it is no channel name.
pub fn names(channel: &str) -> Names {
    let channel = ChannelName::new(channel).expect("a channel name");
    Names {
        stream: StreamName::derived(NAMESPACE, &channel),
        subject: name::default_subject(NAMESPACE, &channel),
        prefix: name::default_topic_prefix(NAMESPACE, &channel),
        channel,
    }
}

/// The stream that the operator makes for a channel with `spec: {}`, but for payloads up to 1 MiB.
pub fn stream_config(names: &Names) -> Config {
    Config {
        name: names.stream.to_string(),
        subjects: vec![names.subject.clone()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        num_replicas: 1,
        max_age: Duration::from_secs(24 * 3600),
        max_bytes: 1024 * 1024 * 1024,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: 1024 * 1024,
        duplicate_window: Duration::from_secs(120),
        allow_direct: true,
        ..Config::default()
    }
}

/// Deterministic test events: `count` of them, on `topics` topics (`t0`, `t1`, …), `1..=max_bytes`
/// long, each beginning with its number so that no two are alike. Printable ASCII without line
/// ends.
pub fn events(
    count: usize,
    topics: usize,
    max_bytes: usize,
    seed: u64,
) -> impl Iterator<Item = (String, Bytes)> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count).map(move |i| {
        // xorshift64: the same events from the same seed on every machine.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let topic = usize::try_from(state >> 33).unwrap_or(0) % topics;
        // Mostly small, a few large, as real events are.
        let size = usize::try_from(state & 0xFFFF).unwrap_or(0) * max_bytes / 0xFFFF;
        let size = if state & 0x70_0000 == 0 { size } else { size / 8 };
        let mut payload = format!("{seed}/{i} ");
        let filler = "abcdefghijklmnopqrstuvwxyz0123456789";
        while payload.len() < size {
            payload.push_str(&filler[..filler.len().min(size - payload.len())]);
        }
        (format!("t{topic}"), Bytes::from(payload))
    })
}

/// What a test published, by sequence.
pub type Log = BTreeMap<u64, Published>;

/// Collects published events into a log.
pub fn log(published: impl IntoIterator<Item = Published>) -> Log {
    published.into_iter().map(|p| (p.sequence, p)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_deterministic_and_unlike() {
        let first: Vec<_> = events(1000, 50, 2000, 7).collect();
        assert_eq!(first, events(1000, 50, 2000, 7).collect::<Vec<_>>());
        let payloads: std::collections::HashSet<_> = first.iter().map(|(_, p)| p).collect();
        let topics: std::collections::HashSet<_> = first.iter().map(|(t, _)| t).collect();
        assert_eq!((payloads.len(), topics.len()), (1000, 50));
    }

    #[test]
    fn a_server_comes_back_on_its_port_with_its_events_or_empty() {
        crate::run(Duration::from_secs(60), async {
            let mut server = NatsServer::start().await;
            let names = names("orders");
            let streams = Streams::connect(&server.url()).await;
            let first = streams.create(stream_config(&names)).await;
            let published = streams.publish_all(&names.prefix, events(100, 3, 50, 1)).await;
            assert_eq!(
                published.iter().map(|p| p.sequence).collect::<Vec<_>>(),
                (1..=100).collect::<Vec<_>>()
            );
            server.stop().await;
            server.restart().await;
            let streams = Streams::connect(&server.url()).await;
            assert_eq!(streams.info(names.stream.as_str()).await.state.messages, 100);
            assert_eq!(streams.epoch(names.stream.as_str()).await, first);
            server.kill();
            server.restart_empty().await;
            let streams = Streams::connect(&server.url()).await;
            assert_ne!(streams.create(stream_config(&names)).await, first);
        });
    }

    #[test]
    fn a_cluster_replicates_and_elects_another_leader() {
        crate::run(Duration::from_secs(90), async {
            let mut cluster = NatsCluster::start(3).await;
            let names = names("orders");
            let streams = Streams::connect(&cluster.urls()).await;
            streams.create(Config { num_replicas: 3, ..stream_config(&names) }).await;
            streams.publish(&names.prefix, "a", "1").await;
            let leader = cluster.leader_of(&streams, names.stream.as_str()).await;
            cluster.servers[leader].kill();
            let next = cluster.leader_of(&streams, names.stream.as_str()).await;
            assert_ne!(leader, next);
            let second = streams
                .publish_through_outages(
                    &names.prefix,
                    "a",
                    "2",
                    "2".into(),
                    Duration::from_secs(30),
                )
                .await;
            assert_eq!(second.sequence, 2);
            cluster.servers[leader].restart().await;
        });
    }
}
