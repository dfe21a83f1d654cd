//! A stand-in for a node: it binds each pod to itself and runs the pod's real program with the
//! pod's real arguments as a process on a loopback address of the pod's own.
//!
//! No kubelet, because that needs a container runtime and cgroups of its own, and what is tested
//! here is the operator: what matters of a pod is that the real data plane runs as its template
//! says, that its probes decide whether it is ready, that its files follow the ConfigMap, and that
//! it ends as a pod ends. Real nodes have a suite of their own.
//!
//! What it knows of a pod: one container; arguments, environment (`value`, `fieldRef`); volumes
//! from ConfigMaps, Secrets and `emptyDir`; start-up and readiness probes over HTTP (no liveness
//! probe); termination by SIGTERM and the grace period; restart after an exit. Paths under a mount
//! become paths in the pod's own directory, and `0.0.0.0` or `[::]` becomes the pod's address. Any
//! image is "there" unless its tag is `missing`.

mod container;
mod status;

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Binding, ConfigMap, Event, Node as NodeObject, ObjectReference, Pod,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
    runtime::{
        WatchStreamExt, reflector,
        watcher::{self, watcher},
    },
};
use rand::Rng;
use tokio::sync::watch;

use self::container::Container;
use crate::process::Process;

/// Name of the Node object.
const NAME: &str = "stand-in";
/// How often a pod's process, probes and files are looked at; kubelet does the files once a minute.
const TICK: Duration = Duration::from_millis(100);
/// Pause before a container that ended is started again; kubelet begins with 10 s.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The node. Cheap to use from any test.
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    config_maps: reflector::Store<ConfigMap>,
    state: Mutex<State>,
    addresses: AtomicU32,
}

#[derive(Default)]
struct State {
    /// Running processes by namespace and pod.
    processes: HashMap<(String, String), Arc<Mutex<Process>>>,
    /// Namespaces whose tests are over: their pods are ended and no new ones run.
    forgotten: HashSet<String>,
    /// Namespaces whose pods do not get changed files.
    frozen: HashSet<String>,
    /// Container starts so far, by namespace.
    starts: HashMap<String, usize>,
    over: bool,
}

impl Node {
    /// Registers the node and starts to run pods, on the calling runtime.
    pub(super) async fn start(client: Client) -> Self {
        let nodes: Api<NodeObject> = Api::all(client.clone());
        let node = NodeObject {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            ..NodeObject::default()
        };
        nodes.create(&PostParams::default(), &node).await.expect("a Node object");

        let (config_maps, writer) = reflector::store();
        let follow = reflector(
            writer,
            watcher(Api::<ConfigMap>::all(client.clone()), watcher::Config::default())
                .default_backoff(),
        );
        tokio::spawn(follow.for_each(|_| std::future::ready(())));

        // Two runs of the tests at once take different addresses, most likely; a clash is noticed
        // by binding.
        let base = rand::rng().random_range(0x0010_0000..0x00F0_0000);
        let shared = Arc::new(Shared {
            client,
            config_maps,
            state: Mutex::default(),
            addresses: AtomicU32::new(base),
        });
        tokio::spawn(run(shared.clone()));
        Self { shared }
    }

    /// A node that there is not: it runs nothing.
    pub(super) fn absent(client: Client) -> Self {
        let shared = Shared {
            client,
            config_maps: reflector::store().0,
            state: Mutex::default(),
            addresses: AtomicU32::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Ends the pods of `namespace` at once and runs no more of them.
    pub fn forget(&self, namespace: &str) {
        let mut state = self.shared.state();
        state.forgotten.insert(namespace.to_owned());
        for (_, process) in state.processes.extract_if(|(of, _), _| of == namespace) {
            locked(&process).kill();
        }
    }

    /// From now on, or no longer, changed ConfigMaps do not reach the pods of `namespace`.
    pub fn freeze_files(&self, namespace: &str, frozen: bool) {
        let mut state = self.shared.state();
        if frozen {
            state.frozen.insert(namespace.to_owned());
        } else {
            state.frozen.remove(namespace);
        }
    }

    /// Calls `f` with each running process of `namespace`, as (pod's name, process).
    pub fn each_process(&self, namespace: &str, mut f: impl FnMut(&str, &mut Process)) {
        let state = self.shared.state();
        for ((_, pod), process) in state.processes.iter().filter(|((of, _), _)| of == namespace) {
            f(pod, &mut locked(process));
        }
    }

    /// How many containers were started in `namespace` so far.
    pub fn starts(&self, namespace: &str) -> usize {
        self.shared.state().starts.get(namespace).copied().unwrap_or_default()
    }

    pub(super) fn shutdown(&self) {
        let mut state = self.shared.state();
        state.over = true;
        state.processes.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_forgotten(&self, namespace: &str) -> bool {
        let state = self.state();
        state.over || state.forgotten.contains(namespace)
    }

    /// An address of 127.0.0.0/8 on which `ports` are free.
    fn address(&self, ports: &[u16]) -> Ipv4Addr {
        loop {
            let next = self.addresses.fetch_add(1, Ordering::Relaxed);
            let address = Ipv4Addr::from(0x7F00_0000 | (next & 0x00FF_FFFF));
            if !matches!(address.octets()[3], 0 | 255)
                && ports.iter().all(|port| TcpListener::bind((address, *port)).is_ok())
            {
                return address;
            }
        }
    }
}

fn locked(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows all pods; each has a task, which is told of every change of its object and of its end.
async fn run(shared: Arc<Shared>) {
    let mut tasks: HashMap<String, watch::Sender<Pod>> = HashMap::new();
    let mut listed = HashSet::new();
    let pods = watcher(Api::<Pod>::all(shared.client.clone()), watcher::Config::default())
        .default_backoff();
    let mut pods = std::pin::pin!(pods);
    // An error of the watch is followed by a new attempt.
    while let Some(event) = pods.next().await {
        match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => {
                let uid = pod.uid().unwrap_or_default();
                listed.insert(uid.clone());
                if let Some(task) = tasks.get(&uid) {
                    task.send_replace(pod);
                } else {
                    let (sender, receiver) = watch::channel(pod);
                    tasks.insert(uid, sender);
                    tokio::spawn(run_pod(shared.clone(), receiver));
                }
            }
            Ok(watcher::Event::Delete(pod)) => _ = tasks.remove(&pod.uid().unwrap_or_default()),
            // A new list, after a watch broke: what is not on it has gone.
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitDone) => tasks.retain(|uid, _| listed.contains(uid)),
            Err(_) if shared.state().over => return,
            Err(error) => eprintln!("node stand-in: pods: {error}"),
        }
    }
}

/// A pod's life. The channel closes when the object has gone.
async fn run_pod(shared: Arc<Shared>, mut object: watch::Receiver<Pod>) {
    let pod = object.borrow().clone();
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &namespace);
    if pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_none()
        && pod.metadata.deletion_timestamp.is_none()
    {
        let binding = Binding {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(NAME.to_owned()),
                ..ObjectReference::default()
            },
        };
        let bound: Result<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status, _> =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        if let Err(error) = bound {
            eprintln!("node stand-in: {namespace}/{name} cannot be bound: {error}");
        }
    }
    let mut status = status::Reporter::new(api.clone(), &pod);
    let key = (namespace.clone(), name.clone());
    let gone = live(&shared, &key, &mut object, &mut status).await;
    shared.state().processes.remove(&key);
    if !gone {
        let delete = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        let _ = api.delete(&name, &delete).await;
    }
}

/// Runs the container, again and again, until the pod is to end; true when its object has gone by
/// itself.
async fn live(
    shared: &Arc<Shared>,
    key: &(String, String),
    object: &mut watch::Receiver<Pod>,
    status: &mut status::Reporter,
) -> bool {
    let (namespace, name) = key;
    let pod = object.borrow().clone();
    let mut container = match Container::new(&pod) {
        Ok(container) => container,
        Err(waiting) => {
            status.waiting(waiting, "the stand-in does not have it").await;
            return wait_for_end(shared, object).await;
        }
    };
    container.address = shared.address(&container.ports());
    let mut told = None;
    loop {
        if is_ending(object) || shared.is_forgotten(namespace) {
            return wait_for_end(shared, object).await;
        }
        if let Err(missing) = container.write_files(shared, namespace).await {
            // As kubelet tells it: by an Event, and by no word in the status.
            if told.replace(missing.clone()).as_ref() != Some(&missing) {
                tell_mount_failure(shared, &pod, &missing).await;
            }
            status.waiting("ContainerCreating", "").await;
            if closed_within(object, TICK).await {
                return true;
            }
            continue;
        }
        let process = Arc::new(Mutex::new(Process::spawn(name, container.command(&pod))));
        {
            let mut state = shared.state();
            state.processes.insert(key.clone(), process.clone());
            *state.starts.entry(namespace.clone()).or_default() += 1;
        }
        if let Some(gone) = watch_process(shared, &mut container, &process, object, status).await {
            return gone;
        }
        status.restarting(container.address).await;
        if closed_within(object, RESTART_PAUSE).await {
            return true;
        }
    }
}

async fn tell_mount_failure(shared: &Shared, pod: &Pod, why: &str) {
    let namespace = pod.namespace().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", pod.name_any())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: pod.object_ref(&()),
        reason: Some("FailedMount".to_owned()),
        message: Some(why.to_owned()),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(shared.client.clone(), &namespace);
    if let Err(error) = events.create(&PostParams::default(), &event).await {
        eprintln!("node stand-in: an Event of {namespace}/{}: {error}", pod.name_any());
    }
}

/// Looks after one run of the container; `None` when it ended by itself, else whether the object
/// has gone.
async fn watch_process(
    shared: &Arc<Shared>,
    container: &mut Container,
    process: &Mutex<Process>,
    object: &mut watch::Receiver<Pod>,
    status: &mut status::Reporter,
) -> Option<bool> {
    let namespace = object.borrow().namespace().unwrap_or_default();
    let mut kill_at = None;
    container.probes.reset();
    loop {
        if shared.is_forgotten(&namespace) {
            locked(process).kill();
            return Some(wait_for_end(shared, object).await);
        }
        if kill_at.is_none() && is_ending(object) {
            locked(process).terminate();
            let grace = object.borrow().metadata.deletion_grace_period_seconds.unwrap_or(30);
            kill_at = Some(
                Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or_default()),
            );
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            locked(process).kill();
        }
        let ended = locked(process).ended().is_some();
        if ended {
            return is_ending(object).then_some(false);
        }
        container.probes.tick(container.address).await;
        status.running(container.address, container.probes.ready()).await;
        if !shared.state().frozen.contains(&namespace) {
            let _ = container.write_files(shared, &namespace).await;
        }
        if closed_within(object, TICK).await {
            locked(process).kill();
            return Some(true);
        }
    }
}

fn is_ending(object: &watch::Receiver<Pod>) -> bool {
    object.borrow().metadata.deletion_timestamp.is_some()
}

/// Waits `time`; true at once when the object has gone.
async fn closed_within(object: &mut watch::Receiver<Pod>, time: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + time;
    loop {
        match tokio::time::timeout_at(deadline, object.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
}

/// Waits for the pod to be deleted; true when its object has gone by itself.
async fn wait_for_end(shared: &Shared, object: &mut watch::Receiver<Pod>) -> bool {
    loop {
        if is_ending(object) {
            return false;
        }
        // A forgotten pod's object stays as it is, and its task need not.
        if closed_within(object, TICK).await {
            return true;
        }
        if shared.state().over {
            return true;
        }
    }
}
