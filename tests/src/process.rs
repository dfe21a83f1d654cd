//! Child processes that cannot outlive the test: killed with the guard, and by the kernel when the
//! test's process dies.

use std::{
    collections::HashSet,
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock, Mutex,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};

use rand::Rng;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// Lines of a log that a failed test prints.
const TAIL_LINES: usize = 60;

/// A running child in a process group of its own. Its output goes to files, which are kept when the
/// test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    exit: Option<ExitStatus>,
    dir: Option<TempDir>,
}

type Spawn = (Command, Sender<std::io::Result<Child>>);

/// `PR_SET_PDEATHSIG` fires when the *thread* that started the child ends, so one thread, which
/// lives as long as the test's process, starts all of them.
static SPAWNER: LazyLock<Mutex<Sender<Spawn>>> = LazyLock::new(|| {
    let (sender, receiver) = channel::<Spawn>();
    std::thread::spawn(move || {
        for (mut command, answer) in receiver {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(sender)
});

impl Process {
    /// Starts `command`; `name` is what its logs are called.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        let dir = TempDir::with_prefix(format!("sluice-{name}-")).expect("a directory for logs");
        let file = |what: &str| File::create(dir.path().join(what)).expect("a log file");
        command
            .stdin(Stdio::null())
            .stdout(file("stdout.log"))
            .stderr(file("stderr.log"))
            .process_group(0);
        let program = command.get_program().to_owned();
        die_with_parent(&mut command);
        let (sender, receiver) = channel();
        SPAWNER.lock().expect("the spawner").send((command, sender)).expect("the spawner lives");
        let child = receiver
            .recv()
            .expect("the spawner answers")
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        Self { name: name.to_owned(), child, exit: None, dir: Some(dir) }
    }

    /// Process id, also the id of its group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the log is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a signal to the process and its children.
    pub fn signal(&self, signal: Signal) {
        if self.exit.is_none()
            && let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
        {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGKILL, and reaps the process.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.exit.is_none() {
            self.exit = self.child.wait().ok();
        }
    }

    /// SIGSTOP: the process is there but does nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT: undoes [`Process::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit
    }

    /// Waits for the end, at most `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Resident memory now, bytes (`VmRSS`).
    pub fn rss(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    /// Greatest resident memory so far, bytes (`VmHWM`).
    pub fn peak_rss(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default();
        status
            .lines()
            .find_map(|l| l.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout.log")
    }

    /// Its standard error so far, without colour codes.
    pub fn stderr(&self) -> String {
        strip_ansi(&self.read("stderr.log"))
    }

    /// Keeps its log in `dir`, under its name and process id.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn keep_log(&self, name: &str, dir: &Path) {
        let file = dir.join(format!("{name}-{}.log", self.child.id()));
        std::fs::write(file, self.stderr()).expect("a copy of a log");
    }

    /// Prints the end of its log.
    pub fn print_tail(&self) {
        let log = self.stderr();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        eprintln!("--- {} (pid {}, {:?})\n{tail}\n---", self.name, self.child.id(), self.exit);
    }

    fn read(&self, file: &str) -> String {
        let Some(dir) = &self.dir else { return String::new() };
        std::fs::read(dir.path().join(file))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            self.print_tail();
            if let Some(dir) = self.dir.take() {
                eprintln!("logs kept in {}", dir.keep().display());
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one system call (prctl), which is
    // async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}

fn strip_ansi(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A free port of 127.0.0.1 below the kernel's ephemeral range, so that no outgoing connection can
/// take it while a server that is to come back on it is down. Never handed out twice by this
/// process.
///
/// # Panics
/// When none is found.
pub fn free_port() -> u16 {
    static USED: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut used = USED.lock().expect("the set of ports");
    let used = used.get_or_insert_default();
    for _ in 0..1_000 {
        let port = rand::rng().random_range(10_000..32_000);
        if !used.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            used.insert(port);
            return port;
        }
    }
    panic!("no free port");
}

/// A program of this workspace: from `$SLUICE_TEST_PROGRAMS`, a folder with another build of them,
/// else built beside the running test.
///
/// # Panics
/// When it has not been built.
pub fn workspace_program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's path");
    let beside = test.parent().and_then(Path::parent).expect("…/target/<profile>/deps/<test>");
    let path = std::env::var_os("SLUICE_TEST_PROGRAMS")
        .map_or_else(|| beside.to_path_buf(), PathBuf::from)
        .join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// A server program: from `$SLUICE_TOOLS`, else `.tools/bin` of the workspace.
///
/// # Panics
/// When it is in neither.
pub fn tool(name: &str) -> PathBuf {
    let dir = std::env::var_os("SLUICE_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin"), PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: run tests/tools/build.sh first, or set SLUICE_TOOLS",
        path.display()
    );
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("shell", command)
    }

    #[test]
    fn output_is_kept_and_the_end_is_seen() {
        crate::run(Duration::from_secs(10), async {
            let mut process = shell("echo out; printf '\\033[31mERROR\\033[0m x\\n' >&2; exit 3");
            assert_eq!(process.wait(Duration::from_secs(5)).await.and_then(|s| s.code()), Some(3));
            assert_eq!(
                (process.stdout().as_str(), process.stderr().as_str()),
                ("out\n", "ERROR x\n")
            );
        });
    }

    #[test]
    fn a_guard_takes_its_grandchildren_along() {
        crate::run(Duration::from_secs(10), async {
            let process = shell("sleep 600 & echo $!; wait");
            let grandchild =
                crate::eventually("the grandchild's pid", Duration::from_secs(5), async || {
                    process.stdout().trim().parse::<u32>().ok()
                })
                .await;
            assert!(Path::new(&format!("/proc/{grandchild}")).exists());
            assert!(process.rss() > 0 && process.open_files() > 0);
            drop(process);
            let gone = async || {
                let stat =
                    std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
                (stat.is_empty() || stat.contains(") Z ")).then_some(())
            };
            crate::eventually("the grandchild is gone", Duration::from_secs(5), gone).await;
        });
    }
}
