//! The operator's connection to NATS: mends itself, reads its credentials again at each connect,
//! and says when it is back, because then every stream must be looked at.

mod address;
pub(crate) mod inbox;
mod trouble;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, jetstream};
use parking_lot::{Mutex, RwLock};
use sluice_channel::Credentials;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub(crate) use address::{PublicServers, without_user};
use trouble::Denied;
pub(crate) use trouble::Trouble;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to connect; the first ones follow faster.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// Pause before a client that has ended is replaced: whatever ends each new one must not keep a
/// processor busy.
const REPLACE_DELAY: Duration = Duration::from_millis(500);
/// Different faults that are logged between two connects; more differ in numbers only.
const LOGGED_FAULTS: usize = 16;
/// Denied subjects that a request which waits for its answer may fall behind by: as many as there
/// are passes at a time, several times over. One that missed its own waits for its time limit.
const DENIED_QUEUE: usize = 256;

/// How NATS is reached.
#[derive(Clone)]
pub(crate) struct Settings {
    /// With user and password, where they were given that way; `Debug` shows neither.
    pub(crate) servers: Vec<String>,
    /// Credentials file (`.creds`); read again at each connect.
    pub(crate) credentials: Option<PathBuf>,
    /// PEM file of the authorities to trust.
    pub(crate) ca: Option<PathBuf>,
    /// PEM files of the client certificate and of its key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) domain: Option<String>,
    /// What the server lists this connection as.
    pub(crate) name: String,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("servers", &self.shown_servers())
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Settings {
    fn shown_servers(&self) -> String {
        let urls = self.servers.iter().map(|url| without_user(url)).collect::<Vec<_>>();
        urls.join(",")
    }
}

/// Why no connection can be tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to NATS at {servers}: {source}")]
pub struct Error {
    servers: String,
    source: async_nats::ConnectError,
}

/// What is known of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// Whether it is up.
    pub(crate) up: bool,
    /// How often it came up; a change means that streams may have changed unseen.
    pub(crate) connects: u64,
    /// What keeps the operator from NATS, once an attempt has failed.
    pub(crate) trouble: Option<Trouble>,
}

impl State {
    /// Whether it is up, and how often it came up: what changes when NATS comes or goes.
    #[must_use]
    pub(crate) const fn coming_and_going(&self) -> (bool, u64) {
        (self.up, self.connects)
    }
}

/// A connection that mends itself, also when the task of its client has ended.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    current: Arc<RwLock<Client>>,
    servers: String,
    domain: Option<String>,
    state: watch::Receiver<State>,
    /// Subjects that the server took no message on, as it says so.
    denied: broadcast::Sender<String>,
    /// Replaces a client that has ended, for as long as the connection lives.
    _keeper: Arc<JoinSet<()>>,
}

impl Connection {
    /// Starts to connect and returns at once; goes on trying for as long as the connection lives.
    ///
    /// # Errors
    /// Only for settings that can never work (malformed URL, unreadable certificate).
    pub(crate) async fn open(settings: Settings) -> Result<Self, Error> {
        let (set_state, state) = watch::channel(State::default());
        let (servers, domain) = (settings.shown_servers(), settings.domain.clone());
        let denied = broadcast::Sender::new(DENIED_QUEUE);
        let observer = Arc::new(Observer {
            state: set_state,
            servers: servers.clone(),
            denied: denied.clone(),
            failed: AtomicBool::new(false),
            logged: Mutex::default(),
        });
        let (client, ended) = start(&settings, &observer).await?;
        let current = Arc::new(RwLock::new(client));
        let mut keeper = JoinSet::new();
        keeper.spawn(keep(settings, observer, Arc::clone(&current), ended));
        Ok(Self { current, servers, domain, state, denied, _keeper: Arc::new(keeper) })
    }

    /// The servers' addresses, without passwords.
    #[must_use]
    pub(crate) fn servers(&self) -> &str {
        &self.servers
    }

    /// JetStream over the client of this moment: not to be kept.
    #[must_use]
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        let client = self.current.read().clone();
        let mut context = match &self.domain {
            Some(domain) => jetstream::with_domain(client, domain),
            None => jetstream::new(client),
        };
        context.set_timeout(REQUEST_TIMEOUT);
        context
    }

    /// Start of the subjects of JetStream's API.
    #[must_use]
    pub(crate) fn api_prefix(&self) -> String {
        api_prefix(self.domain.as_deref())
    }

    /// Resolves when the server refuses a message on `subject`, from the call on, or takes no
    /// subscription for answers: the sender gets no other answer.
    pub(crate) fn denied(&self, subject: String) -> impl Future<Output = Trouble> + use<> {
        let (mut denied, mut state) = (self.denied.subscribe(), self.state());
        let publish = async move {
            loop {
                match denied.recv().await {
                    Ok(refused) if refused == subject => return Trouble::not_allowed(&subject),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let answers = async move {
            let refused =
                |state: &State| state.trouble.clone().filter(|trouble| state.up && trouble.refused);
            // An error means that the connection is gone; its requests say so.
            let state = state.wait_for(|state| refused(state).is_some()).await;
            state.ok().and_then(|state| refused(&state))
        };
        async move {
            tokio::select! {
                trouble = publish => trouble,
                Some(trouble) = answers => trouble,
                else => std::future::pending().await,
            }
        }
    }

    /// What is known of the connection, now and later.
    #[must_use]
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

/// Start of the subjects of JetStream's API, in a domain or without.
#[must_use]
pub(crate) fn api_prefix(domain: Option<&str>) -> String {
    domain.map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"))
}

/// A client, and a token that is cancelled when the client's task has ended, for whatever reason:
/// such a client says that it is connected, and does nothing any more.
async fn start(
    settings: &Settings,
    observer: &Arc<Observer>,
) -> Result<(Client, CancellationToken), Error> {
    let observing = Arc::clone(observer);
    let (diagnosing, looked_at) = (Arc::clone(observer), settings.clone());
    let ended = CancellationToken::new();
    // The callback lives as long as the task that feeds it with events.
    let alive = ended.clone().drop_guard();
    let options = match settings.credentials.clone() {
        None => ConnectOptions::new(),
        Some(path) => ConnectOptions::with_auth_callback(move |nonce| {
            let path = path.clone();
            async move { credentials(&path, &nonce).await.map_err(AuthError::new) }
        }),
    };
    let mut options = options
        .name(&settings.name)
        .custom_inbox_prefix(inbox::OPERATOR)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(Duration::from_secs(3))
        .ping_interval(Duration::from_secs(5))
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(50 << attempts.min(8)).min(MAX_RECONNECT_DELAY)
        })
        // Called before each attempt, and answered with "any server": here the client shows why
        // the last attempts failed.
        .reconnect_to_server_callback(move |servers, _| {
            let (observer, settings) = (Arc::clone(&diagnosing), looked_at.clone());
            async move {
                observer.look_at(settings, servers).await;
                None
            }
        })
        .event_callback(move |event| {
            let _ = &alive;
            let observer = Arc::clone(&observing);
            async move { observer.observe(&event) }
        });
    if let Some(ca) = &settings.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let client = options
        .connect(&settings.servers)
        .await
        .map_err(|source| Error { servers: observer.servers.clone(), source })?;
    Ok((client, ended))
}

/// Puts a new client in the place of each one that has ended.
async fn keep(
    settings: Settings,
    observer: Arc<Observer>,
    current: Arc<RwLock<Client>>,
    mut ended: CancellationToken,
) {
    loop {
        ended.cancelled().await;
        observer.is_down();
        let servers = &observer.servers;
        tracing::error!(servers, "the NATS client has ended; another takes its place");
        tokio::time::sleep(REPLACE_DELAY).await;
        match start(&settings, &observer).await {
            Ok((client, its_end)) => {
                *current.write() = client;
                ended = its_end;
            }
            // Its token is cancelled, too: the next round follows.
            Err(error) => tracing::error!(servers, %error, "cannot start a NATS client"),
        }
    }
}

/// Follows one connection: keeps its [`State`] and logs what changes.
struct Observer {
    state: watch::Sender<State>,
    servers: String,
    denied: broadcast::Sender<String>,
    /// Whether an attempt to connect has failed since NATS was connected last.
    failed: AtomicBool,
    /// Faults that are in the log since NATS was connected last: attempts repeat for ever, and two
    /// faults may take turns.
    logged: Mutex<BTreeSet<String>>,
}

impl Observer {
    fn is_down(&self) {
        if self.state.send_if_modified(|s| std::mem::replace(&mut s.up, false)) {
            tracing::warn!(servers = self.servers, "disconnected from NATS; trying again");
        }
    }

    /// Finds out why the last attempts failed.
    async fn look_at(&self, settings: Settings, servers: Vec<async_nats::Server>) {
        if !self.failed.load(Ordering::Relaxed) {
            return;
        }
        // A task, since the client wants a future that threads may share; it ends with this one.
        let mut look = JoinSet::new();
        look.spawn(async move { trouble::diagnose(&settings, servers).await });
        if let Some(Ok(Some(trouble))) = look.join_next().await {
            self.log(&trouble.text);
            self.set(&trouble);
        }
    }

    fn set(&self, trouble: &Trouble) {
        self.state.send_if_modified(|state| {
            state.trouble.replace(trouble.clone()).as_ref() != Some(trouble)
        });
    }

    /// Once for each fault, until NATS is connected again.
    fn log(&self, trouble: &str) {
        let mut logged = self.logged.lock();
        if logged.len() < LOGGED_FAULTS && logged.insert(trouble.to_owned()) {
            tracing::warn!(servers = self.servers, trouble, "NATS connection");
        }
    }

    fn observe(&self, event: &Event) {
        let servers = self.servers.as_str();
        match event {
            Event::Connected => {
                tracing::info!(servers, "connected to NATS");
                self.logged.lock().clear();
                self.failed.store(false, Ordering::Relaxed);
                self.state.send_modify(|s| {
                    *s = State { up: true, connects: s.connects + 1, trouble: None };
                });
            }
            Event::Disconnected | Event::Closed => self.is_down(),
            Event::ServerError(error) => match Denied::parse(&error.to_string()) {
                // Without a request that waits, the log has it all the same.
                Some(Denied::Publish(subject)) => {
                    self.log(&Trouble::not_allowed(&subject).text);
                    let _ = self.denied.send(subject);
                }
                Some(Denied::Subscribe(subject)) => {
                    let trouble = Trouble::no_answers(&subject);
                    self.log(&trouble.text);
                    self.set(&trouble);
                }
                None => self.log(&error.to_string()),
            },
            // An attempt has failed; why is found out before the next one.
            Event::ClientError(_) => self.failed.store(true, Ordering::Relaxed),
            Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {
                tracing::warn!(servers, %event, "NATS connection");
            }
        }
    }
}

/// Signs the server's nonce with what the credentials file holds now: a rotated secret needs no
/// restart.
async fn credentials(path: &Path, nonce: &[u8]) -> Result<Auth, String> {
    let Credentials { jwt, seed } = trouble::read(path).await?;
    let key = nkeys::KeyPair::from_seed(&seed).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut auth = Auth::new();
    auth.signature = Some(key.sign(nonce).map_err(|e| e.to_string())?);
    auth.jwt = Some(jwt);
    Ok(auth)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    const INFO: &[u8] = b"INFO {\"server_id\":\"s\",\"version\":\"2.15.1\",\"proto\":1,\"headers\":true,\"max_payload\":1048576}\r\n";

    /// A client whose task is gone would say that it is connected, for ever.
    #[tokio::test]
    async fn a_client_that_has_ended_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let settings = Settings {
            servers: vec![url],
            credentials: None,
            ca: None,
            client_certificate: None,
            domain: None,
            name: "test".to_owned(),
        };
        let accepted = tokio::spawn(async move {
            let mut sockets = Vec::new();
            for _ in 0..2 {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(INFO).await.unwrap();
                socket.write_all(b"PONG\r\n").await.unwrap();
                sockets.push(socket);
            }
            sockets
        });
        let connection = Connection::open(settings).await.unwrap();
        let mut state = connection.state();
        let limit = Duration::from_secs(20);
        let first = tokio::time::timeout(limit, state.wait_for(|s| s.up)).await;
        assert_eq!(first.unwrap().unwrap().connects, 1);
        // Its task ends; that of a panic ends no other way.
        connection.jetstream().client().drain().await.unwrap();
        let second = tokio::time::timeout(limit, state.wait_for(|s| s.connects == 2)).await;
        assert!(second.expect("another client takes its place").unwrap().up);
        assert_eq!(accepted.await.unwrap().len(), 2);
    }
}
