//! `sluice-operator`: `run` in a cluster, `local` on a laptop, `check` of what is installed,
//! `permissions` for NATS users, `crd` for the definition of the resource.

use std::process::ExitCode;

use clap::Parser;
use sluice_channel::text;
use sluice_operator::{
    args::{Args, Command, LogFormat, TenancyCommands},
    check, controller, crd, local, permissions, tenancy,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// `EX_USAGE`: the arguments are wrong; trying again is of no use.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    let fallback = if matches!(args.command, Command::Local(_)) { LOCAL_LOG } else { "info" };
    let filter = log_filter(std::env::var("RUST_LOG").ok().as_deref(), fallback);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    match start(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Unusable>() => {
            eprintln!("sluice-operator: {error}");
            USAGE.into()
        }
        Err(error) => {
            // One line for people: what is wrong and what to do. Never a stack trace, and without
            // the errors below: each error's own text says its cause already.
            eprintln!("sluice-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What local mode logs: it says everything that a user should know on standard output.
const LOCAL_LOG: &str = "error,async_nats=off";

/// Libraries whose lines repeat what this program logs itself, with less in them; that of NATS does
/// so at each attempt. Where `wanted` names one of them, that counts.
const QUIET: &str = "async_nats=off,kube_runtime=warn";

fn log_filter(wanted: Option<&str>, fallback: &str) -> EnvFilter {
    let filter = |directives: &str| EnvFilter::try_new(format!("{QUIET},{directives}"));
    let wanted = wanted.filter(|text| !text.is_empty()).unwrap_or(fallback);
    let checked = text::log_directives(wanted).map_err(|error| error.to_string());
    checked.and_then(|()| filter(wanted).map_err(|error| error.to_string())).unwrap_or_else(
        |error| {
            eprintln!("sluice-operator: RUST_LOG is {wanted:?}: {error}; using {fallback:?}");
            EnvFilter::new(format!("{QUIET},{fallback}"))
        },
    )
}

/// Arguments that do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unusable(String);

fn start(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Crd => {
            print!("{}", crd::yaml()?);
            Ok(())
        }
        Command::Check(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(until_signalled(async |stop| {
                tokio::select! {
                    result = check::run(*args, std::io::stdout()) => Ok(result?),
                    () = stop.cancelled() => anyhow::bail!("ended by a signal"),
                }
            }))
        }
        Command::Tenancy(args) => {
            let TenancyCommands::Check(args) = args.command;
            let settings = args.settings().map_err(Unusable)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(until_signalled(async |stop| {
                tokio::select! {
                    result = tenancy::check::run(settings, &args.namespaces, std::io::stdout()) => Ok(result?),
                    () = stop.cancelled() => anyhow::bail!("ended by a signal"),
                }
            }))
        }
        Command::Permissions(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(permissions::run(*args, std::io::stdout()))?)
        }
        Command::Run(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let options = args.into_options().map_err(Unusable)?;
            let ended = runtime.block_on(until_signalled(async |stop| {
                Ok(controller::watch::run(options, stop).await?)
            }));
            // A look-up of a name that gets no answer runs on a thread that cannot be stopped; it
            // is not waited for.
            runtime.shutdown_background();
            ended
        }
        Command::Local(args) => {
            // One thread: the kernel ends the children when the thread that started them ends.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(until_signalled(async |stop| Ok(local::run(*args, stop).await?)))
        }
    }
}

/// Runs `work` with a token that the first SIGTERM or SIGINT cancels; a second one ends it at once.
async fn until_signalled(
    work: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let signals = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    tokio::select! {
        result = work(stop.clone()) => result,
        () = signals => anyhow::bail!("ended at once by a second signal"),
    }
}
