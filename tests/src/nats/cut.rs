//! A cluster whose members can be cut off from each other: every route goes through a proxy.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use super::{NatsCluster, NatsServer, Streams};
use crate::{process::free_port, proxy::Proxy};

/// Three servers, each pair joined by routes through proxies of the test's own.
#[derive(Debug)]
pub struct CutCluster {
    /// The servers.
    pub cluster: NatsCluster,
    /// The routes: from, to, and what is between.
    routes: Vec<(usize, usize, Proxy)>,
    monitors: Vec<u16>,
}

impl CutCluster {
    /// Three servers that know of each other only by those routes: clients are not told of other
    /// servers, and the addresses that servers tell each other lead nowhere.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start() -> Self {
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let monitors: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let nowhere = format!("127.0.0.1:{}", free_port());
        let mut routes = Vec::new();
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                let target = SocketAddr::from(([127, 0, 0, 1], ports[to]));
                routes.push((from, to, Proxy::start(target).await));
            }
        }
        let mut servers = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            let listen = format!("nats://127.0.0.1:{port}");
            let own: Vec<String> = routes
                .iter()
                .filter(|(from, ..)| *from == i)
                .map(|(_, _, proxy)| format!("nats://{}", proxy.address()))
                .collect();
            let (own, monitor) = (own.join(","), monitors[i].to_string());
            let arguments = ["--cluster_name", "test", "--cluster", &listen, "--routes", &own]
                .into_iter()
                .chain(["--cluster_advertise", &nowhere, "--no_advertise", "--http_port", &monitor])
                .map(str::to_owned)
                .collect();
            let mut server = NatsServer::new(&format!("nats{i}"), arguments);
            server.launch();
            servers.push(server);
        }
        for server in &servers {
            server.ready().await;
        }
        Self { cluster: NatsCluster { servers }, routes, monitors }
    }

    /// From now on nothing passes between `server` and the others.
    pub fn cut(&self, server: usize) {
        self.of(server).for_each(Proxy::cut);
    }

    /// The same, but the routes are closed and refused instead of silent.
    pub fn refuse(&self, server: usize) {
        self.of(server).for_each(Proxy::refuse);
    }

    /// From now on nothing passes between these two; both still reach the third.
    pub fn cut_between(&self, one: usize, other: usize) {
        let joins = |(from, to, _): &&(usize, usize, Proxy)| {
            [(one, other), (other, one)].contains(&(*from, *to))
        };
        self.routes.iter().filter(joins).for_each(|(_, _, proxy)| proxy.cut());
    }

    /// What was cut passes again, over new routes.
    pub fn heal(&self, server: usize) {
        self.of(server).for_each(Proxy::mend);
    }

    fn of(&self, server: usize) -> impl Iterator<Item = &Proxy> {
        let its = move |(from, to, _): &&(usize, usize, Proxy)| *from == server || *to == server;
        self.routes.iter().filter(its).map(|(_, _, proxy)| proxy)
    }

    /// The server that leads JetStream as a whole: it goes on answering requests about streams for
    /// longest when it is cut off.
    ///
    /// # Panics
    /// When none leads within 30 s.
    pub async fn meta_leader(&self) -> usize {
        let url = format!("http://127.0.0.1:{}/jsz", self.monitors[0]);
        crate::eventually("JetStream has a leader", Duration::from_secs(30), async || {
            let jsz: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
            let leader = jsz["meta_cluster"]["leader"].as_str()?;
            self.cluster.servers.iter().position(|server| server.name() == leader)
        })
        .await
    }

    /// Makes `server` lead `stream`.
    ///
    /// # Panics
    /// When it does not within 30 s.
    pub async fn lead(&self, streams: &Streams, stream: &str, server: usize) {
        let name = self.cluster.servers[server].name().to_owned();
        crate::eventually("the stream is led by it", Duration::from_secs(30), async || {
            self.cluster.in_sync(streams, stream).await;
            if self.cluster.leader_of(streams, stream).await == server {
                return Some(());
            }
            let request = json!({"placement": {"preferred": name}});
            let subject = format!("STREAM.LEADER.STEPDOWN.{stream}");
            let _: Option<Value> = streams.context().request(subject, &request).await.ok();
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        })
        .await;
    }
}
