//! What a pod's template asks for, as a command, files and probes.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Container as Template, ContainerPort, Pod, Probe, Secret, Volume},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt, runtime::reflector::ObjectRef};
use tempfile::TempDir;

use super::Shared;
use crate::process::workspace_program;

const DATA_PLANE: &str = "sluice-dataplane";
const OPERATOR: &str = "sluice-operator";

/// The only container of a pod.
pub(super) struct Container {
    template: Template,
    volumes: Vec<Volume>,
    dir: TempDir,
    written: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) address: Ipv4Addr,
    pub(super) probes: Probes,
}

impl Container {
    /// Reads the pod's template; an error is the reason of a waiting container.
    pub(super) fn new(pod: &Pod) -> Result<Self, &'static str> {
        let spec = pod.spec.clone().unwrap_or_default();
        let template = spec.containers.into_iter().next().ok_or("InvalidPod")?;
        if template.image.as_deref().unwrap_or_default().ends_with(":missing") {
            return Err("ImagePullBackOff");
        }
        let ports = template.ports.clone().unwrap_or_default();
        let probes = Probes {
            startup: template.startup_probe.as_ref().map(|p| HttpProbe::new(p, &ports)),
            readiness: template.readiness_probe.as_ref().map(|p| HttpProbe::new(p, &ports)),
            client: reqwest::Client::new(),
        };
        let dir = TempDir::with_prefix("sluice-pod-").expect("a directory for the pod");
        let volumes = spec.volumes.unwrap_or_default();
        Ok(Self {
            template,
            volumes,
            dir,
            written: BTreeMap::new(),
            address: Ipv4Addr::LOCALHOST,
            probes,
        })
    }

    pub(super) fn ports(&self) -> Vec<u16> {
        let ports = self.template.ports.iter().flatten();
        ports.filter_map(|p| u16::try_from(p.container_port).ok()).collect()
    }

    /// The process to start.
    pub(super) fn command(&self, pod: &Pod) -> Command {
        let environment = self.environment(pod);
        let own = |text: &str| {
            self.own_paths(&expanded(text, &environment))
                .replace("0.0.0.0:", &format!("{}:", self.address))
                .replace("[::]:", &format!("{}:", self.address))
        };
        let mut words = self
            .template
            .command
            .iter()
            .flatten()
            .chain(self.template.args.iter().flatten())
            .map(|word| own(word));
        // An image's entry point is the program that it is called after, else the data plane.
        let program = if self.template.command.is_some() { words.next() } else { None };
        let program = program
            .as_deref()
            .and_then(|p| p.rsplit('/').next().map(str::to_owned))
            .unwrap_or_else(|| self.entry_point().to_owned());
        let mut command = Command::new(workspace_program(&program));
        let words: Vec<String> = words.collect();
        command.args(&words);
        for (flag, port) in [("--listen", 8080), ("--admin", 9090)] {
            if program == DATA_PLANE
                && !words.iter().any(|w| w == flag || w.starts_with(&format!("{flag}=")))
            {
                command.arg(format!("{flag}={}:{port}", self.address));
            }
        }
        command.envs(environment.iter().map(|(name, value)| (name, own(value))));
        command
    }

    fn entry_point(&self) -> &'static str {
        let image = self.template.image.as_deref().unwrap_or_default();
        let name = image.rsplit('/').next().and_then(|last| last.split(':').next());
        if name == Some(OPERATOR) { OPERATOR } else { DATA_PLANE }
    }

    fn environment(&self, pod: &Pod) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for variable in self.template.env.iter().flatten() {
            let field = variable
                .value_from
                .as_ref()
                .and_then(|from| from.field_ref.as_ref())
                .map(|field| field.field_path.as_str());
            let value = match field {
                None => expanded(variable.value.as_deref().unwrap_or_default(), &all),
                Some("metadata.name") => pod.name_any(),
                Some("metadata.namespace") => pod.namespace().unwrap_or_default(),
                Some("metadata.uid") => pod.uid().unwrap_or_default(),
                Some("status.podIP") => self.address.to_string(),
                Some("spec.nodeName") => super::NAME.to_owned(),
                Some(other) => panic!("the node stand-in does not know the field {other}"),
            };
            all.insert(variable.name.clone(), value);
        }
        all
    }

    /// Paths under a mount become paths in the pod's directory.
    fn own_paths(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for mount in self.template.volume_mounts.iter().flatten() {
            text = text.replace(
                &mount.mount_path,
                &self.dir.path().join(&mount.name).display().to_string(),
            );
        }
        text
    }

    /// Brings the files of all volumes up to date; an error says what is not there yet.
    pub(super) async fn write_files(
        &mut self,
        shared: &Shared,
        namespace: &str,
    ) -> Result<(), String> {
        let mut wanted = BTreeMap::new();
        for volume in &self.volumes {
            let dir = self.dir.path().join(&volume.name);
            fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
            for (file, bytes) in files_of(volume, shared, namespace, self.written.is_empty())
                .await
                .map_err(|why| {
                    format!("MountVolume.SetUp failed for volume \"{}\" : {why}", volume.name)
                })?
            {
                wanted.insert(dir.join(file), bytes);
            }
            if volume.secret.is_some() {
                // Secrets are read once; kept as they are afterwards.
                wanted.extend(
                    self.written
                        .iter()
                        .filter(|(path, _)| path.starts_with(&dir))
                        .map(|(p, b)| (p.clone(), b.clone())),
                );
            }
        }
        for (path, bytes) in &wanted {
            if self.written.get(path) != Some(bytes) {
                // A reader must never see half a file.
                let part = path.with_extension("part");
                fs::write(&part, bytes)
                    .and_then(|()| fs::rename(&part, path))
                    .map_err(|e| e.to_string())?;
            }
        }
        for path in self.written.keys().filter(|path| !wanted.contains_key(*path)) {
            fs::remove_file(path).map_err(|e| e.to_string())?;
        }
        self.written = wanted;
        Ok(())
    }
}

async fn files_of(
    volume: &Volume,
    shared: &Shared,
    namespace: &str,
    first: bool,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    if let Some(source) = &volume.config_map {
        let map = shared.config_maps.get(&ObjectRef::new(&source.name).within(namespace));
        return match map {
            Some(map) => Ok(map
                .data
                .iter()
                .flatten()
                .map(|(file, text)| (file.clone(), text.clone().into_bytes()))
                .collect()),
            None => Err(format!("configmap \"{}\" not found", source.name)),
        };
    }
    if let Some(source) = volume.secret.as_ref().filter(|_| first) {
        let name = source.secret_name.clone().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(shared.client.clone(), namespace);
        return match secrets.get(&name).await {
            Ok(secret) => {
                Ok(secret.data.into_iter().flatten().map(|(file, bytes)| (file, bytes.0)).collect())
            }
            Err(_) => Err(format!("secret \"{name}\" not found")),
        };
    }
    Ok(Vec::new())
}

/// `$(NAME)` is the variable's value, as in a pod.
fn expanded(text: &str, environment: &BTreeMap<String, String>) -> String {
    environment
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

/// The probes that decide whether the container is ready.
pub(super) struct Probes {
    startup: Option<HttpProbe>,
    readiness: Option<HttpProbe>,
    client: reqwest::Client,
}

impl Probes {
    pub(super) fn reset(&mut self) {
        for probe in self.startup.iter_mut().chain(&mut self.readiness) {
            *probe = HttpProbe {
                successes: 0,
                failures: 0,
                passing: false,
                next: Instant::now(),
                ..probe.clone()
            };
        }
    }

    /// Asks the probe that is due.
    pub(super) async fn tick(&mut self, address: Ipv4Addr) {
        let probe = match (&mut self.startup, &mut self.readiness) {
            (Some(startup), _) if !startup.passing => startup,
            (_, Some(readiness)) => readiness,
            (_, None) => return,
        };
        probe.tick(&self.client, address).await;
    }

    pub(super) fn ready(&self) -> bool {
        self.startup.iter().chain(&self.readiness).all(|probe| probe.passing)
    }
}

#[derive(Clone)]
struct HttpProbe {
    port: u16,
    path: String,
    period: Duration,
    timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    successes: u32,
    failures: u32,
    passing: bool,
    next: Instant,
}

impl HttpProbe {
    fn new(probe: &Probe, ports: &[ContainerPort]) -> Self {
        let http = probe.http_get.as_ref().expect("probes of the data plane are over HTTP");
        let port = match &http.port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => ports
                .iter()
                .find(|p| p.name.as_ref() == Some(name))
                .map(|p| p.container_port)
                .expect("a probe names a port of the container"),
        };
        let seconds = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default)
        };
        Self {
            port: u16::try_from(port).expect("a port"),
            path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
            period: Duration::from_secs(seconds(probe.period_seconds, 10).into()),
            timeout: Duration::from_secs(seconds(probe.timeout_seconds, 1).into()),
            success_threshold: seconds(probe.success_threshold, 1),
            failure_threshold: seconds(probe.failure_threshold, 3),
            successes: 0,
            failures: 0,
            passing: false,
            next: Instant::now(),
        }
    }

    async fn tick(&mut self, client: &reqwest::Client, address: Ipv4Addr) {
        if Instant::now() < self.next {
            return;
        }
        let url = format!("http://{address}:{}{}", self.port, self.path);
        let answer = client.get(url).timeout(self.timeout).send().await;
        if answer
            .is_ok_and(|answer| answer.status().is_success() || answer.status().is_redirection())
        {
            (self.successes, self.failures) = (self.successes + 1, 0);
            self.passing |= self.successes >= self.success_threshold;
        } else {
            (self.successes, self.failures) = (0, self.failures + 1);
            self.passing &= self.failures < self.failure_threshold;
        }
        // Like kubelet, which does not wait a whole period for a container that is not ready yet.
        self.next = Instant::now()
            + if self.passing { self.period } else { self.period.min(Duration::from_millis(500)) };
    }
}
