//! What all passes share.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{Client, runtime::events::Recorder};

use super::{desired, prober::Prober, quota::Quotas, remembered::RememberedChannels};
use crate::{leader::Lead, metrics::Metrics, stream::Streams, tenancy::Namespaces};

pub(super) struct Context {
    pub(super) client: Client,
    pub(super) streams: Streams,
    pub(super) settings: desired::Settings,
    /// Identity of the cluster in streams' metadata.
    pub(super) cluster: String,
    /// Longest time between two passes over a channel.
    pub(super) resync: Duration,
    pub(super) prober: Arc<Prober>,
    /// Every pass is held by it.
    pub(super) lead: Lead,
    pub(super) recorder: Recorder,
    pub(super) metrics: Arc<Metrics>,
    pub(super) remembered: RememberedChannels,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) quotas: Quotas,
}

impl Context {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Forgets all that is remembered of channels and streams: another operator may have acted
    /// since.
    pub(super) fn forget_all(&self) {
        self.remembered.forget_all();
        self.streams.forget_all();
        self.quotas.forget_all();
    }
}
