//! The state of the pod that listeners, tasks and the drain share.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission, budget::Budgets, channel::Channel, config_dir::Troubles,
    metrics::Metrics, phase::PhaseCell, registry::Registry,
};

/// What the listeners and the drain share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    channels: ArcSwap<BTreeMap<String, Arc<Channel>>>,
    troubles: ArcSwap<Troubles>,
    dead: ArcSwapOption<String>,
    pub(crate) instance: String,
    pub(crate) admission: Admission,
    pub(crate) budgets: Budgets,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) phase: PhaseCell,
    /// Cancelled to begin the drain.
    pub(crate) drain: CancellationToken,
}

impl Shared {
    /// The state of a pod that serves no channel yet.
    #[must_use]
    pub(crate) fn new(instance: String, admission: Admission, metrics: Metrics) -> Self {
        Self { instance, admission, metrics, ..Self::default() }
    }

    /// The channel `name`, also when it was removed; not when it may be about to come back, since
    /// "removed" is final to a client.
    #[must_use]
    pub(crate) fn channel(&self, name: &str) -> Option<Arc<Channel>> {
        let channel = self.channels.load().get(name).cloned()?;
        (!channel.is_removed() || self.is_known_absent(name)).then_some(channel)
    }

    /// All channels, removed ones too.
    #[must_use]
    pub(crate) fn channels(&self) -> Vec<Arc<Channel>> {
        self.channels.load().values().cloned().collect()
    }

    /// Serves `channel` under `name` from now on. One task alone calls this: of two calls at the
    /// same moment one would be lost.
    pub(crate) fn insert(&self, name: String, channel: Arc<Channel>) {
        let mut channels = BTreeMap::clone(&self.channels.load());
        channels.insert(name, channel);
        self.channels.store(Arc::new(channels));
    }

    /// What has stood still for too long, as the probes' thread saw it last.
    #[must_use]
    pub(crate) fn dead(&self) -> Option<Arc<String>> {
        self.dead.load_full()
    }

    pub(crate) fn set_dead(&self, dead: Option<&str>) {
        if dead.is_some() || self.dead.load().is_some() {
            self.dead.store(dead.map(|dead| Arc::new(dead.to_owned())));
        }
    }

    /// What of the configuration is not in force.
    #[must_use]
    pub(crate) fn troubles(&self) -> Arc<Troubles> {
        self.troubles.load_full()
    }

    /// Publishes what of the configuration is not in force.
    pub(crate) fn set_troubles(&self, troubles: Troubles) {
        if *self.troubles.load_full() != troubles {
            self.metrics.config_troubles(troubles.refused.len(), troubles.unknown_fields);
            self.troubles.store(Arc::new(troubles));
        }
    }

    /// Whether it is known that there is no channel of this name: a client that is told so may stay
    /// away for ever.
    #[must_use]
    pub(crate) fn is_known_absent(&self, name: &str) -> bool {
        !self.channels.load().is_empty() && !self.troubles.load().may_name(name)
    }
}
