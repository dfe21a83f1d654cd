//! `sluice-dataplane`: one pod's worth of channels.

use std::process::ExitCode;

use clap::Parser;
use sluice_channel::text;
use sluice_dataplane::{
    args::{Args, LogFormat},
    pod,
};
use tracing_subscriber::EnvFilter;

/// A crowd that has gone leaves freed memory in pieces between what other streams still use. This
/// allocator gives whole pages back some seconds later, by a thread of its own; the C library's
/// keeps them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// `EX_USAGE`: the arguments or the configuration directory are wrong; trying again is of no use.
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
    let filter = log_filter(std::env::var("RUST_LOG").ok().as_deref());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format() {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    raise_open_files();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    match runtime.block_on(pod::run(args.into_options())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn log_filter(wanted: Option<&str>) -> EnvFilter {
    const DEFAULT: &str = "info,async_nats=off";
    let wanted = wanted.filter(|text| !text.is_empty()).unwrap_or(DEFAULT);
    let checked = text::log_directives(wanted).map_err(|error| error.to_string());
    let filter = checked.and_then(|()| EnvFilter::try_new(wanted).map_err(|e| e.to_string()));
    filter.unwrap_or_else(|error| {
        eprintln!("sluice-dataplane: RUST_LOG is {wanted:?}: {error}; using {DEFAULT:?}");
        EnvFilter::new(DEFAULT)
    })
}

fn fail(message: &str) -> ExitCode {
    eprintln!("sluice-dataplane: {message}");
    USAGE.into()
}

/// One file descriptor per connection: takes as many as the system allows this process.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    tracing::debug!(open_files = ?getrlimit(Resource::Nofile).current, "limit");
}
