//! One question to one data plane, on its admin port: what it serves.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;

/// How long one pod may take to answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Longest answer, bytes: an entry is a few hundred, and local mode serves many channels in one
/// process.
const ANSWER_BYTES: usize = 1024 * 1024;
#[derive(Debug, Default, Deserialize)]
pub(super) struct Readyz {
    #[serde(default)]
    pub(super) channels: Vec<ServedChannel>,
    #[serde(default)]
    pub(super) refused: Vec<RefusedFile>,
}

/// A file that a data plane refuses.
#[derive(Debug, Deserialize)]
pub(super) struct RefusedFile {
    pub(super) file: String,
    pub(super) reason: String,
}

/// What a data plane says of one of its channels.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ServedChannel {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) generation: i64,
    /// What its reader is troubled by.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// Streams that are open right now.
    #[serde(default)]
    pub(crate) connections: Option<u32>,
}

/// Asks one data plane.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    client: Client<HttpConnector, Empty<Bytes>>,
    port: u16,
}

impl Asker {
    /// Asks at `port`.
    #[must_use]
    pub(crate) fn new(port: u16) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(ANSWER_LIMIT));
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
            port,
        }
    }

    /// What the data plane at `ip` serves; `None` when it does not answer.
    pub(crate) async fn channels(&self, ip: IpAddr) -> Option<Vec<ServedChannel>> {
        self.readyz(ip).await.map(|readyz| readyz.channels)
    }

    pub(super) async fn readyz(&self, ip: IpAddr) -> Option<Readyz> {
        let uri = format!("http://{}/readyz", SocketAddr::new(ip, self.port)).parse().ok()?;
        let answer = async {
            let response = self.client.get(uri).await.ok()?;
            let body =
                Limited::new(response.into_body(), ANSWER_BYTES).collect().await.ok()?.to_bytes();
            serde_json::from_slice::<Readyz>(&body).ok()
        };
        tokio::time::timeout(ANSWER_LIMIT, answer).await.ok().flatten()
    }
}
