//! `make bench`: what the product costs beside a server that only writes bytes, and beside what one
//! writes by hand.
//!
//! All are measured in the same run, phase by phase in turn, each on one core; the load generator
//! has another. Speed never fails this program; an event lost, doubled or out of order, or a broken
//! connection does. With the argument `scale` (`make bench-scale`): more connections than one
//! process can have, and what NATS has to do for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crowd;
mod decoder;
mod floor;
mod generator;
mod histogram;
mod machine;
mod peer;
mod publisher;
mod report;
mod scale;
mod side;

use std::{process::ExitCode, time::Duration};

use anyhow::Context;

use crowd::{Crowd, Order};
use generator::{Generator, Settled};
use report::Report;
use side::Side;

/// Deliveries per second in the paced phases.
const PACED_DELIVERIES: u64 = 100_000;
/// Connections of the smaller crowd, and of the shallow replay.
const SMALL_CROWD: usize = 1_000;
/// Events of the deep replay.
const HISTORY: u64 = 100_000;
/// Events of the shallow replay, for each client.
const RECENT: u64 = 1_000;
/// Clients of the deep replay for many.
const MANY: usize = 100;
/// Clients that connect at the same time.
const IN_FLIGHT: usize = 200;

struct Settings {
    connections: usize,
    seconds: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some("floor") => return floor::serve().map(|()| ExitCode::SUCCESS),
        Some("peer") => return peer::serve().map(|()| ExitCode::SUCCESS),
        Some("crowd") => {
            let mut arguments = std::env::args().skip(2);
            let (parent, order) =
                (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
            return crowd::run(&parent, &order).map(|()| ExitCode::SUCCESS);
        }
        Some("scale") => return scale::run(),
        _ => {}
    }
    decoder::self_test().map_err(anyhow::Error::msg)?;
    histogram::self_test().map_err(anyhow::Error::msg)?;
    let settings = Settings {
        connections: setting("BENCH_CONNECTIONS", 10_000)?.max(1) as usize,
        seconds: setting("BENCH_SECONDS", 5)?.max(1),
    };
    machine::raise_open_files(settings.connections as u64 + 500)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cores = machine::cores();
    let (server_core, own_core) = (cores[0], cores[cores.len() - 1]);
    // Started while this thread is on the servers' core: what it starts inherits that, and sizes
    // its thread pools by it.
    machine::pin(server_core)?;
    let mut sides = runtime.block_on(sides())?;
    machine::pin(own_core)?;
    println!(
        "Servers (with nats-server) on core {server_core}, clients and publisher on core {own_core}; payload 256 bytes; plain HTTP/1.1."
    );

    let mut generator = Generator::new()?;
    let mut report = Report::default();
    let small = SMALL_CROWD.min(settings.connections);
    for count in [small, settings.connections] {
        for side in &mut sides {
            eprintln!("{}: {count} connections ...", side.name);
            machine::pin(server_core)?;
            runtime.block_on(side.renew())?;
            machine::pin(own_core)?;
            crowd(side, &mut generator, &mut report, count, settings.seconds)
                .with_context(|| side.name)?;
        }
        if small == settings.connections {
            break;
        }
    }
    for side in &mut sides {
        let peak = machine::peak_rss(side.pid()) as f64 / 1024.0 / 1024.0;
        report.add(
            &format!("peak RSS of the server with {} connections, MiB", settings.connections),
            side.number,
            peak,
            1,
        );
    }
    for side in &mut sides {
        if !side.replays {
            continue;
        }
        eprintln!("{}: replay ...", side.name);
        machine::pin(server_core)?;
        fill(side, &mut generator)?;
        runtime.block_on(side.restart());
        machine::pin(own_core)?;
        replays(side, &mut generator, &mut report, small).with_context(|| side.name)?;
        beside_others(side, &mut generator, &mut report, &settings).with_context(|| side.name)?;
    }
    report.print();
    Ok(verdict(&generator))
}

/// Speed never fails a run; a fault of delivery does.
fn verdict(generator: &Generator) -> ExitCode {
    let errors = &generator.errors;
    if errors.count == 0 {
        println!("\nEvery connection stood, every event arrived once and in order.");
        return ExitCode::SUCCESS;
    }
    eprintln!("\n{} errors, the first of them:\n  {}", errors.count, errors.first.join("\n  "));
    ExitCode::FAILURE
}

/// The servers to measure: those of `BENCH_ONLY`, and the build that `BENCH_BEFORE` names.
async fn sides() -> anyhow::Result<Vec<Side>> {
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|word| word == name);
    let mut sides = Vec::new();
    if wanted("sluice") {
        sides.push(Side::product().await?);
    }
    if wanted("floor") {
        sides.push(Side::floor().await?);
    }
    if wanted("peer") {
        sides.push(Side::peer().await?);
    }
    if let Some(program) = std::env::var_os("BENCH_BEFORE").filter(|path| !path.is_empty()) {
        sides.push(Side::before(program.into()).await?);
    }
    Ok(sides)
}

/// A whole number from the environment.
fn setting(name: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().with_context(|| format!("{name}={text} is not a whole number"))
        }
        _ => Ok(default),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// `count` clients connect, idle, and are sent events at a fixed rate and then as fast as they take
/// them.
fn crowd(
    side: &mut Side,
    generator: &mut Generator,
    report: &mut Report,
    count: usize,
    seconds: u64,
) -> anyhow::Result<()> {
    let (index, pid) = (side.number, side.pid());
    machine::wait_quiet(pid, Duration::from_secs(10));
    let (cpu, rss, files) = (machine::cpu(pid), machine::rss(pid), machine::open_files(pid));
    let took = generator.open(&side.target(None), count, side.last, IN_FLIGHT, Settled::Open)?;
    report.add(
        &format!("{count} connections: connects/s"),
        index,
        count as f64 / took.as_secs_f64(),
        0,
    );
    report.add(
        &format!("{count} connections: CPU µs/connect"),
        index,
        micros(machine::cpu(pid).saturating_sub(cpu)) / count as f64,
        1,
    );
    generator.idle(Duration::from_secs(2))?;
    let grown = machine::rss(pid).saturating_sub(rss) as f64 / 1024.0;
    report.add(
        &format!("{count} connections: RSS KiB per idle connection"),
        index,
        grown / count as f64,
        2,
    );

    let events = PACED_DELIVERIES * seconds / count as u64;
    let (cpu, broker) = (machine::cpu(pid), side.broker().map(machine::cpu));
    generator.reset(side.last + events);
    let limit = Duration::from_secs(seconds * 4 + 20);
    generator.paced(&mut side.publisher, PACED_DELIVERIES as f64 / count as f64, events, limit)?;
    side.last += events;
    let deliveries = generator.tally.deliveries as f64;
    let label = format!("{count} connections, 100,000 deliveries/s");
    report.add(
        &format!("{label}: CPU µs/delivery"),
        index,
        micros(machine::cpu(pid).saturating_sub(cpu)) / deliveries,
        2,
    );
    if let (Some(pid), Some(before)) = (side.broker(), broker) {
        report.add(
            &format!("{label}: nats-server's CPU µs/delivery"),
            index,
            micros(machine::cpu(pid).saturating_sub(before)) / deliveries,
            2,
        );
    }
    report.add(&format!("{label}: p50 ms"), index, generator.tally.latency.quantile_millis(0.5), 2);
    report.add(
        &format!("{label}: p99 ms"),
        index,
        generator.tally.latency.quantile_millis(0.99),
        2,
    );

    flat_out(side, generator, report, count, seconds)?;
    generator.close();
    if !closed(pid, files + 50) {
        generator.errors.add(format!(
            "{}: {} files still open 20 s after the clients left",
            side.name,
            machine::open_files(pid)
        ));
    }
    Ok(())
}

/// The crowd is sent events as fast as it takes them.
fn flat_out(
    side: &mut Side,
    generator: &mut Generator,
    report: &mut Report,
    count: usize,
    seconds: u64,
) -> anyhow::Result<()> {
    let (index, pid) = (side.number, side.pid());
    generator.reset(u64::MAX);
    let window = if count > SMALL_CROWD { 4 } else { 16 };
    let (cpu, start) = (machine::cpu(pid), std::time::Instant::now());
    side.last +=
        generator.flat_out(&mut side.publisher, Duration::from_secs(seconds), window, side.last)?;
    let (deliveries, took) = (generator.tally.deliveries as f64, start.elapsed());
    let label = format!("{count} connections, flat out");
    report.add(&format!("{label}: deliveries/s"), index, deliveries / took.as_secs_f64(), 0);
    report.add(
        &format!("{label}: CPU µs/delivery"),
        index,
        micros(machine::cpu(pid).saturating_sub(cpu)) / deliveries,
        2,
    );
    report.add(
        &format!("{label}: p99 ms"),
        index,
        generator.tally.latency.quantile_millis(0.99),
        2,
    );
    Ok(())
}

/// Whether the server has closed what its clients left, within 20 s.
fn closed(pid: u32, files: usize) -> bool {
    (0..20).any(|_| {
        machine::wait_quiet(pid, Duration::from_secs(1));
        machine::open_files(pid) <= files
    })
}

fn fill(side: &mut Side, generator: &mut Generator) -> anyhow::Result<()> {
    generator.fill(&mut side.publisher, HISTORY).context("publishing the history")?;
    side.last += HISTORY;
    Ok(())
}

/// One client reads a deep history, twice; many clients read a shallow one.
fn replays(
    side: &mut Side,
    generator: &mut Generator,
    report: &mut Report,
    small: usize,
) -> anyhow::Result<()> {
    let index = side.number;
    let shallow = format!("{small} clients × last 1,000 events");
    let many = MANY.min(small);
    let deep = format!("{many} clients × 100,000 events");
    for (label, clients, depth) in [
        ("1 client × 100,000 events, from the store", 1, HISTORY),
        ("1 client × 100,000 events, again", 1, HISTORY),
        (shallow.as_str(), small, RECENT),
        (deep.as_str(), many, HISTORY),
    ] {
        let pid = side.pid();
        machine::wait_quiet(pid, Duration::from_secs(10));
        let (cpu, after) = (machine::cpu(pid), side.last - depth);
        generator.reset(side.last);
        let took = generator.open(
            &side.target(Some(after)),
            clients,
            after,
            IN_FLIGHT,
            Settled::Complete,
        )?;
        let events = generator.tally.deliveries as f64;
        report.add(&format!("{label}: events/s"), index, events / took.as_secs_f64(), 0);
        if clients == small {
            report.add(
                &format!("{label}: connects/s"),
                index,
                clients as f64 / took.as_secs_f64(),
                0,
            );
        }
        report.add(
            &format!("{label}: CPU µs/event"),
            index,
            micros(machine::cpu(pid).saturating_sub(cpu)) / events,
            3,
        );
        generator.close();
    }
    let peak = machine::peak_rss(side.pid()) as f64 / 1024.0 / 1024.0;
    report.add("peak RSS of the server after the replays, MiB", index, peak, 1);
    Ok(())
}

/// What live subscribers notice of others: latency at 100 events a second to 100 of them, alone,
/// beside a crowd that replays all the time, and beside one that connects as fast as it can.
fn beside_others(
    side: &mut Side,
    generator: &mut Generator,
    report: &mut Report,
    settings: &Settings,
) -> anyhow::Result<()> {
    let (index, seconds) = (side.number, settings.seconds);
    machine::wait_quiet(side.pid(), Duration::from_secs(10));
    generator.reset(u64::MAX);
    generator.open(&side.target(None), MANY, side.last, MANY, Settled::Open)?;
    let (target, after) = (side.target(Some(side.last - HISTORY)), side.last - HISTORY);
    let replaying = Order {
        address: target.address,
        path: target.path.to_owned(),
        cursor: target.cursor,
        seen: after,
        // One after the other has its hundred thousand; about as many as the time is long.
        clients: MANY * seconds as usize,
        in_flight: MANY,
        goal: Some(side.last),
    };
    // Connecting is what is to be seen, so they wait for a topic without events. Only the product
    // has a filter.
    let connecting = (index == 0).then(|| Order {
        path: format!("{}?topic=nothing", side.path),
        cursor: None,
        clients: settings.connections,
        in_flight: IN_FLIGHT,
        goal: None,
        ..replaying.clone()
    });
    let replay = ("beside 100 that replay 100,000 events each, over and over", Some(replaying));
    let herd = connecting.map(|order| ("beside a herd that connects at once", Some(order)));
    for (what, order) in [("alone", None), replay].into_iter().chain(herd) {
        let mut crowd = order.as_ref().map(Crowd::start).transpose()?;
        let label = format!("100 live clients, {what}");
        let events = MANY as u64 * seconds;
        generator.reset(side.last + events);
        generator.paced(
            &mut side.publisher,
            MANY as f64,
            events,
            Duration::from_secs(seconds * 4 + 20),
        )?;
        side.last += events;
        report.add(
            &format!("{label}: p50 ms"),
            index,
            generator.tally.latency.quantile_millis(0.5),
            2,
        );
        report.add(
            &format!("{label}: p99 ms"),
            index,
            generator.tally.latency.quantile_millis(0.99),
            2,
        );
        if let Some(crowd) = &mut crowd {
            crowd.settled()?.errors.into_iter().for_each(|error| generator.errors.add(error));
        }
        drop(crowd);
        machine::wait_quiet(side.pid(), Duration::from_secs(10));
    }
    generator.close();
    Ok(())
}
