//! `sluice-dataplane` as a child process: configuration files, start, probes, metrics, log gate.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use serde_json::Value;
use sluice_channel::config::{ChannelConfig, Delivery, Publish, Stream, VERSION};
use tempfile::TempDir;

use crate::{
    nats::{NAMESPACE, Names},
    process::{Process, workspace_program},
};

/// How long a data plane may take to listen or to become ready.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The configuration that the operator writes for a channel with `spec: {}`, but for payloads up to
/// 1 MiB.
pub fn channel_config(names: &Names) -> ChannelConfig {
    ChannelConfig {
        version: VERSION,
        requires: Vec::new(),
        name: names.channel.clone(),
        namespace: NAMESPACE.to_owned(),
        generation: 1,
        stream: Stream {
            name: names.stream.clone(),
            subjects: vec![names.subject.clone()],
            topic_prefix: names.prefix.clone(),
            max_message_size: 1024 * 1024,
            compacted: false,
        },
        delivery: Delivery::default(),
        publish: Publish::default(),
    }
}

/// A directory of channel configurations, as a mounted `ConfigMap` is.
#[derive(Debug)]
pub struct ConfigDir(TempDir);

impl ConfigDir {
    /// A directory with these channels.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(configs: &[ChannelConfig]) -> Self {
        let dir =
            Self(TempDir::with_prefix("sluice-channels-").expect("a directory for configurations"));
        for config in configs {
            dir.write(config);
        }
        dir
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Adds or replaces a channel, in one step as the kubelet does.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, config: &ChannelConfig) {
        self.write_text(
            &format!("{}.json", config.name),
            &config.to_json().expect("a configuration"),
        );
    }

    /// Adds or replaces a file with any text.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_text(&self, file: &str, text: &str) {
        let temporary = self.path().join(format!(".{file}.new"));
        std::fs::write(&temporary, text).expect("a configuration file");
        std::fs::rename(&temporary, self.path().join(file)).expect("a configuration file");
    }

    /// Removes a channel.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove(&self, channel: &str) {
        std::fs::remove_file(self.path().join(format!("{channel}.json")))
            .expect("the channel's file");
    }
}

/// A running data plane. When it is dropped without a failure, its log must be free of errors that
/// were not expected.
#[derive(Debug)]
pub struct DataPlane {
    process: Process,
    http: SocketAddr,
    admin: SocketAddr,
    client: reqwest::Client,
    expected_errors: Vec<String>,
}

/// Options of [`DataPlane::start_with`].
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// Further arguments.
    pub arguments: &'a [&'a str],
    /// Do not wait until it is ready.
    pub not_ready: bool,
    /// Its limit of open files; none: as it is here.
    pub open_files: Option<u32>,
    /// Another build of the program; none: the workspace's.
    pub program: Option<&'a Path>,
}

impl DataPlane {
    /// Starts one and waits until it is ready.
    pub async fn start(nats: &str, configs: &ConfigDir) -> Self {
        Self::start_with(nats, configs, &Options::default()).await
    }

    /// Starts one with options.
    ///
    /// # Panics
    /// When it does not listen, or does not become ready.
    pub async fn start_with(nats: &str, configs: &ConfigDir, options: &Options<'_>) -> Self {
        let program = options
            .program
            .map_or_else(|| workspace_program("sluice-dataplane"), Path::to_path_buf);
        let mut command =
            Command::new(if options.open_files.is_some() { "sh".into() } else { program.clone() });
        if let Some(limit) = options.open_files {
            command.args(["-c", &format!(r#"ulimit -n {limit} && exec "$0" "$@""#)]).arg(program);
        }
        command.arg("--config-dir").arg(configs.path());
        command.args(["--nats", nats]);
        for [flag, value] in [
            ["--listen", "127.0.0.1:0"],
            ["--admin", "127.0.0.1:0"],
            ["--log-format", "text"],
            ["--drain-delay", "0s"],
            ["--drain-period", "1s"],
        ] {
            if !options.arguments.contains(&flag) {
                command.args([flag, value]);
            }
        }
        // So that a whole suite can be run without fan-out threads, or with many.
        if let Ok(threads) = std::env::var("SLUICE_TEST_FANOUT_THREADS")
            && !options.arguments.contains(&"--fanout-threads")
        {
            command.args(["--fanout-threads", &threads]);
        }
        command.args(options.arguments).env("NO_COLOR", "1").env_remove("RUST_LOG");
        let mut process = Process::spawn("dataplane", command);
        let listening = crate::eventually("the data plane listens", START_LIMIT, async || {
            if let Some(status) = process.ended() {
                panic!("the data plane ended with {status} before it listened");
            }
            parse_listening(&process.stdout())
        })
        .await;
        // No idle connections: a data plane may be shared by tests whose runtimes end at different
        // times.
        let client =
            reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        let plane = Self {
            process,
            http: listening.0,
            admin: listening.1,
            client,
            expected_errors: Vec::new(),
        };
        if !options.not_ready {
            plane.ready().await;
        }
        plane
    }

    /// Address of the public listener.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Prints the end of its log.
    pub fn print_log(&self) {
        self.process.print_tail();
    }

    /// The child process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `http://…` of a path on the public listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// When it does not within 20 s.
    pub async fn ready(&self) {
        let mut last = Value::Null;
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        loop {
            if let Some((status, body)) = self.try_readyz().await {
                if status == 200 {
                    return;
                }
                last = body;
            }
            assert!(tokio::time::Instant::now() < deadline, "the data plane is not ready: {last}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Status and body of `/readyz`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn readyz(&self) -> (u16, Value) {
        self.try_readyz().await.expect("an answer of /readyz")
    }

    async fn try_readyz(&self) -> Option<(u16, Value)> {
        let response = self
            .client
            .get(format!("http://{}/readyz", self.admin))
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .ok()?;
        Some((response.status().as_u16(), response.json().await.ok()?))
    }

    /// A page of the admin listener.
    ///
    /// # Panics
    /// When it does not answer 200.
    pub async fn admin_text(&self, path: &str) -> String {
        let response = self
            .client
            .get(format!("http://{}{path}", self.admin))
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        response.text().await.expect("a body")
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin_text("/metrics").await)
    }

    /// What `/debug/subscribers` lists now.
    ///
    /// # Panics
    /// When it is not the documented JSON.
    pub async fn subscribers(&self) -> Vec<Value> {
        let body: Value =
            serde_json::from_str(&self.admin_text("/debug/subscribers").await).expect("JSON");
        body["subscribers"].as_array().expect("a list").clone()
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    pub async fn drain(&mut self, limit: Duration) -> ExitStatus {
        self.process.terminate();
        self.process
            .wait(limit)
            .await
            .unwrap_or_else(|| panic!("the data plane did not end within {limit:?} of SIGTERM"))
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// From now on, error lines that hold `text` do not fail the test.
    pub fn expect_errors(&mut self, text: &str) {
        self.expected_errors.push(text.to_owned());
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Lines of its log that should not be there.
    pub fn unexpected_errors(&self) -> Vec<String> {
        let is_bad = |line: &&str| {
            line.contains("panicked") || line.split_whitespace().take(3).any(|word| word == "ERROR")
        };
        let expected =
            |line: &str| self.expected_errors.iter().any(|text| line.contains(text.as_str()));
        self.process
            .stderr()
            .lines()
            .filter(is_bad)
            .filter(|l| !expected(l))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let errors = self.unexpected_errors();
            assert!(errors.is_empty(), "errors in the data plane's log:\n{}", errors.join("\n"));
        }
    }
}

/// Reads `listening http=… admin=…`.
fn parse_listening(stdout: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line = stdout.lines().next().filter(|_| stdout.ends_with('\n'))?;
    let rest = line.strip_prefix("listening http=")?;
    let (http, admin) = rest.split_once(" admin=")?;
    Some((http.parse().ok()?, admin.parse().ok()?))
}

/// One reading of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Reads the OpenMetrics text format as far as the data plane uses it.
    ///
    /// # Panics
    /// When a line is not of that format, or the end mark is missing.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with("# EOF\n"), "OpenMetrics must end with # EOF: {text:?}");
        let samples = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        Self {
            samples: samples
                .map(|line| parse_sample(line).unwrap_or_else(|| panic!("not a sample: {line}")))
                .collect(),
        }
    }

    /// The sum of all samples of this name that carry these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |have: &BTreeMap<String, String>| {
            labels.iter().all(|(k, v)| have.get(*k).is_some_and(|h| h == v))
        };
        self.samples
            .iter()
            .filter(|(n, l, _)| n == name && matches(l))
            .map(|(_, _, value)| value)
            .sum()
    }

    /// Whether there is a sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(n, _, _)| n == name)
    }

    /// All label sets of a name.
    pub fn labels(&self, name: &str) -> Vec<&BTreeMap<String, String>> {
        self.samples.iter().filter(|(n, _, _)| n == name).map(|(_, labels, _)| labels).collect()
    }
}

fn parse_sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (head, value) = match line.split_once('}') {
        Some((head, value)) => (head, value.trim()),
        None => line.split_once(' ')?,
    };
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    let mut set = BTreeMap::new();
    for label in labels.split(',').filter(|l| !l.is_empty()) {
        let (key, value) = label.split_once('=')?;
        set.insert(key.to_owned(), value.trim_matches('"').to_owned());
    }
    Some((name.to_owned(), set, value.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_counts_once_it_is_whole() {
        let line = "listening http=127.0.0.1:41231 admin=127.0.0.1:41232";
        assert_eq!(parse_listening(line), None);
        let expected = ("127.0.0.1:41231".parse().unwrap(), "127.0.0.1:41232".parse().unwrap());
        assert_eq!(parse_listening(&format!("{line}\n")), Some(expected));
    }

    #[test]
    fn metrics_are_summed_over_labels() {
        let text = "# TYPE a counter\na_total{channel=\"x\",reason=\"age\"} 2\na_total{channel=\"x\",reason=\"slow\"} 3\nb 1.5\nc_bucket{le=\"+Inf\"} 4\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a_total", &[("channel", "x")]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("reason", "slow")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 1.5);
        assert!(metrics.has("c_bucket") && !metrics.has("c"));
    }
}
