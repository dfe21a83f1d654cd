//! The pod: builds the parts, owns the tasks.

mod channels;
mod drain;
mod signals;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{channels::Channels, signals::Signals};
use crate::{
    admin,
    admission::Admission,
    cgroup::Cgroup,
    config_dir::ConfigDir,
    fanout::FanOut,
    phase::Phase,
    server::{self, accept::Service},
    source::jetstream::{self, Settings},
    state::Shared,
};

pub use drain::Pace;

/// How often the configuration directory is looked at, and sockets that take nothing are let go of.
const TICK: Duration = Duration::from_secs(1);
/// How often a starting pod looks whether its logs cover their tails.
const WARM_TICK: Duration = Duration::from_millis(50);

/// What a pod is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of channel configurations.
    pub config_dir: PathBuf,
    /// Public listener.
    pub listen: SocketAddr,
    /// Admin listener.
    pub admin: SocketAddr,
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
    let public = server::accept::bind(options.listen)
        .map_err(|e| Error::Bind(options.listen, e, "--listen"))?;
    let admin = server::accept::bind(options.admin)
        .map_err(|e| Error::Bind(options.admin, e, "--admin"))?;
    let mut config_dir = ConfigDir::new(&options.config_dir);
    let initial = config_dir.poll().map_err(|e| Error::ConfigDir(options.config_dir.clone(), e))?;
    let connection =
        jetstream::connect(&options.nats).await.map_err(|e| Error::Nats(e.to_string()))?;
    announce(&public, &admin);

    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let admission = Admission::new(files, Cgroup::find(options.memory));
    let shared = Arc::new(Shared::new(options.instance, admission));
    let (stop_accepting, abort) = (CancellationToken::new(), CancellationToken::new());
    let (streams, background) = (TaskTracker::new(), TaskTracker::new());
    let mut channels =
        Channels::new(Arc::clone(&shared), connection, background.clone(), abort.clone());
    channels.apply(initial);

    let fan_out = fan_out(options.fanout_threads, &shared, &background, &abort)?;
    let service = Service { router: server::router(Arc::clone(&shared)), fan_out: fan_out.clone() };
    // Owned by `abort`: they end when the pod does.
    let serving = server::accept::serve(
        public,
        service,
        streams.clone(),
        stop_accepting.clone(),
        abort.clone(),
    );
    background.spawn(serving);
    let service = Service { router: admin::router(Arc::clone(&shared)), fan_out: None };
    let admin_serving =
        server::accept::serve(admin, service, background.clone(), abort.clone(), abort.clone());
    background.spawn(admin_serving);
    background.spawn(abort.clone().run_until_cancelled_owned(become_ready(Arc::clone(&shared))));
    let following = follow(Arc::clone(&shared), channels, config_dir);
    background.spawn(abort.clone().run_until_cancelled_owned(following));
    let watched = Arc::clone(&shared);
    background.spawn(
        abort.clone().run_until_cancelled_owned(async move { watched.admission.watch().await }),
    );

    tokio::select! {
        () = signals.next() => tracing::info!("told to stop: draining; a second signal ends at once"),
        () = shared.drain.cancelled() => tracing::info!("told to drain"),
    }
    let draining = async {
        drain::drain(&shared, options.pace, &stop_accepting).await;
        streams.close();
        // What is left has had its last frame or its deadline.
        let _ = tokio::time::timeout(Duration::from_secs(1), streams.wait()).await;
    };
    tokio::select! {
        () = draining => {}
        () = signals.next() => tracing::warn!("told to stop a second time: ending at once"),
    }
    shared.phase.advance(Phase::Stopped);
    abort.cancel();
    background.close();
    if let Some(fan_out) = fan_out {
        let stopping = tokio::task::spawn_blocking(move || fan_out.stop());
        let _ = tokio::time::timeout(Duration::from_secs(1), stopping).await;
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), background.wait()).await;
    Ok(())
}

/// The fan-out threads, unless there are to be none.
fn fan_out(
    threads: usize,
    shared: &Shared,
    tasks: &TaskTracker,
    abort: &CancellationToken,
) -> Result<Option<Arc<FanOut>>, Error> {
    if threads == 0 {
        return Ok(None);
    }
    let started = FanOut::start(threads, tasks, abort, &shared.drain).map_err(Error::FanOut)?;
    tracing::debug!(threads, "fan-out");
    Ok(Some(Arc::new(started)))
}

/// The one line on standard output: whoever started the pod learns the ports.
fn announce(public: &TcpListener, admin: &TcpListener) {
    if let (Ok(http), Ok(admin)) = (public.local_addr(), admin.local_addr()) {
        let mut out = std::io::stdout().lock();
        // Nobody may be reading.
        let _ = writeln!(out, "listening http={http} admin={admin}").and_then(|()| out.flush());
    }
}

async fn become_ready(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(WARM_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if shared
            .channels()
            .iter()
            .all(|channel| channel.is_removed() || channel.log().status().warm)
        {
            shared.phase.advance(Phase::Ready);
            return;
        }
    }
}

async fn follow(shared: Arc<Shared>, mut channels: Channels, mut config_dir: ConfigDir) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        shared.registry.sweep();
        match config_dir.poll() {
            Ok(changes) => channels.apply(changes),
            Err(error) => {
                tracing::warn!(%error, "cannot look at the configuration directory; what is in force stays so")
            }
        }
    }
}
