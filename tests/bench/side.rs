//! The servers under test, each with its publisher.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{
    dataplane::{ConfigDir, DataPlane, Options, channel_config},
    nats::{NatsServer, Streams, names, stream_config},
    process::Process,
};

use crate::{generator::Target, publisher::Publisher};

/// Names of the sides, in the order of the table.
pub(crate) const SIDES: [&str; 4] = ["sluice", "floor", "axum + broadcast", "before"];
/// What this program is called as, to be one of them.
const ROLES: [&str; SIDES.len()] = ["", "floor", "peer", ""];
/// How long the floor or the peer may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What is measured: `sluice-dataplane` with its nats-server, or this program again as another
/// server.
pub(crate) enum Server {
    /// The product.
    Product(Box<Product>),
    /// The floor or the peer, and its address.
    Other(Process, SocketAddr),
}

/// The product's processes.
pub(crate) struct Product {
    pub(crate) nats: NatsServer,
    pub(crate) configs: ConfigDir,
    pub(crate) plane: DataPlane,
    /// Another build of it, which this one is measured beside.
    program: Option<PathBuf>,
}

impl Product {
    async fn start(&mut self) {
        self.plane = start_plane(&self.nats, &self.configs, self.program.as_deref()).await;
    }
}

async fn start_plane(nats: &NatsServer, configs: &ConfigDir, program: Option<&Path>) -> DataPlane {
    DataPlane::start_with(&nats.url(), configs, &Options { program, ..Options::default() }).await
}

pub(crate) struct Side {
    pub(crate) name: &'static str,
    /// Its number in [`SIDES`].
    pub(crate) number: usize,
    /// Whether it keeps a history.
    pub(crate) replays: bool,
    pub(crate) server: Server,
    pub(crate) publisher: Publisher,
    pub(crate) path: String,
    pub(crate) epoch: String,
    /// Sequence of the newest event.
    pub(crate) last: u64,
}

impl Side {
    /// Starts nats-server and the data plane, with one channel.
    pub(crate) async fn product() -> anyhow::Result<Self> {
        Self::of_program(0, None).await
    }

    /// The same with another build of the data plane, for a comparison within one run.
    pub(crate) async fn before(program: PathBuf) -> anyhow::Result<Self> {
        Self::of_program(3, Some(program)).await
    }

    async fn of_program(number: usize, program: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut nats = NatsServer::start().await;
        let names = names("bench");
        let epoch =
            Streams::connect(&nats.url()).await.create(stream_config(&names)).await.to_string();
        let configs = ConfigDir::new(&[channel_config(&names)]);
        let plane = start_plane(&nats, &configs, program.as_deref()).await;
        let address = nats
            .url()
            .trim_start_matches("nats://")
            .parse()
            .context("the address of nats-server")?;
        let publisher = Publisher::nats(address, &format!("{}load", names.prefix))?;
        nats.process();
        let server = Server::Product(Box::new(Product { nats, configs, plane, program }));
        Ok(Self {
            name: SIDES[number],
            number,
            replays: true,
            server,
            publisher,
            path: format!("/channels/{}", names.channel),
            epoch,
            last: 0,
        })
    }

    /// Starts this program again as the floor.
    pub(crate) async fn floor() -> anyhow::Result<Self> {
        Self::other(1, ROLES[1], true).await
    }

    /// Starts this program again as the peer.
    pub(crate) async fn peer() -> anyhow::Result<Self> {
        Self::other(2, ROLES[2], false).await
    }

    async fn other(number: usize, role: &'static str, replays: bool) -> anyhow::Result<Self> {
        let (process, address) = start(role).await?;
        let publisher = Publisher::http(address)?;
        let server = Server::Other(process, address);
        Ok(Self {
            name: SIDES[number],
            number,
            replays,
            server,
            publisher,
            path: "/".to_owned(),
            epoch: "00000000".to_owned(),
            last: 0,
        })
    }

    /// The serving process.
    pub(crate) fn pid(&mut self) -> u32 {
        match &mut self.server {
            Server::Product(product) => product.plane.process().pid(),
            Server::Other(process, _) => process.pid(),
        }
    }

    /// The nats-server behind it.
    pub(crate) fn broker(&mut self) -> Option<u32> {
        match &mut self.server {
            Server::Product(product) => Some(product.nats.process().pid()),
            Server::Other(..) => None,
        }
    }

    /// Where clients connect; `after`: the sequence of the last event they have, or none for "from
    /// now".
    pub(crate) fn target(&self, after: Option<u64>) -> Target<'_> {
        let address = match &self.server {
            Server::Product(product) => product.plane.http(),
            Server::Other(_, address) => *address,
        };
        Target {
            address,
            path: &self.path,
            cursor: after.map(|sequence| format!("{}-{sequence}", self.epoch)),
        }
    }

    /// Starts the data plane anew, so that it has nothing in memory. The floor has nothing but its
    /// memory.
    pub(crate) async fn restart(&mut self) {
        if let Server::Product(product) = &mut self.server {
            product.plane.drain(Duration::from_secs(20)).await;
            product.start().await;
        }
    }

    /// Starts the server anew, whichever it is: no memory that a former crowd has left behind
    /// serves the next one.
    pub(crate) async fn renew(&mut self) -> anyhow::Result<()> {
        self.restart().await;
        if let Server::Other(process, address) = &mut self.server {
            process.kill();
            (*process, *address) = start(ROLES[self.number]).await?;
            self.publisher = Publisher::http(*address)?;
            self.last = 0;
        }
        Ok(())
    }
}

/// Starts this program again as `role`; returns it and the address that it says it listens on.
async fn start(role: &str) -> anyhow::Result<(Process, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
    command.arg(role).stdin(Stdio::null());
    let process = Process::spawn(role, command);
    let address = sluice_tests::eventually("the server listens", START_LIMIT, async || {
        process.stdout().trim().strip_prefix("listening http=")?.parse().ok()
    })
    .await;
    Ok((process, address))
}
