//! Local mode as a newcomer meets it: one program, a directory of manifests, curl.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sluice_tests::{
    eventually,
    nats::NatsServer,
    process::{Process, free_port, tool, workspace_program},
};
use tempfile::TempDir;

const TEST_LIMIT: Duration = Duration::from_secs(150);
const LIMIT: Duration = Duration::from_secs(40);

/// A directory of manifests, a data directory, and ports of its own.
struct Fixture {
    manifests: TempDir,
    data: TempDir,
    http: u16,
    admin: u16,
    nats: u16,
}

const ORDERS: &str = "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: orders}\nspec: {publish: {mode: Http, allowAnonymous: true}}\n";

impl Fixture {
    fn new(manifest: &str) -> Self {
        let fixture = Self {
            manifests: TempDir::with_prefix("sluice-manifests-").unwrap(),
            data: TempDir::with_prefix("sluice-data-").unwrap(),
            http: free_port(),
            admin: free_port(),
            nats: free_port(),
        };
        fixture.write("orders.yaml", manifest);
        fixture
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.manifests.path().join(name), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(workspace_program("sluice-operator"));
        command
            .env("RUST_BACKTRACE", "1")
            .arg("local")
            .arg(self.manifests.path())
            .arg("--data")
            .arg(self.data.path());
        command.args([
            "--listen",
            &format!("127.0.0.1:{}", self.http),
            "--admin",
            &format!("127.0.0.1:{}", self.admin),
        ]);
        command
            .args(["--nats-port", &self.nats.to_string()])
            .arg("--nats-server")
            .arg(tool("nats-server"));
        command
    }

    async fn start(&self) -> Process {
        let mut process = Process::spawn("sluice-local", self.command());
        self.says(&mut process, "orders: Ready=True").await;
        process
    }

    /// Waits until the program has said `text`.
    async fn says(&self, process: &mut Process, text: &str) {
        let deadline = Instant::now() + LIMIT;
        while !process.stdout().contains(text) {
            let ended = process.ended();
            assert!(
                ended.is_none(),
                "it ended with {ended:?}:\n{}\n{}",
                process.stdout(),
                process.stderr()
            );
            assert!(
                Instant::now() < deadline,
                "it does not say {text:?}:\n{}\n{}",
                process.stdout(),
                process.stderr()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs a start that must fail, and returns what it said on standard error.
    async fn fails(&self, mut command: Command, arguments: &[&str]) -> String {
        let mut process = Process::spawn(
            "sluice-local",
            std::mem::replace(command.args(arguments), Command::new("true")),
        );
        let status = process.wait(LIMIT).await.expect("it ends by itself");
        let said = format!("{}{}", process.stdout(), process.stderr());
        assert_eq!(status.code(), Some(1), "{said}");
        for mess in ["panicked", "stack backtrace", "Stack backtrace"] {
            assert!(!said.contains(mess), "{said}");
        }
        self.assert_no_orphans();
        said
    }

    async fn publish(&self, topic: &str, payload: &str) {
        let url = format!("http://127.0.0.1:{}/channels/orders/{topic}", self.http);
        let answer =
            reqwest::Client::new().post(url).body(payload.to_owned()).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    /// What a subscriber that starts at the earliest event is sent first, up to `text`.
    async fn receives(&self, text: &str) -> String {
        let url = format!("http://127.0.0.1:{}/channels/orders?from=earliest", self.http);
        let mut response = reqwest::get(url).await.unwrap();
        let mut received = String::new();
        let read = async {
            while !received.contains(text) {
                let chunk = response.chunk().await.unwrap().expect("the stream stays open");
                received += &String::from_utf8_lossy(&chunk);
            }
        };
        tokio::time::timeout(LIMIT, read).await.unwrap_or_else(|_| panic!("{text} does not come"));
        received
    }

    /// Processes that work on this fixture's directories.
    fn children(&self) -> Vec<(u32, String)> {
        let mine = self.data.path().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&mine) && !line.contains("sluice-operator") {
                found.push((pid, line));
            }
        }
        found
    }

    fn child(&self, name: &str) -> u32 {
        let found: Vec<_> =
            self.children().into_iter().filter(|(_, line)| program(line).ends_with(name)).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].0
    }

    fn assert_no_orphans(&self) {
        let left = self.children();
        assert!(left.is_empty(), "still running: {left:?}");
    }
}

fn program(line: &str) -> &Path {
    Path::new(line.split(' ').next().unwrap_or_default())
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn interrupted(process: &mut Process) {
    process.signal(rustix::process::Signal::INT);
    let status = process.wait(Duration::from_secs(20)).await.expect("it ends on Ctrl-C");
    assert!(status.success(), "{status}: {}\n{}", process.stdout(), process.stderr());
}

#[test]
fn publish_receive_stop_start_and_the_events_are_still_there() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let mut process = fixture.start().await;
        fixture.publish("created", "first").await;
        let received = fixture.receives("data: first\n").await;
        let id = received.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
        let said = process.stdout();
        for line in [
            format!("curl -N http://127.0.0.1:{}/channels/orders", fixture.http),
            format!(
                "curl -d '{{\"id\":1}}' http://127.0.0.1:{}/channels/orders/created",
                fixture.http
            ),
            format!("curl -N 'http://127.0.0.1:{}/channels/orders?from=earliest'", fixture.http),
        ] {
            assert!(said.contains(&line), "it prints what to type next, {line:?}: {said}");
        }
        interrupted(&mut process).await;
        fixture.assert_no_orphans();

        let mut process = fixture.start().await;
        fixture.publish("created", "second").await;
        let again = fixture.receives("data: second\n").await;
        assert!(
            again.contains("data: first\n") && again.contains(&id),
            "the same event under the same id: {again}"
        );
        interrupted(&mut process).await;
        fixture.assert_no_orphans();
    });
}

#[test]
fn edits_of_the_manifests_are_followed() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let mut process = fixture.start().await;
        fixture.write(
            "more.yaml",
            "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: more}\nspec: {}\n",
        );
        fixture.says(&mut process, "more: Ready=True").await;
        fixture.write(
            "orders.yaml",
            &ORDERS.replace("publish: {mode: Http, allowAnonymous: true}", "stream: {maxAge: 2h}"),
        );
        fixture.says(&mut process, "generation 2 is served").await;
        let url = format!("http://127.0.0.1:{}/channels/orders/created", fixture.http);
        assert_eq!(
            reqwest::Client::new().post(&url).body("x").send().await.unwrap().status(),
            405,
            "publishing was taken back"
        );
        // A mistake changes nothing.
        fixture.write("orders.yaml", &ORDERS.replace("mode: Http", "mode: Htttp"));
        fixture.says(&mut process, "must be one of Disabled, Http").await;
        fixture
            .write("orders.yaml", &ORDERS.replace("spec: {", "spec: {stream: {storage: Memory}, "));
        fixture.says(&mut process, "cannot move a stream between file and memory").await;
        assert_eq!(
            reqwest::Client::new().post(&url).body("x").send().await.unwrap().status(),
            405,
            "what was in force stays"
        );
        std::fs::remove_file(fixture.manifests.path().join("more.yaml")).unwrap();
        fixture.says(&mut process, "more: removed; its stream").await;
        let more = format!("http://127.0.0.1:{}/channels/more", fixture.http);
        eventually("the channel has gone", LIMIT, async || {
            let status = reqwest::get(&more).await.ok()?.status();
            matches!(status.as_u16(), 204 | 404).then_some(())
        })
        .await;
        interrupted(&mut process).await;
        fixture.assert_no_orphans();
    });
}

/// What a mistake in a file costs is a message, whatever the mistake is.
#[test]
fn a_mistake_in_a_file_removes_no_channel() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let mut process = fixture.start().await;
        fixture.says(&mut process, "orders: Ready=True").await;
        let orders = format!("http://127.0.0.1:{}/channels/orders", fixture.http);
        let open = reqwest::get(&orders).await.unwrap();
        for (text, said) in [
            (ORDERS.replace("SseChannel", "SSEChannel"), "v1alpha1 SSEChannel is not known here"),
            (ORDERS.replace("v1alpha1", "v1beta1"), "apiVersion must be sluice.dev/v1alpha1"),
            (ORDERS.replace("kind:", "kinds:"), "document 1: has no kind"),
            (String::new(), "holds no object"),
            (ORDERS.replace("apiVersion: sluice.dev/v1alpha1", "apiVersion: v1"), "not \"v1\""),
        ] {
            fixture.write("orders.yaml", &text);
            fixture.says(&mut process, said).await;
            assert_eq!(reqwest::get(&orders).await.unwrap().status(), 200, "{said}");
        }
        // Moved to another file, and mistaken there.
        std::fs::remove_file(fixture.manifests.path().join("orders.yaml")).unwrap();
        fixture.write("moved.yaml", &ORDERS.replace("SseChannel", "SseChanel"));
        fixture.says(&mut process, "orders: is in no manifest; it stays until").await;
        assert_eq!(reqwest::get(&orders).await.unwrap().status(), 200);
        drop(open);
        // As `kubectl get sse -o yaml` writes channels, with what is none beside them.
        let list = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {}\n- {{apiVersion: v1, kind: Secret, metadata: {{name: s}}}}\n",
            "{apiVersion: sluice.dev/v1alpha1, kind: SseChannel, metadata: {name: listed, uid: u}, spec: {}}"
        );
        std::fs::remove_file(fixture.manifests.path().join("moved.yaml")).unwrap();
        fixture.write("list.yaml", &list);
        fixture.says(&mut process, "item 2 (v1 Secret s) is passed over").await;
        fixture.says(&mut process, "orders: removed; its stream").await;
        fixture.says(&mut process, "listed: Ready=True").await;
        interrupted(&mut process).await;
        fixture.assert_no_orphans();
    });
}

#[test]
fn a_store_that_was_set_back_between_two_runs_gets_a_new_epoch() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let store = fixture.data.path().join("jetstream");
        let copy = TempDir::with_prefix("sluice-copy-").unwrap();
        let set_back = "was set back to an older state; it has a new epoch";
        for run in 0..3 {
            let mut process = fixture.start().await;
            for n in 0..5 {
                fixture.publish("created", &format!("{run}-{n}")).await;
            }
            interrupted(&mut process).await;
            assert!(!process.stdout().contains(set_back), "{}", process.stdout());
            if run == 0 {
                sluice_tests::copy_tree(&store, copy.path());
            }
        }
        std::fs::remove_dir_all(&store).unwrap();
        sluice_tests::copy_tree(copy.path(), &store);
        for expected in [true, false] {
            let mut process = fixture.start().await;
            interrupted(&mut process).await;
            assert_eq!(process.stdout().contains(set_back), expected, "{}", process.stdout());
        }
        fixture.assert_no_orphans();
    });
}

#[test]
fn events_that_are_too_large_for_nats_are_told_of() {
    sluice_tests::run(TEST_LIMIT, async {
        let settings = TempDir::with_prefix("sluice-nats-").unwrap();
        let file = settings.path().join("nats.conf");
        std::fs::write(&file, "max_payload: 16384\n").unwrap();
        let nats = NatsServer::start_with(&["-c", file.to_str().unwrap()]).await;
        let fixture = Fixture::new(ORDERS);
        let mut command = Command::new(workspace_program("sluice-operator"));
        command.arg("local").arg(fixture.manifests.path()).arg("--data").arg(fixture.data.path());
        command.args(["--nats", &nats.url()]);
        for (flag, port) in [("--listen", fixture.http), ("--admin", fixture.admin)] {
            command.args([flag, &format!("127.0.0.1:{port}")]);
        }
        let mut process = Process::spawn("sluice-local", command);
        fixture.says(&mut process, "no message above 16384 bytes (max_payload)").await;
        fixture.says(&mut process, "orders: Ready=True").await;
        fixture.write(
            "orders.yaml",
            &ORDERS.replace("spec: {", "spec: {stream: {maxMessageSize: 16Ki}, "),
        );
        fixture.says(&mut process, "generation 2 is served").await;
        let said = process.stdout();
        let last = said.lines().rfind(|line| line.contains("StreamReady=True"));
        assert!(last.is_some_and(|line| !line.contains("max_payload")), "{said}");
        interrupted(&mut process).await;
    });
}

#[test]
fn a_start_that_cannot_be_ends_with_one_clear_message() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        for (port, flag) in
            [(fixture.http, "--listen"), (fixture.admin, "--admin"), (fixture.nats, "--nats-port")]
        {
            let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
            let said = fixture.fails(fixture.command(), &[]).await;
            assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains(flag), "{said}");
            assert_eq!(said.matches("already in use").count(), 1, "the cause is said once: {said}");
            drop(taken);
        }
        let said =
            fixture.fails(fixture.command(), &["--dataplane", "/nowhere/sluice-dataplane"]).await;
        assert!(
            said.contains("/nowhere/sluice-dataplane") && said.contains("cargo build"),
            "{said}"
        );

        let mut command = Command::new(workspace_program("sluice-operator"));
        command.args(["local", "/nowhere/manifests"]);
        let said = fixture.fails(command, &[]).await;
        assert!(said.contains("/nowhere/manifests"), "{said}");

        let fixture = Fixture::new(
            "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\nmetadata: {name: orders}\nspec: {stream: {maxAge: 1d}}\n",
        );
        let said = fixture.fails(fixture.command(), &[]).await;
        assert!(
            said.contains("orders.yaml")
                && said.contains("spec.stream.maxAge")
                && said.contains("15s, 500ms or 1h30m"),
            "{said}"
        );
    });
}

#[test]
fn a_second_instance_on_the_same_data_is_refused() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let mut process = fixture.start().await;
        let mut second = Process::spawn("sluice-local", fixture.command());
        let status = second.wait(LIMIT).await.expect("it ends by itself");
        assert_eq!(status.code(), Some(1));
        assert!(second.stderr().contains("another sluice-operator uses"), "{}", second.stderr());
        fixture.publish("created", "undisturbed").await;
        interrupted(&mut process).await;
        fixture.assert_no_orphans();
    });
}

#[test]
fn children_that_die_are_started_again() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let mut process = fixture.start().await;
        fixture.publish("created", "before").await;
        for name in ["nats-server", "sluice-dataplane"] {
            kill(fixture.child(name));
            fixture.says(&mut process, &format!("{name} ended (killed by signal 9)")).await;
            fixture.says(&mut process, &format!("{name} was started again")).await;
            eventually("it serves again", LIMIT, async || {
                let url = format!("http://127.0.0.1:{}/channels/orders/created", fixture.http);
                let answer = reqwest::Client::new()
                    .post(url)
                    .body("after")
                    .timeout(Duration::from_secs(2))
                    .send()
                    .await
                    .ok()?;
                (answer.status() == 201).then_some(())
            })
            .await;
        }
        assert!(
            fixture.receives("data: after\n").await.contains("data: before\n"),
            "nothing is lost by it"
        );
        interrupted(&mut process).await;
        fixture.assert_no_orphans();
    });
}

#[test]
fn a_nats_server_that_does_not_stay_up_is_given_up_with_its_words() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        // It says a good version and then ends.
        let fake: PathBuf = fixture.data.path().join("nats-server");
        std::fs::write(
            &fake,
            "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'nats-server: v2.15.0'; exit 0; }\necho 'the disk is full' >&2\nexit 3\n",
        )
        .unwrap();
        std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mut command = Command::new(workspace_program("sluice-operator"));
        command
            .arg("local")
            .arg(fixture.manifests.path())
            .arg("--data")
            .arg(fixture.data.path())
            .arg("--nats-server")
            .arg(&fake);
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--nats-port",
            &fixture.nats.to_string(),
        ]);
        let said = fixture.fails(command, &[]).await;
        assert!(
            said.contains("nats-server ended 5 times in a row")
                && said.contains("the disk is full"),
            "{said}"
        );
    });
}

#[test]
fn kill_nine_leaves_no_orphan() {
    sluice_tests::run(TEST_LIMIT, async {
        let fixture = Fixture::new(ORDERS);
        let process = fixture.start().await;
        assert_eq!(fixture.children().len(), 2);
        kill(process.pid());
        eventually("the children have gone too", Duration::from_secs(15), async || {
            fixture.children().is_empty().then_some(())
        })
        .await;
    });
}
