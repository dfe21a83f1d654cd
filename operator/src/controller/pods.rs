//! What the pods say of themselves: each is asked on its admin port which generation it serves.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::desired::{self, deployment::CONTAINER};
use crate::crd::condition::reason;

/// How long one pod may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Pods of one channel asked at a time.
const ASKED_AT_ONCE: usize = 16;
/// Longest answer, bytes: an entry is a few hundred, and local mode serves many channels in one
/// process.
const ANSWER_BYTES: usize = 1024 * 1024;

/// Asks pods.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    client: Client<HttpConnector, Empty<Bytes>>,
    port: u16,
}

/// What a ready pod serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Serves {
    /// This generation of the channel.
    Generation(i64),
    /// The channel is not among what it serves.
    Nothing,
    /// It could not be asked.
    Unreachable,
}

/// All pods of a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    /// Each ready pod, by name.
    pub(crate) ready: Vec<(String, Serves)>,
    /// The first trouble of a pod that is not ready: a reason and what is the case.
    pub(crate) trouble: Option<(&'static str, String)>,
    /// Why a pod refuses the channel's configuration file, if one does.
    pub(crate) refused: Option<String>,
    /// Open streams of the channel on all pods that told theirs.
    pub(crate) connections: u64,
    /// Whether a ready pod did not tell its number of streams.
    pub(crate) uncounted: bool,
}

impl Pods {
    /// Fills in for pods that cannot be asked what they `served` before, and remembers what is
    /// served now.
    pub(crate) fn recall(&mut self, served: &mut HashMap<String, i64>) {
        for (name, serves) in &mut self.ready {
            if *serves == Serves::Unreachable
                && let Some(generation) = served.get(name)
            {
                *serves = Serves::Generation(*generation);
            }
        }
        *served =
            self.ready
                .iter()
                .filter_map(|(name, s)| {
                    if let Serves::Generation(g) = s { Some((name.clone(), *g)) } else { None }
                })
                .collect();
    }
}

#[derive(Deserialize)]
struct Readyz {
    #[serde(default)]
    channels: Vec<ServedChannel>,
    #[serde(default)]
    refused: Vec<RefusedFile>,
}

/// A file that a data plane refuses.
#[derive(Deserialize)]
struct RefusedFile {
    file: String,
    reason: String,
}

/// What a data plane says of one channel.
struct Answer {
    channel: Option<ServedChannel>,
    /// Why it refuses the channel's file.
    refused: Option<String>,
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

impl Prober {
    /// Asks at `port` of each pod.
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

    /// Looks at all `pods` of the channel and asks those that can answer.
    pub(crate) async fn look(&self, pods: &[Pod], namespace: &str, channel: &str) -> Pods {
        let mut present: Vec<&Pod> =
            pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        present.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        // Futures are made first and driven after: each borrows its own pod only.
        let asked: Vec<_> = present.iter().map(|pod| self.ask(pod, namespace, channel)).collect();
        let answers: Vec<_> = stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await;
        let mut found = Pods::default();
        for (pod, answer) in present.into_iter().zip(answers) {
            let (answered, refused, served) = match answer {
                Some(Answer { channel, refused }) => (true, refused, channel),
                None => (false, None, None),
            };
            let connections = served.as_ref().and_then(|channel| channel.connections);
            if found.refused.is_none() {
                found.refused.clone_from(&refused);
            }
            found.connections += connections.map_or(0, u64::from);
            found.uncounted |= connections.is_none() && is_ready(pod);
            if is_ready(pod) {
                let serves = match &served {
                    Some(channel) => Serves::Generation(channel.generation),
                    None if answered => Serves::Nothing,
                    None => Serves::Unreachable,
                };
                found.ready.push((pod.metadata.name.clone().unwrap_or_default(), serves));
            } else if found.trouble.is_none() {
                let said = served.and_then(|channel| channel.error);
                found.trouble =
                    trouble(pod).or_else(|| refused.as_deref().map(config_refused)).or_else(|| {
                        said.map(|error| (reason::PODS_NOT_READY, format!("pod reports: {error}")))
                    });
            }
        }
        found
    }

    /// The pod's answer; `None` when it gives none.
    async fn ask(&self, pod: &Pod, namespace: &str, channel: &str) -> Option<Answer> {
        let ip = pod.status.as_ref()?.pod_ip.as_ref()?;
        let Readyz { channels, refused } = self.readyz(ip.parse().ok()?).await?;
        let file = desired::config::file_name(channel);
        Some(Answer {
            channel: channels.into_iter().find(|c| c.name == channel && c.namespace == namespace),
            refused: refused.into_iter().find(|r| r.file == file).map(|r| r.reason),
        })
    }

    /// What the data plane at `ip` serves; `None` when it does not answer.
    pub(crate) async fn channels(&self, ip: IpAddr) -> Option<Vec<ServedChannel>> {
        self.readyz(ip).await.map(|readyz| readyz.channels)
    }

    async fn readyz(&self, ip: IpAddr) -> Option<Readyz> {
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

/// What stands against a channel whose pods refuse its file.
pub(crate) fn config_refused(why: &str) -> (&'static str, String) {
    let message = format!(
        "a pod refuses the configuration that the operator wrote: {why}; use a data plane of the operator's release (dataplane.image, spec.workload.image)"
    );
    (reason::CONFIG_REFUSED, message)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What keeps a pod from being ready, as far as Kubernetes knows. The texts hold nothing that
/// changes from one look to the next, or the channel's status would be written each time.
fn trouble(pod: &Pod) -> Option<(&'static str, String)> {
    let status = pod.status.as_ref()?;
    let scheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = scheduled.filter(|c| c.reason.as_deref() == Some("Unschedulable")) {
        let message = condition.message.clone().unwrap_or_default();
        return Some((reason::UNSCHEDULABLE, format!("pod cannot be scheduled: {message}")));
    }
    let container = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER)?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
    match waiting {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            let image = pod
                .spec
                .iter()
                .flat_map(|s| &s.containers)
                .find(|c| c.name == CONTAINER)
                .and_then(|c| c.image.clone());
            let image = image.unwrap_or_default();
            Some((
                reason::IMAGE_PULL_FAILED,
                format!(
                    "image {image} cannot be pulled; correct spec.workload.image or imagePullSecrets"
                ),
            ))
        }
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let code = last.map_or_else(String::new, |t| format!(" (exit code {})", t.exit_code));
            Some((
                reason::CRASH_LOOPING,
                format!("the container keeps crashing{code}; see `kubectl logs --previous`"),
            ))
        }
        "CreateContainerConfigError" | "CreateContainerError" => {
            let message =
                container.state.as_ref()?.waiting.as_ref()?.message.clone().unwrap_or_default();
            Some((reason::PODS_NOT_READY, format!("container cannot be created: {message}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_does_not_answer_serves_what_it_served() {
        let mut served = HashMap::new();
        let mut first = Pods {
            ready: vec![
                ("a".to_owned(), Serves::Generation(3)),
                ("gone".to_owned(), Serves::Generation(3)),
            ],
            ..Pods::default()
        };
        first.recall(&mut served);
        let mut second = Pods {
            ready: vec![
                ("a".to_owned(), Serves::Unreachable),
                ("new".to_owned(), Serves::Unreachable),
            ],
            ..Pods::default()
        };
        second.recall(&mut served);
        assert_eq!(
            second.ready,
            [("a".to_owned(), Serves::Generation(3)), ("new".to_owned(), Serves::Unreachable)]
        );
        assert_eq!(served, HashMap::from([("a".to_owned(), 3)]));
    }
}
