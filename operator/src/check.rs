//! `sluice-operator check`: whether the operator, the API server and NATS work together, as `helm
//! test` asks.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Uri, body::Bytes};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Api, Client, Config, api::ListParams, core::DeserializeGuard};

use crate::{args::CheckArgs, crd::SseChannel, kube_error, nats::Connection, stream::Streams};

/// Longest one attempt may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest answer of the operator that is looked at, bytes; it says `ok` or why not.
const ANSWER_BYTES: usize = 64 * 1024;

/// Why the check failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Some of it does not work; each has been told on a line of its own.
    #[error("{failed} of {all} checks failed")]
    Failed {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
    /// The result could not be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] std::io::Error),
}

/// Asks each until it works or the time is over, and writes a line for each to `output`.
///
/// # Errors
/// [`Error`] when one of them does not work.
pub async fn run(args: CheckArgs, mut output: impl Write) -> Result<(), Error> {
    let deadline = Instant::now() + args.timeout;
    // One connection for all attempts: it tries again by itself, and says why it fails.
    let connection = Connection::open(args.nats.into_settings("sluice-operator-check")).await;
    let (operator, kubernetes, nats) = tokio::join!(
        until(deadline, async || operator(&args.operator).await),
        until(deadline, async || kubernetes(&args.namespaces).await),
        async {
            match &connection {
                Ok(connection) => until(deadline, async || nats(connection).await).await,
                Err(error) => Err(error.to_string()),
            }
        },
    );
    let results = [("operator", operator), ("Kubernetes", kubernetes), ("NATS", nats)];
    for (what, result) in &results {
        match result {
            Ok(said) => writeln!(output, "ok      {what}: {said}")?,
            Err(why) => writeln!(output, "failed  {what}: {why}")?,
        }
    }
    let failed = results.iter().filter(|(_, result)| result.is_err()).count();
    if failed == 0 { Ok(()) } else { Err(Error::Failed { failed, all: results.len() }) }
}

/// Tries until it succeeds, the deadline passes, or an attempt takes too long past it.
async fn until(
    deadline: Instant,
    attempt: impl AsyncFn() -> Result<String, String>,
) -> Result<String, String> {
    loop {
        let result = tokio::time::timeout(ATTEMPT_LIMIT, attempt()).await;
        let result = result
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ATTEMPT_LIMIT.as_secs())));
        if result.is_ok() || Instant::now() + PAUSE >= deadline {
            return result;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the operator that runs knows the channels.
async fn operator(base: &Uri) -> Result<String, String> {
    let url = format!("{}/readyz", base.to_string().trim_end_matches('/'));
    let uri = url.parse::<Uri>().map_err(|error| format!("{url}: {error}"))?;
    let client: HttpClient<_, Empty<Bytes>> =
        HttpClient::builder(TokioExecutor::new()).build(HttpConnector::new());
    let response = client
        .get(uri)
        .await
        .map_err(|error| format!("{url} does not answer ({}); does its pod run?", root(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| format!("{url}: {error}"))?
        .to_bytes();
    let text = String::from_utf8_lossy(&body).trim().replace('\n', ", ");
    if status.is_success() {
        Ok(format!("{url} answers {text}"))
    } else {
        Err(format!("{url} answers {status}: {text}"))
    }
}

/// Whether the definition is served and the operator's account may read channels where it should.
async fn kubernetes(namespaces: &[String]) -> Result<String, String> {
    let config =
        Config::infer().await.map_err(|error| format!("no cluster is configured: {error}"))?;
    let client = Client::try_from(config).map_err(|error| error.to_string())?;
    let scopes: Vec<Option<&str>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(|namespace| Some(namespace.as_str())).collect()
    };
    for scope in &scopes {
        let api: Api<DeserializeGuard<SseChannel>> = match scope {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let scope = scope.map_or_else(
            || "every namespace".to_owned(),
            |namespace| format!("namespace {namespace}"),
        );
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {
                return Err("the SseChannel definition is not installed: set crds.enabled, or apply crds/ssechannels.yaml".to_owned());
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Err(format!(
                    "the operator may not list channels of {scope}: {}",
                    status.message
                ));
            }
            Err(error) => {
                let why = kube_error::text(&error);
                return Err(format!("channels of {scope} cannot be listed: {why}"));
            }
        }
    }
    let scope =
        if namespaces.is_empty() { "every namespace".to_owned() } else { namespaces.join(", ") };
    Ok(format!("SseChannel is served, channels of {scope} can be listed"))
}

/// Whether JetStream answers the operator.
async fn nats(connection: &Connection) -> Result<String, String> {
    let mut state = connection.state();
    // Without a connection by then, the words of the failure below are better than those of a
    // passed time.
    let _ = tokio::time::timeout(ATTEMPT_LIMIT / 2, state.wait_for(|state| state.up)).await;
    let version = Streams::over(connection).look().await.map_err(|error| error.to_string())?;
    Ok(format!("nats-server {version} at {} with JetStream", connection.servers()))
}

/// The last cause, which says what the network said.
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
