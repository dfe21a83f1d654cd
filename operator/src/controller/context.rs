//! What all passes share.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    runtime::{events::Recorder, reflector::ObjectRef},
};

use super::{desired, prober::Prober, remembered::RememberedChannels};
use crate::{crd::SseChannel, leader::Lead, metrics::Metrics, stream::Streams};

pub(super) struct Context {
    pub(super) client: Client,
    pub(super) streams: Streams,
    pub(super) settings: desired::Settings,
    /// Identity of the cluster in streams' metadata.
    pub(super) cluster: String,
    /// Longest time between two passes over a channel.
    pub(super) resync: Duration,
    /// How long a stream may be out of sight before its channel's conditions say so.
    pub(super) nats_grace: Duration,
    pub(super) prober: Arc<Prober>,
    /// Every pass is held by it.
    pub(super) lead: Lead,
    pub(super) recorder: Recorder,
    pub(super) metrics: Arc<Metrics>,
    pub(super) remembered: RememberedChannels,
}

impl Context {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The channel is no more; what is remembered of it goes with its last pass.
    pub(super) fn gone(&self, channel: &ObjectRef<SseChannel>) {
        self.prober.forget(channel);
        if self
            .metrics
            .forget_channel(channel.namespace.as_deref().unwrap_or_default(), &channel.name)
        {
            tracing::info!(
                channel = channel.name,
                namespace = channel.namespace,
                "channel deleted"
            );
        }
    }

    /// Forgets all that is remembered of channels and streams: another operator may have acted
    /// since.
    pub(super) fn forget_all(&self) {
        self.remembered.forget_all();
        self.metrics.forget_channels();
        self.streams.forget_all();
    }
}
