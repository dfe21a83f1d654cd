//! The connection to NATS that all channels of a pod share.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_nats::{Client, ConnectOptions, Event, ServerInfo, jetstream};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use sluice_channel::Credentials;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{source::REQUEST_TIMEOUT, throttle::Throttle};

/// How to reach NATS. The credentials are read again at each (re)connect, so a rotated secret needs
/// no new pod.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `nats://`, `tls://` or `wss://` URLs.
    pub servers: Vec<String>,
    /// A `.creds` file (user JWT and seed).
    pub credentials: Option<PathBuf>,
    /// PEM file with the authorities to trust.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's certificate and key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// JetStream domain, for leaf nodes.
    pub domain: Option<String>,
    /// Prefix of the subjects that answers come to; without wildcards.
    pub inbox_prefix: Option<String>,
    /// Name shown in the server's connection list.
    pub name: String,
    /// Counts the clients that ended and were replaced.
    pub replaced: Counter,
}

/// A connection that mends itself and says whether it is up.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: Arc<ArcSwap<Current>>,
    domain: Option<String>,
    up: watch::Receiver<bool>,
    /// How many connections there have been.
    number: Arc<AtomicU64>,
    /// Replaces a client that has ended, for as long as the connection lives.
    _keeper: JoinSet<()>,
}

/// The client in use, and its JetStream side.
#[derive(Debug)]
struct Current {
    client: Client,
    context: jetstream::Context,
}

impl Current {
    fn new(client: Client, domain: Option<&str>) -> Self {
        let mut context = match domain {
            Some(domain) => jetstream::with_domain(client.clone(), domain),
            None => jetstream::new(client.clone()),
        };
        context.set_timeout(REQUEST_TIMEOUT);
        Self { client, context }
    }
}

/// Longest pause between two attempts to connect; the first ones follow faster.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// Events of one kind that repeat are logged once in this time.
const FAILURE_LOG_PERIOD: Duration = Duration::from_secs(10);
/// How often, and with which pause, the information on a new server is looked for: it comes within
/// microseconds, and events that follow wait meanwhile.
const INFO_LOOKS: u32 = 10;
const INFO_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a client that has ended is replaced: whatever ends each new one must not keep a
/// processor busy.
const REPLACE_DELAY: Duration = Duration::from_millis(500);

/// Starts connecting; returns at once and goes on trying for as long as the connection lives.
///
/// # Errors
/// Only for settings that can never work (malformed URL, unreadable certificate).
pub async fn connect(settings: &Settings) -> Result<Connection, async_nats::Error> {
    let (up, up_now) = watch::channel(false);
    let number = Arc::new(AtomicU64::new(0));
    let observer = Arc::new(Observer {
        urls: settings.servers.iter().map(|url| without_user(url)).collect::<Vec<_>>().join(","),
        up,
        number: Arc::clone(&number),
        current: Mutex::default(),
        known: Mutex::default(),
        failures: Throttle::new(FAILURE_LOG_PERIOD),
        unreadable: Throttle::new(FAILURE_LOG_PERIOD),
        reports: Throttle::new(FAILURE_LOG_PERIOD),
    });
    let (current, ended) = start(settings, &observer).await?;
    let current = Arc::new(ArcSwap::new(current));
    let mut keeper = JoinSet::new();
    keeper.spawn(keep(settings.clone(), observer, Arc::clone(&current), ended));
    let domain = settings.domain.clone();
    Ok(Connection(Arc::new(Shared { current, domain, up: up_now, number, _keeper: keeper })))
}

/// A client, and a token that is cancelled when the client's task has ended, for whatever reason:
/// such a client says that it is connected, and does nothing any more.
async fn start(
    settings: &Settings,
    observer: &Arc<Observer>,
) -> Result<(Arc<Current>, CancellationToken), async_nats::Error> {
    let observing = Arc::clone(observer);
    let reading = Arc::clone(observer);
    let ended = CancellationToken::new();
    // The callback lives as long as the task that feeds it with events.
    let alive = ended.clone().drop_guard();
    let mut options = match settings.credentials.clone() {
        None => ConnectOptions::new(),
        Some(path) => ConnectOptions::with_auth_callback(move |nonce| {
            let (path, observer) = (path.clone(), Arc::clone(&reading));
            async move {
                let auth = credentials(&path, &nonce).await;
                auth.map_err(|why| {
                    observer.unreadable(&why);
                    async_nats::AuthError::new(why)
                })
            }
        }),
    };
    options = options
        .name(&settings.name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(Duration::from_secs(3))
        .ping_interval(Duration::from_secs(5))
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(50 << attempts.min(8)).min(MAX_RECONNECT_DELAY)
        })
        .event_callback(move |event| {
            let _ = &alive;
            let observer = Arc::clone(&observing);
            async move { observer.observe(event).await }
        });
    if let Some(prefix) = &settings.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    if let Some(ca) = &settings.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let client = options.connect(&settings.servers).await?;
    let current = Arc::new(Current::new(client, settings.domain.as_deref()));
    *observer.current.lock() = Arc::downgrade(&current);
    Ok((current, ended))
}

/// Puts a new client in the place of each one that has ended.
async fn keep(
    settings: Settings,
    observer: Arc<Observer>,
    current: Arc<ArcSwap<Current>>,
    mut ended: CancellationToken,
) {
    loop {
        ended.cancelled().await;
        observer.up.send_replace(false);
        let urls = &observer.urls;
        settings.replaced.inc();
        tracing::error!(urls, "the NATS client has ended; another takes its place");
        tokio::time::sleep(REPLACE_DELAY).await;
        match start(&settings, &observer).await {
            Ok((client, its_end)) => {
                current.store(client);
                ended = its_end;
            }
            // Its token is cancelled, too: the next round follows.
            Err(error) => tracing::error!(urls, %error, "cannot start a NATS client"),
        }
    }
}

/// Sees what happens to the connection.
struct Observer {
    /// The configured URLs, for the log: without users and passwords.
    urls: String,
    up: watch::Sender<bool>,
    /// How many connections there have been.
    number: Arc<AtomicU64>,
    /// Weak: the client owns the task that owns this.
    current: Mutex<Weak<Current>>,
    /// The server of this connection, or of the last one.
    known: Mutex<ServerInfo>,
    /// Attempts to connect, one every two seconds while there is no server.
    failures: Throttle,
    /// The same of credentials that cannot be read, which the client's own error does not name.
    unreadable: Throttle,
    /// What the server complains of, which it may do with each message.
    reports: Throttle,
}

impl Observer {
    async fn observe(&self, event: Event) {
        let urls = &self.urls;
        match event {
            Event::Connected => {
                self.number.fetch_add(1, Relaxed);
                self.up.send_replace(true);
                let server = self.new_server().await;
                tracing::info!(server, urls, "connected to NATS");
            }
            Event::Disconnected | Event::Closed => {
                self.up.send_replace(false);
                let server = self.server();
                tracing::warn!(server, urls, "disconnected from NATS; trying again");
            }
            Event::LameDuckMode | Event::Draining => {
                tracing::warn!(server = self.server(), urls, %event, "the NATS server ends the connection soon");
            }
            Event::ClientError(error) => {
                if let Some(passed_over) = self.failures.admit() {
                    tracing::warn!(urls, %error, passed_over, "cannot connect to NATS; trying again");
                }
            }
            Event::SlowConsumer(_) | Event::ServerError(_) => {
                if let Some(passed_over) = self.reports.admit() {
                    tracing::warn!(server = self.server(), urls, %event, passed_over, "NATS connection");
                }
            }
        }
    }

    fn unreadable(&self, why: &str) {
        if let Some(passed_over) = self.unreadable.admit() {
            tracing::warn!(urls = self.urls, why, passed_over, "cannot use the NATS credentials");
        }
    }

    /// Name of the server that was connected last.
    fn server(&self) -> String {
        self.known.lock().server_name.clone()
    }

    /// Name of the server that the client has just connected to. The client reports the event a
    /// moment before it has the server's information.
    async fn new_server(&self) -> String {
        for _ in 0..INFO_LOOKS {
            let current = self.current.lock().upgrade();
            let info = current.map(|current| current.client.server_info()).unwrap_or_default();
            let of = |info: &ServerInfo| (info.server_id.clone(), info.client_id);
            if !info.server_id.is_empty() && of(&info) != of(&self.known.lock()) {
                let name = info.server_name.clone();
                *self.known.lock() = info;
                return name;
            }
            tokio::time::sleep(INFO_PAUSE).await;
        }
        "unknown".to_owned()
    }
}

/// A server's URL as the log may show it.
fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{host}")
        }
        None => url.rsplit_once('@').map_or(url, |(_, host)| host).to_owned(),
    }
}

/// Signs the server's nonce with what the credentials file holds now.
async fn credentials(path: &Path, nonce: &[u8]) -> Result<async_nats::Auth, String> {
    let text =
        tokio::fs::read_to_string(path).await.map_err(|e| format!("{}: {e}", path.display()))?;
    let Credentials { jwt, seed } =
        Credentials::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let key = nkeys::KeyPair::from_seed(&seed).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut auth = async_nats::Auth::new();
    auth.signature = Some(key.sign(nonce).map_err(|e| e.to_string())?);
    auth.jwt = Some(jwt);
    Ok(auth)
}

impl Connection {
    /// The client underneath, at this moment: it may be replaced by another.
    #[must_use]
    pub fn client(&self) -> Client {
        self.0.current.load().client.clone()
    }

    /// Whether there is a connection at this moment.
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.0.up.borrow()
    }

    /// How often it was made: answers over different ones may be of different servers.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number.load(Relaxed)
    }

    /// Resolves when the connection goes down (at once when it is).
    pub async fn down(&self) {
        let mut up = self.0.up.clone();
        // An error means that the keeper is gone, which is down as well.
        let _ = up.wait_for(|up| !up).await;
    }

    pub(super) fn context(&self) -> jetstream::Context {
        self.0.current.load().context.clone()
    }

    pub(super) fn api_prefix(&self) -> String {
        self.0
            .domain
            .as_ref()
            .map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_ended_is_replaced_and_counted() {
        // Nothing listens there; a client goes on trying.
        let settings =
            Settings { servers: vec!["nats://127.0.0.1:9".to_owned()], ..Settings::default() };
        let observer = Arc::new(Observer {
            urls: String::new(),
            up: watch::Sender::new(false),
            number: Arc::default(),
            current: Mutex::default(),
            known: Mutex::default(),
            failures: Throttle::new(FAILURE_LOG_PERIOD),
            unreadable: Throttle::new(FAILURE_LOG_PERIOD),
            reports: Throttle::new(FAILURE_LOG_PERIOD),
        });
        let (first, _) = start(&settings, &observer).await.unwrap();
        let current = Arc::new(ArcSwap::new(Arc::clone(&first)));
        let ended = CancellationToken::new();
        ended.cancel();
        let keeping = keep(settings.clone(), observer, Arc::clone(&current), ended);
        assert!(tokio::time::timeout(REPLACE_DELAY * 3, keeping).await.is_err(), "it never ends");
        assert!(!Arc::ptr_eq(&first, &current.load_full()));
        assert_eq!(settings.replaced.get(), 1);
    }

    #[test]
    fn the_log_shows_no_passwords() {
        for (url, shown) in [
            ("nats://nats:4222", "nats://nats:4222"),
            ("tls://user:p@ss@nats.example:4222", "tls://nats.example:4222"),
            ("token@nats:4222", "nats:4222"),
            ("nats:4222", "nats:4222"),
        ] {
            assert_eq!(without_user(url), shown, "{url}");
        }
    }
}
