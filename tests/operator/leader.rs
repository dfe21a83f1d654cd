//! Several operators: of those that take part in the election one acts; those that do not still do
//! no harm.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use k8s_openapi::{
    api::{coordination::v1::Lease, events::v1::Event, rbac::v1::RoleBinding},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sluice_tests::{
    eventually,
    kube_api::audit::Entry,
    process::{Process, free_port, workspace_program},
    proxy::Proxy,
};
use tempfile::TempDir;

use crate::{
    channel,
    fixture::{Fixture, IMAGE, LIMIT, RESYNC, TEST_LIMIT},
    rbac,
};

/// Shorter than by default, so that a test is; with room for a machine that is busy.
const LEASE: Duration = Duration::from_secs(8);
const DEADLINE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// What a busy machine may add to a moment.
const SLACK: Duration = Duration::from_secs(4);
const LEASE_NAME: &str = "sluice-operator";

/// One of several operators, with a service account of its own, so that the audit log tells them
/// apart.
struct Replica {
    process: Process,
    account: String,
    user: String,
    admin: u16,
    _files: TempDir,
}

impl Replica {
    async fn start(fixture: &Fixture, account: &str, elects: bool) -> Self {
        Self::start_through(fixture, account, elects, None).await
    }

    /// Reaches the API server through a proxy.
    async fn start_through(
        fixture: &Fixture,
        account: &str,
        elects: bool,
        proxy: Option<&Proxy>,
    ) -> Self {
        rbac::grant_to(&fixture.client, &fixture.namespaces, account).await;
        let files = TempDir::with_prefix("sluice-replica-").unwrap();
        let kubeconfig = files.path().join("kubeconfig");
        fixture
            .kube_api
            .service_account_kubeconfig(fixture.namespace(), account, &kubeconfig)
            .await;
        if let Some(proxy) = proxy {
            let mut config: Value =
                serde_json::from_slice(&std::fs::read(&kubeconfig).unwrap()).unwrap();
            config["clusters"][0]["cluster"]["server"] =
                json!(format!("https://{}", proxy.address()));
            std::fs::write(&kubeconfig, config.to_string()).unwrap();
        }
        let admin = free_port();
        let mut command = Command::new(workspace_program("sluice-operator"));
        command
            .env("KUBECONFIG", &kubeconfig)
            .env("RUST_LOG", "info,sluice_operator=debug")
            .env("POD_NAME", account)
            .arg("run");
        command.args([
            "--nats",
            &fixture.nats.url(),
            "--dataplane-image",
            IMAGE,
            "--namespace",
            fixture.namespace(),
        ]);
        command
            .arg(format!("--admin=127.0.0.1:{admin}"))
            .arg(format!("--resync={}s", RESYNC.as_secs()));
        command.env_remove("POD_NAMESPACE");
        if elects {
            command.arg(format!("--lease-namespace={}", fixture.namespace()));
            for (flag, time) in
                [("lease-duration", LEASE), ("renew-deadline", DEADLINE), ("retry-period", RETRY)]
            {
                command.arg(format!("--{flag}={}s", time.as_secs()));
            }
        }
        let process = Process::spawn(account, command);
        let user = format!("system:serviceaccount:{}:{account}", fixture.namespace());
        let replica = Self { process, account: account.to_owned(), user, admin, _files: files };
        eventually(&format!("{account} is ready"), LIMIT, async || replica.role().await).await;
        replica
    }

    async fn get(&self, path: &str) -> Option<String> {
        let request = reqwest::Client::new()
            .get(format!("http://127.0.0.1:{}{path}", self.admin))
            .timeout(Duration::from_secs(2));
        let answer = request.send().await.ok()?;
        if answer.status().is_success() { answer.text().await.ok() } else { None }
    }

    /// `leader` or `standby`, once it is ready.
    async fn role(&self) -> Option<String> {
        self.get("/readyz")
            .await?
            .lines()
            .find_map(|line| line.strip_prefix("role: "))
            .map(str::to_owned)
    }

    async fn until(&self, role: &str, limit: Duration) -> Duration {
        let started = Instant::now();
        eventually(&format!("{} is {role}", self.account), limit, async || {
            self.role().await.filter(|r| r == role)
        })
        .await;
        started.elapsed()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.expect("the metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no {name} in {text}"));
        line.parse().unwrap()
    }

    /// What it asked the API server to change, but for the lease and what is said about it.
    fn acts(&self, fixture: &Fixture) -> Vec<Entry> {
        let mut all = fixture.kube_api.audit().of_user(&self.user);
        all.retain(|entry| {
            let of_lease = entry.object_ref.resource == "leases"
                || entry.request_object["regarding"]["kind"] == "Lease";
            entry.is_write() && !of_lease
        });
        all
    }

    fn acts_since(&self, fixture: &Fixture, moment: Timestamp) -> Vec<String> {
        let acts = self.acts(fixture);
        let late = acts.iter().filter(|entry| entry.request_received_timestamp > moment);
        late.map(|entry| format!("{} {}", entry.request_received_timestamp, entry.brief()))
            .collect()
    }

    /// Ends it; it must have behaved.
    async fn stop(mut self, fixture: &Fixture) -> Duration {
        let started = Instant::now();
        self.process.terminate();
        let status = self.process.wait(Duration::from_secs(15)).await.expect("it ends on SIGTERM");
        let took = started.elapsed();
        assert!(
            status.success(),
            "{} ended with {status}:\n{}",
            self.account,
            self.process.stderr()
        );
        self.check(fixture);
        took
    }

    fn check(&self, fixture: &Fixture) {
        assert!(!self.process.stderr().contains("panicked at"), "{}", self.process.stderr());
        let entries = fixture.kube_api.audit().of_user(&self.user);
        let refused: Vec<String> =
            entries.iter().filter(|e| e.is_denied()).map(Entry::brief).collect();
        assert!(
            refused.is_empty(),
            "requests that the rights of {} do not cover: {refused:#?}",
            self.account
        );
    }
}

fn test(hint: &str, body: impl AsyncFnOnce(&mut Fixture)) {
    sluice_tests::run(TEST_LIMIT, async {
        let mut fixture = Fixture::new(hint).await;
        body(&mut fixture).await;
        fixture.finish();
    });
}

async fn holder(fixture: &Fixture) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(fixture.client.clone(), fixture.namespace());
    leases.get_opt(LEASE_NAME).await.unwrap()?.spec?.holder_identity
}

/// Something for the leader to do: a change of a channel's spec.
async fn change(fixture: &Fixture, name: &str, seconds: u64) {
    fixture.change(name, json!({"delivery": {"heartbeat": format!("{seconds}s")}})).await;
}

/// Changes channels all the time, so that a leader always has passes under way.
async fn keep_busy(fixture: &Fixture, channels: &[String]) {
    for round in 0_u64.. {
        for name in channels {
            change(fixture, name, 2 + round % 50).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn channels(fixture: &Fixture, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|i| format!("c{i}")).collect();
    for name in &names {
        // No pods: what counts here is what the operators write.
        fixture.create(name, json!({"workload": {"replicas": 0}})).await;
    }
    names
}

/// Waits until the channel's newest generation was looked at and its stream is as it says.
async fn settled(fixture: &Fixture, name: &str) {
    let in_sync = |object: &Value| {
        channel::current_condition(object, "StreamReady").is_some_and(|c| c["status"] == "True")
    };
    fixture.until(name, "is settled", in_sync).await;
}

async fn streams(fixture: &Fixture) -> Vec<(String, String)> {
    let server = fixture.streams().await;
    let names: Vec<String> = server.context().stream_names().try_collect().await.unwrap();
    let mut found = Vec::new();
    for name in names {
        let created = server.info(&name).await.created.to_string();
        found.push((name, created));
    }
    found.sort();
    found
}

#[test]
fn one_acts_and_the_other_takes_over_when_it_is_stopped() {
    test("lead-stop", async |fixture| {
        let a = Replica::start(fixture, "op-a", true).await;
        a.until("leader", LIMIT).await;
        let b = Replica::start(fixture, "op-b", true).await;
        fixture.create("orders", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("orders").await;
        for seconds in 5..10 {
            change(fixture, "orders", seconds).await;
            fixture.ready("orders").await;
        }
        assert!(a.acts(fixture).len() > 10, "{:?}", a.acts(fixture).len());
        assert!(
            b.acts(fixture).is_empty(),
            "a standby writes nothing: {:?}",
            b.acts_since(fixture, Timestamp::UNIX_EPOCH)
        );
        let writes =
            fixture.kube_api.audit().of_user(&b.user).iter().filter(|e| e.is_write()).count();
        assert_eq!(writes, 0, "not even to the lease");
        // A standby is alive, ready, and names the leader.
        assert_eq!(b.get("/livez").await.as_deref(), Some("ok\n"));
        let identity = holder(fixture).await.expect("an operator holds the lease");
        assert!(identity.starts_with("op-a_"), "{identity}");
        assert_eq!(
            b.get("/readyz").await.unwrap(),
            format!("ok\nrole: standby\nholder: {identity}\n")
        );
        assert_eq!(
            a.get("/readyz").await.unwrap(),
            format!("ok\nrole: leader\nholder: {identity}\n")
        );
        assert_eq!(
            (a.metric("sluice_operator_leader").await, b.metric("sluice_operator_leader").await),
            (1.0, 0.0)
        );
        assert_eq!(a.metric("sluice_operator_leader_transitions_total").await, 1.0);
        let events: Api<Event> = Api::namespaced(fixture.client.clone(), fixture.namespace());
        let told = events.list(&ListParams::default()).await.unwrap();
        let told = told
            .items
            .iter()
            .find(|e| e.regarding.as_ref().is_some_and(|r| r.kind.as_deref() == Some("Lease")))
            .expect("an Event");
        assert_eq!(told.note.as_deref(), Some(format!("{identity} became leader").as_str()));

        let before = streams(fixture).await;
        let stopping = Instant::now();
        let stopped = a.stop(fixture).await;
        assert!(stopped < Duration::from_secs(3), "it ended after {stopped:?}");
        b.until("leader", RETRY * 2 + SLACK).await;
        println!(
            "took over {:.1} s after SIGTERM; the old leader ended after {:.1} s",
            stopping.elapsed().as_secs_f64(),
            stopped.as_secs_f64()
        );
        assert!(
            stopping.elapsed() < LEASE,
            "it did not wait for the end of the lease: {:?}",
            stopping.elapsed()
        );
        change(fixture, "orders", 30).await;
        fixture.ready("orders").await;
        assert!(!b.acts(fixture).is_empty());
        assert_eq!(streams(fixture).await, before, "the same stream");
        b.stop(fixture).await;
        assert_eq!(holder(fixture).await, None, "released");
    });
}

#[test]
fn a_killed_leader_is_replaced_when_its_lease_is_over() {
    test("lead-kill", async |fixture| {
        let mut a = Replica::start(fixture, "op-a", true).await;
        a.until("leader", LIMIT).await;
        let b = Replica::start(fixture, "op-b", true).await;
        channels(fixture, 3).await;
        settled(fixture, "c0").await;
        tokio::time::sleep(RETRY * 2).await;
        let killed = Instant::now();
        a.process.kill();
        b.until("leader", LEASE + RETRY * 2 + SLACK).await;
        let took = killed.elapsed();
        println!("took over {:.1} s after SIGKILL", took.as_secs_f64());
        assert!(took > DEADLINE, "it did wait: {took:?}");
        change(fixture, "c1", 30).await;
        settled(fixture, "c1").await;
        assert!(!b.acts(fixture).is_empty());
        b.stop(fixture).await;
    });
}

#[test]
fn a_leader_that_was_stopped_for_long_writes_nothing_when_it_wakes() {
    test("lead-sleep", async |fixture| {
        let a = Replica::start(fixture, "op-a", true).await;
        a.until("leader", LIMIT).await;
        let b = Replica::start(fixture, "op-b", true).await;
        let names = channels(fixture, 20).await;
        let rounds = async {
            let (mut leader, mut other) = (&a, &b);
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(2)).await;
                leader.process.pause();
                other.until("leader", LEASE + RETRY * 2 + SLACK).await;
                // It has work to wake up to: watches told of many changes meanwhile.
                tokio::time::sleep(Duration::from_secs(2)).await;
                let woken = Timestamp::now();
                leader.process.resume();
                leader.until("standby", RETRY * 2 + SLACK).await;
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert_eq!(
                    leader.acts_since(fixture, woken),
                    [""; 0],
                    "{} wrote after it woke",
                    leader.account
                );
                let acts = async || (!other.acts_since(fixture, woken).is_empty()).then_some(());
                eventually(&format!("{} acts instead", other.account), LIMIT, acts).await;
                assert!(leader.metric("sluice_operator_leader_transitions_total").await >= 2.0);
                (leader, other) = (other, leader);
            }
        };
        tokio::select! { () = rounds => {}, () = keep_busy(fixture, &names) => {} }
        a.stop(fixture).await;
        b.stop(fixture).await;
    });
}

#[test]
fn a_leader_that_may_not_renew_stops_in_time() {
    test("lead-rights", async |fixture| {
        let a = Replica::start(fixture, "op-a", true).await;
        a.until("leader", LIMIT).await;
        let b = Replica::start(fixture, "op-b", true).await;
        let names = channels(fixture, 10).await;
        let bindings: Api<RoleBinding> =
            Api::namespaced(fixture.client.clone(), fixture.namespace());
        let body = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let name = rbac::leader_binding(&a.account);
            let binding = bindings.get(&name).await.unwrap();
            // It may still write everything else: what stops it is the deadline.
            bindings.delete(&name, &DeleteParams::default()).await.unwrap();
            let removed = Timestamp::now();
            a.until("standby", DEADLINE + SLACK).await;
            b.until("leader", LEASE + RETRY * 2 + SLACK).await;
            // The API server's authorizer follows a change of rights with a short delay, hence the
            // second.
            let deadline = removed + DEADLINE + Duration::from_secs(1);
            let late = a.acts_since(fixture, deadline);
            assert!(late.is_empty(), "writes after the deadline {deadline}: {late:#?}");
            assert!(
                a.acts(fixture).iter().any(|e| e.request_received_timestamp > removed),
                "it acted until then"
            );
            let log = a.process.stderr();
            // Once for the right to write and once for the right to read, not once a second.
            assert!(log.matches("cannot hold or read the lease").count() <= 2, "{log}");
            assert_eq!(a.get("/livez").await.as_deref(), Some("ok\n"));
            // With its rights back it waits for its turn.
            let mut again = binding.clone();
            again.metadata.resource_version = None;
            again.metadata.uid = None;
            bindings.create(&kube::api::PostParams::default(), &again).await.unwrap();
            eventually("it sees the leader", LIMIT, async || {
                a.get("/readyz").await.filter(|text| text.contains("holder: op-b_"))
            })
            .await;
            assert!(a.acts_since(fixture, deadline).is_empty());
        };
        tokio::select! { () = body => {}, () = keep_busy(fixture, &names) => {} }
        b.stop(fixture).await;
        a.until("leader", RETRY * 2 + SLACK).await;
        change(fixture, "c0", 55).await;
        settled(fixture, "c0").await;
    });
}

#[test]
fn a_lease_that_is_given_to_somebody_else_is_let_go_at_once() {
    test("lead-taken", async |fixture| {
        let a = Replica::start(fixture, "op-a", true).await;
        a.until("leader", LIMIT).await;
        channels(fixture, 2).await;
        settled(fixture, "c1").await;
        let leases: Api<Lease> = Api::namespaced(fixture.client.clone(), fixture.namespace());
        let taken = json!({"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 3}});
        leases.patch(LEASE_NAME, &PatchParams::default(), &Patch::Merge(&taken)).await.unwrap();
        let took = a.until("standby", RETRY + SLACK).await;
        println!("let go {:.1} s after another holder was named", took.as_secs_f64());
        // That holder does not renew.
        a.until("leader", Duration::from_secs(3) + RETRY * 2 + SLACK).await;
        change(fixture, "c0", 30).await;
        settled(fixture, "c0").await;
        let lease = leases.get(LEASE_NAME).await.unwrap().spec.unwrap();
        assert_eq!((lease.lease_transitions, lease.lease_duration_seconds), (Some(1), Some(8)));
        a.stop(fixture).await;
    });
}

#[test]
fn a_leader_behind_a_broken_line_stops_and_comes_back_as_standby() {
    test("lead-cut", async |fixture| {
        let proxy = Proxy::start(api_server(fixture)).await;
        let a = Replica::start_through(fixture, "op-a", true, Some(&proxy)).await;
        a.until("leader", LIMIT).await;
        let b = Replica::start(fixture, "op-b", true).await;
        let names = channels(fixture, 10).await;
        let body = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            proxy.cut();
            let cut = Instant::now();
            a.until("standby", DEADLINE + SLACK).await;
            println!("stopped to act {:.1} s after the line was cut", cut.elapsed().as_secs_f64());
            b.until("leader", LEASE + RETRY * 2 + SLACK).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mended = Timestamp::now();
            proxy.mend();
            eventually("it sees the leader", LIMIT, async || {
                a.get("/readyz").await.filter(|text| text.contains("holder: op-b_"))
            })
            .await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(
                a.acts_since(fixture, mended),
                [""; 0],
                "what was under way is not caught up on"
            );
        };
        tokio::select! { () = body => {}, () = keep_busy(fixture, &names) => {} }
        a.stop(fixture).await;
        b.stop(fixture).await;
    });
}

#[test]
fn without_an_election_two_agree_and_come_to_rest() {
    test("lead-none", async |fixture| {
        let a = Replica::start(fixture, "op-a", false).await;
        let b = Replica::start(fixture, "op-b", false).await;
        assert_eq!(
            a.get("/readyz").await.unwrap(),
            "ok\nrole: leader\nholder: none, there is no election\n"
        );
        let names = channels(fixture, 5).await;
        fixture.create("served", json!({"workload": {"replicas": 1}})).await;
        fixture.ready("served").await;
        for name in &names {
            settled(fixture, name).await;
        }
        let before = streams(fixture).await;
        assert_eq!(before.len(), 6, "one stream for each channel: {before:?}");
        for seconds in 5..10 {
            for name in names.iter().map(String::as_str).chain(["served"]) {
                change(fixture, name, seconds).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        for name in &names {
            settled(fixture, name).await;
        }
        fixture.ready("served").await;
        // Two resyncs, for what is still to be settled.
        tokio::time::sleep(RESYNC * 2).await;
        let quiet = Timestamp::now();
        tokio::time::sleep(RESYNC * 4).await;
        assert_eq!(
            (a.acts_since(fixture, quiet), b.acts_since(fixture, quiet)),
            (vec![], vec![]),
            "no end of it"
        );
        assert_eq!(streams(fixture).await, before, "no stream was made again");
        let acts = (a.acts(fixture).len(), b.acts(fixture).len());
        assert!(acts.0 > 0 && acts.1 > 0, "both act: {acts:?}");
        println!("without an election: {} and {} writes", acts.0, acts.1);
        for name in names.iter().map(String::as_str).chain(["served"]) {
            let told = fixture.events(name).await;
            assert!(!told.iter().any(|(kind, ..)| kind == "Warning"), "{name}: {told:?}");
        }
        assert_eq!(fixture.kube_api.node().starts(fixture.namespace()), 1, "no pod was replaced");
        assert_eq!(holder(fixture).await, None);
        a.stop(fixture).await;
        b.stop(fixture).await;
    });
}

#[test]
fn wrong_arguments_are_a_usage_error() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(workspace_program("sluice-operator"));
        command.env_remove("POD_NAMESPACE").env_remove("KUBECONFIG").arg("run").args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (arguments, word) in [
        (&["--lease-namespace=a", "--renew-deadline=15s"][..], "--renew-deadline"),
        (&["--lease-namespace=a", "--retry-period=10s"], "--retry-period"),
        (&["--lease-namespace=a", "--lease-duration=1500ms"], "--lease-duration"),
        (&["--lease-namespace=a", "--lease-name=A"], "--lease-name"),
        (&["--leader-election=true"], "--lease-namespace"),
        (&["--leader-election=maybe"], "--leader-election"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let (code, said) = run(arguments);
        assert!(code == Some(64) && said.contains(word), "{arguments:?}: {code:?}: {said}");
    }
}

fn api_server(fixture: &Fixture) -> SocketAddr {
    let (found, text) =
        fixture.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    assert!(found, "{text}");
    text.trim_start_matches("https://").parse().unwrap()
}
