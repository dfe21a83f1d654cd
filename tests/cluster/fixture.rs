//! What the cases share: the cluster, the subscribers that are connected, and the table.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde_json::Value;
use sluice_tests::{eventually, kube_api::audit::Audit};
use tempfile::NamedTempFile;
use tokio::{runtime::Runtime, sync::OnceCell};

use crate::{
    fleet::{Fleet, Row},
    pages,
};

/// Namespace of the release.
pub(crate) const SYSTEM: &str = "sluice-system";
/// Name of the release.
pub(crate) const RELEASE: &str = "sluice";
/// Namespace of the channels.
pub(crate) const SHOP: &str = "shop";
/// The channel that has subscribers while things go wrong.
pub(crate) const LIVE: &str = "live";
/// Longest that a state may take to be reached: far more than it needs, since the machine may be
/// busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The cluster and what is on it.
pub(crate) struct Fixture {
    runtime: Runtime,
    client: OnceCell<Client>,
    /// The connected subscribers, while there are some.
    pub(crate) fleet: tokio::sync::Mutex<Option<Fleet>>,
    rows: Mutex<Vec<Row>>,
    /// The context in which commands of the pages are typed.
    context: tokio::sync::Mutex<Option<NamedTempFile>>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| Fixture {
    runtime: tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime"),
    client: OnceCell::new(),
    fleet: tokio::sync::Mutex::new(None),
    rows: Mutex::new(Vec::new()),
    context: tokio::sync::Mutex::new(None),
});

impl Fixture {
    /// The one of this process.
    pub(crate) fn get() -> &'static Self {
        &FIXTURE
    }

    /// Where all cases run.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Directory of the cluster's state, where this project's own cluster runs (`machine/exec.sh`
    /// names it).
    fn state() -> Option<PathBuf> {
        std::env::var_os("SLUICE_CLUSTER").map(PathBuf::from)
    }

    /// Whether the nodes and their processes are on this machine.
    pub(crate) fn has_nodes() -> bool {
        Self::state().is_some()
    }

    /// The checkout.
    pub(crate) fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// The API server's audit log, where it can be read.
    pub(crate) fn audit() -> Option<Audit> {
        Some(Audit::new(Self::state()?.join("cp/audit.log")))
    }

    /// A client with an administrator's rights.
    pub(crate) async fn client(&self) -> Client {
        self.client
            .get_or_init(async || Client::try_default().await.expect("a client from KUBECONFIG"))
            .await
            .clone()
    }

    /// A channel as the API shows it; null when it is not there.
    pub(crate) async fn channel(&self, namespace: &str, name: &str) -> Value {
        let kind =
            ApiResource::from_gvk(&GroupVersionKind::gvk("sluice.dev", "v1alpha1", "SseChannel"));
        let channels: Api<DynamicObject> =
            Api::namespaced_with(self.client().await, namespace, &kind);
        let channel = channels.get_opt(name).await.ok().flatten();
        channel.map_or(Value::Null, |channel| serde_json::to_value(channel).expect("JSON"))
    }

    /// Waits for a channel to be ready in its newest generation.
    pub(crate) async fn until_ready(&self, namespace: &str, name: &str) -> Value {
        let what = format!("channel {namespace}/{name} is ready");
        let mut last = Value::Null;
        let ready = async {
            loop {
                last = self.channel(namespace, name).await;
                if current_condition(&last, "Ready").is_some_and(|c| c["status"] == "True") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let in_time = tokio::time::timeout(LIMIT, ready).await.is_ok();
        assert!(
            in_time,
            "not within {LIMIT:?}: {what}; it says {:#}",
            last["status"]["conditions"]
        );
        last
    }

    /// The pods with these labels.
    pub(crate) async fn pods(&self, namespace: &str, labels: &str) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client().await, namespace);
        pods.list(&ListParams::default().labels(labels))
            .await
            .map(|list| list.items)
            .unwrap_or_default()
    }

    /// A channel's pods that are not on their way out, by name.
    pub(crate) async fn channel_pods(&self, name: &str) -> Vec<Pod> {
        let mut pods = self.pods(SHOP, &format!("sluice.dev/channel={name}")).await;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.sort_by_key(ResourceExt::name_any);
        pods
    }

    /// Waits until a channel has exactly `count` pods, all ready and none on its way out, and says
    /// that it is ready.
    pub(crate) async fn until_pods(&self, name: &str, count: usize) -> Vec<Pod> {
        let what = format!("{count} ready pods of {name}, and no other");
        let pods = eventually(&what, LIMIT, async || {
            let pods = self.pods(SHOP, &format!("sluice.dev/channel={name}")).await;
            let settled =
                pods.iter().all(|p| is_ready(p) && p.metadata.deletion_timestamp.is_none());
            (pods.len() == count && settled).then_some(pods)
        });
        let pods = pods.await;
        self.until_ready(SHOP, name).await;
        pods
    }

    /// The operator's pods.
    pub(crate) async fn operators(&self) -> Vec<Pod> {
        let labels =
            format!("app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator");
        let mut pods = self.pods(SYSTEM, &labels).await;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        pods
    }

    /// Waits until all replicas of the operator are ready, and no other of its pods is left.
    pub(crate) async fn until_operators_are_ready(&self) -> Vec<Pod> {
        let deployments: Api<Deployment> = Api::namespaced(self.client().await, SYSTEM);
        eventually("the operators are ready", LIMIT, async || {
            let replicas = deployments.get_opt(RELEASE).await.ok()??.spec?.replicas?;
            let pods = self.operators().await;
            (pods.len() == usize::try_from(replicas).ok()? && pods.iter().all(is_ready))
                .then_some(pods)
        })
        .await
    }

    /// Address of a Service inside the cluster.
    pub(crate) async fn address(&self, namespace: &str, service: &str, port: &str) -> SocketAddr {
        let services: Api<Service> = Api::namespaced(self.client().await, namespace);
        let what = format!("service {namespace}/{service}");
        let found =
            eventually(&what, LIMIT, async || services.get_opt(service).await.ok().flatten()).await;
        let spec = found.spec.expect("a Service has a spec");
        let number = spec
            .ports
            .unwrap_or_default()
            .iter()
            .find(|p| p.name.as_deref() == Some(port))
            .map(|p| p.port)
            .expect("its port");
        let ip = spec.cluster_ip.and_then(|ip| ip.parse().ok()).expect("an address of the cluster");
        SocketAddr::new(ip, u16::try_from(number).expect("a port"))
    }

    /// URL of the NATS server that the release has brought.
    pub(crate) async fn nats_url(&self) -> String {
        format!("nats://{}", self.address(SYSTEM, "sluice-nats", "nats").await)
    }

    /// Path of the context in which commands of the pages are typed.
    pub(crate) async fn context(&self) -> PathBuf {
        let mut context = self.context.lock().await;
        if context.is_none() {
            *context = Some(pages::context().await);
        }
        context.as_ref().map(|file| file.path().to_path_buf()).expect("it has just been made")
    }

    /// Removes the files of this process: a static is never dropped.
    pub(crate) fn clean(&self) {
        drop(self.context.blocking_lock().take());
    }

    /// Notes what a case showed.
    pub(crate) fn note(&self, row: Row) {
        self.rows.lock().expect("no panic while held").push(row);
    }

    /// What the cases showed.
    pub(crate) fn print_table(&self) {
        println!("{}", Row::table(&self.rows.lock().expect("no panic while held")));
    }
}

/// A channel's condition if it is about the newest generation.
pub(crate) fn current_condition<'a>(channel: &'a Value, kind: &str) -> Option<&'a Value> {
    let condition =
        channel["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?;
    (condition["observedGeneration"] == channel["metadata"]["generation"]).then_some(condition)
}

/// Whether a pod's condition `Ready` is true.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// How often a pod's containers were restarted.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    containers.map_or(0, |containers| containers.iter().map(|c| c.restart_count).sum())
}

/// Unique ids of pods, to tell whether they are the same ones later.
pub(crate) fn uids(pods: &[Pod]) -> Vec<String> {
    let mut uids: Vec<String> = pods.iter().filter_map(ResourceExt::uid).collect();
    uids.sort_unstable();
    uids
}

/// Where a pod runs.
pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}
