//! The servers of a run: three nats-servers, three data planes, and the links between all of them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::jetstream::stream::Config;
use sluice_channel::{ChannelConfig, Epoch, config::Delivery};
use sluice_tests::{
    dataplane::{ConfigDir, DataPlane, Options, channel_config},
    nats::{Names, Streams, cut::CutCluster, names, stream_config},
    proxy::Proxy,
};

use crate::balancer::{Balancer, PODS};

/// Events that are kept, but while a limit is lowered: the old end always moves.
pub(crate) const KEPT: u64 = 6_000;
/// Memory of a channel on a pod, bytes: less than what is kept, so that replays ask the store.
pub(crate) const CACHE_BYTES: u64 = 4 << 20;
/// The NATS client calls it an error when a broker dies while a connection is opened.
const CLIENT_LINE: &str = "ERROR async_nats::connector: expected INFO, got nothing";

/// The servers.
pub(crate) struct Bed {
    pub(crate) cut: CutCluster,
    pub(crate) pods: Pods,
    pub(crate) configs: ConfigDir,
    /// From each pod to each broker.
    pub(crate) links: Vec<Vec<Proxy>>,
    pub(crate) streams: Streams,
    pub(crate) names: Names,
    pub(crate) stream: Config,
    pub(crate) epoch: Epoch,
    pub(crate) urls: String,
}

/// The data planes.
pub(crate) struct Pods {
    planes: Vec<Option<DataPlane>>,
    nats: Vec<String>,
    logs: PathBuf,
    /// Lines of logs that should not be there.
    pub(crate) errors: Vec<String>,
}

/// The channel as it is configured but for the edits of the schedule.
pub(crate) fn configuration(names: &Names) -> ChannelConfig {
    let config = channel_config(names);
    let delivery = Delivery {
        heartbeat: Duration::from_secs(2),
        retry_min: Duration::from_millis(100),
        retry_max: Duration::from_millis(800),
        write_timeout: Duration::from_secs(5),
        max_connection_age: Duration::ZERO,
        cache_bytes: CACHE_BYTES,
        ..config.delivery
    };
    let publish = sluice_channel::config::Publish { http: true };
    ChannelConfig { delivery, publish, ..config }
}

impl Bed {
    /// Starts all servers; their logs will be kept in `logs`.
    pub(crate) async fn start(logs: &Path) -> Self {
        let cut = CutCluster::start().await;
        let urls = cut.cluster.urls();
        let names = names("orders");
        let streams = Streams::connect(&urls).await;
        let stream = Config {
            num_replicas: 3,
            max_messages: i64::try_from(KEPT).unwrap(),
            duplicate_window: Duration::from_secs(120),
            ..stream_config(&names)
        };
        let epoch = streams.create(stream.clone()).await;
        cut.cluster.in_sync(&streams, names.stream.as_str()).await;
        let mut links = Vec::new();
        for _ in 0..PODS {
            let mut own = Vec::new();
            for server in &cut.cluster.servers {
                let target = server.url().trim_start_matches("nats://").parse().unwrap();
                own.push(Proxy::start(target).await);
            }
            links.push(own);
        }
        let url = |link: &Proxy| format!("nats://{}", link.address());
        let nats =
            links.iter().map(|own| own.iter().map(url).collect::<Vec<_>>().join(",")).collect();
        let pods = Pods {
            planes: (0..PODS).map(|_| None).collect(),
            nats,
            logs: logs.to_owned(),
            errors: Vec::new(),
        };
        let configs = ConfigDir::new(&[configuration(&names)]);
        Self { cut, pods, configs, links, streams, names, stream, epoch, urls }
    }

    /// Keeps the logs of the processes that run.
    pub(crate) fn keep_logs(&mut self, logs: &Path) {
        for server in &mut self.cut.cluster.servers {
            let name = server.name().to_owned();
            server.process().keep_log(&name, logs);
        }
        for pod in 0..PODS {
            self.pods.end_of(pod);
        }
    }
}

impl Pods {
    /// Starts a pod; whether it is ready is the balancer's to find out.
    pub(crate) async fn start(&mut self, pod: usize, configs: &ConfigDir, balancer: &Balancer) {
        let instance = format!("pod{pod}");
        let options = Options {
            arguments: &["--instance", &instance, "--drain-delay", "1s", "--drain-period", "2s"],
            not_ready: true,
            ..Options::default()
        };
        let plane = DataPlane::start_with(&self.nats[pod], configs, &options).await;
        balancer.runs(pod, plane.http(), plane.admin());
        self.planes[pod] = Some(plane);
    }

    /// A pod that runs.
    pub(crate) fn plane(&mut self, pod: usize) -> &mut DataPlane {
        self.planes[pod].as_mut().expect("the pod runs")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, pod: usize) {
        self.plane(pod).kill();
        self.end_of(pod);
    }

    /// SIGTERM, and the drain.
    pub(crate) async fn drain(&mut self, pod: usize) {
        self.plane(pod).drain(Duration::from_secs(20)).await;
        self.end_of(pod);
    }

    /// Keeps the log, and ends the process if it runs.
    fn end_of(&mut self, pod: usize) {
        let Some(mut plane) = self.planes[pod].take() else { return };
        plane.expect_errors(CLIENT_LINE);
        let errors = plane.unexpected_errors();
        self.errors.extend(errors.into_iter().map(|line| format!("pod{pod}: {line}")));
        // They are a finding, not a reason to end the run.
        plane.expect_errors("");
        plane.process().keep_log(&format!("pod{pod}"), &self.logs);
    }
}
