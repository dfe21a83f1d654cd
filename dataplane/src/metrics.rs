//! What the pod counts, in OpenMetrics text.

mod histogram;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub(crate) use histogram::Histogram;

use crate::{
    frame::{CloseReason, GapReason},
    log::Origin,
};

/// Label set of a series per channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByChannel {
    channel: String,
}

/// Label set of a series per channel and reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    channel: String,
    reason: &'static str,
}

/// Label set of a series per channel and result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    channel: String,
    result: &'static str,
}

/// Label set of a series per channel and source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    channel: String,
    source: &'static str,
}

/// All series of the pod.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    connections: Family<ByChannel, Gauge>,
    events_delivered: Family<ByChannel, Counter>,
    bytes_written: Family<ByChannel, Counter>,
    replay_reads: Family<BySource, Counter>,
    gaps: Family<ByReason, Counter>,
    closes: Family<ByReason, Counter>,
    publishes: Family<ByResult, Counter>,
    publish_to_write: Family<ByChannel, Histogram>,
    reader_lag: Family<ByChannel, Gauge>,
    invalid_payloads: Family<ByChannel, Gauge>,
    config_errors: Counter,
    config_refused: Gauge,
    config_unknown_fields: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sluice");
        let metrics = Self {
            connections: Family::default(),
            events_delivered: Family::default(),
            bytes_written: Family::default(),
            replay_reads: Family::default(),
            gaps: Family::default(),
            closes: Family::default(),
            publishes: Family::default(),
            publish_to_write: Family::default(),
            reader_lag: Family::default(),
            invalid_payloads: Family::default(),
            config_errors: Counter::default(),
            config_refused: Gauge::default(),
            config_unknown_fields: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("connections", "Open streams", metrics.connections.clone());
        registry.register(
            "events_delivered",
            "Events handed to subscribers' connections",
            metrics.events_delivered.clone(),
        );
        registry.register(
            "bytes_written",
            "Bytes handed to subscribers' connections",
            metrics.bytes_written.clone(),
        );
        registry.register(
            "replay_reads",
            "Reads of the log by subscribers that catch up",
            metrics.replay_reads.clone(),
        );
        registry.register("gaps", "channel.gap events sent", metrics.gaps.clone());
        registry.register("closes", "Streams ended", metrics.closes.clone());
        registry.register("publishes", "Publishes over HTTP", metrics.publishes.clone());
        let help = "Time from the store taking an event to its hand-over to a live subscriber's connection, in seconds";
        registry.register("publish_to_write_seconds", help, metrics.publish_to_write.clone());
        registry.register(
            "reader_lag_events",
            "How far the store was ahead of the reader when last asked",
            metrics.reader_lag.clone(),
        );
        registry.register(
            "invalid_payloads",
            "Events that channel.invalid stands for: payload or topic is not text",
            metrics.invalid_payloads.clone(),
        );
        registry.register(
            "config_errors",
            "Channel configuration files that were refused",
            metrics.config_errors.clone(),
        );
        registry.register(
            "config_refused",
            "Channel configuration files that are refused now",
            metrics.config_refused.clone(),
        );
        registry.register(
            "config_unknown_fields",
            "Fields of channel configurations in force that this release does not know",
            metrics.config_unknown_fields.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// The same, with what the connection to NATS counts itself.
    #[must_use]
    pub(crate) fn with_connection(nats_clients_replaced: Counter) -> Self {
        let mut metrics = Self::default();
        let help = "NATS clients that ended and were replaced by another";
        metrics.registry.register("nats_clients_replaced", help, nats_clients_replaced);
        metrics
    }

    #[must_use]
    pub(crate) fn channel(&self, name: &str) -> ChannelMetrics {
        let channel = name.to_owned();
        let by_channel = ByChannel { channel: channel.clone() };
        ChannelMetrics {
            channel,
            connections: self.connections.get_or_create_owned(&by_channel),
            events_delivered: self.events_delivered.get_or_create_owned(&by_channel),
            bytes_written: self.bytes_written.get_or_create_owned(&by_channel),
            replay_memory: self
                .replay_reads
                .get_or_create_owned(&BySource { channel: name.to_owned(), source: "memory" }),
            replay_store: self
                .replay_reads
                .get_or_create_owned(&BySource { channel: name.to_owned(), source: "store" }),
            publish_to_write: self.publish_to_write.get_or_create_owned(&by_channel),
            reader_lag: self.reader_lag.get_or_create_owned(&by_channel),
            invalid_payloads: self.invalid_payloads.get_or_create_owned(&by_channel),
            gaps: self.gaps.clone(),
            closes: self.closes.clone(),
            publishes: self.publishes.clone(),
        }
    }

    pub(crate) fn config_error(&self) {
        self.config_errors.inc();
    }

    /// What of the configuration is not in force: files, and fields of others.
    pub(crate) fn config_troubles(&self, refused: usize, unknown_fields: usize) {
        self.config_refused.set(i64::try_from(refused).unwrap_or(i64::MAX));
        self.config_unknown_fields.set(i64::try_from(unknown_fields).unwrap_or(i64::MAX));
    }

    /// All series as OpenMetrics text.
    ///
    /// # Errors
    /// Never when writing to memory; the signature is the encoder's.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Seconds since a time in Unix nanoseconds; 0 for one in the future, as the store's clock may be
/// ahead.
#[must_use]
pub(crate) fn seconds_since(time_nanos: i64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let nanos = i128::try_from(now).unwrap_or(i128::MAX) - i128::from(time_nanos);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)).as_secs_f64()
}

#[derive(Debug)]
pub(crate) struct ChannelMetrics {
    channel: String,
    /// Open streams.
    pub(crate) connections: Gauge,
    /// Events handed over.
    pub(crate) events_delivered: Counter,
    /// Bytes handed over.
    pub(crate) bytes_written: Counter,
    /// Seconds from store to hand-over.
    pub(crate) publish_to_write: Histogram,
    /// Events the store is ahead.
    pub(crate) reader_lag: Gauge,
    /// Payloads that were not text.
    pub(crate) invalid_payloads: Gauge,
    replay_memory: Counter,
    replay_store: Counter,
    gaps: Family<ByReason, Counter>,
    closes: Family<ByReason, Counter>,
    publishes: Family<ByResult, Counter>,
}

impl ChannelMetrics {
    /// Counts a read by a subscriber that catches up.
    pub(crate) fn replay_read(&self, origin: Origin) {
        match origin {
            Origin::Memory => self.replay_memory.inc(),
            Origin::Store => self.replay_store.inc(),
        };
    }

    pub(crate) fn gap(&self, reason: GapReason) {
        self.gaps
            .get_or_create(&ByReason { channel: self.channel.clone(), reason: reason.as_str() })
            .inc();
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        self.closes
            .get_or_create(&ByReason { channel: self.channel.clone(), reason: reason.as_str() })
            .inc();
    }

    pub(crate) fn publish(&self, result: &'static str) {
        self.publishes.get_or_create(&ByResult { channel: self.channel.clone(), result }).inc();
    }
}
