//! What most tests start from: one nats-server, one stream, one data plane that serves it.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use sluice_channel::{ChannelConfig, Cursor, Epoch};
use sluice_tests::{
    clients::{Reader, Request},
    dataplane::{ConfigDir, DataPlane, Options, channel_config},
    nats::{Log, Names, NatsServer, Published, Streams, log, names, stream_config},
};

/// Longest wait for one thing that should come soon, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How long a test watches that nothing comes.
pub(crate) const QUIET: Duration = Duration::from_millis(700);
/// The channel of most tests.
pub(crate) const ORDERS: &str = "/channels/orders";

/// Servers of one test. Fields are dropped in this order: the data plane ends before NATS does.
pub(crate) struct Fixture {
    pub(crate) plane: DataPlane,
    pub(crate) configs: ConfigDir,
    pub(crate) streams: Streams,
    pub(crate) nats: NatsServer,
    pub(crate) names: Names,
    pub(crate) epoch: Epoch,
}

/// How a fixture differs from the default.
pub(crate) struct Setup<'a> {
    pub(crate) stream: &'a dyn Fn(&mut Config),
    pub(crate) channel: &'a dyn Fn(&mut ChannelConfig),
    pub(crate) arguments: &'a [&'a str],
    pub(crate) open_files: Option<u32>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { stream: &|_| {}, channel: &|_| {}, arguments: &[], open_files: None }
    }
}

impl Fixture {
    /// A default channel `orders` over an empty stream.
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    /// The same with another channel configuration.
    pub(crate) async fn channel(channel: impl Fn(&mut ChannelConfig)) -> Self {
        Self::with(Setup { channel: &channel, ..Setup::default() }).await
    }

    pub(crate) async fn with(setup: Setup<'_>) -> Self {
        let nats = NatsServer::start().await;
        let names = names("orders");
        let streams = Streams::connect(&nats.url()).await;
        let mut stream = stream_config(&names);
        (setup.stream)(&mut stream);
        let epoch = streams.create(stream).await;
        let mut channel = channel_config(&names);
        (setup.channel)(&mut channel);
        let configs = ConfigDir::new(&[channel]);
        let options = Options {
            arguments: setup.arguments,
            open_files: setup.open_files,
            ..Options::default()
        };
        let plane = DataPlane::start_with(&nats.url(), &configs, &options).await;
        Self { plane, configs, streams, nats, names, epoch }
    }

    /// The default configuration, to be changed and written again.
    pub(crate) fn config(&self) -> ChannelConfig {
        channel_config(&self.names)
    }

    /// Another data plane of the same channel, which starts now: it holds nothing in memory of what
    /// was before.
    pub(crate) async fn another(&self) -> DataPlane {
        DataPlane::start(&self.nats.url(), &self.configs).await
    }

    pub(crate) fn cursor(&self, sequence: u64) -> Cursor {
        Cursor::new(self.epoch, sequence)
    }

    pub(crate) async fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Published {
        self.streams.publish(&self.names.prefix, topic, payload).await
    }

    /// Publishes `count` small events, `n/1`, `n/2`, …, all on `topic`.
    pub(crate) async fn publish_many(&self, topic: &str, count: usize) -> Log {
        let events = (1..=count).map(|i| (topic.to_owned(), Bytes::from(format!("{topic}/{i}"))));
        log(self.streams.publish_all(&self.names.prefix, events).await)
    }

    pub(crate) async fn open(&self, path: &str) -> Reader {
        Reader::open(self.plane.http(), &Request::get(path)).await
    }

    pub(crate) async fn resume(&self, path: &str, cursor: impl ToString) -> Reader {
        Reader::open(self.plane.http(), &Request::get(path).resume(cursor)).await
    }
}
