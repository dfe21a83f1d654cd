//! The Kubernetes side, in named steps: [`live`] (client) → [`validate`] (pure) →
//! [`desired`] (pure) → [`apply`] (client; streams by [`crate::stream`]) → [`status`] (pure, then
//! written where it differs).

pub mod apply;
mod delete;
pub mod desired;
pub mod foreign;
mod hash;
pub mod live;
pub mod ownership;
pub mod pods;
mod scaling;
pub mod status;
mod tell;
pub mod validate;
mod watch;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::ConfigMap, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    core::DeserializeGuard,
    runtime::{controller::Action, events::Recorder, reflector::ObjectRef},
};
use sluice_channel::ChannelConfig;

use crate::{
    crd::{ManagementPolicy, SseChannel, condition::reason},
    leader::Lead,
    metrics::Metrics,
    stream::{self, Mode, Report, Streams},
};
use apply::Applied;
use delete::Left;
use status::{Exposure, Observation, Workload};
pub use watch::{Options, run};

/// First pause after a failed pass; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause after a failed pass.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Pause while something is on its way that no watch tells of: the file that travels to the pods.
const SOON: Duration = Duration::from_secs(2);

/// Longest a pass may take: all waits for NATS added up, and room for an API server that is slow.
const PASS_LIMIT: Duration = Duration::from_secs(60);

/// Why a pass was cut short; it is repeated after a pause that grows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server or the network.
    #[error("Kubernetes: {0}")]
    Api(#[from] kube::Error),
    /// The objects; a defect of this program.
    #[error(transparent)]
    Desired(#[from] desired::Error),
    /// One of the objects.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// Somebody gives no answer.
    #[error("not finished within {PASS_LIMIT:?}")]
    TooLong,
}

/// What every pass needs.
pub struct Context {
    client: Client,
    streams: Streams,
    settings: desired::Settings,
    cluster: String,
    resync: Duration,
    prober: pods::Prober,
    /// Every pass is held by it.
    lead: Lead,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    memories: Mutex<HashMap<ObjectRef<SseChannel>, Remembered>>,
}

/// What is remembered of a channel between passes; gone with the channel.
#[derive(Default)]
struct Remembered {
    failures: u32,
    applied: apply::Projections,
    absent: live::Absent,
    /// Pods that the connections asked for lately.
    scaling: scaling::Window,
    /// What was said last of a missing PodMonitor.
    unmonitored: Option<String>,
    /// Version of the object that was said to be undecodable.
    undecodable: Option<String>,
    /// The generation that each ready pod served when it was asked last.
    served: HashMap<String, i64>,
}

impl Context {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn memory<T>(
        &self,
        channel: &ObjectRef<SseChannel>,
        with: impl FnOnce(&mut Remembered) -> T,
    ) -> T {
        with(
            self.memories
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(channel.clone())
                .or_default(),
        )
    }

    fn forget(&self, channel: &ObjectRef<SseChannel>) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(channel);
    }

    /// Forgets all that is remembered of channels and streams: another operator may have acted
    /// since.
    fn forget_all(&self) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.streams.forget_all();
    }

    /// The pause after one more failure in a row.
    fn retry(&self, channel: &ObjectRef<SseChannel>) -> Duration {
        let failures = self.memory(channel, |memory| {
            memory.failures = memory.failures.saturating_add(1);
            memory.failures
        });
        (FIRST_RETRY * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(LAST_RETRY)
    }

    fn succeeded(&self, channel: &ObjectRef<SseChannel>) {
        self.memory(channel, |memory| memory.failures = 0);
    }
}

/// One pass over one channel, unless another operator leads: then every channel is looked at once
/// this one does.
async fn reconcile(
    object: Arc<DeserializeGuard<SseChannel>>,
    ctx: Arc<Context>,
) -> Result<Action, Error> {
    ctx.lead.hold(led(object, &ctx)).await.unwrap_or_else(|| Ok(Action::await_change()))
}

async fn led(object: Arc<DeserializeGuard<SseChannel>>, ctx: &Context) -> Result<Action, Error> {
    let started = Instant::now();
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let reference = ObjectRef::<SseChannel>::new(&name).within(&namespace);
    let pass = pass(&name, &namespace, &reference, ctx);
    let result = tokio::time::timeout(PASS_LIMIT, pass).await.unwrap_or(Err(Error::TooLong));
    let outcome = match &result {
        Ok(_) => "ok",
        Err(_) => "error",
    };
    ctx.metrics.reconciled(outcome, started.elapsed());
    result
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
fn on_error(object: Arc<DeserializeGuard<SseChannel>>, error: &Error, ctx: Arc<Context>) -> Action {
    let reference = ObjectRef::<SseChannel>::new(&object.name_any())
        .within(&object.namespace().unwrap_or_default());
    let pause = ctx.retry(&reference);
    tracing::warn!(channel = %reference, %error, ?pause, "the pass failed");
    Action::requeue(pause)
}

async fn pass(
    name: &str,
    namespace: &str,
    reference: &ObjectRef<SseChannel>,
    ctx: &Context,
) -> Result<Action, Error> {
    let guarded: Api<DeserializeGuard<SseChannel>> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(DeserializeGuard(object)) = guarded.get_opt(name).await? else {
        ctx.forget(reference);
        return Ok(Action::await_change());
    };
    let channel = match object {
        Ok(channel) => channel,
        Err(invalid) => {
            // Nothing can be done before it is changed; the others go on.
            tracing::error!(channel = %reference, error = %invalid.error, "cannot be decoded and is left alone; correct its spec");
            tell::of_undecodable(&invalid, reference, ctx).await;
            return Ok(Action::await_change());
        }
    };
    let api: Api<SseChannel> = Api::namespaced(ctx.client.clone(), namespace);
    if channel.metadata.deletion_timestamp.is_some() {
        return Ok(match delete::delete(&api, &channel, ctx).await? {
            Left::Nothing => Action::await_change(),
            Left::Retry => Action::requeue(ctx.retry(reference)),
        });
    }
    let unobserved =
        match (channel.spec.management_policy, validate::validate(&channel, &ctx.cluster)) {
            (ManagementPolicy::Paused, _) => (
                reason::PAUSED,
                "spec.managementPolicy is Paused: nothing is looked at or changed".to_owned(),
                false,
            ),
            (_, Err(error)) => (reason::INVALID_SPEC, error.to_string(), true),
            (_, Ok(valid)) => return observe_and_act(&api, &channel, valid, reference, ctx).await,
        };
    let (why, message, stalled) = unobserved;
    let status = status::unobserved(&channel, why, &message, stalled, ctx.now());
    status::write(&api, &channel, &status, &ctx.metrics).await?;
    Ok(Action::await_change())
}

async fn observe_and_act(
    api: &Api<SseChannel>,
    channel: &SseChannel,
    mut valid: validate::ValidChannel,
    reference: &ObjectRef<SseChannel>,
    ctx: &Context,
) -> Result<Action, Error> {
    let observe = valid.management_policy == ManagementPolicy::Observe;
    if !observe {
        // Before there is a stream: a channel deleted in between must not leave one behind.
        delete::settle_finalizer(api, channel, ctx).await?;
    }
    let proven = channel
        .status
        .as_ref()
        .and_then(|s| s.stream.as_ref())
        .filter(|s| s.owned && s.name == valid.stream.name.as_str());
    if let Some(known) = proven {
        ctx.streams.remember(&known.name, &known.created_time);
    }
    let stream = ctx
        .streams
        .ensure(&valid.stream, if observe { Mode::Observe } else { Mode::Enforce })
        .await;
    tell::of_stream(channel, &valid, &stream, ctx).await;

    let mut absent = ctx.memory(reference, |memory| std::mem::take(&mut memory.absent));
    let live = live::live(&ctx.client, &valid, &mut absent).await;
    ctx.memory(reference, |memory| memory.absent = absent);
    let mut live = live?;
    if observe {
        keep_generation(&mut valid, live.config.as_ref());
    }
    // Where connections decide how many pods there are, they are counted first.
    let counted = match valid
        .workload
        .autoscaling
        .as_ref()
        .is_some_and(|scaling| scaling.connections_per_pod.is_some())
    {
        true => Some(ctx.prober.look(&live.pods, &valid.namespace, valid.name.as_str()).await),
        false => None,
    };
    let load = scaling::load(&valid, &live, counted.as_ref(), observe, reference, ctx);
    let children = desired::desired(&valid, &ctx.settings, load)?;
    // Pods never serve a stream that may be somebody else's.
    let serve = match &stream {
        Ok(_) => true,
        Err(error) => proven.is_some() && !error.is_foreign(),
    };
    let (drift, applied) = if observe {
        (apply::differences(&children, &live, &valid.uid)?, Applied::nothing())
    } else if serve {
        let mut memory = ctx.memory(reference, |memory| std::mem::take(&mut memory.applied));
        let mut pass = apply::Applier {
            client: &ctx.client,
            channel: &valid,
            projections: &mut memory,
            metrics: &ctx.metrics,
        };
        let applied = pass.apply(children, &mut live).await;
        ctx.memory(reference, |kept| kept.applied = memory);
        (Vec::new(), applied)
    } else {
        (Vec::new(), Applied::nothing())
    };
    let mut pods = match counted {
        Some(pods) => pods,
        None => ctx.prober.look(&live.pods, &valid.namespace, valid.name.as_str()).await,
    };
    // A pod never goes back to an older file: one that gives no answer just now serves what it
    // served. Whether it serves at all is for its readiness probe to say.
    ctx.memory(reference, |memory| pods.recall(&mut memory.served));
    let workload = match &applied.pods {
        Err(error) => Workload::Failed(error),
        Ok(()) if !serve && !observe && live.deployment.is_none() => Workload::Waiting,
        Ok(()) => Workload::Seen {
            deployment: live.deployment.as_ref(),
            pods: &pods,
            generation: valid.config.generation,
        },
    };
    let seen = Observation {
        name: valid.name.as_str(),
        stream_name: valid.stream.name.as_str(),
        stream: &stream,
        workload,
        drift,
        url: desired::service::internal_url(&valid, &ctx.settings),
        exposure: Exposure::of(&valid, &applied, &live),
        external_urls: desired::exposure::external_urls(&valid),
        unmonitored: applied.monitoring.as_ref().err().map(ToString::to_string),
    };
    let status = status::status(channel, &seen, ctx.now());
    tell::of_surroundings(channel, &status, &seen, reference, ctx).await;
    status::write(api, channel, &status, &ctx.metrics).await?;
    let Applied { pods, exposure, monitoring } = applied;
    if let Some(error) = [pods, exposure, monitoring]
        .into_iter()
        .filter_map(Result::err)
        .find(apply::Error::is_transient)
    {
        return Err(error.into());
    }
    Ok(next(&valid, &stream, &status, reference, ctx))
}

/// When to look again without being told.
fn next(
    valid: &validate::ValidChannel,
    stream: &Result<Report, stream::Error>,
    status: &crate::crd::SseChannelStatus,
    reference: &ObjectRef<SseChannel>,
    ctx: &Context,
) -> Action {
    if stream.as_ref().is_err_and(stream::Error::is_transient) {
        return Action::requeue(ctx.retry(reference).min(ctx.resync));
    }
    let reason = |type_| status::find(&status.conditions, type_).map(|c| c.reason.as_str());
    if reason(crate::crd::condition::EXPOSED) == Some(reason::NOT_ACCEPTED) {
        // No watch tells of an HTTPRoute.
        return Action::requeue(ctx.retry(reference).min(ctx.resync));
    }
    ctx.succeeded(reference);
    let soon = matches!(
        reason(crate::crd::condition::READY),
        Some(reason::CONFIG_PROPAGATING | reason::POD_UNREACHABLE)
    );
    let counting = valid
        .workload
        .autoscaling
        .as_ref()
        .is_some_and(|scaling| scaling.connections_per_pod.is_some());
    let pause = if soon {
        SOON
    } else if counting {
        scaling::LOOK
    } else {
        ctx.resync
    };
    Action::requeue(pause.min(ctx.resync))
}

/// While only observing, the file in the cluster keeps the generation it was written with; that
/// alone is no drift.
fn keep_generation(valid: &mut validate::ValidChannel, live: Option<&ConfigMap>) {
    let file = desired::config::file_name(valid.name.as_str());
    let text = live.and_then(|map| map.data.as_ref()).and_then(|data| data.get(&file));
    let found = text.and_then(|text| ChannelConfig::from_json(text.as_bytes()).ok());
    if let Some(found) = found {
        valid.config.generation = found.generation;
    }
}
