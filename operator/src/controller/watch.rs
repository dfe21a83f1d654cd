//! Starts and stops the watches and passes.
//!
//! Watches run whether this operator leads or not, so that a standby knows all channels when its
//! turn comes. Everything that writes is a pass, and every pass is held by [`Lead`].

mod feeds;
mod tasks;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Client, Config,
    runtime::{
        Controller,
        controller::{self, Error as ControllerError},
        events::{Recorder, Reporter},
        reflector::{ObjectRef, Store},
    },
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    context::Context,
    desired,
    followed::Followed,
    gate::Gate,
    hash::fnv1a64,
    on_error,
    prober::Prober,
    quota::Quotas,
    reconcile,
    remembered::RememberedChannels,
    rollouts::{MaxRolling, Rollouts},
};
use crate::{
    admin::{self, Admin, Scopes},
    crd::SseChannel,
    kube_error,
    leader::{self, Candidate, Lead},
    metrics::Metrics,
    nats::{self, Connection},
    stream::Streams,
    tenancy::{self, Namespaces},
};
use feeds::{NoPause, children, followed};
use tasks::{Tasks, until_ended};

/// Changes that come together are taken together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Pause between two channels that are looked at because NATS has come: 50 a second, so that few
/// are looked at at once. Of very many it is less, so that none waits longer than its resync.
const BETWEEN_RETURNS: Duration = Duration::from_millis(20);
/// How long passes under way may take to end after a signal. With the release of the lease it is
/// well below the grace period that Kubernetes gives by default, 30 s.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What the operator is started with.
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) nats: nats::Settings,
    /// Namespaces to look after; empty = all.
    pub(crate) namespaces: Vec<String>,
    /// What goes into the pods.
    pub(crate) settings: desired::Settings,
    /// Identity of the cluster in streams' metadata; `None` = derived from the API server's
    /// certificate authority.
    pub(crate) cluster: Option<String>,
    /// Address of the admin listener.
    pub(crate) admin: SocketAddr,
    /// How often each channel is looked at without being told.
    pub(crate) resync: Duration,
    /// Passes under way at a time, in all namespaces together.
    pub(crate) concurrency: u16,
    /// Channels whose pods may be replaced at a time, where their specs do not ask for it.
    pub(crate) max_rolling: MaxRolling,
    /// How long a stream may be out of sight before its channel's conditions say so.
    pub(crate) nats_grace: Duration,
    /// How often a stream is compared with what is remembered of its events, and how often at most
    /// that is written.
    pub(crate) mark_interval: Duration,
    /// How namespaces are kept apart.
    pub(crate) tenancy: tenancy::Settings,
    /// Port at which pods are asked what they serve.
    pub(crate) pod_admin_port: u16,
    /// How it is found out which of several operators acts; `None` = this one does.
    pub(crate) election: Option<leader::Settings>,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster is configured.
    #[error(
        "no Kubernetes cluster is configured: {0}. Set KUBECONFIG, or run in a pod; without a cluster use `sluice-operator local`"
    )]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// No client could be made of the configuration.
    #[error("cannot use the configured cluster: {}", kube_error::text(.0))]
    Client(#[from] kube::Error),
    /// The admin listener.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The NATS connection's settings.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// A task that runs until the end has ended before it: without it the operator would look well
    /// and do nothing. Started anew, it works again, or another one takes its place.
    #[error("{task} ended unexpectedly{why}; the operator is to be started anew")]
    Ended {
        /// What the task did.
        task: &'static str,
        /// How it ended.
        why: String,
    },
}

/// Reconciles channels until `stop`.
///
/// # Errors
/// [`Error`] when it could not start. Once started, trouble is met by trying again.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), Error> {
    let config = Config::infer().await?;
    let listener = admin::bind(options.admin)?;
    let connection = Connection::open(options.nats).await?;
    let metrics = Arc::new(Metrics::default());
    let reporter = Reporter {
        controller: "sluice-operator".to_owned(),
        instance: std::env::var("POD_NAME").ok(),
    };
    let (candidate, lead) = elect(options.election, &config, &reporter, &metrics)?;
    let cluster = options.cluster.unwrap_or_else(|| cluster_identity(&config));
    // In a pod, the namespace of its service account.
    let operator_namespace = config.default_namespace.clone();
    let client = Client::try_from(config)?;
    let prober = Arc::new(Prober::new(options.pod_admin_port));
    let namespaces = Arc::new(Namespaces::new(options.tenancy, client.clone()));
    let ctx = Arc::new(Context {
        client: client.clone(),
        streams: Streams::over(&connection).marked_every(options.mark_interval),
        settings: desired::Settings { operator_namespace, ..options.settings },
        cluster,
        resync: options.resync,
        nats_grace: options.nats_grace,
        prober: Arc::clone(&prober),
        lead: lead.clone(),
        recorder: Recorder::new(client, reporter),
        metrics: Arc::clone(&metrics),
        remembered: RememberedChannels::default(),
        namespaces: Arc::clone(&namespaces),
        quotas: Quotas::default(),
        gate: Gate::new(usize::from(options.concurrency), Arc::clone(&metrics)),
        rollouts: Rollouts::new(options.max_rolling, Arc::clone(&metrics)),
        channels: AtomicUsize::new(0),
    });
    // The lease is held, and probes are answered, until the last pass has ended.
    let (passed, scopes) = (CancellationToken::new(), Arc::new(Scopes::of(&options.namespaces)));
    let mut others = Tasks::default();
    let admin = Admin { metrics: Arc::clone(&metrics), scopes: Arc::clone(&scopes), lead };
    others.spawn("the admin listener", serve_admin(listener, admin, passed.clone()));
    let asking = passed.clone();
    others.spawn("the prober of pods", async move { prober.run(asking).await });
    if options.namespaces.is_empty() {
        let following = passed.clone();
        others.spawn("following Namespaces", async move { namespaces.follow(following).await });
    }
    let counting = count_nats(connection.state(), metrics, passed.clone());
    others.spawn("the count of NATS connections", counting);
    if let Some(candidate) = candidate {
        let ctx = Arc::clone(&ctx);
        others.spawn("leader election", candidate.run(passed.clone(), move || ctx.forget_all()));
    }
    let following = stop.child_token();
    let mut passes = start_passes(&ctx, options.namespaces, &connection, &scopes, &following);
    let ended = until_ended(&stop, &mut passes, &mut others).await;
    tracing::info!("stopping: passes under way are finished");
    following.cancel();
    ctx.gate.close();
    if !passes.have_ended().await {
        tracing::warn!(
            "passes under way did not finish within {STOP_LIMIT:?}; they are repeated at the next start"
        );
        passes.shutdown().await;
    }
    passed.cancel();
    if !others.have_ended().await {
        tracing::warn!("a connection to the admin listener did not end within {STOP_LIMIT:?}");
    }
    ended
}

/// What takes part in the election, if there is one, and what holds the passes.
fn elect(
    settings: Option<leader::Settings>,
    config: &Config,
    reporter: &Reporter,
    metrics: &Arc<Metrics>,
) -> Result<(Option<Candidate>, Lead), kube::Error> {
    let Some(settings) = settings else {
        metrics.leader(true);
        return Ok((None, Lead::alone()));
    };
    // A client of its own: a renewal does not queue behind the passes' requests.
    let client = Client::try_from(config.clone())?;
    let (candidate, lead) =
        Candidate::new(settings, &client, reporter.clone(), Arc::clone(metrics));
    Ok((Some(candidate), lead))
}

async fn serve_admin(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    if let Err(error) = admin::serve(listener, admin, stop).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

/// One task for each namespace, or one for all of them.
fn start_passes(
    ctx: &Arc<Context>,
    mut namespaces: Vec<String>,
    connection: &Connection,
    scopes: &Arc<Scopes>,
    stop: &CancellationToken,
) -> Tasks {
    namespaces.sort();
    namespaces.dedup();
    let shown = if namespaces.is_empty() { "all".to_owned() } else { namespaces.join(", ") };
    tracing::info!(namespaces = shown, cluster = ctx.cluster, "following channels");
    let each: Vec<Option<String>> =
        if namespaces.is_empty() { vec![None] } else { namespaces.into_iter().map(Some).collect() };
    let mut passes = Tasks::default();
    for namespace in each {
        let (ctx, nats) = (Arc::clone(ctx), connection.state());
        let control = control(ctx, namespace, nats, Arc::clone(scopes), stop.clone());
        passes.spawn("following channels", control);
    }
    passes
}

async fn control(
    ctx: Arc<Context>,
    namespace: Option<String>,
    nats: watch::Receiver<nats::State>,
    scopes: Arc<Scopes>,
    stop: CancellationToken,
) {
    let client = &ctx.client;
    let (store, channels) = followed(&ctx, namespace.as_deref());
    let (watched, spread) = (store.clone(), ctx.resync);
    let known = move || watched.state().iter().map(|channel| channel.reference()).collect();
    let controller = Controller::for_stream(channels, store.clone())
        .owns_stream(children::<ServiceAccount>(client, namespace.as_deref()))
        .owns_stream(children::<ConfigMap>(client, namespace.as_deref()))
        .owns_stream(children::<Deployment>(client, namespace.as_deref()))
        .owns_stream(children::<Service>(client, namespace.as_deref()))
        .owns_stream(children::<PodDisruptionBudget>(client, namespace.as_deref()))
        .owns_stream(children::<NetworkPolicy>(client, namespace.as_deref()))
        .owns_stream(children::<Ingress>(client, namespace.as_deref()))
        // Not watched: HTTPRoutes and PodMonitors, which a cluster may not know, and
        // HorizontalPodAutoscalers, whose status changes every 15 s. They are looked at in each
        // pass.
        .reconcile_on(Returns::new(nats, spread, known).into_stream().map(as_watched))
        .reconcile_all_on(ctx.lead.terms())
        .reconcile_on(ctx.prober.wakes(namespace.clone()).map(as_watched))
        // How many passes there are at a time, and which, is the gate's to say.
        .with_config(controller::Config::default().debounce(DEBOUNCE))
        .trigger_backoff(NoPause)
        .graceful_shutdown_on(stop.cancelled_owned());
    let controller = controller.reconcile_on(granted(&ctx, store.clone()));
    let known = async {
        if store.wait_until_ready().await.is_ok() {
            scopes.know(namespace.as_deref());
        }
    };
    let mut trouble = None;
    let passes = controller.run(reconcile, on_error, Arc::clone(&ctx)).for_each(|result| {
        match result {
            Ok(_) => trouble = None,
            // `on_error` has logged it. Or the channel has gone, and what it owned after it.
            Err(ControllerError::ReconcilerFailed(..) | ControllerError::ObjectNotFound(_)) => {}
            Err(error) => {
                // A watch is tried again for ever; one line for each fault is enough.
                let text = kube_error::text(&error);
                if trouble.as_ref() != Some(&text) {
                    let namespace = namespace.as_deref().unwrap_or("all");
                    tracing::warn!(namespace, error = text, "a watch failed and is retried");
                    trouble = Some(text);
                }
            }
        }
        std::future::ready(())
    });
    tokio::join!(known, passes);
}

/// The channels of each Namespace whose grants have changed.
fn granted(
    ctx: &Context,
    channels: Store<Followed>,
) -> impl Stream<Item = ObjectRef<Followed>> + Send + use<> {
    ctx.namespaces.changes().flat_map(move |namespace| {
        let of_it = channels.state().into_iter().map(|channel| ObjectRef::from_obj(&*channel));
        let of_it = of_it.filter(|channel| channel.namespace.as_ref() == Some(&namespace));
        stream::iter(of_it.collect::<Vec<_>>())
    })
}

/// The channel by the type that the watch has for it.
#[allow(clippy::needless_pass_by_value)]
fn as_watched(channel: ObjectRef<SseChannel>) -> ObjectRef<Followed> {
    ObjectRef::new(&channel.name).within(channel.namespace.as_deref().unwrap_or_default())
}

/// Every channel each time NATS has come, one after the other: streams may have changed unseen, and
/// thousands looked at in one moment would press NATS and the API server. That NATS goes wakes
/// none: it says nothing of a stream, and what needs one sees it.
struct Returns<F> {
    state: watch::Receiver<nats::State>,
    connects: u64,
    /// The channels of the moment.
    known: F,
    waiting: std::vec::IntoIter<ObjectRef<SseChannel>>,
    /// Longest time for all of them.
    spread: Duration,
    pause: Duration,
}

impl<F: Fn() -> Vec<ObjectRef<SseChannel>> + Send> Returns<F> {
    fn new(state: watch::Receiver<nats::State>, spread: Duration, known: F) -> Self {
        let (connects, waiting) = (state.borrow().connects, Vec::new().into_iter());
        Self { state, connects, known, waiting, spread, pause: BETWEEN_RETURNS }
    }

    fn into_stream(self) -> impl Stream<Item = ObjectRef<SseChannel>> + Send
    where
        F: 'static,
    {
        stream::unfold(self, |mut returns| async {
            returns.next().await.map(|channel| (channel, returns))
        })
    }

    async fn next(&mut self) -> Option<ObjectRef<SseChannel>> {
        loop {
            let connects = self.state.borrow_and_update().connects;
            if std::mem::replace(&mut self.connects, connects) != connects {
                let channels = (self.known)();
                let number = u32::try_from(channels.len()).unwrap_or(u32::MAX).max(1);
                self.pause = BETWEEN_RETURNS.min(self.spread / number);
                self.waiting = channels.into_iter();
            }
            if let Some(channel) = self.waiting.next() {
                tokio::time::sleep(self.pause).await;
                return Some(channel);
            }
            self.state.changed().await.ok()?;
        }
    }
}

async fn count_nats(
    mut state: watch::Receiver<nats::State>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    loop {
        let (up, connects) = state.borrow_and_update().coming_and_going();
        metrics.nats(up, connects);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

/// A cluster is known by its certificate authority: no right is needed to read it, unlike the UID
/// of a namespace. It only has to tell clusters that share a NATS apart; objects of one cluster are
/// told apart by their UID.
fn cluster_identity(config: &Config) -> String {
    let authority = config.root_cert.iter().flatten().fold(Vec::new(), |mut all, certificate| {
        all.extend_from_slice(certificate);
        all
    });
    if authority.is_empty() {
        return format!("url-{:016x}", fnv1a64(config.cluster_url.to_string().as_bytes()));
    }
    format!("ca-{:016x}", fnv1a64(&authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nats_that_comes_back_wakes_each_channel_in_its_turn_and_one_that_goes_wakes_none() {
        let (set, state) = watch::channel(nats::State { up: true, connects: 1, trouble: None });
        let names = || (0..100).map(|i| ObjectRef::new(&format!("c{i}"))).collect();
        let woken = Returns::new(state, Duration::from_secs(30), names).into_stream();
        let mut woken = std::pin::pin!(woken);
        let none = |woken: Result<Option<_>, _>| assert!(woken.is_err(), "one is woken");
        set.send_modify(|state| state.up = false);
        none(tokio::time::timeout(Duration::from_secs(60), woken.next()).await);
        set.send_modify(|state| *state = nats::State { up: true, connects: 2, trouble: None });
        let started = tokio::time::Instant::now();
        let all: Vec<_> = woken.by_ref().take(100).collect().await;
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 100);
        let took = started.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "{took:?}");
        none(tokio::time::timeout(Duration::from_secs(60), woken.next()).await);
    }
}
