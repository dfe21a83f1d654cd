//! Commands of the pages, typed as they stand there, in the checkout and with [`SHOP`] as the
//! namespace.

use std::{collections::BTreeMap, io::Write, path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use sluice_tests::{docs, docs::block, eventually, process::tool};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    fixture::{Fixture, LIMIT, SHOP},
    kubectl::{kubectl, kubectl_with, run, try_kubectl},
};

/// The administrator's context with a namespace, to stand before the administrator's own file in
/// `KUBECONFIG`.
pub(crate) async fn context() -> NamedTempFile {
    let path =
        "jsonpath={.contexts[0].name} {.contexts[0].context.cluster} {.contexts[0].context.user}";
    let said = kubectl(&["config", "view", "--minify", "-o", path]).await;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [name, cluster, user] = words[..] else { panic!("a context has three names: {said}") };
    let mut file = NamedTempFile::new().expect("a file");
    let context = format!(
        "{{name: {name}, context: {{cluster: {cluster}, user: {user}, namespace: {SHOP}}}}}"
    );
    writeln!(
        file,
        "{{apiVersion: v1, kind: Config, contexts: [{context}], current-context: {name}}}"
    )
    .expect("it is written");
    file
}

/// `sh` with one command of a page.
async fn shell(fixture: &Fixture, command: &str) -> Command {
    println!("$ {command}");
    let own = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let configs = [fixture.context().await, PathBuf::from(own)];
    let mut path = vec![tool("kubectl").parent().expect("a folder").to_path_buf()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(Fixture::root())
        .kill_on_drop(true)
        .stdin(Stdio::null());
    shell
        .env("KUBECONFIG", std::env::join_paths(configs).expect("two paths"))
        .env("PATH", std::env::join_paths(path).expect("paths"));
    shell
}

/// Types a command that ends by itself, and well; what it printed.
pub(crate) async fn typed(fixture: &Fixture, command: &str) -> String {
    let said = run(&mut shell(fixture, command).await).await;
    assert!(said.ok, "{command}\n{}{}", said.out, said.err);
    said.out
}

/// Types all commands of a block, with this channel for `orders`.
pub(crate) async fn typed_for(fixture: &Fixture, block: &docs::Block, channel: &str) {
    for command in block.commands() {
        typed(fixture, &command.replace("orders", channel)).await;
    }
}

/// A command that was left running.
pub(crate) struct Running {
    _shell: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Running {
    /// Types a command in a terminal of its own. `exec`: the shell makes room for it, so that it
    /// ends with this value.
    pub(crate) async fn new(fixture: &Fixture, command: &str) -> Self {
        let mut shell = shell(fixture, &format!("exec {command}"))
            .await
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let lines = BufReader::new(shell.stdout.take().expect("its output")).lines();
        Self { _shell: shell, lines, seen: Vec::new() }
    }

    /// Waits for a line.
    pub(crate) async fn shows(&mut self, test: impl Fn(&str) -> bool) -> &[String] {
        let read = async {
            while let Some(line) = self.lines.next_line().await.expect("its output") {
                let is_it = test(&line);
                self.seen.push(line);
                if is_it {
                    return true;
                }
            }
            false
        };
        let found = tokio::time::timeout(Duration::from_secs(30), read).await.unwrap_or(false);
        assert!(found, "not among what it showed: {:#?}", self.seen);
        &self.seen
    }
}

/// A way to a pod through the API server; then the commands beside it may be typed.
pub(crate) async fn forwarded(fixture: &Fixture, command: &str) -> Running {
    let mut forward = Running::new(fixture, command).await;
    forward.shows(|line| line.starts_with("Forwarding from 127.0.0.1:")).await;
    forward
}

/// What `kubectl` shows of a channel is what the page says.
pub(crate) async fn look(fixture: &'static Fixture) {
    let [get, describe, path, explain] =
        <[String; 4]>::try_from(block("cluster", "look").commands()).expect("four commands");
    let (listed, page) = (typed(fixture, &get).await, block("cluster", "look-answer").text);
    let words = |text: &str, line: usize| {
        text.lines()
            .nth(line)
            .unwrap_or("")
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&listed, 0), words(&page, 0), "the columns");
    let (real, shown) = (words(&listed, 1), words(&page, 1));
    assert_eq!((&real[..3], real.len()), (&shown[..3], shown.len()), "the row");
    let in_shop = |text: &str| text.replace("default", SHOP);
    assert_eq!(
        real[3].rsplit_once('_').map(|(head, _)| head.to_owned()),
        in_shop(&shown[3]).rsplit_once('_').map(|(head, _)| head.to_owned())
    );
    assert_eq!(real[5], in_shop(&shown[5]), "the URL");
    let described = typed(fixture, &describe).await;
    assert!(described.contains("Managed By") || described.contains("Type:"), "{described}");
    assert_eq!(typed(fixture, &path).await.trim(), format!("{} {}", real[3], real[5]));
    assert!(typed(fixture, &explain).await.contains("heartbeat"));
}

/// The admin port of a pod, through the API server.
pub(crate) async fn admin(fixture: &'static Fixture) {
    let [forward, metrics, subscribers] =
        <[String; 3]>::try_from(block("cluster", "admin").commands()).expect("three commands");
    let _forward = forwarded(fixture, &forward).await;
    let metrics = typed(fixture, &metrics).await;
    assert!(metrics.contains("sluice_connections{") && metrics.ends_with("# EOF\n"), "{metrics}");
    let told: Value = serde_json::from_str(&typed(fixture, &subscribers).await).expect("JSON");
    assert!(told["total"].is_u64(), "{told}");
}

/// The API server takes every manifest of the pages, field by field.
pub(crate) async fn manifests_are_taken(_bed: &'static Fixture) {
    let manifests = docs::manifests();
    assert!(manifests.len() > 5, "only {} manifests", manifests.len());
    for manifest in manifests {
        // A name that no object has: an answer about what is there already would say less.
        let text = manifest.text.replacen("name: orders", "name: of-a-page", 1);
        let said = kubectl_with(
            &["apply", "-n", SHOP, "--dry-run=server", "--validate=strict", "-f", "-"],
            &text,
        )
        .await;
        assert!(
            said.ok && said.out.contains("created (server dry run)"),
            "{}: {}{}",
            manifest.place(),
            said.out,
            said.err
        );
    }
}

/// The Ingresses that docs/proxies.md has for controllers: each becomes one, with its class, host
/// and annotations.
pub(crate) async fn ingresses_are_as_on_the_page(_bed: &'static Fixture) {
    let of_controllers: Vec<_> =
        docs::manifests().into_iter().filter(|block| block.file == "docs/proxies.md").collect();
    assert!(of_controllers.len() >= 3, "only {} manifests", of_controllers.len());
    for manifest in of_controllers {
        let wanted: Value = serde_saphyr::from_str(&manifest.text).expect("YAML");
        let wanted = &wanted["spec"]["exposure"]["ingress"];
        let said = kubectl_with(
            &["apply", "-n", SHOP, "-f", "-"],
            &manifest.text.replacen("name: orders", "name: outside", 1),
        )
        .await;
        assert!(said.ok, "{}: {}", manifest.place(), said.err);
        let annotations: BTreeMap<String, String> =
            serde_json::from_value(wanted["annotations"].clone()).unwrap_or_default();
        assert!(!annotations.is_empty(), "{}", manifest.place());
        eventually(&format!("the Ingress of {}", manifest.place()), LIMIT, async || {
            let said = try_kubectl(&["get", "ingress/outside-sse", "-n", SHOP, "-o", "json"]).await;
            let ingress: Value = serde_json::from_str(&said.out).ok()?;
            let has_all = annotations
                .iter()
                .all(|(name, value)| ingress["metadata"]["annotations"][name] == value.as_str());
            let is_its = ingress["spec"]["ingressClassName"] == wanted["className"]
                && ingress["spec"]["rules"][0]["host"] == wanted["host"];
            (has_all && is_its).then_some(())
        })
        .await;
    }
}
