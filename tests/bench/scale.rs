//! More connections than one process can have: several data planes on one nats-server, each with a
//! crowd of its own, and what each part has to do for them. NATS's work must follow pods and
//! events, never subscribers.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use sluice_tests::dataplane::DataPlane;

use crate::{
    crowd::{Crowd, Order, Seen},
    generator::Generator,
    histogram::Histogram,
    machine, micros, setting,
    side::{Server, Side},
};

/// Events per second that large crowds get.
const FEW: f64 = 1.0;
/// Events per second that a handful gets.
const LOTS: f64 = 1_000.0;
/// A handful of connections.
const HANDFUL: usize = 10;
/// File descriptors that a data plane and a crowd have besides their connections, at most.
const OTHER_FILES: u64 = 200;
/// Clients of a crowd that connect at the same time.
const IN_FLIGHT: usize = 100;

/// One line of the table.
struct Line {
    planes: usize,
    connections: usize,
    rate: f64,
    connects: f64,
    rss: f64,
    machine: f64,
    cpu: f64,
    nats_cpu: f64,
    nats_bytes: f64,
    latency: Histogram,
    errors: Vec<String>,
}

/// Runs all sizes and prints the table.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let most = machine::open_files_limit().saturating_sub(OTHER_FILES) as usize;
    let total = setting("BENCH_CONNECTIONS", 100_000)? as usize;
    let one = most.min(total);
    let many = total.div_ceil(one);
    let seconds = setting("BENCH_SECONDS", 10)?.max(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!(
        "At most {one} connections on a process; events of 256 bytes for {seconds} seconds, with an acknowledgement each."
    );
    println!(
        "\n| data planes | connections | events/s | connects/s | RSS KiB per connection | whole machine's memory, KiB per connection | CPU µs per delivery | \
         nats-server's CPU µs per event | bytes that nats-server writes per event | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut errors = Vec::new();
    let crowds = [(1, 1_000.min(one)), (1, one), (many, HANDFUL), (many, total / many)]
        .map(|(planes, each)| (planes, each, FEW));
    let handfuls = [1, 2, 4, 8].map(|planes| (planes, HANDFUL, LOTS));
    for (planes, each, rate) in crowds.into_iter().chain(handfuls) {
        eprintln!("{planes} data planes with {each} connections each, {rate} events/s ...");
        let line = runtime.block_on(size(planes, each, rate, (rate * seconds as f64) as u64))?;
        line.print();
        errors.extend(line.errors);
    }
    if errors.is_empty() {
        println!("\nEvery connection stood, every event arrived once and in order.");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("\n{} errors:\n  {}", errors.len(), errors.join("\n  "));
    Ok(ExitCode::FAILURE)
}

impl Line {
    fn print(&self) {
        println!(
            "| {} | {} | {} | {:.0} | {:.2} | {:.1} | {:.2} | {:.0} | {:.0} | {:.1} | {:.1} |",
            self.planes,
            self.connections,
            self.rate,
            self.connects,
            self.rss,
            self.machine,
            self.cpu,
            self.nats_cpu,
            self.nats_bytes,
            self.latency.quantile_millis(0.5),
            self.latency.quantile_millis(0.99)
        );
    }
}

/// One size: all connect, and are sent `events`, `rate` a second.
async fn size(planes: usize, each: usize, rate: f64, events: u64) -> anyhow::Result<Line> {
    let mut side = Side::product().await?;
    let Server::Product(product) = &side.server else { anyhow::bail!("the product was asked for") };
    let mut others = Vec::new();
    for _ in 1..planes {
        others.push(DataPlane::start(&product.nats.url(), &product.configs).await);
    }
    let mut addresses = vec![product.plane.http()];
    addresses.extend(others.iter().map(DataPlane::http));
    let mut pids: Vec<u32> = others.iter_mut().map(|plane| plane.process().pid()).collect();
    pids.push(side.pid());
    let nats = side.broker().context("the product has a nats-server")?;

    let sum = |of: fn(u32) -> u64| pids.iter().map(|pid| of(*pid)).sum::<u64>();
    let (rss, free) = (sum(machine::rss), machine::available());
    let mut crowds = addresses
        .iter()
        .map(|address| Crowd::start(&order(&side, *address, each)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let opened = crowds.iter_mut().map(Crowd::settled).collect::<anyhow::Result<Vec<Seen>>>()?;
    let slowest = opened.iter().map(|seen| seen.settled_after).fold(0.0, f64::max);
    let mut errors: Vec<String> = opened.into_iter().flat_map(|seen| seen.errors).collect();
    let connections = planes * each;
    let kib = |bytes: u64| bytes as f64 / 1024.0 / connections as f64;
    let (rss, taken) =
        (sum(machine::rss).saturating_sub(rss), free.saturating_sub(machine::available()));

    let cpu = || pids.iter().map(|pid| machine::cpu(*pid)).sum::<Duration>();
    let (before, nats_before, wrote) = (cpu(), machine::cpu(nats), machine::written(nats));
    Generator::new()?.paced(&mut side.publisher, rate, events, Duration::from_secs(120))?;
    let mut latency = Histogram::default();
    let mut deliveries = 0;
    let expected = events * connections as u64;
    for _ in 0..60 {
        for crowd in &mut crowds {
            let seen = crowd.report()?;
            deliveries += seen.deliveries;
            latency.merge(seen.latency);
            errors.extend(seen.errors);
        }
        if deliveries >= expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    if deliveries != expected {
        errors.push(format!("{deliveries} deliveries of {expected}"));
    }
    let line = Line {
        planes,
        connections,
        rate,
        connects: connections as f64 / slowest,
        rss: kib(rss),
        machine: kib(taken),
        cpu: micros(cpu().saturating_sub(before)) / deliveries.max(1) as f64,
        nats_cpu: micros(machine::cpu(nats).saturating_sub(nats_before)) / events as f64,
        nats_bytes: machine::written(nats).saturating_sub(wrote) as f64 / events as f64,
        latency,
        errors,
    };
    drop(crowds);
    Ok(line)
}

fn order(side: &Side, address: std::net::SocketAddr, clients: usize) -> Order {
    Order {
        address,
        path: side.path.clone(),
        cursor: None,
        seen: side.last,
        clients,
        in_flight: IN_FLIGHT,
        goal: None,
    }
}
