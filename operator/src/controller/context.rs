//! What all passes share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    runtime::{controller::Action, events::Recorder, reflector::ObjectRef},
};
use rand::Rng;

use super::{
    desired, followed::Gone, gate::Gate, prober::Prober, quota::Quotas,
    remembered::RememberedChannels, rollouts::Rollouts,
};
use crate::{
    crd::SseChannel,
    leader::Lead,
    metrics::Metrics,
    stream::{Owner, Streams},
    tenancy::Namespaces,
};

/// How much earlier than asked for a look may come.
const JITTER: f64 = 0.05;

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
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) quotas: Quotas,
    /// Gives out the slots for passes.
    pub(super) gate: Arc<Gate>,
    /// Which channels may replace their pods.
    pub(super) rollouts: Rollouts,
    /// How many channels are known.
    pub(super) channels: AtomicUsize,
}

impl Context {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// A look at the channel after `pause`, or a little earlier, so that channels that were looked
    /// at together do not stay together.
    pub(super) fn look_after(&self, channel: &ObjectRef<SseChannel>, pause: Duration) -> Action {
        let pause = pause.mul_f64(1.0 - rand::rng().random_range(0.0..JITTER));
        self.gate.look_after(channel, pause);
        Action::requeue(pause)
    }

    /// One of the watches knows of `now` channels, and knew of `before`.
    pub(super) fn count(&self, before: usize, now: usize) {
        if before != now {
            let change = now.wrapping_sub(before);
            let others = self.channels.fetch_add(change, Ordering::Relaxed);
            self.metrics.channels(others.wrapping_add(change));
        }
    }

    /// Forgets all that is remembered of a channel that there is no more: the next one of its name
    /// is another.
    pub(super) fn forget(&self, gone: &Gone) {
        self.gate.forget(&gone.channel);
        self.rollouts.is_over(&gone.channel);
        self.gone(&gone.channel);
        self.remembered.forget(&gone.channel);
        self.streams.forget(&Owner {
            cluster: self.cluster.clone(),
            namespace: gone.channel.namespace.clone().unwrap_or_default(),
            name: gone.channel.name.clone(),
            uid: gone.uid.clone(),
        });
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
        self.quotas.forget_all();
        self.gate.forget_all();
        self.rollouts.forget_all();
    }
}
