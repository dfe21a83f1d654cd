//! The connection to NATS that all channels of a pod share.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use async_nats::{Client, ConnectOptions, Event, jetstream};
use sluice_channel::Credentials;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::source::REQUEST_TIMEOUT;

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
    /// Name shown in the server's connection list.
    pub name: String,
}

/// A connection that mends itself and says whether it is up.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: Arc<ArcSwap<Current>>,
    domain: Option<String>,
    up: watch::Receiver<bool>,
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
/// Pause before a client that has ended is replaced: whatever ends each new one must not keep a
/// processor busy.
const REPLACE_DELAY: Duration = Duration::from_millis(500);

/// Starts connecting; returns at once and goes on trying for as long as the connection lives.
///
/// # Errors
/// Only for settings that can never work (malformed URL, unreadable certificate).
pub async fn connect(settings: &Settings) -> Result<Connection, async_nats::Error> {
    let (set_up, up) = watch::channel(false);
    let set_up = Arc::new(set_up);
    let (client, ended) = start(settings, &set_up).await?;
    let domain = settings.domain.clone();
    let current = Arc::new(ArcSwap::from_pointee(Current::new(client, domain.as_deref())));
    let mut keeper = JoinSet::new();
    keeper.spawn(keep(settings.clone(), set_up, Arc::clone(&current), ended));
    Ok(Connection(Arc::new(Shared { current, domain, up, _keeper: keeper })))
}

/// A client, and a token that is cancelled when the client's task has ended, for whatever reason:
/// such a client says that it is connected, and does nothing any more.
async fn start(
    settings: &Settings,
    up: &Arc<watch::Sender<bool>>,
) -> Result<(Client, CancellationToken), async_nats::Error> {
    let mut options = match settings.credentials.clone() {
        None => ConnectOptions::new(),
        Some(path) => ConnectOptions::with_auth_callback(move |nonce| {
            let path = path.clone();
            async move { credentials(&path, &nonce).await.map_err(async_nats::AuthError::new) }
        }),
    };
    let (up, ended) = (Arc::clone(up), CancellationToken::new());
    // The callback lives as long as the task that feeds it with events.
    let alive = ended.clone().drop_guard();
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
            let up = Arc::clone(&up);
            async move { observe(&up, &event) }
        });
    if let Some(ca) = &settings.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok((options.connect(&settings.servers).await?, ended))
}

/// Puts a new client in the place of each one that has ended.
async fn keep(
    settings: Settings,
    up: Arc<watch::Sender<bool>>,
    current: Arc<ArcSwap<Current>>,
    mut ended: CancellationToken,
) {
    loop {
        ended.cancelled().await;
        up.send_replace(false);
        tracing::error!("the NATS client has ended; another takes its place");
        tokio::time::sleep(REPLACE_DELAY).await;
        match start(&settings, &up).await {
            Ok((client, its_end)) => {
                let domain = settings.domain.as_deref();
                current.store(Arc::new(Current::new(client, domain)));
                ended = its_end;
            }
            // Its token is cancelled, too: the next round follows.
            Err(error) => tracing::error!(%error, "cannot start a NATS client"),
        }
    }
}

fn observe(up: &watch::Sender<bool>, event: &Event) {
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            up.send_replace(true);
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("disconnected from NATS; trying again");
            up.send_replace(false);
        }
        Event::LameDuckMode
        | Event::Draining
        | Event::SlowConsumer(_)
        | Event::ServerError(_)
        | Event::ClientError(_) => {
            tracing::warn!(%event, "NATS connection");
        }
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
