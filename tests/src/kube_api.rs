//! A real Kubernetes API: etcd, kube-apiserver and kube-controller-manager as child processes on
//! loopback, and a [`node`] stand-in that runs the pods.
//!
//! One API server serves a whole test binary ([`KubeApi::shared`]); tests keep apart by namespaces.
//! Nothing of it outlives the process: the kernel kills the children, and an exit handler removes
//! their files.

pub mod audit;
pub mod etcd;
pub mod node;

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rand::Rng;
use tempfile::TempDir;

use self::{audit::Audit, etcd::Etcd, node::Node};
use crate::process::{Process, free_port, tool};

/// Longest wait for the API server to be ready. It takes about 4 s on an idle machine with two
/// cores.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for the node's tasks when an API server ends.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Life of the tokens given out; longer than any run of the tests.
const TOKEN_SECONDS: i64 = 3 * 60 * 60;
/// The controllers that the operator's children need. Not among them: `endpointslice-controller`,
/// since pods on loopback addresses are no valid endpoints; those that only a real node or cloud
/// needs.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,garbage-collector-controller,namespace-controller,serviceaccount-controller,disruption-controller,horizontal-pod-autoscaler-controller,validatingadmissionpolicy-status-controller";

/// A running API server, with its store, its controllers and its node.
pub struct KubeApi {
    dir: TempDir,
    server: String,
    admin_token: String,
    node: Node,
    etcd: Etcd,
    audit: Audit,
    processes: Mutex<Vec<Process>>,
    /// The node's tasks live on it, since a test's own runtime ends with the test.
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

static SHARED: OnceLock<&'static KubeApi> = OnceLock::new();
/// Every API server of this process, for its end.
static ALL: Mutex<Vec<&'static KubeApi>> = Mutex::new(Vec::new());

impl KubeApi {
    /// The API server of this process, started at the first call.
    ///
    /// # Panics
    /// When it cannot be started; the message says which log to read.
    pub fn shared() -> &'static Self {
        SHARED.get_or_init(Self::another)
    }

    /// An API server beside the shared one, for a test that changes what all namespaces share. It
    /// lives until [`KubeApi::end`] or the end of the process.
    ///
    /// # Panics
    /// When it cannot be started; the message says which log to read.
    pub fn another() -> &'static Self {
        Self::leaked(true)
    }

    /// The same with neither controllers nor a node: objects are as the test makes them.
    ///
    /// # Panics
    /// When it cannot be started; the message says which log to read.
    pub fn without_nodes() -> &'static Self {
        Self::leaked(false)
    }

    fn leaked(with_nodes: bool) -> &'static Self {
        // Starting blocks on a runtime, which is not allowed on a test's own runtime's threads.
        let kube_api = std::thread::spawn(move || Self::start(with_nodes))
            .join()
            .unwrap_or_else(|_| panic!("the API server did not start"));
        let kube_api: &'static Self = Box::leak(Box::new(kube_api));
        let mut all = ALL.lock().expect("no panic while held");
        if all.is_empty() {
            end_at_exit();
        }
        all.push(kube_api);
        kube_api
    }

    fn start(with_nodes: bool) -> Self {
        let started = Instant::now();
        let dir = TempDir::with_prefix("sluice-kube-api-").expect("a directory for the API server");
        let mut processes = Vec::new();
        let (process, etcd) = start_etcd(dir.path());
        processes.push(process);

        let admin_token = random_token();
        std::fs::write(
            dir.path().join("tokens.csv"),
            format!("{admin_token},admin,1,system:masters\n"),
        )
        .expect("the token file");
        std::fs::write(dir.path().join("audit.yaml"), audit::POLICY).expect("the audit policy");
        let (apiserver, server) = start_apiserver(dir.path(), &etcd);
        processes.push(apiserver);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(wait_for_certificate(dir.path(), &mut processes));
        let kubeconfig = kubeconfig(&server, dir.path(), &admin_token, "default");
        write_kubeconfig(&dir.path().join("admin.conf"), &kubeconfig);
        let client = runtime.block_on(async {
            let client = client(kubeconfig).await;
            wait_until_ready(&client, &mut processes).await;
            client
        });
        let node = if with_nodes {
            processes.push(start_controller_manager(dir.path()));
            runtime.block_on(async {
                let node = Node::start(client.clone()).await;
                wait_for_controllers(&client, &mut processes).await;
                node
            })
        } else {
            runtime.block_on(async { Node::absent(client) })
        };
        println!(
            "Kubernetes API ready in {:.1} s: {}",
            started.elapsed().as_secs_f64(),
            dir.path().display()
        );
        let audit = Audit::new(dir.path().join("audit.log"));
        Self {
            server,
            admin_token,
            node,
            etcd,
            audit,
            processes: Mutex::new(processes),
            runtime: Mutex::new(Some(runtime)),
            dir,
        }
    }

    /// A client with all rights, for the calling test's runtime.
    pub async fn client(&self) -> Client {
        client(kubeconfig(&self.server, self.dir.path(), &self.admin_token, "default")).await
    }

    /// The node that runs the pods.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What the API server was asked to do.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The etcd under the API server, for what the API server would refuse.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// A new namespace; `hint` is part of its name.
    ///
    /// # Panics
    /// When the API server refuses it.
    pub async fn namespace(&self, hint: &str) -> String {
        let name = format!("{hint}-{:05x}", rand::rng().random_range(0..0x10_0000));
        self.create_namespace(&name).await;
        name
    }

    /// A namespace of this very name.
    ///
    /// # Panics
    /// When the API server refuses it.
    pub async fn create_namespace(&self, name: &str) {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        // Pods of channels must be admitted by the strictest of the Pod Security Standards.
        namespace.metadata.labels = Some(
            [("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned())].into(),
        );
        Api::all(self.client().await)
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a namespace");
    }

    /// Writes a kubeconfig of the service account `name` of `namespace`, which must exist, to
    /// `path`.
    ///
    /// # Panics
    /// When no token is to be had.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str, path: &Path) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await, namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer: TokenRequest = accounts
            .create_subresource("token", name, &PostParams::default(), &request)
            .await
            .expect("a token");
        let token = answer.status.expect("a token in the answer").token;
        write_kubeconfig(path, &kubeconfig(&self.server, self.dir.path(), &token, namespace));
    }

    /// `kubectl` with all rights; add arguments and run it.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(tool("kubectl"));
        command.env("KUBECONFIG", self.dir.path().join("admin.conf")).env("HOME", self.dir.path());
        command
    }

    /// Ends all its processes and removes its files.
    pub fn end(&self) {
        self.node.shutdown();
        // The pods' tasks go with their runtime, and with them their processes and files. Waiting
        // for it is not allowed on a test's own runtime's threads.
        if let Some(runtime) = self.runtime.lock().ok().and_then(|mut runtime| runtime.take()) {
            let _ = std::thread::spawn(move || runtime.shutdown_timeout(END_LIMIT)).join();
        }
        if let Ok(mut processes) = self.processes.lock() {
            processes.clear();
        }
        let _ = std::fs::remove_dir_all(self.dir.path());
    }
}

fn start_etcd(dir: &Path) -> (Process, Etcd) {
    let (clients, peers) =
        (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
    let mut command = Command::new(tool("etcd"));
    command.arg("--data-dir").arg(dir.join("etcd")).args([
        "--unsafe-no-fsync",
        "--log-level=warn",
        &format!("--listen-client-urls={clients}"),
        &format!("--advertise-client-urls={clients}"),
        &format!("--listen-peer-urls={peers}"),
        &format!("--initial-advertise-peer-urls={peers}"),
        &format!("--initial-cluster=default={peers}"),
    ]);
    (Process::spawn("etcd", command), Etcd::new(clients))
}

fn start_apiserver(dir: &Path, etcd: &Etcd) -> (Process, String) {
    let port = free_port();
    let own = |file: &str| dir.join(file).display().to_string();
    let mut command = Command::new(tool("kube-apiserver"));
    command.args([
        format!("--etcd-servers={}", etcd.url()),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        // The API server's own address may not be an endpoint, being loopback; nothing here asks
        // for it.
        "--endpoint-reconciler-type=none".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        "--authorization-mode=RBAC".into(),
        // It makes its certificate itself, and that key also signs the service accounts' tokens.
        format!("--cert-dir={}", own("certs")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-signing-key-file={}", own("certs/apiserver.key")),
        format!("--service-account-key-file={}", own("certs/apiserver.key")),
        format!("--token-auth-file={}", own("tokens.csv")),
        format!("--audit-policy-file={}", own("audit.yaml")),
        format!("--audit-log-path={}", own("audit.log")),
        "--audit-log-mode=blocking".into(),
        "--profiling=false".into(),
    ]);
    (Process::spawn("kube-apiserver", command), format!("https://127.0.0.1:{port}"))
}

fn start_controller_manager(dir: &Path) -> Process {
    let kubeconfig = dir.join("admin.conf").display().to_string();
    let mut command = Command::new(tool("kube-controller-manager"));
    command.args([
        format!("--kubeconfig={kubeconfig}"),
        // It serves nothing that is read here; port 0 would be refused without a kubeconfig for its
        // clients.
        "--secure-port=0".into(),
        "--leader-elect=false".into(),
        format!("--controllers={CONTROLLERS}"),
        "--concurrent-gc-syncs=4".into(),
        "--horizontal-pod-autoscaler-sync-period=2s".into(),
        "--profiling=false".into(),
    ]);
    Process::spawn("kube-controller-manager", command)
}

/// The API server writes its certificate before it listens.
async fn wait_for_certificate(dir: &Path, processes: &mut [Process]) {
    let deadline = Instant::now() + START_LIMIT;
    while !dir.join("certs/apiserver.crt").exists() || !dir.join("certs/apiserver.key").exists() {
        assert_alive(processes);
        assert!(
            Instant::now() < deadline,
            "kube-apiserver made no certificate within {START_LIMIT:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_until_ready(client: &Client, processes: &mut [Process]) {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        assert_alive(processes);
        let request = http_get("/readyz");
        let last = match client.request_text(request).await {
            Ok(text) if text == "ok" => return,
            Ok(text) => text,
            Err(error) => error.to_string(),
        };
        assert!(
            Instant::now() < deadline,
            "kube-apiserver not ready within {START_LIMIT:?}: {last}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The controllers run once the default namespace has its default service account.
async fn wait_for_controllers(client: &Client, processes: &mut [Process]) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let deadline = Instant::now() + START_LIMIT;
    while !matches!(accounts.get_opt("default").await, Ok(Some(_))) {
        assert_alive(processes);
        assert!(
            Instant::now() < deadline,
            "kube-controller-manager does nothing within {START_LIMIT:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn assert_alive(processes: &mut [Process]) {
    for process in processes {
        if let Some(status) = process.ended() {
            panic!("{} ended with {status}:\n{}", process.name(), process.stderr());
        }
    }
}

fn http_get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).expect("a request")
}

async fn client(kubeconfig: Kubeconfig) -> Client {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .expect("a client's configuration");
    Client::try_from(config).expect("a client")
}

fn kubeconfig(server: &str, dir: &Path, token: &str, namespace: &str) -> Kubeconfig {
    let authority = dir.join("certs/apiserver.crt");
    serde_json::from_value(serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": {"server": server, "certificate-authority": authority}}],
        "users": [{"name": "tests", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": namespace}}],
        "current-context": "tests",
    }))
    .expect("a kubeconfig")
}

fn write_kubeconfig(path: &Path, kubeconfig: &Kubeconfig) {
    // JSON is YAML.
    std::fs::write(path, serde_json::to_vec(kubeconfig).expect("a kubeconfig"))
        .expect("the kubeconfig's file");
}

fn random_token() -> String {
    let bytes: [u8; 16] = rand::rng().random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A static is never dropped, so the API servers' processes and files go when the process exits.
#[allow(unsafe_code)]
fn end_at_exit() {
    extern "C" fn end() {
        if let Ok(all) = ALL.lock() {
            all.iter().for_each(|kube_api| kube_api.end());
        }
    }
    // SAFETY: `end` is an `extern "C"` function without arguments; a panic in it would abort, not
    // unwind.
    unsafe {
        libc::atexit(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_real_and_ready_soon() {
        let started = Instant::now();
        let kube_api = KubeApi::shared();
        let limit = Duration::from_secs(30);
        assert!(started.elapsed() < limit, "{:?}", started.elapsed());
        let said =
            kube_api.kubectl().args(["version", "--output=json"]).output().expect("kubectl runs");
        let versions: serde_json::Value =
            serde_json::from_slice(&said.stdout).expect("kubectl's JSON");
        assert_eq!(
            versions["serverVersion"]["gitVersion"],
            versions["clientVersion"]["gitVersion"]
        );
        crate::run(limit, async {
            let namespace = kube_api.namespace("smoke").await;
            let maps: Api<k8s_openapi::api::core::v1::ConfigMap> =
                Api::namespaced(kube_api.client().await, &namespace);
            let map = serde_json::from_value(
                serde_json::json!({"metadata": {"name": "a"}, "data": {"k": "v"}}),
            )
            .expect("a ConfigMap");
            maps.create(&PostParams::default(), &map).await.expect("it is created");
            let accounts: Api<ServiceAccount> =
                Api::namespaced(kube_api.client().await, &namespace);
            crate::eventually("the controllers run", limit, async || {
                accounts.get_opt("default").await.ok().flatten()
            })
            .await;
            let path = kube_api.dir.path().join("account.conf");
            kube_api.service_account_kubeconfig(&namespace, "default", &path).await;
            let refused = Command::new(tool("kubectl"))
                .arg("--kubeconfig")
                .arg(&path)
                .args(["get", "configmaps"])
                .output()
                .expect("kubectl runs");
            assert!(!refused.status.success(), "an account without rights may not read");
            let user = format!("system:serviceaccount:{namespace}:default");
            let entries = kube_api.audit().of_user(&user);
            assert!(
                entries.iter().any(|e| e.response_status.code == 403
                    && e.object_ref.resource == "configmaps"
                    && !e.is_write()),
                "{entries:?}"
            );
        });
    }
}
