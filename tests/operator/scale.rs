//! Many channels: `make scale-operator`. `SCALE_CHANNELS` says how many; without it, a few, and no
//! bound on times, which a busy machine would break.

mod fleet;

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde_json::{Value, json};
use sluice_tests::{kube_api::KubeApi, process::free_port};

use crate::{
    channel,
    fixture::{Fixture, install_resource},
    rbac,
};
use fleet::Fleet;

const FEW: usize = 24;
const LIMIT: Duration = Duration::from_secs(40 * 60);
/// Namespaces of the channels whose pods answer; those of the others are in one of their own.
const NAMESPACES: usize = 6;
const SILENT: &str = "silent";
const HOME: &str = "sluice-system";
/// How often the operator looks at a channel: as by default where there are many.
const RESYNC: Duration = Duration::from_secs(30);
const RESYNC_OF_FEW: Duration = Duration::from_secs(10);
/// Edits whose way into the cluster is timed.
const EDITS: usize = 40;
/// Heartbeats that the edits ask for: from this number of seconds on, which is above the default.
const FIRST: usize = 16;
/// Of the lease where channels are few: shorter than by default. With many the machine is too busy
/// to hold it so.
const LEASE: [&str; 3] = ["--lease-duration=6s", "--renew-deadline=4s", "--retry-period=1s"];

struct Size {
    channels: usize,
    silent: usize,
    is_long: bool,
}

impl Size {
    fn wanted() -> Self {
        let wanted = std::env::var("SCALE_CHANNELS").ok().filter(|text| !text.is_empty());
        let channels = wanted.as_ref().map_or(FEW, |text| text.parse().expect("SCALE_CHANNELS"));
        Self { channels, silent: (channels / 4).clamp(1, 100), is_long: wanted.is_some() }
    }

    fn resync(&self) -> Duration {
        if self.is_long { RESYNC } else { RESYNC_OF_FEW }
    }

    /// Namespace and name of the `n`th channel.
    fn place(&self, n: usize) -> (String, String) {
        let namespace =
            if n < self.silent { SILENT.to_owned() } else { format!("fleet-{}", n % NAMESPACES) };
        (namespace, format!("channel-{n}"))
    }
}

async fn start(fixture: &mut Fixture, size: &Size, pod_port: u16) {
    rbac::grant_everywhere(&fixture.client, HOME).await;
    fixture.everywhere = true;
    fixture.resync = size.resync();
    fixture.operator_arguments =
        vec![format!("--lease-namespace={HOME}"), format!("--pod-admin-port={pod_port}")];
    if !size.is_long {
        fixture.operator_arguments.extend(LEASE.map(str::to_owned));
    }
    fixture.start_operator().await;
}

async fn create(fixture: &Fixture, size: &Size) {
    let create = async |n: usize| {
        let (namespace, name) = size.place(n);
        let spec = json!({"workload": {"replicas": 1}, "stream": {"maxBytes": "1Mi"}});
        fixture.try_create(&namespace, &name, spec).await.expect("a channel");
    };
    stream::iter(0..size.channels).map(create).buffer_unordered(16).collect::<Vec<()>>().await;
}

/// Waits until all channels are as they will be: ready, or with pods that give no answer.
async fn settled(fixture: &Fixture, size: &Size) -> Duration {
    let (group, version, kind) = channel::CHANNEL;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let all: Api<DynamicObject> = Api::all_with(fixture.client.clone(), &kind);
    let started = Instant::now();
    loop {
        let list = all.list(&ListParams::default().match_any()).await.expect("all channels");
        let list: Vec<Value> = list.iter().map(|one| serde_json::to_value(one).unwrap()).collect();
        let ready = list.iter().filter(|one| channel::is_ready(one)).count();
        let silent = |one: &&Value| {
            channel::current_condition(one, "Ready")
                .is_some_and(|c| c["reason"] == "PodUnreachable")
        };
        let silent = list.iter().filter(silent).count();
        if ready + silent == size.channels && silent == size.silent {
            return started.elapsed();
        }
        assert!(started.elapsed() < LIMIT / 2, "{ready} ready and {silent} silent");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Reads a second, and writes, while nothing happens for `time`.
async fn at_rest(fixture: &Fixture, time: Duration) -> (f64, Vec<String>) {
    let before = fixture.requests().len();
    tokio::time::sleep(time).await;
    let entries = fixture.requests();
    let new = || entries.iter().skip(before).filter(|e| e.object_ref.resource != "leases");
    let reads = u32::try_from(new().filter(|e| !e.is_write()).count()).unwrap();
    let writes = new().filter(|e| e.is_write()).map(|e| e.brief()).collect();
    (f64::from(reads) / time.as_secs_f64(), writes)
}

/// How long an edit takes until the file of the channel's pods says so.
async fn edit(
    fixture: &Fixture,
    fleet: &Fleet,
    place: &(String, String),
    seconds: usize,
) -> Duration {
    let before = fleet.file(place).expect("it has a file");
    let spec = json!({"spec": {"delivery": {"heartbeat": format!("{seconds}s")}}});
    let started = Instant::now();
    fixture
        .api_in(channel::CHANNEL, &place.0)
        .patch(&place.1, &PatchParams::default(), &Patch::Merge(&spec))
        .await
        .expect("an edit");
    while fleet.file(place).as_ref() == Some(&before) {
        assert!(started.elapsed() < Duration::from_secs(120), "{place:?} is not acted on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    started.elapsed()
}

#[test]
fn a_fleet_comes_to_rest_and_its_edits_wait_for_no_silent_pod() {
    sluice_tests::run(LIMIT, async {
        let size = Size::wanted();
        let kube_api = KubeApi::without_nodes();
        install_resource(kube_api).await;
        kube_api.create_namespace(HOME).await;
        kube_api.create_namespace(SILENT).await;
        for n in 0..NAMESPACES {
            kube_api.create_namespace(&format!("fleet-{n}")).await;
        }
        let mut fixture = Fixture::bare(kube_api, vec![HOME.to_owned()]).await;
        let pod_port = free_port();
        let fleet = Fleet::start(&fixture.client, pod_port, SILENT).await;
        start(&mut fixture, &size, pod_port).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let idle = fixture.operator_memory();

        let started = Instant::now();
        create(&fixture, &size).await;
        let created = started.elapsed();
        settled(&fixture, &size).await;
        let ready = started.elapsed();
        let peak = fixture.operator_memory();
        // Silent pods are told of within the first resync; nothing is written after that.
        tokio::time::sleep(size.resync()).await;
        let (reads, writes) = at_rest(&fixture, size.resync() * 2).await;
        assert!(
            writes.is_empty(),
            "{} writes at rest: {:#?}",
            writes.len(),
            &writes[..writes.len().min(20)]
        );
        let rest = fixture.operator_memory();

        let mut edits = Vec::new();
        for n in 0..EDITS.min(size.channels - size.silent) {
            edits.push(edit(&fixture, &fleet, &size.place(size.silent + n), FIRST + n).await);
        }
        edits.sort();
        let (half, last) = (edits[edits.len() / 2], edits[edits.len() * 99 / 100]);

        let standby = fixture.another_operator();
        tokio::time::sleep(Duration::from_secs(3)).await;
        fixture.kill_operator();
        let over = edit(&fixture, &fleet, &size.place(size.channels - 1), FIRST - 2).await;

        let per =
            |bytes: u64| bytes.saturating_sub(idle) / u64::try_from(size.channels).unwrap() / 1024;
        println!(
            "\n{} channels, {} of them with silent pods\n\
             created within                 {created:8.1?}\n\
             all settled after              {ready:8.1?}\n\
             memory idle / then / at rest   {} / {} / {} MiB\n\
             memory for each channel        {} KiB then, {} KiB at rest\n\
             reads at rest                  {reads:8.1} /s\n\
             writes at rest                 {:8}\n\
             edit applied, half / 99 %      {half:.2?} / {last:.2?}\n\
             edit applied after a kill      {over:8.1?}",
            size.channels,
            size.silent,
            idle >> 20,
            peak >> 20,
            rest >> 20,
            per(peak),
            per(rest),
            writes.len(),
        );
        drop(standby);
        if size.is_long {
            assert!(last <= Duration::from_secs(2), "an edit takes {last:?}");
            assert!(over <= Duration::from_secs(30), "a fail-over takes {over:?}");
        }
        kube_api.end();
    });
}
