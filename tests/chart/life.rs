//! The life of a release on a real API server: installed, upgraded, uninstalled, installed again.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    kube_api::{KubeApi, audit::Entry},
    nats::{NatsServer, Streams},
};
use tempfile::TempDir;

use crate::{
    check::{check, line},
    helm::{Said, admin_conf, chart, helm, template},
    rows::table,
};

/// Longest a state may take to be reached, on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);
const DEFINITION: &str = "crd/ssechannels.sluice.dev";

/// The API server judges each variant: its schema, its defaults, its Pod Security.
#[test]
fn every_variant_is_taken_by_the_api_server() {
    sluice_tests::run(Duration::from_secs(300), async {
        let kube_api = KubeApi::shared();
        for namespace in ["sluice-system", "shop"] {
            kube_api.create_namespace(namespace).await;
            let label =
                ["label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted"];
            Said::of(kube_api.kubectl().args(label)).expect("a label");
        }
        // What a pod that is made at once needs to be there.
        for account in ["sluice", "sse", "robot"] {
            Said::of(kube_api.kubectl().args([
                "create",
                "serviceaccount",
                account,
                "-n",
                "sluice-system",
            ]))
            .expect("an account");
        }
        Said::of(kube_api.kubectl().args(["create", "priorityclass", "high", "--value=1"]))
            .expect("a class");
        let files = TempDir::new().unwrap();
        for row in table() {
            let yaml = template(&row.values).expect(row.what);
            // Its definition is Prometheus Operator's, which is not here.
            let documents: Vec<&str> = yaml
                .split("\n---\n")
                .filter(|text| !text.contains("\nkind: PodMonitor\n"))
                .collect();
            let file = files.path().join("objects.yaml");
            std::fs::write(&file, documents.join("\n---\n")).unwrap();
            let mut command = kube_api.kubectl();
            command.args([
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "--field-manager=tests",
                "--validate=strict",
            ]);
            let said = Said::of(command.arg("-f").arg(&file));
            assert!(said.ok && said.err.is_empty(), "{}: {}", row.what, said.err);
            assert!(said.out.contains("deployment.apps/"), "{}", said.out);
        }
    });
}

/// Everything that a release goes through, with its operators running as the chart starts them.
#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn channels_outlive_upgrade_and_uninstall() {
    sluice_tests::run(Duration::from_secs(420), async {
        let site = Site::new().await;
        let nowhere = check(&site.admin, &site.nats.url(), "http://127.0.0.1:1", &[]);
        assert!(
            line(&nowhere, "Kubernetes").contains("definition is not installed"),
            "{nowhere:?}"
        );

        // A release of before: its definition lacks a column.
        let old = site.older_chart();
        site.install(&old, "sluice").await;
        assert!(!site.columns().contains(&"URL".to_owned()), "{:?}", site.columns());
        site.create_channel();
        site.publish("before").await;
        let born = site.facts();
        site.serves(&["before"]).await;

        // What `helm test` asks, under the account that the chart made.
        let said = check(&site.account, &site.nats.url(), &site.operator(), &[]);
        assert!(said.ok && said.out.lines().all(|line| line.starts_with("ok ")), "{said:?}");
        assert!(line(&said, "NATS").contains("with JetStream"), "{said:?}");
        let said = check(
            &site.account,
            &site.nats.url(),
            &site.operator(),
            &["--namespace=kube-system", "--namespace=default"],
        );
        assert!(said.ok && line(&said, "Kubernetes").contains("kube-system, default"), "{said:?}");

        // An upgrade brings the new definition and rolls the operators, not the pods that serve.
        let operators = site.pods_of("app.kubernetes.io/component=operator", site.home());
        assert_eq!(operators.len(), 2);
        site.upgrade(&chart(), &json!({"resync": "20s"}));
        assert!(site.columns().contains(&"URL".to_owned()), "{:?}", site.columns());
        assert!(
            site.pods_of("app.kubernetes.io/component=operator", site.home())
                .iter()
                .all(|pod| !operators.contains(pod))
        );
        assert_eq!(site.facts(), born);

        // The same again changes nothing.
        let generation =
            site.get("deployment/sluice", site.home())["metadata"]["generation"].clone();
        site.upgrade(&chart(), &json!({"resync": "20s"}));
        assert_eq!(
            site.get("deployment/sluice", site.home())["metadata"]["generation"],
            generation
        );

        site.rights_were_enough(Timestamp::UNIX_EPOCH);

        // Uninstalled: the operator and its rights are gone, channels and their pods go on.
        let said = site
            .helm(&["uninstall", "sluice", "--wait", "--timeout=90s"], &Value::Null)
            .expect("helm uninstall");
        assert!(said.contains("kept due to the resource policy"), "{said}");
        let left = [
            "get",
            "deployment,service,serviceaccount,role,rolebinding,pdb",
            "-l",
            "app.kubernetes.io/part-of=sluice",
            "-o",
            "name",
        ];
        assert_eq!(site.kubectl(site.home(), &left).expect("kubectl get"), "");
        // Helm takes their rights away while they end, which may refuse them a last look at the
        // lease.
        let over = [
            "wait",
            "--for=delete",
            "pod",
            "-l",
            "app.kubernetes.io/component=operator",
            "--timeout=60s",
        ];
        site.kubectl(site.home(), &over).expect("the operators end");
        site.publish("between").await;
        assert_eq!(site.facts(), born);
        site.serves(&["before", "between"]).await;

        // Another release does not take the definition by accident.
        let dry = |more: &[&str], values: &Value| {
            let path = chart();
            let arguments =
                [&["install", "other", path.to_str().unwrap(), "--dry-run=server"], more].concat();
            site.helm(&arguments, &site.values(values))
        };
        let said = dry(&[], &json!({}));
        assert!(!said.ok && said.err.contains("invalid ownership metadata"), "{said:?}");
        dry(&["--take-ownership"], &json!({})).expect("with --take-ownership");
        dry(&[], &json!({"crds": {"enabled": false}})).expect("without the definition");

        // Installed again: the channel is looked after as before.
        let again = Timestamp::now();
        site.install(&chart(), "sluice").await;
        site.kubectl(
            site.shop(),
            &[
                "patch",
                "sse/orders",
                "--type=merge",
                "-p",
                r#"{"spec":{"delivery":{"heartbeat":"7s"}}}"#,
            ],
        )
        .expect("kubectl patch");
        site.ready("2");
        site.publish("after").await;
        assert_eq!(site.facts(), born);
        site.serves(&["before", "between", "after"]).await;
        site.rights_were_enough(again);
    });
}

/// A namespace for the release, one for a channel, and NATS.
struct Site {
    kube_api: &'static KubeApi,
    namespaces: [String; 2],
    nats: NatsServer,
    streams: Streams,
    files: TempDir,
    /// Kubeconfig with all rights.
    admin: PathBuf,
    /// Kubeconfig of the service account that the chart makes.
    account: PathBuf,
}

impl Site {
    async fn new() -> Self {
        let kube_api = KubeApi::shared();
        let namespaces = [kube_api.namespace("ops").await, kube_api.namespace("shop").await];
        let nats = NatsServer::start().await;
        let streams = Streams::connect(&nats.url()).await;
        let files = TempDir::with_prefix("sluice-chart-").unwrap();
        let (admin, account) = (admin_conf(kube_api), files.path().join("account.conf"));
        Self { kube_api, namespaces, nats, streams, files, admin, account }
    }

    fn home(&self) -> &str {
        &self.namespaces[0]
    }

    fn shop(&self) -> &str {
        &self.namespaces[1]
    }

    /// The values of every release here, with `more`.
    fn values(&self, more: &Value) -> Value {
        let mut values = json!({
            "nats": {"servers": [self.nats.url()]},
            "dataplane": {"image": "sluice.test/dataplane:1"},
            "logFormat": "text",
            // The stand-in for a node mounts no token: the operator gets the account's rights by a
            // file.
            "env": [{"name": "KUBECONFIG", "value": self.account}],
        });
        values.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        values
    }

    fn helm(&self, arguments: &[&str], values: &Value) -> Said {
        helm(&[arguments, &["--namespace", self.home()]].concat(), values, Some(&self.admin))
    }

    fn kubectl(&self, namespace: &str, arguments: &[&str]) -> Said {
        Said::of(self.kube_api.kubectl().args(["--namespace", namespace]).args(arguments))
    }

    fn get(&self, what: &str, namespace: &str) -> Value {
        serde_json::from_str(&self.kubectl(namespace, &["get", what, "-o", "json"]).expect(what))
            .unwrap()
    }

    async fn install(&self, chart: &Path, release: &str) {
        // Tokens of an account of before are of no use to a new one of its name.
        let _ = std::fs::remove_file(&self.account);
        let values = self.values(&json!({}));
        self.helm(&["install", release, chart.to_str().unwrap()], &values).expect("helm install");
        self.kube_api.service_account_kubeconfig(self.home(), "sluice", &self.account).await;
        self.rolled_out();
    }

    fn upgrade(&self, chart: &Path, more: &Value) {
        self.helm(&["upgrade", "sluice", chart.to_str().unwrap()], &self.values(more))
            .expect("helm upgrade");
        self.rolled_out();
    }

    fn rolled_out(&self) {
        self.kubectl(self.home(), &["rollout", "status", "deployment/sluice", "--timeout=120s"])
            .expect("the operators run");
    }

    /// A copy of the chart whose definition is older.
    fn older_chart(&self) -> PathBuf {
        let copy = self.files.path().join("older");
        Said::of(Command::new("cp").arg("-r").arg(chart()).arg(&copy)).expect("cp");
        let file = copy.join("files/ssechannels.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let column =
            "    - jsonPath: .status.endpoints[0].url\n      name: URL\n      type: string\n";
        assert!(text.contains(column));
        std::fs::write(&file, text.replace(column, "")).unwrap();
        copy
    }

    fn columns(&self) -> Vec<String> {
        let definition = self.get(DEFINITION, self.home());
        let columns =
            definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
        columns.iter().map(|column| column["name"].as_str().unwrap().to_owned()).collect()
    }

    fn create_channel(&self) {
        let file = self.files.path().join("orders.yaml");
        std::fs::write(&file, "{apiVersion: sluice.dev/v1alpha1, kind: SseChannel, metadata: {name: orders}, spec: {}}").unwrap();
        self.kubectl(self.shop(), &["apply", "-f", file.to_str().unwrap()]).expect("kubectl apply");
        self.ready("1");
    }

    fn ready(&self, generation: &str) {
        let observed = format!("--for=jsonpath={{.status.observedGeneration}}={generation}");
        for condition in [observed.as_str(), "--for=condition=Ready"] {
            let said =
                self.kubectl(self.shop(), &["wait", condition, "sse/orders", "--timeout=120s"]);
            assert!(said.ok, "{said:?}: {:#}", self.get("sse/orders", self.shop())["status"]);
        }
    }

    /// What must stay: the channel, the epoch of its stream, and the pods that serve it.
    fn facts(&self) -> (Value, Value, Vec<String>) {
        let channel = self.get("sse/orders", self.shop());
        let pods = self.pods_of("sluice.dev/channel=orders", self.shop());
        assert_eq!(pods.len(), 2);
        (channel["metadata"]["uid"].clone(), channel["status"]["stream"]["epoch"].clone(), pods)
    }

    /// Uids of the pods that are not ending.
    fn pods_of(&self, label: &str, namespace: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(
            &self.kubectl(namespace, &["get", "pods", "-l", label, "-o", "json"]).expect("pods"),
        )
        .unwrap();
        let staying = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let mut uids: Vec<String> =
            staying.map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect();
        uids.sort();
        uids
    }

    /// Address of a pod's port.
    fn address(&self, label: &str, namespace: &str, port: u16) -> String {
        let path = "jsonpath={.items[0].status.podIP}";
        let ip = self
            .kubectl(namespace, &["get", "pods", "-l", label, "-o", path])
            .expect("a pod's address");
        format!("http://{ip}:{port}")
    }

    /// Where an operator answers.
    fn operator(&self) -> String {
        self.address("app.kubernetes.io/component=operator", self.home(), 9091)
    }

    async fn publish(&self, payload: &str) {
        self.streams
            .publish(&format!("sse.{}.orders.", self.shop()), "t", payload.to_owned())
            .await;
    }

    /// Waits until a pod serves these events and no others.
    async fn serves(&self, payloads: &[&str]) {
        let url = format!(
            "{}/channels/orders?from=earliest",
            self.address("sluice.dev/channel=orders", self.shop(), 8080)
        );
        let client = reqwest::Client::new();
        eventually(&format!("{url} serves {payloads:?}"), LIMIT, async || {
            let answer = client.get(&url).header("Accept", "application/json").send().await.ok()?;
            let page: Value = answer.json().await.ok()?;
            page["events"].as_array()?.iter().map(|event| &event["data"]).eq(payloads).then_some(())
        })
        .await;
    }

    /// No request of the operators `since` then was beyond the rights that the chart gives.
    fn rights_were_enough(&self, since: Timestamp) {
        let user = format!("system:serviceaccount:{}:sluice", self.home());
        let mut entries = self.kube_api.audit().of_user(&user);
        entries.retain(|entry| entry.request_received_timestamp >= since);
        assert!(entries.iter().any(Entry::is_write), "the operators wrote nothing");
        assert!(
            entries.iter().any(|e| e.object_ref.resource == "leases"),
            "no lease was asked for"
        );
        let refused: Vec<String> =
            entries.iter().filter(|e| e.is_denied()).map(Entry::brief).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        assert!(!entries.iter().any(|e| e.object_ref.resource == "secrets"), "a Secret was read");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- {}", self.kubectl(self.home(), &["get", "all,lease,events"]).out);
            println!("--- {}", self.kubectl(self.shop(), &["get", "sse,deploy,pod,events"]).out);
            for namespace in &self.namespaces {
                self.kube_api.node().each_process(namespace, |pod, process| {
                    println!("--- {pod}\n{}", process.stderr());
                });
            }
        }
        for namespace in &self.namespaces {
            self.kube_api.node().forget(namespace);
        }
    }
}
