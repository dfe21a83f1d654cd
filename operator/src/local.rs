//! Local mode: the operator without a cluster. It reads the manifests that `kubectl apply` takes,
//! with the checks of the API server and of the controller's first step, ensures each stream by the
//! same code, and runs one `sluice-dataplane` where a cluster would run pods: same arguments, same
//! configuration file, same probes.

mod channels;
mod child;
mod manifests;
mod marks;
mod programs;
mod replace;
mod say;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    args::LocalArgs,
    controller::prober::Asker,
    english::count,
    nats::{self, Connection},
    stream::Streams,
};
use channels::Channels;
use child::{Child, Plan};
use say::say;

/// How often manifests, children and channels are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often streams are compared without being told.
const RESYNC: Duration = Duration::from_secs(30);
/// How long a child may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long the data plane may take to hand its subscribers over, and nats-server to close its
/// files.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// Why local mode cannot start or go on: what is the case and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifests.
    #[error(transparent)]
    Manifests(#[from] manifests::Error),
    /// There is not one channel to serve.
    #[error("no valid SseChannel in {}: correct the manifests above", .0.display())]
    NoChannel(PathBuf),
    /// The data directory.
    #[error("cannot use the data directory {}: {source}. Choose another with --data", path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another instance has it.
    #[error("another sluice-operator uses {}; stop it, or choose another directory with --data (and other ports)", .0.display())]
    InUse(PathBuf),
    /// A port is taken.
    #[error(
        "cannot listen on {address}: {source}. Stop what uses it, or choose another address with {flag}"
    )]
    Port {
        /// Which address.
        address: SocketAddr,
        /// Which argument chooses it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A program is missing or too old.
    #[error(transparent)]
    Program(#[from] programs::Error),
    /// A child does not stay up.
    #[error(transparent)]
    Child(#[from] child::Error),
    /// NATS.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// NATS does not answer.
    #[error("NATS at {0} does not answer within {limit:?}; start it, or leave --nats out to have one started", limit = START_LIMIT)]
    NoNats(String),
}

/// Serves the channels of a directory until `stop`. Runs on the calling thread only: children are
/// told to die with the thread that started them.
///
/// # Errors
/// [`Error`]; every child has been stopped then.
pub async fn run(args: LocalArgs, stop: CancellationToken) -> Result<(), Error> {
    let found = manifests::read(&args.dir)?;
    found.problems.iter().for_each(|problem| say(&format!("error: {problem}")));
    if found.channels.is_empty() {
        return Err(Error::NoChannel(args.dir.clone()));
    }
    let data = DataDir::open(&args.data)?;
    let dataplane = programs::dataplane(args.dataplane.as_deref())?;
    free(args.listen, "--listen")?;
    free(args.admin, "--admin")?;
    let mut children = Children { nats: None, dataplane: None };
    // Whatever happens in between, children are stopped in order.
    let result = serve(&args, &data, &dataplane, found, &mut children, stop).await;
    children.stop().await;
    result
}

struct Children {
    nats: Option<Child>,
    dataplane: Option<Child>,
}

impl Children {
    /// The data plane first: it tells its subscribers good-bye, and needs nothing of NATS for that.
    async fn stop(&mut self) {
        for child in [&mut self.dataplane, &mut self.nats].into_iter().flatten() {
            child.stop(STOP_LIMIT).await;
        }
    }

    async fn tend(&mut self) -> Result<(), child::Error> {
        for child in [&mut self.nats, &mut self.dataplane].into_iter().flatten() {
            if let Some(news) = child.tend().await? {
                say(&news);
            }
        }
        Ok(())
    }
}

async fn serve(
    args: &LocalArgs,
    data: &DataDir,
    dataplane: &Path,
    found: manifests::Found,
    children: &mut Children,
    stop: CancellationToken,
) -> Result<(), Error> {
    let url = match &args.nats {
        Some(url) => url.clone(),
        None => {
            let address = SocketAddr::from(([127, 0, 0, 1], args.nats_port));
            free(address, "--nats-port")?;
            let program = programs::nats_server(args.nats_server.as_deref()).await?;
            children.nats = Some(Child::start(nats_plan(&program, address, data)).await?);
            format!("nats://{address}")
        }
    };
    let connection = Connection::open(nats::Settings {
        servers: vec![url.clone()],
        credentials: None,
        ca: None,
        client_certificate: None,
        domain: None,
        name: "sluice-operator local".to_owned(),
    })
    .await?;
    tokio::select! {
        connected = connected(&connection, children) => connected?,
        () = stop.cancelled() => return Ok(()),
    }
    let mut channels = Channels::new(
        Streams::over(&connection).marked_every(args.mark_interval),
        data.channels(),
        data.marks(),
        found,
    );
    channels.sync_all().await;
    children.dataplane = Some(Child::start(dataplane_plan(dataplane, args, data, &url)).await?);
    let Some(addresses) = listening(children, &stop).await? else { return Ok(()) };
    introduce(&channels, addresses, &nats::without_user(&url));
    follow(args, &connection, &mut channels, children, addresses.1, stop).await
}

/// Goes on until `stop`, or until a child does not stay up.
async fn follow(
    args: &LocalArgs,
    connection: &Connection,
    channels: &mut Channels,
    children: &mut Children,
    admin: SocketAddr,
    stop: CancellationToken,
) -> Result<(), Error> {
    let asker = Asker::new(admin.port());
    let state = connection.state();
    let (mut synced, mut nats) = (Instant::now(), state.borrow().coming_and_going());
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                say("stopping ...");
                return Ok(());
            }
            () = tokio::time::sleep(TICK) => {}
        }
        children.tend().await?;
        match manifests::read_if_changed(&args.dir, channels.fingerprint()) {
            Ok(None) => {}
            Ok(Some(found)) => {
                found.problems.iter().for_each(|problem| {
                    say(&format!("error: {problem} (keeping the previous configuration)"));
                });
                channels.change(found).await;
            }
            Err(error) => channels.manifests_unreadable(&error),
        }
        let now = state.borrow().coming_and_going();
        if now != nats || synced.elapsed() >= RESYNC || channels.wants_retry() {
            (nats, synced) = (now, Instant::now());
            channels.sync_all().await;
        }
        let served = asker.channels(admin.ip()).await;
        channels.report(served.as_deref());
    }
}

async fn connected(connection: &Connection, children: &mut Children) -> Result<(), Error> {
    let (mut state, deadline) = (connection.state(), Instant::now() + START_LIMIT);
    while Instant::now() < deadline {
        // A child that ends at once says why in its log.
        children.tend().await?;
        let up = tokio::time::timeout(Duration::from_millis(100), state.wait_for(|s| s.up)).await;
        if matches!(up, Ok(Ok(_))) && jetstream_answers(connection).await {
            return Ok(());
        }
    }
    Err(Error::NoNats(connection.servers().to_owned()))
}

async fn jetstream_answers(connection: &Connection) -> bool {
    let answers = connection.jetstream().query_account().await.is_ok();
    if !answers {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    answers
}

/// The data plane's public and admin addresses, once it says so; `None` when stopped before.
async fn listening(
    children: &mut Children,
    stop: &CancellationToken,
) -> Result<Option<(SocketAddr, SocketAddr)>, Error> {
    let deadline = Instant::now() + START_LIMIT;
    while !stop.is_cancelled() {
        children.tend().await?;
        let Some(child) = &children.dataplane else { return Ok(None) };
        let line = child.first_line();
        let address = |key: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(key))
                .and_then(|a| a.parse().ok())
        };
        if let (Some(http), Some(admin)) = (address("http="), address("admin=")) {
            return Ok(Some((http, admin)));
        }
        if Instant::now() > deadline {
            return Err(child.does_not_start(START_LIMIT).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(None)
}

fn nats_plan(program: &Path, address: SocketAddr, data: &DataDir) -> Plan {
    let mut arguments: Vec<String> =
        ["--jetstream", "--name", "sluice-local", "--addr"].map(str::to_owned).to_vec();
    arguments.extend([address.ip().to_string(), "--port".to_owned(), address.port().to_string()]);
    arguments.extend(["--store_dir".to_owned(), data.path.join("jetstream").display().to_string()]);
    Plan { name: "nats-server", program: program.to_owned(), arguments, log_dir: data.run() }
}

fn dataplane_plan(program: &Path, args: &LocalArgs, data: &DataDir, nats: &str) -> Plan {
    let pair = |flag: &str, value: String| [flag.to_owned(), value];
    let arguments = [
        pair("--config-dir", data.channels().display().to_string()),
        pair("--listen", args.listen.to_string()),
        pair("--admin", args.admin.to_string()),
        pair("--nats", nats.to_owned()),
        pair("--instance", "local".to_owned()),
        // No proxy routes here whose list of pods would have to follow first.
        pair("--drain-delay", "0s".to_owned()),
        pair("--drain-period", "1s".to_owned()),
    ];
    Plan {
        name: "sluice-dataplane",
        program: program.to_owned(),
        arguments: arguments.concat(),
        log_dir: data.run(),
    }
}

/// The lines that a user needs next.
fn introduce(channels: &Channels, (http, admin): (SocketAddr, SocketAddr), nats: &str) {
    let Some(channel) = channels.first() else { return };
    let reachable = |a: SocketAddr| {
        if a.ip().is_unspecified() { format!("127.0.0.1:{}", a.port()) } else { a.to_string() }
    };
    let host = reachable(http);
    let url = format!("http://{host}/channels/{}", channel.name);
    let subject = channel
        .config
        .stream
        .subjects
        .first()
        .map(|s| s.replace('>', "created").replace('*', "any"))
        .unwrap_or_default();
    let publish = if channel.config.publish.http {
        let topic = subject.strip_prefix(&channel.config.stream.topic_prefix).unwrap_or(&subject);
        format!("curl -d '{{\"id\":1}}' {url}/{topic}")
    } else {
        format!("nats --server {nats} pub {subject} '{{\"id\":1}}'")
    };
    say(&format!(
        "serving {} at http://{host}/channels/, NATS at {nats}. Ctrl-C stops everything.",
        count(channels.len(), "channel")
    ));
    say(&format!("  subscribe  curl -N {url}"));
    say(&format!("  publish    {publish}"));
    say(&format!(
        "  replay     curl -N '{url}?from=earliest'     (or -H 'Last-Event-ID: <the last id you saw>')"
    ));
    say(&format!("  console    http://{}/", reachable(admin)));
}

/// Fails clearly before anything is started.
fn free(address: SocketAddr, flag: &'static str) -> Result<(), Error> {
    TcpListener::bind(address).map(drop).map_err(|source| Error::Port { address, flag, source })
}

/// The directory of everything that is kept, held by one instance.
struct DataDir {
    path: PathBuf,
    /// Held for as long as the process lives; the system lets go of it in any case.
    _lock: std::fs::File,
}

impl DataDir {
    fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Data { path: path.to_owned(), source };
        let channels = path.join("run/channels");
        std::fs::create_dir_all(&channels).map_err(fail)?;
        std::fs::create_dir_all(path.join("marks")).map_err(fail)?;
        let path = path.canonicalize().map_err(fail)?;
        let lock = std::fs::File::create(path.join("run/lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(Error::InUse(path)),
            Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        // Files of channels that are no more must not be served again.
        for entry in std::fs::read_dir(path.join("run/channels")).map_err(fail)?.flatten() {
            std::fs::remove_file(entry.path()).map_err(fail)?;
        }
        Ok(Self { path, _lock: lock })
    }

    fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    fn marks(&self) -> PathBuf {
        self.path.join("marks")
    }

    fn channels(&self) -> PathBuf {
        self.path.join("run/channels")
    }
}
