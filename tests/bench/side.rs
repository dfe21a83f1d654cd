//! The two servers under test, each with its publisher.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{
    dataplane::{ConfigDir, DataPlane, channel_config},
    nats::{NatsServer, Streams, names, stream_config},
    process::Process,
};

use crate::{generator::Target, publisher::Publisher};

/// How long the floor may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What is measured: `sluice-dataplane` with its nats-server, or the floor.
pub(crate) enum Server {
    /// The product.
    Product(Box<Product>),
    /// The floor, and its address.
    Floor(Process, SocketAddr),
}

pub(crate) struct Product {
    nats: NatsServer,
    configs: ConfigDir,
    plane: DataPlane,
}

pub(crate) struct Side {
    pub(crate) name: &'static str,
    pub(crate) server: Server,
    pub(crate) publisher: Publisher,
    path: String,
    epoch: String,
    /// Sequence of the newest event.
    pub(crate) last: u64,
}

impl Side {
    /// Starts nats-server and the data plane, with one channel.
    pub(crate) async fn product() -> anyhow::Result<Self> {
        let mut nats = NatsServer::start().await;
        let names = names("bench");
        let epoch = Streams::connect(&nats.url()).await.create(stream_config(&names)).await.to_string();
        let configs = ConfigDir::new(&[channel_config(&names)]);
        let plane = DataPlane::start(&nats.url(), &configs).await;
        let address = nats.url().trim_start_matches("nats://").parse().context("the address of nats-server")?;
        let publisher = Publisher::nats(address, &format!("{}load", names.prefix))?;
        nats.process();
        let server = Server::Product(Box::new(Product { nats, configs, plane }));
        Ok(Self { name: "sluice", server, publisher, path: format!("/channels/{}", names.channel), epoch, last: 0 })
    }

    /// Starts this program again as the floor.
    pub(crate) async fn floor() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
        command.arg("floor").stdin(Stdio::null());
        let process = Process::spawn("floor", command);
        let address = sluice_tests::eventually("the floor listens", START_LIMIT, async || {
            process.stdout().trim().strip_prefix("listening http=")?.parse().ok()
        })
        .await;
        let publisher = Publisher::http(address)?;
        let server = Server::Floor(process, address);
        Ok(Self { name: "floor", server, publisher, path: "/".to_owned(), epoch: "00000000".to_owned(), last: 0 })
    }

    /// The serving process.
    pub(crate) fn pid(&mut self) -> u32 {
        match &mut self.server {
            Server::Product(product) => product.plane.process().pid(),
            Server::Floor(process, _) => process.pid(),
        }
    }

    /// The nats-server behind it.
    pub(crate) fn broker(&mut self) -> Option<u32> {
        match &mut self.server {
            Server::Product(product) => Some(product.nats.process().pid()),
            Server::Floor(..) => None,
        }
    }

    /// Where clients connect; `after`: the sequence of the last event they have, or none for "from now".
    pub(crate) fn target(&self, after: Option<u64>) -> Target<'_> {
        let address = match &self.server {
            Server::Product(product) => product.plane.http(),
            Server::Floor(_, address) => *address,
        };
        Target { address, path: &self.path, cursor: after.map(|sequence| format!("{}-{sequence}", self.epoch)) }
    }

    /// Starts the data plane anew, so that it has nothing in memory. The floor has nothing but its memory.
    pub(crate) async fn restart(&mut self) {
        if let Server::Product(product) = &mut self.server {
            product.plane.drain(Duration::from_secs(20)).await;
            product.plane = DataPlane::start(&product.nats.url(), &product.configs).await;
        }
    }
}
