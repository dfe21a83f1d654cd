//! The operator's connection to NATS: mends itself, reads its credentials again at each connect,
//! and says when it is back, because then every stream must be looked at.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, jetstream};
use parking_lot::Mutex;
use sluice_channel::Credentials;
use tokio::sync::watch;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to connect; the first ones follow faster.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// Different faults that are logged between two connects; more differ in numbers only.
const LOGGED_FAULTS: usize = 16;

/// How NATS is reached.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
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
    /// What the server or the network said last, while it is down.
    pub(crate) trouble: Option<String>,
}

impl State {
    /// Whether it is up, and how often it came up: what changes when NATS comes or goes.
    #[must_use]
    pub(crate) const fn coming_and_going(&self) -> (bool, u64) {
        (self.up, self.connects)
    }
}

/// A connection that mends itself.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    client: Client,
    servers: String,
    domain: Option<String>,
    state: watch::Receiver<State>,
}

impl Connection {
    /// Starts to connect and returns at once; goes on trying for as long as the connection lives.
    ///
    /// # Errors
    /// Only for settings that can never work (malformed URL, unreadable certificate).
    pub(crate) async fn open(settings: Settings) -> Result<Self, Error> {
        let Settings { servers: urls, credentials: file, ca, client_certificate, domain, name } =
            settings;
        let (set_state, state) = watch::channel(State::default());
        let options = match file {
            None => ConnectOptions::new(),
            Some(path) => ConnectOptions::with_auth_callback(move |nonce| {
                let path = path.clone();
                async move { credentials(&path, &nonce).await.map_err(AuthError::new) }
            }),
        };
        let servers = urls.iter().map(|url| without_user(url)).collect::<Vec<_>>().join(",");
        let observer = Arc::new(Observer {
            state: set_state,
            servers: servers.clone(),
            logged: Mutex::default(),
        });
        let mut options = options
            .name(name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(Duration::from_secs(3))
            .ping_interval(Duration::from_secs(5))
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(50 << attempts.min(8)).min(MAX_RECONNECT_DELAY)
            })
            .event_callback(move |event| {
                let observer = Arc::clone(&observer);
                async move { observer.observe(&event) }
            });
        if let Some(ca) = ca {
            options = options.add_root_certificates(ca);
        }
        if let Some((certificate, key)) = client_certificate {
            options = options.add_client_certificate(certificate, key);
        }
        let client = options
            .connect(&urls)
            .await
            .map_err(|source| Error { servers: servers.clone(), source })?;
        Ok(Self { client, servers, domain, state })
    }

    /// The servers' addresses, without passwords.
    #[must_use]
    pub(crate) fn servers(&self) -> &str {
        &self.servers
    }

    /// JetStream over this connection.
    #[must_use]
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        let mut context = match &self.domain {
            Some(domain) => jetstream::with_domain(self.client.clone(), domain),
            None => jetstream::new(self.client.clone()),
        };
        context.set_timeout(REQUEST_TIMEOUT);
        context
    }

    /// What is known of the connection, now and later.
    #[must_use]
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

/// An address that may be shown: a password in it is not.
fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

/// Follows one connection: keeps its [`State`] and logs what changes.
struct Observer {
    state: watch::Sender<State>,
    servers: String,
    /// Faults that are in the log since NATS was connected last: attempts repeat for ever, and two
    /// faults may take turns.
    logged: Mutex<BTreeSet<String>>,
}

impl Observer {
    fn observe(&self, event: &Event) {
        let servers = self.servers.as_str();
        match event {
            Event::Connected => {
                tracing::info!(servers, "connected to NATS");
                self.logged.lock().clear();
                self.state.send_modify(|s| {
                    *s = State { up: true, connects: s.connects + 1, trouble: None };
                });
            }
            Event::Disconnected | Event::Closed => {
                if self.state.send_if_modified(|s| std::mem::replace(&mut s.up, false)) {
                    tracing::warn!(servers, "disconnected from NATS; trying again");
                }
            }
            Event::ServerError(_) | Event::ClientError(_) => {
                let text = event.to_string();
                self.state
                    .send_if_modified(|s| s.trouble.replace(text.clone()).as_ref() != Some(&text));
                let mut logged = self.logged.lock();
                if logged.len() < LOGGED_FAULTS && logged.insert(text) {
                    tracing::warn!(servers, %event, "NATS connection");
                }
            }
            Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {
                tracing::warn!(servers, %event, "NATS connection");
            }
        }
    }
}

/// Signs the server's nonce with what the credentials file holds now: a rotated secret needs no
/// restart.
async fn credentials(path: &Path, nonce: &[u8]) -> Result<Auth, String> {
    let text =
        tokio::fs::read_to_string(path).await.map_err(|e| format!("{}: {e}", path.display()))?;
    let Credentials { jwt, seed } =
        Credentials::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let key = nkeys::KeyPair::from_seed(&seed).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut auth = Auth::new();
    auth.signature = Some(key.sign(nonce).map_err(|e| e.to_string())?);
    auth.jwt = Some(jwt);
    Ok(auth)
}
