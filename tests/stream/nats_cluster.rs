//! Three nats-servers: losing any one of them under load loses and doubles nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use sluice_channel::Cursor;
use sluice_tests::{
    clients::{Plan, expected},
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{Log, NatsCluster, Published, Streams, log, names, stream_config},
    run,
};
use tokio::{sync::watch, task::JoinHandle};

const LIMIT: Duration = Duration::from_secs(240);
const PUBLISHERS: usize = 8;
const SUBSCRIBERS: usize = 12;
/// How long load goes on while a server is away, and after it is back.
const PHASE: Duration = Duration::from_secs(3);

/// Publishers that go on through every outage, each with its own ids.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Published>>>,
}

impl Load {
    async fn start(urls: &str, prefix: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for publisher in 0..PUBLISHERS {
            let streams = Streams::connect(urls).await;
            let (stop, prefix) = (Arc::clone(&stop), prefix.to_owned());
            tasks.push(tokio::spawn(async move {
                let mut published = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("{publisher}-{}", published.len());
                    let payload = Bytes::from(format!("payload of {id}"));
                    let topic = format!("t{publisher}");
                    published.push(
                        streams
                            .publish_through_outages(
                                &prefix,
                                &topic,
                                &id,
                                payload,
                                Duration::from_secs(60),
                            )
                            .await,
                    );
                }
                published
            }));
        }
        Self { stop, tasks }
    }

    async fn finish(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
        }
        let (count, log) = (all.len(), log(all));
        assert_eq!(log.len(), count, "two events were acknowledged with one sequence");
        log
    }
}

#[test]
fn the_streams_leader_killed_under_load_then_each_server_in_turn() {
    run(LIMIT, async {
        let mut cluster = NatsCluster::start(3).await;
        let names = names("orders");
        let streams = Streams::connect(&cluster.urls()).await;
        let epoch = streams.create(Config { num_replicas: 3, ..stream_config(&names) }).await;
        let configs = ConfigDir::new(&[channel_config(&names)]);
        let planes = [
            DataPlane::start(&cluster.urls(), &configs).await,
            DataPlane::start(&cluster.urls(), &configs).await,
        ];
        let (stop_at, stop_at_receiver) = watch::channel(u64::MAX);
        let (_pods, pods) = watch::channel(planes.iter().map(DataPlane::http).collect::<Vec<_>>());
        let subscribers: Vec<_> = (0..SUBSCRIBERS)
            .map(|i| {
                let plan = Plan {
                    pods: pods.clone(),
                    first_pod: i,
                    path: "/channels/orders".to_owned(),
                    cursor: Some(Cursor::new(epoch, 0)),
                    stop_at: stop_at_receiver.clone(),
                    // Some stay on one connection through it all, some come and go.
                    cut_after: (i % 3 == 2).then_some(700),
                    longest_wait: Duration::from_millis(200),
                };
                (i % 3 != 2, plan.spawn())
            })
            .collect();
        let load = Load::start(&cluster.urls(), &names.prefix).await;
        tokio::time::sleep(PHASE).await;
        let leader = cluster.leader_of(&streams, names.stream.as_str()).await;
        println!("killing the leader, {}", cluster.servers[leader].name());
        for server in [leader, (leader + 1) % 3, (leader + 2) % 3] {
            cluster.servers[server].kill();
            tokio::time::sleep(PHASE).await;
            cluster.servers[server].restart().await;
            cluster.in_sync(&streams, names.stream.as_str()).await;
            println!("{} is back and in sync", cluster.servers[server].name());
            tokio::time::sleep(PHASE).await;
        }
        println!("all three were away once");
        let log = load.finish().await;
        let newest = *log.keys().next_back().unwrap();
        let state = streams.info(names.stream.as_str()).await.state;
        assert_eq!(
            (state.messages, state.last_sequence),
            (log.len() as u64, newest),
            "the store itself lost or doubled an event"
        );
        println!("published {newest} events");
        stop_at.send(newest).unwrap();
        for (i, (steady, subscriber)) in subscribers.into_iter().enumerate() {
            let ledger = subscriber.await.unwrap();
            ledger.assert_exactly(&format!("subscriber {i}"), &expected(&log, 0, newest, &[]));
            assert_eq!(ledger.gaps, [], "subscriber {i}");
            assert!(
                !steady || ledger.connections == 1,
                "subscriber {i} was disconnected by an outage of NATS"
            );
        }
        println!(
            "{newest} events through three outages to {SUBSCRIBERS} subscribers, none lost or doubled"
        );
    });
}
