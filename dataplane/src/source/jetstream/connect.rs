//! The connection to NATS that all channels of a pod share.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, jetstream};
use sluice_channel::Credentials;
use tokio::sync::watch;

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
pub struct Connection {
    client: Client,
    domain: Option<String>,
    up: watch::Receiver<bool>,
    number: Arc<AtomicU64>,
}

/// Longest pause between two attempts to connect; the first ones follow faster.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// Starts connecting; returns at once and goes on trying for as long as the connection lives.
///
/// # Errors
/// Only for settings that can never work (malformed URL, unreadable certificate).
pub async fn connect(settings: &Settings) -> Result<Connection, async_nats::Error> {
    let (set_up, up) = watch::channel(false);
    let set_up = Arc::new(set_up);
    let number = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&number);
    let mut options = match settings.credentials.clone() {
        None => ConnectOptions::new(),
        Some(path) => ConnectOptions::with_auth_callback(move |nonce| {
            let path = path.clone();
            async move { credentials(&path, &nonce).await.map_err(async_nats::AuthError::new) }
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
            if matches!(event, Event::Connected) {
                count.fetch_add(1, Relaxed);
            }
            let set_up = Arc::clone(&set_up);
            async move { observe(&set_up, &event) }
        });
    if let Some(ca) = &settings.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let client = options.connect(&settings.servers).await?;
    Ok(Connection { client, domain: settings.domain.clone(), up, number })
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
    /// The client underneath.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Whether there is a connection at this moment.
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// How often it was made: answers over different ones may be of different servers.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number.load(Relaxed)
    }

    /// Resolves when the connection goes down (at once when it is).
    pub async fn down(&self) {
        let mut up = self.up.clone();
        // An error means that the client is gone, which is down as well.
        let _ = up.wait_for(|up| !up).await;
    }

    pub(super) fn context(&self) -> jetstream::Context {
        let mut context = match &self.domain {
            Some(domain) => jetstream::with_domain(self.client.clone(), domain),
            None => jetstream::new(self.client.clone()),
        };
        context.set_timeout(REQUEST_TIMEOUT);
        context
    }

    pub(super) fn api_prefix(&self) -> String {
        self.domain
            .as_ref()
            .map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"))
    }
}
