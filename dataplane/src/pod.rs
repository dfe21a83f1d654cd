//! The pod: builds the parts, owns the tasks.
//!
//! ```text
//! task                        ends on                    if it fails
//! ──────────────────────────  ─────────────────────────  ──────────────────────────────────────
//! public accept loop          stop_accepting             errors are logged, and accept is called
//!                                                        again; panic: no new subscribers
//! a connection of it, and a   its peer, its last frame,  the client comes back with its cursor
//!   stream of that (HTTP/2)   its write timeout, abort
//! the thread of the probes    Probes::stop               the pod drains, and is started anew
//! admin connections that it   abort                      no metrics, no console
//!   hands over
//! heartbeat of the runtime    abort                      /livez fails, and the kubelet starts the
//!                                                        pod anew
//! become_ready                all files are in force,    the pod never gets subscribers
//!                               warm logs, abort
//! follow                      abort                      an unreadable directory is logged, and
//!                                                        what is in force stays so; the same
//!                                                        after a panic
//! watch_memory                abort                      the last answer to whether memory is
//!                                                        scarce stays
//! the log of a channel        the channel is removed,    errors are tried again, and subscribers
//!   (pod/channels.rs)         abort                      are told; panic: no new events
//! a question of a fan-out     the store's answer or      the subscriber asks again; panic: it
//!   thread to the store       time limit, abort          waits until its connection ends
//! a fan-out thread            FanOut::stop               the pod drains, and is started anew
//! ```
//! Errors never end a task but where the table says so. A panic does, and is on standard error.

mod channels;
mod drain;
mod signals;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    time::{Interval, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{channels::Channels, signals::Signals};
use crate::{
    admin::{self, probes::Probes},
    admission::Admission,
    cgroup::Cgroup,
    channel::Channel,
    config_dir::ConfigDir,
    fanout::FanOut,
    metrics::Metrics,
    phase::Phase,
    pulse::{self, Pulse},
    server::{self, accept::Incoming, connection::Service, connections::Connections},
    source::jetstream::{self, Settings},
    state::Shared,
};

pub use crate::admin::guard::{Access, Guard};
pub use drain::Pace;

/// How often the configuration directory is looked at: a mounted ConfigMap is up to a minute behind
/// anyway.
const FOLLOW_TICK: Duration = Duration::from_secs(1);
/// Most connections of the admin listener in the runtime: metrics, some browsers. With those of the
/// probes they are fewer than the file descriptors that `admission.rs` leaves to them.
const ADMIN_CONNECTIONS: usize = 48;
/// How often a starting pod looks whether its logs cover their tails.
const WARM_TICK: Duration = Duration::from_millis(50);
/// How long each kind of task may take to end once nothing is left to be written.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// What a pod is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of channel configurations.
    pub config_dir: PathBuf,
    /// Public listener.
    pub listen: SocketAddr,
    /// Admin listener.
    pub admin: SocketAddr,
    /// Which requests the admin listener answers; the pod's own name is added.
    pub guard: Guard,
    /// NATS.
    pub nats: Settings,
    /// Name of this pod.
    pub instance: String,
    /// Threads that write streams of plain HTTP/1.1; 0 = none, hyper writes them.
    pub fanout_threads: usize,
    /// Most memory that it may use, bytes; none: its cgroup's limit.
    pub memory: Option<u64>,
    /// How it ends.
    pub pace: Pace,
}

/// Why a pod did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener could not be bound.
    #[error("cannot listen on {0}: {1}; choose another address with {2}")]
    Bind(SocketAddr, std::io::Error, &'static str),
    /// The configuration directory cannot be read.
    #[error("cannot read the configuration directory {0}: {1}; name it with --config-dir")]
    ConfigDir(PathBuf, std::io::Error),
    /// The NATS settings can never work.
    #[error("cannot use the NATS settings: {0}")]
    Nats(String),
    /// A thread could not be started.
    #[error("cannot start the fan-out threads: {0}; --fanout-threads sets their number")]
    FanOut(std::io::Error),
    /// The thread of the probes could not be started.
    #[error("cannot start the thread of the probes: {0}")]
    Probes(std::io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(std::io::Error),
}

/// Runs a pod until it was told to stop and has drained.
///
/// # Errors
/// Only before it is up; later troubles are conditions, not ends.
pub async fn run(options: Options) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let bind = |address, flag| {
        server::accept::bind(address).map_err(|error| Error::Bind(address, error, flag))
    };
    let public = bind(options.listen, "--listen")?;
    let admin = bind(options.admin, "--admin")?;
    let mut config_dir = ConfigDir::new(&options.config_dir);
    let initial = config_dir.poll().map_err(|e| Error::ConfigDir(options.config_dir.clone(), e))?;
    let connection =
        jetstream::connect(&options.nats).await.map_err(|e| Error::Nats(e.to_string()))?;
    announce(&public, &admin);

    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let admission = Admission::new(files, Cgroup::find(options.memory));
    let metrics = Metrics::with_connection(options.nats.replaced.clone());
    let mut guard = options.guard;
    guard.hosts.push(options.instance.clone());
    let shared = Arc::new(Shared::new(options.instance, admission, metrics));
    let tasks = Tasks::default();
    let mut channels = Channels::new(
        Arc::clone(&shared),
        connection,
        tasks.background.clone(),
        tasks.abort.clone(),
    );
    channels.apply(initial);

    let fan_out = fan_out(options.fanout_threads, &shared, &tasks)?;
    let public = TcpListener::from_std(public)
        .map_err(|error| Error::Bind(options.listen, error, "--listen"))?;
    tasks.serve_public(public, &shared, fan_out.clone());
    let probes = tasks.serve_admin(admin, &shared, fan_out.as_deref(), guard)?;
    tasks.spawn(become_ready(Arc::clone(&shared)));
    tasks.spawn(follow(channels, config_dir));
    tasks.spawn(watch_memory(Arc::clone(&shared)));

    tokio::select! {
        () = signals.next() => tracing::info!("told to stop: draining; a second signal ends at once"),
        () = shared.drain.cancelled() => tracing::info!("told to drain"),
    }
    let draining = async {
        drain::drain(&shared, options.pace, &tasks.stop_accepting).await;
        tasks.streams.close();
        // What is left has had its last frame or its deadline.
        let _ = tokio::time::timeout(END_TIMEOUT, tasks.streams.wait()).await;
    };
    tokio::select! {
        () = draining => {}
        () = signals.next() => tracing::warn!("told to stop a second time: ending at once"),
    }
    shared.phase.advance(Phase::Stopped);
    tasks.end(fan_out, probes).await;
    Ok(())
}

/// The tasks of the pod, and what ends them.
#[derive(Debug, Default)]
struct Tasks {
    /// Connections of the public listener: the drain waits for them.
    streams: TaskTracker,
    /// All others.
    background: TaskTracker,
    /// Ends the public accept loop, and connections that have no stream.
    stop_accepting: CancellationToken,
    /// Ends everything.
    abort: CancellationToken,
}

impl Tasks {
    /// Runs `task` until it or the pod ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(self.abort.clone().run_until_cancelled_owned(task));
    }

    fn serve_public(
        &self,
        listener: TcpListener,
        shared: &Arc<Shared>,
        fan_out: Option<Arc<FanOut>>,
    ) {
        let connections = Arc::new(Connections::new(shared.admission.most_connections()));
        let service = Service { router: server::router(Arc::clone(shared)), fan_out, connections };
        let (stop, abort) = (self.stop_accepting.clone(), self.abort.clone());
        let incoming = Incoming::Listener(listener);
        let serving = server::accept::serve(incoming, service, self.streams.clone(), stop, abort);
        self.background.spawn(serving);
    }

    /// Answers probes on a thread, and what else comes to `listener` in the runtime.
    fn serve_admin(
        &self,
        listener: std::net::TcpListener,
        shared: &Arc<Shared>,
        fan_out: Option<&FanOut>,
        guard: Guard,
    ) -> Result<Probes, Error> {
        let runtime = Pulse::default();
        let threads = fan_out.map_or(&[][..], FanOut::pulses).iter().enumerate();
        let signs = threads
            .map(|(number, pulse)| (format!("fan-out thread {number}"), pulse.clone()))
            .chain([("the runtime".to_owned(), runtime.clone())])
            .collect();
        let (probes, others) =
            Probes::start(listener, Arc::clone(shared), signs, guard.clone(), shared.drain.clone())
                .map_err(Error::Probes)?;
        self.spawn(keep_beating(runtime));
        let connections = Arc::new(Connections::new(ADMIN_CONNECTIONS));
        let router = admin::router(Arc::clone(shared), guard);
        let service = Service { router, fan_out: None, connections };
        // Metrics answer for as long as the pod is there.
        let (stop, abort) = (self.abort.clone(), self.abort.clone());
        let incoming = Incoming::Queue(others);
        let serving =
            server::accept::serve(incoming, service, self.background.clone(), stop, abort);
        self.background.spawn(serving);
        Ok(probes)
    }

    /// Ends what is left.
    async fn end(self, fan_out: Option<Arc<FanOut>>, probes: Probes) {
        self.abort.cancel();
        self.background.close();
        let stopping = tokio::task::spawn_blocking(move || {
            probes.stop();
            if let Some(fan_out) = fan_out {
                fan_out.stop();
            }
        });
        let _ = tokio::time::timeout(END_TIMEOUT, stopping).await;
        let _ = tokio::time::timeout(END_TIMEOUT, self.background.wait()).await;
    }
}

/// The fan-out threads, unless there are to be none.
fn fan_out(threads: usize, shared: &Shared, tasks: &Tasks) -> Result<Option<Arc<FanOut>>, Error> {
    if threads == 0 {
        return Ok(None);
    }
    let started = FanOut::start(threads, &tasks.background, &tasks.abort, &shared.drain)
        .map_err(Error::FanOut)?;
    tracing::debug!(threads, "fan-out");
    Ok(Some(Arc::new(started)))
}

/// The one line on standard output: what starts the pod learns the ports from it.
fn announce(public: &std::net::TcpListener, admin: &std::net::TcpListener) {
    if let (Ok(http), Ok(admin)) = (public.local_addr(), admin.local_addr()) {
        let mut out = std::io::stdout().lock();
        // The other end of the pipe may be closed.
        let _ = writeln!(out, "listening http={http} admin={admin}").and_then(|()| out.flush());
    }
}

/// Opens the pod to subscribers once everything that it was started with is in force and every log
/// covers its tail. A pod that knows no channel, or not all of them, would send subscribers away
/// from what is there.
async fn become_ready(shared: Arc<Shared>) {
    let is_warm = |channel: &Arc<Channel>| channel.is_removed() || channel.log().status().warm;
    let in_force = || !shared.troubles().never_in_force() && !shared.channels().is_empty();
    let mut tick = every(WARM_TICK);
    while !(in_force() && shared.channels().iter().all(is_warm)) {
        tick.tick().await;
    }
    shared.phase.advance(Phase::Ready);
}

/// Puts what changes in the configuration directory in force.
async fn follow(mut channels: Channels, mut config_dir: ConfigDir) {
    let mut tick = every(FOLLOW_TICK);
    let mut readable = true;
    loop {
        tick.tick().await;
        match config_dir.poll() {
            Ok(changes) => {
                if !readable {
                    tracing::info!("the configuration directory can be read again");
                }
                readable = true;
                channels.apply(changes);
            }
            Err(error) => {
                if readable {
                    tracing::warn!(%error, "cannot read the configuration directory; what is in force stays so");
                }
                readable = false;
                channels.unreadable(&error);
            }
        }
    }
}

/// Shows that the runtime goes on.
async fn keep_beating(pulse: Pulse) {
    let mut tick = every(pulse::BEAT);
    loop {
        tick.tick().await;
        pulse.beat();
    }
}

/// Keeps the answer to whether memory is scarce fresh.
async fn watch_memory(shared: Arc<Shared>) {
    shared.admission.watch().await;
}

fn every(period: Duration) -> Interval {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
