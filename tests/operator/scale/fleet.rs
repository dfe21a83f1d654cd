//! Stands in for the controllers and the pods of many channels: each Deployment has its pod at
//! once, on an address of its own, and one listener answers for all of them, or says nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Namespace and name of a channel.
type Place = (String, String);

#[derive(Default)]
struct State {
    addresses: HashMap<IpAddr, Place>,
    files: HashMap<Place, Value>,
}

pub(super) struct Fleet {
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

fn place(object: &impl ResourceExt) -> Place {
    let name = object.labels().get("sluice.dev/channel").cloned().unwrap_or_default();
    (object.namespace().unwrap_or_default(), name)
}

impl Fleet {
    /// Pods answer at `port` of their addresses; those of namespace `silent` accept and say
    /// nothing.
    pub(super) async fn start(client: &Client, port: u16, silent: &'static str) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.expect("a listener");
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&state), silent));
        tasks.spawn(follow_files(client.clone(), Arc::clone(&state)));
        tasks.spawn(run_pods(client.clone(), Arc::clone(&state)));
        Self { state, _tasks: tasks }
    }

    /// What the pods of a channel are to serve.
    pub(super) fn file(&self, place: &Place) -> Option<Value> {
        self.state.lock().unwrap().files.get(place).cloned()
    }
}

async fn follow_files(client: Client, state: Arc<Mutex<State>>) {
    let ours = watcher::Config::default().labels("sluice.dev/channel");
    let maps = watcher(Api::<ConfigMap>::all(client), ours).default_backoff().applied_objects();
    let note = |map: Result<ConfigMap, watcher::Error>| {
        if let Ok(map) = map
            && let Some(text) = map.data.as_ref().and_then(|data| data.values().next())
            && let Ok(file) = serde_json::from_str(text)
        {
            state.lock().unwrap().files.insert(place(&map), file);
        }
        std::future::ready(())
    };
    maps.for_each(note).await;
}

async fn run_pods(client: Client, state: Arc<Mutex<State>>) {
    let deployments = Api::<Deployment>::all(client.clone());
    let deployments =
        watcher(deployments, watcher::Config::default()).default_backoff().applied_objects();
    let run = |deployment: Result<Deployment, watcher::Error>| {
        let (client, state) = (client.clone(), Arc::clone(&state));
        async move {
            if let Ok(deployment) = deployment {
                let seen = deployment.status.as_ref().and_then(|status| status.observed_generation);
                if seen != deployment.metadata.generation {
                    roll_out(&client, &state, &deployment).await.expect("a pod");
                }
            }
        }
    };
    deployments.for_each_concurrent(8, run).await;
}

/// Gives a Deployment its one pod, and the status that controllers would.
async fn roll_out(
    client: &Client,
    state: &Mutex<State>,
    deployment: &Deployment,
) -> kube::Result<()> {
    let (of, name) = (place(deployment), format!("{}-0", deployment.name_any()));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &of.0);
    if pods.get_opt(&name).await?.is_none() {
        let address = {
            let mut state = state.lock().unwrap();
            let n = u32::try_from(state.addresses.len()).unwrap();
            let address = Ipv4Addr::from(0x7F0A_0000 + n / 250 * 256 + n % 250 + 1);
            state.addresses.insert(address.into(), of.clone());
            address
        };
        let template = serde_json::to_value(&deployment.spec.as_ref().unwrap().template).unwrap();
        let pod = json!({
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": template["spec"],
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await?;
        let container = &template["spec"]["containers"][0];
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": container["name"], "image": container["image"], "imageID": "", "ready": true,
                "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        }});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &of.0);
    let status = json!({"status": {
        "observedGeneration": deployment.metadata.generation,
        "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
    }});
    let name = deployment.name_any();
    deployments.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>, silent: &'static str) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if let Ok((connection, _)) = listener.accept().await {
            connections.spawn(answer(connection, Arc::clone(&state), silent));
        }
    }
}

async fn answer(mut connection: TcpStream, state: Arc<Mutex<State>>, silent: &'static str) {
    let Ok(address) = connection.local_addr() else { return };
    let mut request = [0; 4096];
    let _ = connection.read(&mut request).await;
    let body = {
        let state = state.lock().unwrap();
        let place = state.addresses.get(&address.ip()).cloned();
        let file = place.as_ref().and_then(|place| state.files.get(place));
        let said = place.as_ref().map(|(namespace, name)| {
            let generation = file.map_or(&Value::Null, |file| &file["generation"]);
            json!({"name": name, "namespace": namespace, "generation": generation})
        });
        let is_silent = place.is_some_and(|(namespace, _)| namespace == silent);
        (!is_silent).then(|| json!({"channels": [said]}).to_string())
    };
    let Some(body) = body else {
        // Until the other end has had enough.
        let wait = async { while connection.read(&mut request).await.is_ok_and(|n| n > 0) {} };
        let _ = tokio::time::timeout(Duration::from_secs(60), wait).await;
        return;
    };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _ = connection.write_all(text.as_bytes()).await;
}
