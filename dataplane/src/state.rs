//! The state of the pod that listeners, tasks and the drain share.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission, budget::Budgets, channel::Channel, metrics::Metrics, phase::PhaseCell,
    registry::Registry,
};

/// What the listeners and the drain share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    channels: ArcSwap<BTreeMap<String, Arc<Channel>>>,
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

    /// The channel `name`, also when it was removed.
    #[must_use]
    pub(crate) fn channel(&self, name: &str) -> Option<Arc<Channel>> {
        self.channels.load().get(name).cloned()
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
}
