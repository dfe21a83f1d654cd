//! A child process that is started again when it dies, a few times, and that never outlives this
//! process.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

/// Starts in a row that end within [`STEADY`] before local mode gives up.
const TRIES: u32 = 5;
/// A child that lived this long is no failed start.
const STEADY: Duration = Duration::from_secs(10);
/// Longest pause before a child is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Lines of a dead child's log that are shown.
const LOG_LINES: usize = 3;

/// A child that does not stay up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be started at all.
    #[error("cannot start {name} ({}): {source}", program.display())]
    Start { name: &'static str, program: PathBuf, source: std::io::Error },
    /// It ends again and again.
    #[error("{name} ended {tries} times in a row; its log, {}, ends with:\n{tail}", log.display())]
    KeepsEnding {
        name: &'static str,
        tries: u32,
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// It runs but is of no use.
    #[error("{name} is not ready after {limit:?}; its log, {}, ends with:\n{tail}", log.display())]
    NotReady {
        name: &'static str,
        /// How long was waited.
        limit: Duration,
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

/// How a child is started.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) log_dir: PathBuf,
}

/// A running, or soon again running, child.
#[derive(Debug)]
pub(super) struct Child {
    plan: Plan,
    process: Option<tokio::process::Child>,
    started: Instant,
    failures: u32,
    again_at: Instant,
}

impl Child {
    pub(super) async fn start(plan: Plan) -> Result<Self, Error> {
        let now = Instant::now();
        let mut child = Self { plan, process: None, started: now, failures: 0, again_at: now };
        child.spawn()?;
        Ok(child)
    }

    fn spawn(&mut self) -> Result<(), Error> {
        let fail = |source| Error::Start {
            name: self.plan.name,
            program: self.plan.program.clone(),
            source,
        };
        let log = File::options().create(true).append(true).open(self.log()).map_err(fail)?;
        let output = File::create(self.output()).map_err(fail)?;
        let mut command = Command::new(&self.plan.program);
        command.args(&self.plan.arguments).stdin(Stdio::null()).stdout(output).stderr(log);
        // A group of its own: Ctrl-C is for us, and we stop the children in order.
        command.process_group(0).kill_on_drop(true);
        die_with_parent(&mut command);
        self.process = Some(command.spawn().map_err(fail)?);
        self.started = Instant::now();
        Ok(())
    }

    /// Notices an end and starts again after a pause. News for the user, if there are any.
    pub(super) async fn tend(&mut self) -> Result<Option<String>, Error> {
        let name = self.plan.name;
        if let Some(process) = &mut self.process {
            let Ok(Some(status)) = process.try_wait() else { return Ok(None) };
            self.process = None;
            self.failures = if self.started.elapsed() >= STEADY { 1 } else { self.failures + 1 };
            if self.failures >= TRIES {
                return Err(Error::KeepsEnding {
                    name,
                    tries: self.failures,
                    log: self.log(),
                    tail: self.tail(),
                });
            }
            let pause = (Duration::from_millis(250) * 2_u32.pow(self.failures)).min(LONGEST_PAUSE);
            self.again_at = Instant::now() + pause;
            return Ok(Some(format!(
                "{name} ended ({}); starting it again in {pause:?}. Log: {}",
                describe(status),
                self.log().display()
            )));
        }
        if Instant::now() < self.again_at {
            return Ok(None);
        }
        self.spawn()?;
        Ok(Some(format!("{name} was started again")))
    }

    /// SIGTERM, then after `limit` SIGKILL. Afterwards it is gone.
    pub(super) async fn stop(&mut self, limit: Duration) {
        let Some(mut process) = self.process.take() else { return };
        let signal = |id: Option<u32>, signal| {
            if let Some(pid) = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                let _ = kill_process_group(pid, signal);
            }
        };
        signal(process.id(), Signal::TERM);
        if tokio::time::timeout(limit, process.wait()).await.is_err() {
            signal(process.id(), Signal::KILL);
            let _ = process.wait().await;
        }
    }

    /// The first line of its standard output.
    pub(super) fn first_line(&self) -> String {
        let text = std::fs::read_to_string(self.output()).unwrap_or_default();
        text.split_inclusive('\n')
            .next()
            .filter(|line| line.ends_with('\n'))
            .unwrap_or_default()
            .to_owned()
    }

    pub(super) fn does_not_start(&self, limit: Duration) -> Error {
        Error::NotReady { name: self.plan.name, limit, log: self.log(), tail: self.tail() }
    }

    fn log(&self) -> PathBuf {
        self.plan.log_dir.join(format!("{}.log", self.plan.name))
    }

    fn output(&self) -> PathBuf {
        self.plan.log_dir.join(format!("{}.out", self.plan.name))
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(LOG_LINES))
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}

/// The kernel sends the child SIGTERM when the thread that started it ends, so a `kill -9` of this
/// process leaves no orphan. Elsewhere only an orderly end stops the children.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "there is no safe way to set a child's death signal")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call (prctl), which is
    // async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into)
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
