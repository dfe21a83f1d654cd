//! What each test starts from.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    kube_api::{KubeApi, audit::Entry},
    nats::{NatsServer, Streams},
    process::{Process, free_port, workspace_program},
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::channel::{self, Kind};

/// Longest a whole test may take.
pub(crate) const TEST_LIMIT: Duration = Duration::from_secs(150);
/// Longest a state may take to be reached: far more than it needs, since the machine may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(45);
/// How often the operator looks at a channel without being told of a change.
pub(crate) const RESYNC: Duration = Duration::from_secs(5);
/// How long NATS may be away before the channels' conditions say so; shorter than by default.
const NATS_GRACE: Duration = Duration::from_secs(3);
/// Name of the operator's service account.
pub(crate) const ACCOUNT: &str = "sluice-operator";
/// An image for the pods; the node stand-in has any.
pub(crate) const IMAGE: &str = "sluice.test/dataplane:1";

/// A namespace, a NATS server and an operator that looks after that namespace only.
pub(crate) struct Fixture {
    pub(crate) kube_api: &'static KubeApi,
    pub(crate) client: Client,
    /// All namespaces of the test; the first is the usual one.
    pub(crate) namespaces: Vec<String>,
    pub(crate) nats: NatsServer,
    operator: Option<Process>,
    files: TempDir,
    admin_port: u16,
    /// Whether the operator looks after all namespaces, not only the test's.
    pub(crate) everywhere: bool,
    /// Image of the data plane in the arguments of the operators that are started from now on.
    pub(crate) image: &'static str,
    /// How often the operators that are started from now on look at a channel without being told.
    pub(crate) resync: Duration,
    /// Further arguments of the operators that are started from now on.
    pub(crate) operator_arguments: Vec<String>,
    /// Where operators that are started from now on find NATS, if not at `nats`.
    pub(crate) other_nats: Option<String>,
}

/// Runs a test: `body` on a fixture whose operator runs, and then the checks that every test
/// shares.
pub(crate) fn test(hint: &str, body: impl AsyncFnOnce(&mut Fixture)) {
    sluice_tests::run(TEST_LIMIT, async {
        let mut fixture = Fixture::new(hint).await;
        fixture.start_operator().await;
        body(&mut fixture).await;
        fixture.finish();
    });
}

impl Fixture {
    /// Everything but the operator.
    pub(crate) async fn new(hint: &str) -> Self {
        let kube_api = KubeApi::shared();
        let namespace = kube_api.namespace(hint).await;
        Self::in_namespaces(kube_api, vec![namespace]).await
    }

    /// On namespaces that are there already.
    pub(crate) async fn in_namespaces(kube_api: &'static KubeApi, namespaces: Vec<String>) -> Self {
        static INSTALLED: OnceCell<()> = OnceCell::const_new();
        INSTALLED.get_or_init(async || install_resource(KubeApi::shared()).await).await;
        Self::bare(kube_api, namespaces).await
    }

    /// The same without the resource's definition.
    pub(crate) async fn bare(kube_api: &'static KubeApi, namespaces: Vec<String>) -> Self {
        let client = kube_api.client().await;
        crate::rbac::grant(&client, &namespaces).await;
        let files = TempDir::with_prefix("sluice-fixture-").unwrap();
        kube_api
            .service_account_kubeconfig(&namespaces[0], ACCOUNT, &files.path().join("kubeconfig"))
            .await;
        let nats = NatsServer::start().await;
        Self {
            kube_api,
            client,
            namespaces,
            nats,
            operator: None,
            files,
            admin_port: free_port(),
            everywhere: false,
            image: IMAGE,
            resync: RESYNC,
            operator_arguments: Vec::new(),
            other_nats: None,
        }
    }

    /// The test's usual namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespaces[0]
    }

    /// Starts the operator for the test's namespaces and waits until it works.
    pub(crate) async fn start_operator(&mut self) {
        self.start_operator_without_waiting();
        let url = format!("http://127.0.0.1:{}/livez", self.admin_port);
        eventually("the operator is alive", LIMIT, async || {
            self.assert_operator_runs();
            reqwest::get(&url).await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
    }

    fn start_operator_without_waiting(&mut self) {
        assert!(self.operator.is_none(), "one operator at a time");
        let command = self.command(self.admin_port);
        self.operator = Some(Process::spawn("sluice-operator", command));
    }

    fn command(&self, admin_port: u16) -> Command {
        let mut command = Command::new(workspace_program("sluice-operator"));
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("RUST_LOG", "info,sluice_operator=debug")
            .arg("run");
        let nats = self.other_nats.clone().unwrap_or_else(|| self.nats.url());
        command.args(["--nats", &nats, "--dataplane-image", self.image]);
        command
            .arg(format!("--admin=127.0.0.1:{admin_port}"))
            .arg(format!("--resync={}s", self.resync.as_secs()))
            .args(&self.operator_arguments);
        if !self.operator_arguments.iter().any(|given| given.starts_with("--nats-grace")) {
            command.arg(format!("--nats-grace={}s", NATS_GRACE.as_secs()));
        }
        for namespace in self.namespaces.iter().filter(|_| !self.everywhere) {
            command.args(["--namespace", namespace]);
        }
        command
    }

    /// One more operator, with the same rights.
    pub(crate) fn another_operator(&self) -> Process {
        Process::spawn("another-operator", self.command(free_port()))
    }

    /// Ends the operator by SIGKILL.
    pub(crate) fn kill_operator(&mut self) {
        self.operator.take().expect("the operator runs").kill();
    }

    /// Memory of the operator, in bytes.
    pub(crate) fn operator_memory(&self) -> u64 {
        self.operator.as_ref().map(Process::rss).unwrap_or_default()
    }

    /// Ends the operator by SIGTERM; it must end by itself and without an error.
    pub(crate) async fn stop_operator(&mut self) {
        let mut operator = self.operator.take().expect("the operator runs");
        operator.terminate();
        let status =
            operator.wait(Duration::from_secs(15)).await.expect("the operator ends on SIGTERM");
        assert!(status.success(), "the operator ended with {status}:\n{}", operator.stderr());
    }

    /// The operator's way to the API server.
    pub(crate) fn kubeconfig(&self) -> std::path::PathBuf {
        self.files.path().join("kubeconfig")
    }

    /// The operator's name for the API server.
    pub(crate) fn operator_user(&self) -> String {
        format!("system:serviceaccount:{}:{ACCOUNT}", self.namespace())
    }

    /// What the operator wrote on its log so far.
    pub(crate) fn operator_log(&self) -> String {
        self.operator.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// The operator's answer on its admin listener.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let answer =
            reqwest::get(format!("http://127.0.0.1:{}{path}", self.admin_port)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// A page of the operator's admin listener.
    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin_port)
    }

    /// The operator's requests to the API server so far.
    pub(crate) fn requests(&self) -> Vec<Entry> {
        self.kube_api.audit().of_user(&self.operator_user())
    }

    /// A fresh connection to the test's NATS server.
    pub(crate) async fn streams(&self) -> Streams {
        Streams::connect(&self.nats.url()).await
    }

    /// Objects of `kind` in the test's namespace.
    pub(crate) fn api(&self, kind: Kind) -> Api<DynamicObject> {
        self.api_in(kind, self.namespace())
    }

    /// Objects of `kind` in `namespace`.
    pub(crate) fn api_in(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        let (group, version, name) = kind;
        Api::namespaced_with(
            self.client.clone(),
            namespace,
            &ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name)),
        )
    }

    /// Creates a channel.
    pub(crate) async fn create(&self, name: &str, spec: Value) -> DynamicObject {
        self.try_create(self.namespace(), name, spec)
            .await
            .unwrap_or_else(|e| panic!("{name} was refused: {e}"))
    }

    /// Creates a channel unless the API server refuses it.
    pub(crate) async fn try_create(
        &self,
        namespace: &str,
        name: &str,
        spec: Value,
    ) -> kube::Result<DynamicObject> {
        let object = channel::object(name, &spec);
        self.api_in(channel::CHANNEL, namespace)
            .create(&kube::api::PostParams::default(), &object)
            .await
    }

    /// Merges `patch` into the object.
    pub(crate) async fn patch(&self, kind: Kind, name: &str, patch: Value) -> DynamicObject {
        self.try_patch(kind, name, patch).await.unwrap_or_else(|e| panic!("{}/{name}: {e}", kind.2))
    }

    /// Merges `patch` into the object unless the API server refuses it.
    pub(crate) async fn try_patch(
        &self,
        kind: Kind,
        name: &str,
        patch: Value,
    ) -> kube::Result<DynamicObject> {
        let parameters =
            PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
        self.api(kind).patch(name, &parameters, &Patch::Merge(&patch)).await
    }

    /// Changes a channel's spec.
    pub(crate) async fn change(&self, name: &str, spec: Value) -> DynamicObject {
        self.patch(channel::CHANNEL, name, json!({"spec": spec})).await
    }

    /// Waits until `check` holds for the channel.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> bool,
    ) -> Value {
        self.until_in(self.namespace(), name, what, check).await
    }

    /// Waits until `check` holds for the channel of that namespace.
    pub(crate) async fn until_in(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> bool,
    ) -> Value {
        let api = self.api_in(channel::CHANNEL, namespace);
        let mut last = Value::Null;
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            self.assert_operator_runs();
            if let Ok(Some(object)) = api.get_opt(name).await {
                last = serde_json::to_value(object).unwrap();
                if check(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within {LIMIT:?}: {name}: {what}; its status is {:#}", last["status"]);
    }

    /// Waits until the channel is ready in its newest generation.
    pub(crate) async fn ready(&self, name: &str) -> Value {
        self.until(name, "is ready", channel::is_ready).await
    }

    /// Waits until condition `kind` of the newest generation has `status` and `reason`.
    pub(crate) async fn condition(
        &self,
        name: &str,
        kind: &str,
        status: &str,
        reason: &str,
    ) -> Value {
        let what = format!("{kind}={status}/{reason}");
        self.until(name, &what, |object| {
            channel::current_condition(object, kind)
                .is_some_and(|c| c["status"] == status && c["reason"] == reason)
        })
        .await
    }

    /// The channel's only child of that kind, by its labels.
    pub(crate) async fn child(&self, kind: Kind, channel: &str) -> Option<DynamicObject> {
        let list = self
            .api(kind)
            .list(&ListParams::default().labels(&format!("sluice.dev/channel={channel}")))
            .await
            .unwrap();
        assert!(
            list.items.len() <= 1,
            "{channel} has {} objects of kind {}",
            list.items.len(),
            kind.2
        );
        list.items.into_iter().next()
    }

    /// The channel's pods that are not being deleted.
    pub(crate) async fn pods(&self, channel: &str) -> Vec<DynamicObject> {
        let list = self
            .api(channel::POD)
            .list(&ListParams::default().labels(&format!("sluice.dev/channel={channel}")))
            .await
            .unwrap();
        list.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Uids of the channel's pods that are not being deleted.
    pub(crate) async fn pod_uids(&self, channel: &str) -> BTreeSet<String> {
        self.pods(channel).await.iter().filter_map(ResourceExt::uid).collect()
    }

    /// Where each of the channel's pods serves events, as (pod's name, address).
    pub(crate) async fn addresses(&self, channel: &str) -> Vec<(String, SocketAddr)> {
        self.addresses_at(channel, 8080).await
    }

    /// Where each of the channel's pods serves its probes.
    pub(crate) async fn admin_addresses(&self, channel: &str) -> Vec<(String, SocketAddr)> {
        self.addresses_at(channel, 9090).await
    }

    async fn addresses_at(&self, channel: &str, port: u16) -> Vec<(String, SocketAddr)> {
        let address = |pod: &DynamicObject| {
            let ip = pod.data["status"]["podIP"]
                .as_str()
                .expect("the pod runs")
                .parse()
                .expect("an address");
            (pod.name_any(), SocketAddr::new(ip, port))
        };
        self.pods(channel).await.iter().map(address).collect()
    }

    /// Waits until the channel's object has gone.
    pub(crate) async fn until_gone(&self, name: &str) {
        let api = self.api(channel::CHANNEL);
        eventually(&format!("{name} has gone"), LIMIT, async || {
            self.assert_operator_runs();
            api.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// Events about the channel, as `(type, reason, note)`.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, String, String)> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), self.namespace());
        let fields = format!("involvedObject.name={name},involvedObject.kind=SseChannel");
        let list = api.list(&ListParams::default().fields(&fields)).await.unwrap();
        list.items
            .into_iter()
            .map(|e| {
                (
                    e.type_.unwrap_or_default(),
                    e.reason.unwrap_or_default(),
                    e.message.unwrap_or_default(),
                )
            })
            .collect()
    }

    /// `kubectl` in the test's namespace: whether it succeeded, and all it said.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> (bool, String) {
        self.kubectl_with(arguments, "")
    }

    /// `kubectl` with something on its standard input.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let file = self.files.path().join("stdin");
        std::fs::write(&file, input).unwrap();
        let mut command = self.kube_api.kubectl();
        command
            .args(["--namespace", self.namespace()])
            .args(arguments)
            .stdin(std::fs::File::open(&file).unwrap());
        let output = command.output().expect("kubectl runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn assert_operator_runs(&self) {
        let Some(operator) = &self.operator else { return };
        assert!(
            Path::new(&format!("/proc/{}/exe", operator.pid())).exists(),
            "the operator has ended:\n{}",
            operator.stderr()
        );
    }

    /// What must hold after every test.
    pub(crate) fn finish(mut self) {
        self.assert_operator_runs();
        let log = self.operator_log();
        assert!(!log.contains("panicked at"), "the operator panicked:\n{log}");
        let refused: Vec<String> =
            self.requests().iter().filter(|e| e.is_denied()).map(Entry::brief).collect();
        assert!(
            refused.is_empty(),
            "requests that the operator's rights do not cover: {refused:#?}"
        );
        self.operator = None;
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [
                &["get", "sse", "-o", "yaml"][..],
                &["get", "deploy,pod,cm,svc,pdb,sa,ing,netpol,hpa"],
                &["get", "events"],
            ] {
                println!("--- kubectl {}\n{}", arguments.join(" "), self.kubectl(arguments).1);
            }
            self.kube_api.node().each_process(self.namespace(), |pod, process| {
                println!("--- pod {pod}\n{}", process.stderr());
            });
            let telling: Vec<Entry> = self
                .requests()
                .into_iter()
                .filter(|e| e.is_write() || e.response_status.code >= 400)
                .collect();
            for entry in &telling[telling.len().saturating_sub(30)..] {
                println!("--- {} {}", entry.request_received_timestamp, entry.brief());
            }
        }
        for namespace in &self.namespaces {
            self.kube_api.node().forget(namespace);
        }
    }
}

/// Applies the resource's definition, as the file that users apply.
pub(crate) async fn install_resource(kube_api: &KubeApi) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/ssechannels.yaml");
    // Plain `apply` keeps a copy of the object in an annotation, so this also shows that it is
    // small enough.
    for arguments in [
        &["apply", "-f", file.to_str().unwrap()][..],
        &["wait", "--for=condition=Established", "crd/ssechannels.sluice.dev"],
    ] {
        let output = kube_api.kubectl().args(arguments).output().expect("kubectl runs");
        assert!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Applies definitions of another project, by the names of their files among the tools.
pub(crate) fn install_definitions(kube_api: &KubeApi, names: &[&str]) {
    for name in names {
        let file = sluice_tests::process::tool(&format!("crds/{name}.yaml"));
        // One of them is too large for the annotation of a plain apply.
        let mut command = kube_api.kubectl();
        command.args(["apply", "--server-side", "-f", file.to_str().unwrap()]);
        let output = command.output().expect("kubectl runs");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut command = kube_api.kubectl();
    let output = command
        .args(["wait", "--for=condition=Established", "crd", "--all"])
        .output()
        .expect("kubectl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
