//! Starts and stops the watches and passes.
//!
//! Watches run whether this operator leads or not, so that a standby knows all channels when its
//! turn comes. Everything that writes is a pass, and every pass is held by [`Lead`].

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
    Api, Client, Config, Resource,
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        Controller,
        controller::{self, Error as ControllerError},
        events::{Recorder, Reporter},
        reflector::ObjectRef,
        watcher,
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    context::Context, desired, hash::fnv1a64, on_error, prober::Prober, reconcile,
    remembered::RememberedChannels,
};
use crate::{
    admin::{self, Admin},
    crd::SseChannel,
    kube_error,
    leader::{self, Candidate, Lead},
    metrics::Metrics,
    nats::{self, Connection},
    stream::Streams,
};

/// Channels worked on at a time in one namespace scope: enough to hide the waiting for answers, few
/// enough not to press the API server.
const CONCURRENCY: u16 = 16;
/// Changes that come together are taken together.
const DEBOUNCE: Duration = Duration::from_millis(50);
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
    /// How often a stream is compared with what is remembered of its events, and how often at most
    /// that is written.
    pub(crate) mark_interval: Duration,
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
    let ctx = Arc::new(Context {
        client: client.clone(),
        streams: Streams::over(&connection).marked_every(options.mark_interval),
        settings: desired::Settings { operator_namespace, ..options.settings },
        cluster,
        resync: options.resync,
        prober: Arc::clone(&prober),
        lead: lead.clone(),
        recorder: Recorder::new(client, reporter),
        metrics: Arc::clone(&metrics),
        remembered: RememberedChannels::default(),
    });
    let ready = Arc::new(AtomicBool::new(false));
    // The lease is held, and probes are answered, until the last pass has ended.
    let (passed, mut others) = (CancellationToken::new(), JoinSet::new());
    let admin = Admin { metrics: Arc::clone(&metrics), ready: Arc::clone(&ready), lead };
    others.spawn(serve_admin(listener, admin, passed.clone()));
    let asking = passed.clone();
    others.spawn(async move { prober.run(asking).await });
    others.spawn(count_nats(connection.state(), metrics, passed.clone()));
    if let Some(candidate) = candidate {
        let ctx = Arc::clone(&ctx);
        others.spawn(candidate.run(passed.clone(), move || ctx.forget_all()));
    }
    let mut passes = start_passes(&ctx, options.namespaces, &connection, &ready, &stop);
    stop.cancelled().await;
    tracing::info!("stopping: passes under way are finished");
    if !have_ended(&mut passes).await {
        tracing::warn!(
            "passes under way did not finish within {STOP_LIMIT:?}; they are repeated at the next start"
        );
        passes.shutdown().await;
    }
    passed.cancel();
    if !have_ended(&mut others).await {
        tracing::warn!("a connection to the admin listener did not end within {STOP_LIMIT:?}");
    }
    Ok(())
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
    namespaces: Vec<String>,
    connection: &Connection,
    ready: &Arc<AtomicBool>,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let shown = if namespaces.is_empty() { "all".to_owned() } else { namespaces.join(", ") };
    tracing::info!(namespaces = shown, cluster = ctx.cluster, "following channels");
    let scopes: Vec<Option<String>> =
        if namespaces.is_empty() { vec![None] } else { namespaces.into_iter().map(Some).collect() };
    let mut passes = JoinSet::new();
    for namespace in scopes {
        let (ctx, nats) = (Arc::clone(ctx), connection.state());
        passes.spawn(control(ctx, namespace, nats, Arc::clone(ready), stop.clone()));
    }
    passes
}

/// Waits for `tasks`, but no longer than [`STOP_LIMIT`].
async fn have_ended(tasks: &mut JoinSet<()>) -> bool {
    let ended = async { while tasks.join_next().await.is_some() {} };
    tokio::time::timeout(STOP_LIMIT, ended).await.is_ok()
}

async fn control(
    ctx: Arc<Context>,
    namespace: Option<String>,
    nats: watch::Receiver<nats::State>,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let client = &ctx.client;
    let channels = scoped::<DeserializeGuard<SseChannel>>(client, namespace.as_deref());
    let ours = || {
        watcher::Config::default()
            .labels(&format!("app.kubernetes.io/managed-by={}", desired::MANAGED_BY))
    };
    let controller = Controller::new(channels, watcher::Config::default())
        .owns(scoped::<ServiceAccount>(client, namespace.as_deref()), ours())
        .owns(scoped::<ConfigMap>(client, namespace.as_deref()), ours())
        .owns(scoped::<Deployment>(client, namespace.as_deref()), ours())
        .owns(scoped::<Service>(client, namespace.as_deref()), ours())
        .owns(scoped::<PodDisruptionBudget>(client, namespace.as_deref()), ours())
        .owns(scoped::<NetworkPolicy>(client, namespace.as_deref()), ours())
        .owns(scoped::<Ingress>(client, namespace.as_deref()), ours())
        // Not watched: HTTPRoutes and PodMonitors, which a cluster may not know, and
        // HorizontalPodAutoscalers, whose status changes every 15 s. They are looked at in each
        // pass.
        .reconcile_all_on(ups_and_downs(nats))
        .reconcile_all_on(ctx.lead.terms())
        .reconcile_on(ctx.prober.wakes(namespace.clone()).map(|channel| {
            ObjectRef::new(&channel.name).within(channel.namespace.as_deref().unwrap_or_default())
        }))
        .with_config(controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .graceful_shutdown_on(stop.cancelled_owned());
    let store = controller.store();
    let known = async {
        if store.wait_until_ready().await.is_ok() {
            ready.store(true, Ordering::Relaxed);
        }
    };
    let mut trouble = None;
    let passes = controller.run(reconcile, on_error, Arc::clone(&ctx)).for_each(|result| {
        match result {
            Ok(_) => trouble = None,
            // `on_error` has logged it.
            Err(ControllerError::ReconcilerFailed(..)) => {}
            // The channel has gone: an object that it owned went after it, or it went itself
            // between being queued and being looked at.
            Err(ControllerError::ObjectNotFound(object)) => {
                let namespace = object.namespace.as_deref().unwrap_or_default();
                let channel = ObjectRef::new(&object.name).within(namespace);
                ctx.prober.forget(&channel);
                ctx.remembered.take(&channel).forget();
            }
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

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// One item each time NATS goes or comes: every stream is looked at then.
fn ups_and_downs(state: watch::Receiver<nats::State>) -> impl Stream<Item = ()> + Send {
    let last = state.borrow().coming_and_going();
    stream::unfold((state, last), |(mut state, mut last)| async move {
        loop {
            state.changed().await.ok()?;
            let now = state.borrow_and_update().coming_and_going();
            if now != last {
                last = now;
                return Some(((), (state, last)));
            }
        }
    })
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
