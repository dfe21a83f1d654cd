//! One channel on this pod: its configuration, its log, its numbers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use arc_swap::{ArcSwap, Guard};
use rand::Rng;
use sluice_channel::{ChannelConfig, ChannelName};
use std::time::Duration;
use tracing::error_span;

use crate::{
    log::{Log, Options},
    metrics::ChannelMetrics,
    source::{Error, Source},
    throttle::Throttle,
};

/// A channel that this pod serves.
#[derive(Debug)]
pub(crate) struct Channel {
    name: ChannelName,
    config: ArcSwap<ChannelConfig>,
    log: Arc<Log>,
    metrics: ChannelMetrics,
    connections: AtomicU32,
    removed: AtomicBool,
    failures: Throttle,
}

/// Requests that the store has failed are logged once in this time, with a count.
const FAILURE_LOG_PERIOD: Duration = Duration::from_secs(10);

fn options(config: &ChannelConfig) -> Options {
    let delivery = &config.delivery;
    Options {
        encoding: delivery.encoding,
        compacted: config.stream.compacted,
        cache_bytes: delivery.cache_bytes,
    }
}

impl Channel {
    /// A channel over `source`; its log has to be driven with [`Log::run`].
    #[must_use]
    pub(crate) fn new(
        config: ChannelConfig,
        source: Arc<dyn Source>,
        metrics: ChannelMetrics,
    ) -> Self {
        // An error span, so that a filter for warnings does not take their subject away. The field
        // is not called `name`: in JSON lines that is the span's own name.
        let span = error_span!("channel", channel = %config.name);
        Self {
            name: config.name.clone(),
            log: Arc::new(Log::new(source, options(&config), span)),
            config: ArcSwap::from_pointee(config),
            metrics,
            connections: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            failures: Throttle::new(FAILURE_LOG_PERIOD),
        }
    }

    #[must_use]
    pub(crate) const fn name(&self) -> &ChannelName {
        &self.name
    }

    /// The configuration in force at this moment.
    pub(crate) fn config(&self) -> Guard<Arc<ChannelConfig>> {
        self.config.load()
    }

    /// Puts a changed configuration in force; open streams go on under it.
    pub(crate) fn set_config(&self, config: ChannelConfig) {
        self.log.set_options(options(&config));
        self.config.store(Arc::new(config));
    }

    #[must_use]
    pub(crate) const fn log(&self) -> &Arc<Log> {
        &self.log
    }

    #[must_use]
    pub(crate) const fn metrics(&self) -> &ChannelMetrics {
        &self.metrics
    }

    /// A reconnection time for one connection, random within the channel's bounds so that
    /// subscribers that were cut together do not come back together.
    #[must_use]
    pub(crate) fn retry(&self) -> Duration {
        let config = self.config();
        rand::rng().random_range(config.delivery.retry_min..=config.delivery.retry_max)
    }

    /// Says in the log why a request was not served: its answer names nothing that is inside.
    pub(crate) fn note_failure(&self, request: &'static str, error: &Error) {
        if let Some(passed_over) = self.failures.admit() {
            let channel = &self.name;
            tracing::warn!(%channel, request, %error, passed_over, "the store failed a request");
        }
    }

    /// Whether the channel was removed while the pod runs.
    #[must_use]
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// Marks the channel as removed: its URL answers 204 from now on.
    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Relaxed);
    }

    /// Takes one of the channel's connections; `false` when all are taken.
    #[must_use]
    pub(crate) fn take_slot(&self) -> bool {
        let max = self.config().delivery.max_connections;
        let taken =
            self.connections.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_ok();
        if taken {
            self.metrics.connections.inc();
        }
        taken
    }

    /// Streams that are open.
    #[must_use]
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Gives a connection back that [`Self::take_slot`] took.
    pub(crate) fn release_slot(&self) {
        self.connections.fetch_sub(1, Relaxed);
        self.metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use parking_lot::Mutex;
    use tokio_util::sync::CancellationToken;
    use tracing::Level;

    use super::*;
    use crate::{metrics::Metrics, source::memory::MemorySource};

    const CONFIG: &str = r#"{
        "version": 1, "name": "orders", "namespace": "d", "generation": 1,
        "stream": {"name": "s", "subjects": [">"], "topicPrefix": ""}
    }"#;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged from `level` on while the store of a channel is away and comes back.
    async fn lines_of_an_outage(level: Level) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let source = MemorySource::default();
        let config = ChannelConfig::from_json(CONFIG.as_bytes()).unwrap();
        let channel =
            Channel::new(config, Arc::new(source.clone()), Metrics::default().channel("orders"));
        let mut head = channel.log().head();
        let outage = async {
            head.wait_for(|head| head.epoch.is_some()).await.unwrap();
            source.set_reachable(false);
            head.wait_for(|head| head.down_since.is_some()).await.unwrap();
            source.set_reachable(true);
            head.wait_for(|head| head.down_since.is_none()).await.unwrap();
        };
        tokio::select! {
            () = Arc::clone(channel.log()).run(CancellationToken::new()) => {}
            () = outage => {}
        }
        String::from_utf8(lines.0.lock().clone()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn log_lines_of_an_outage_name_the_channel() {
        for (level, fault) in [
            (Level::INFO, "the tail was interrupted"),
            (Level::WARN, "the store is unreachable"),
            (Level::INFO, "the store answers"),
        ] {
            let text = lines_of_an_outage(level).await;
            let line = text.lines().find(|line| line.contains(fault)).unwrap_or_default();
            assert!(line.contains("channel{channel=orders}"), "{fault}: {text}");
        }
    }
}
