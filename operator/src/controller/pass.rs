//! One pass over one channel, step by step as the [module above](super) lists them.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Resource,
    core::DeserializeGuard,
    runtime::{controller::Action, reflector::ObjectRef},
};
use sluice_channel::ChannelConfig;

use super::{
    apply::{self, Applied, Applier},
    context::Context,
    delete::{self, Left},
    desired::{self, Children},
    live::{self, Live},
    ownership::is_ours,
    pods::{self, Pods},
    prober::Look,
    remembered::{Remembered, Taken},
    rollouts, scaling,
    status::{
        self, Exposure, Kept, Observation, Unobserved, Workload,
        outcome::{Next, WasReady},
    },
    tell::{self, Scaled},
    tenancy::{self, Fit},
    validate::{self, ValidChannel},
};
use crate::{
    crd::{
        ManagementPolicy, SseChannel, SseChannelStatus,
        condition::{Cause, READY, STREAM_READY},
        status::StreamStatus,
    },
    kube_error,
    stream::{self, Difference, Mode, Report},
    tenancy::Rights,
};

/// Longest a pass may take: all waits for NATS added up, and room for an API server that is slow.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Why a pass was cut short; it is repeated after a pause that grows.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{}", kube_error::text(.0))]
    Api(#[from] kube::Error),
    /// A defect of this program.
    #[error(transparent)]
    Desired(#[from] desired::Error),
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("not finished within {} s", LIMIT.as_secs())]
    TooLong,
    /// A defect of this program; the other channels are looked at all the same.
    #[error("a defect of this program ended it: {0}")]
    Panicked(String),
}

/// Reads the channel and does what it asks for.
pub(super) async fn run(ctx: &Context, name: &ObjectRef<SseChannel>) -> Result<Action, Error> {
    let namespace = name.namespace.as_deref().unwrap_or_default();
    let mut remembered = ctx.remembered.take(name);
    let guarded: Api<DeserializeGuard<SseChannel>> = Api::namespaced(ctx.client.clone(), namespace);
    let channel = match guarded.get_opt(&name.name).await? {
        None => {
            ctx.gone(name);
            remembered.forget();
            return Ok(Action::await_change());
        }
        Some(DeserializeGuard(Err(invalid))) => {
            // Nothing can be done before it is changed; the others go on.
            tell::of_undecodable(ctx, &invalid, &mut remembered.undecodable).await;
            return Ok(Action::await_change());
        }
        Some(DeserializeGuard(Ok(channel))) => channel,
    };
    remembered.belongs_to(channel.metadata.uid.as_deref());
    let api = Api::namespaced(ctx.client.clone(), namespace);
    if channel.metadata.deletion_timestamp.is_some() {
        return Ok(match delete::delete(ctx, &api, &channel).await? {
            Left::Nothing => {
                ctx.gone(name);
                remembered.forget();
                Action::await_change()
            }
            Left::Retry => ctx.look_after(name, remembered.failed()),
        });
    }
    if channel.status.is_none() {
        tracing::info!("channel created");
    }
    let rights = ctx.namespaces.rights(namespace).await?;
    match validated(&channel, &ctx.cluster, rights.as_ref()) {
        Ok(valid) => {
            Pass { ctx, api, name, channel: &channel, rights, valid, remembered }.run().await
        }
        Err(why @ Unobserved::NotGranted(_)) => {
            Ok(tenancy::refuse(ctx, &api, &channel, &why).await?)
        }
        Err(why) => {
            let mut status = status::unobserved(&channel, &why, ctx.now());
            tenancy::set_accepted(ctx, &channel, &mut status, &tenancy::unknown(&why.cause()));
            tell::of_status(ctx, &channel, &status).await;
            status::write(&api, &channel, &status, &ctx.metrics).await?;
            ctx.metrics.channel(namespace, &name.name, &status.conditions);
            Ok(Action::await_change())
        }
    }
}

fn validated(
    channel: &SseChannel,
    cluster: &str,
    rights: Option<&Rights>,
) -> Result<ValidChannel, Unobserved> {
    if channel.spec.management_policy == ManagementPolicy::Paused {
        return Err(Unobserved::Paused);
    }
    validate::within(channel, cluster, rights).map_err(|error| match error {
        validate::Error::NotGranted(_) => Unobserved::NotGranted(error.to_string()),
        error => Unobserved::Invalid(error.to_string()),
    })
}

struct Pass<'a> {
    ctx: &'a Context,
    api: Api<SseChannel>,
    name: &'a ObjectRef<SseChannel>,
    channel: &'a SseChannel,
    /// What the namespace may ask for; `None` = everything.
    rights: Option<Rights>,
    valid: ValidChannel,
    remembered: Taken<'a>,
}

/// What became of the objects.
struct Objects {
    applied: Applied,
    /// Objects that differ and were left so, or have to be for now.
    drift: Vec<Difference>,
    /// Whether objects are made, or would be if the policy were not Observe.
    served: bool,
}

impl Objects {
    /// Why the pods' objects could not be written, where another attempt may succeed and
    /// `known` says something else.
    fn failure(&self, known: Option<&str>) -> Option<String> {
        let error = self.applied.pods.as_ref().err().filter(|error| error.is_transient())?;
        Some(error.to_string()).filter(|text| Some(text.as_str()) != known)
    }
}

impl Pass<'_> {
    async fn run(mut self) -> Result<Action, Error> {
        let mode = match self.valid.management_policy {
            ManagementPolicy::Enforce => Mode::Enforce,
            ManagementPolicy::Observe | ManagementPolicy::Paused => Mode::Observe,
        };
        let fit = self.fit(mode).await?;
        let (accepted, unasked) = match fit {
            Fit::Stream(accepted) => (accepted, None),
            Fit::Unknown(error) => {
                (tenancy::unknown(&Cause::new(error.reason(), error.to_string())), Some(error))
            }
            Fit::NoRoom(why) => {
                return Ok(tenancy::no_room(self.ctx, &self.api, self.channel, why).await?);
            }
        };
        if mode == Mode::Enforce {
            // Before there is a stream: a channel deleted in between must not leave one behind.
            delete::settle_finalizer(self.ctx, &self.api, self.channel).await?;
        }
        let (stream, kept) = match unasked {
            Some(error) => (Err(error), None),
            None => self.stream(mode).await,
        };
        let mut live = self.live(mode).await?;
        let counted = self.count(&live).await;
        let desired = self.desired(mode, &live, counted.as_ref())?;
        let before = live.deployment.as_ref().and_then(scaling::replicas);
        let objects = self.apply(mode, &stream, desired, &mut live).await?;
        let pods = self.pods(counted, &live).await;
        let seen =
            observation(self.channel, &self.valid, self.ctx, &stream, &objects, &live, &pods);
        let (seen, now) = (Observation { kept, ..seen }, self.ctx.now());
        let parts = status::parts(self.channel, &seen, now);
        let mut status = status::status(self.channel, &seen, &parts, now);
        tenancy::set_accepted(self.ctx, self.channel, &mut status, &accepted);
        if mode == Mode::Enforce {
            mark(self.ctx, &mut self.remembered, self.channel, &stream, &mut status).await;
        }
        let scaled = Scaled { before, after: live.deployment.as_ref().and_then(scaling::replicas) };
        tell::of_scaling(self.ctx, self.channel, scaled).await;
        let unmonitored = &mut self.remembered.unmonitored;
        tell::of_surroundings(self.ctx, self.channel, &status, &seen, unmonitored).await;
        tell::of_status(self.ctx, self.channel, &status).await;
        if let Some(failure) = objects.failure(self.remembered.error.as_deref()) {
            self.ctx.tell(self.channel, "ApplyFailed", &failure, true).await;
        }
        status::write(&self.api, self.channel, &status, &self.ctx.metrics).await?;
        let (namespace, name) = (&self.valid.namespace, self.valid.name.as_str());
        self.ctx.metrics.channel(namespace, name, &status.conditions);
        // The status says it, too: a failure that may pass is told before it cuts the pass short.
        objects.applied.into_result()?;
        if self.remembered.recovered() {
            tracing::info!("reconciled again after a failure");
        }
        Ok(self.next(parts.next()))
    }

    /// What the stream may be; while only observing it is compared as the spec says.
    async fn fit(&mut self, mode: Mode) -> Result<Fit, kube::Error> {
        let rights = self.rights.as_ref();
        if mode == Mode::Observe {
            return Ok(Fit::Stream(tenancy::accepted(rights)));
        }
        tenancy::fit(self.ctx, rights, self.channel, &mut self.valid, &mut self.remembered).await
    }

    /// The stream that the status names as the channel's own.
    fn proven_stream(&self) -> Option<&StreamStatus> {
        let status = self.channel.status.as_ref()?.stream.as_ref()?;
        (status.owned && status.name == self.valid.stream.name.as_str()).then_some(status)
    }

    /// What became of the stream, and what was said of it last where it may be out of sight for
    /// a moment.
    async fn stream(&mut self, mode: Mode) -> (Result<Report, stream::Error>, Option<Kept>) {
        if let Some(known) = self.proven_stream() {
            let (streams, owner) = (&self.ctx.streams, &self.valid.stream.owner);
            match self.channel.status.as_ref().and_then(|status| status.mark.as_ref()) {
                Some(mark) => {
                    streams.remember_mark(&known.name, owner, &known.created_time, mark);
                }
                None => streams.remember(&known.name, owner, &known.created_time),
            }
        }
        let stream = self.ctx.streams.ensure(&self.valid.stream, mode).await;
        let unsure = stream.as_ref().is_err_and(stream::Error::is_transient);
        let pace = &mut self.remembered.pace;
        let kept = pace
            .is_within_grace(unsure, self.ctx.nats_grace, Instant::now())
            .then(|| kept(self.channel))
            .flatten();
        if kept.is_none() {
            tell::of_stream(self.ctx, self.channel, &self.valid.stream.name, &stream).await;
        }
        (stream, kept)
    }

    async fn live(&mut self, mode: Mode) -> Result<Live, kube::Error> {
        let live = live::read(&self.ctx.client, &self.valid, &mut self.remembered.absent).await?;
        keep_generation(&mut self.valid, live.config.as_ref(), mode);
        Ok(live)
    }

    fn by_connections(&self) -> bool {
        let autoscaling = self.valid.workload.autoscaling.as_ref();
        autoscaling.is_some_and(|scaling| scaling.connections_per_pod.is_some())
    }

    /// The pods, where their connections decide how many there should be.
    async fn count(&self, live: &Live) -> Option<Pods> {
        if self.by_connections() { Some(self.look(live).await) } else { None }
    }

    async fn look(&self, live: &Live) -> Pods {
        let look = Look {
            channel: self.name,
            pods: &live.pods,
            generation: self.valid.config.generation,
            every: self.pause(),
        };
        self.ctx.prober.look(&look).await
    }

    fn desired(
        &mut self,
        mode: Mode,
        live: &Live,
        counted: Option<&Pods>,
    ) -> Result<Children, desired::Error> {
        let observe = mode == Mode::Observe;
        let window = &mut self.remembered.scaling;
        let load = scaling::load(&self.valid, live, counted, observe, window, Instant::now());
        desired::desired(&self.valid, &self.ctx.settings, load)
    }

    async fn apply(
        &mut self,
        mode: Mode,
        stream: &Result<Report, stream::Error>,
        desired: Children,
        live: &mut Live,
    ) -> Result<Objects, apply::Error> {
        let nothing = Applied::nothing();
        if mode == Mode::Observe {
            let drift = apply::differences(&desired, live, &self.valid.uid)?;
            return Ok(Objects { applied: nothing, drift, served: true });
        }
        // Pods never serve a stream that may be another owner's.
        let served = match stream {
            Ok(_) => true,
            Err(error) => self.proven_stream().is_some() && !error.is_foreign(),
        };
        if !served {
            return Ok(Objects { applied: nothing, drift: Vec::new(), served });
        }
        let holds_pods = self.holds_pods(&desired, live)?;
        let applier = Applier {
            client: &self.ctx.client,
            channel: &self.valid,
            metrics: &self.ctx.metrics,
            holds_pods,
        };
        let applied = applier.apply(&desired, live, &mut self.remembered.projections).await;
        Ok(Objects { drift: applied.pending.clone(), applied, served })
    }

    /// Whether pods that would be replaced wait for the channel's turn. What its spec asks for does
    /// not wait.
    fn holds_pods(&self, desired: &Children, live: &Live) -> Result<bool, apply::Error> {
        let rollouts = &self.ctx.rollouts;
        let observed = self.channel.status.as_ref().and_then(|status| status.observed_generation);
        let is_edited = observed != self.channel.metadata.generation;
        let found = live.deployment.as_ref().filter(|found| is_ours(found.meta(), &self.valid.uid));
        let Some(found) = found.filter(|_| !is_edited) else {
            rollouts.is_over(self.name);
            return Ok(false);
        };
        if apply::was_applied(&desired.deployment, found)? {
            if rollouts::is_complete(found) {
                rollouts.is_over(self.name);
            }
            return Ok(false);
        }
        let channels = self.ctx.channels.load(Ordering::Relaxed);
        Ok(!rollouts.may_begin(self.name, channels))
    }

    /// The pods as `counted`, or asked now.
    async fn pods(&self, counted: Option<Pods>, live: &Live) -> Pods {
        let mut pods = match counted {
            Some(pods) => pods,
            None => self.look(live).await,
        };
        if pods.trouble.is_none()
            && let Some(silent) = live.pods.iter().find(|pod| pods::is_silent(pod))
        {
            pods.trouble = pods::mount_trouble(&self.ctx.client, silent).await;
        }
        pods
    }

    /// How often the channel is looked at, and its pods are asked, while nothing happens.
    fn pause(&self) -> Duration {
        let pause = if self.by_connections() { scaling::LOOK } else { self.ctx.resync };
        pause.min(self.ctx.resync)
    }

    /// When to look again without being told.
    fn next(&mut self, next: Next) -> Action {
        self.remembered.succeeded();
        let longest = self.pause();
        let pause = self.remembered.pace.pause(next, longest);
        self.ctx.look_after(self.name, pause)
    }
}

/// Puts the stream's newest event into `status`, where the status is written anyway, or once in a
/// while: the one thing that changes with each event must not make a write of each.
async fn mark(
    ctx: &Context,
    remembered: &mut Remembered,
    channel: &SseChannel,
    stream: &Result<Report, stream::Error>,
    status: &mut SseChannelStatus,
) {
    let Ok(Report { stream: Some(facts), .. }) = stream else { return };
    let known = status.mark.clone().unwrap_or_default();
    let last = i64::try_from(facts.last_sequence).unwrap_or(i64::MAX);
    let renewed = known.epochs < facts.epochs;
    if !renewed && known.sequence >= last {
        return;
    }
    let since = *remembered.marked.get_or_insert_with(Instant::now);
    let is_written = channel.status.as_ref() != Some(status);
    if renewed || is_written || since.elapsed() >= ctx.streams.mark_interval() {
        remembered.marked = Some(Instant::now());
        match ctx.streams.mark(facts).await {
            Ok(mark) => status.mark = Some(mark),
            Err(error) => tracing::debug!(%error, "the newest event cannot be read; no new mark"),
        }
    }
}

/// What the status says of the stream, if it says that it is in sync.
fn kept(channel: &SseChannel) -> Option<Kept> {
    let said = status::find(&channel.status.as_ref()?.conditions, STREAM_READY)?;
    (said.status == "True")
        .then(|| Kept { message: said.message.clone(), generation: said.observed_generation })
}

fn was_ready(channel: &SseChannel) -> Option<WasReady> {
    let status = channel.status.as_ref()?;
    let ready = status::find(&status.conditions, READY).filter(|ready| ready.status == "True")?;
    Some(WasReady {
        generation: ready.observed_generation,
        pods: status.workload.as_ref().map_or(0, |workload| workload.ready_replicas),
        message: ready.message.clone(),
    })
}

fn observation<'a>(
    channel: &SseChannel,
    valid: &'a ValidChannel,
    ctx: &Context,
    stream: &'a Result<Report, stream::Error>,
    objects: &'a Objects,
    live: &'a Live,
    pods: &'a Pods,
) -> Observation<'a> {
    let Objects { applied, drift, served } = objects;
    let failure = applied.pods.as_ref().err();
    // Where another attempt may succeed, pods that are there are told of all the same.
    let unwritten =
        failure.filter(|error| error.is_transient() && *served && live.deployment.is_some());
    let workload = match failure {
        Some(error) if unwritten.is_none() => Workload::Failed(error),
        None if !served && live.deployment.is_none() => Workload::Waiting,
        _ => Workload::Seen {
            deployment: live.deployment.as_ref(),
            pods,
            generation: valid.config.generation,
        },
    };
    Observation {
        name: valid.name.as_str(),
        stream_name: valid.stream.name.as_str(),
        stream,
        workload,
        unwritten,
        kept: None,
        was_ready: was_ready(channel),
        drift: drift.clone(),
        pending: &applied.pending,
        url: desired::service::internal_url(valid, &ctx.settings),
        exposure: Exposure::of(valid, applied, live),
        external_urls: desired::exposure::external_urls(valid),
        unmonitored: applied.monitoring.as_ref().err().map(ToString::to_string),
        too_large: ctx.streams.too_large(valid.stream.max_message_size),
        autoscaler: live.autoscaler.as_ref(),
    }
}

/// The file in the cluster keeps the generation that it was written with as long as nothing else
/// of it changes, so that what does not concern the pods (their number, labels, the policy)
/// makes no file that they have to load. While only observing, that is so whatever changes.
fn keep_generation(valid: &mut ValidChannel, live: Option<&ConfigMap>, mode: Mode) {
    let file = desired::config::file_name(valid.name.as_str());
    let text = live.and_then(|map| map.data.as_ref()).and_then(|data| data.get(&file));
    let found = text.and_then(|text| ChannelConfig::from_json(text.as_bytes()).ok());
    let (Some(found), Some(text)) = (found, text) else { return };
    let kept = ChannelConfig { generation: found.generation, ..valid.config.clone() };
    if mode == Mode::Observe || kept.to_json().is_ok_and(|same| same == *text) {
        valid.config = kept;
    }
}
