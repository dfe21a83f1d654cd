//! What the kernel says of processes: CPU time, memory, open files; and the limits and cores of
//! this one.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// CPU time of a process, all its threads: nanoseconds from the scheduler, else 10 ms ticks.
pub(crate) fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let on_cpu = |task: fs::DirEntry| -> Option<u64> {
        fs::read_to_string(task.path().join("schedstat"))
            .ok()?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    let nanos: u64 = tasks.filter_map(on_cpu).sum();
    if nanos > 0 { Duration::from_nanos(nanos) } else { cpu_ticks(pid) }
}

fn cpu_ticks(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// A `VmRSS`-like line of a process's status, bytes.
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |line: &str| {
        line.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    status.lines().find_map(kib).unwrap_or(0) * 1024
}

/// Resident memory now, bytes.
pub(crate) fn rss(pid: u32) -> u64 {
    status(pid, "VmRSS:")
}

/// Greatest resident memory so far, bytes.
pub(crate) fn peak_rss(pid: u32) -> u64 {
    status(pid, "VmHWM:")
}

/// Open file descriptors of a process.
pub(crate) fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Waits until a process uses hardly any CPU, at most `limit`: what an earlier phase left is
/// digested.
#[allow(clippy::disallowed_methods, reason = "no runtime here: the benchmark's own thread waits")]
pub(crate) fn wait_quiet(pid: u32, limit: Duration) {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        let before = cpu(pid);
        std::thread::sleep(Duration::from_millis(250));
        if cpu(pid).saturating_sub(before) < Duration::from_millis(10) {
            return;
        }
    }
}

/// The cores that this process may use.
pub(crate) fn cores() -> Vec<usize> {
    sched_getaffinity(None)
        .map_or_else(|_| vec![0], |set| (0..CpuSet::MAX_CPU).filter(|i| set.is_set(*i)).collect())
}

/// Keeps the calling thread, and what it starts from now on, on one core.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("pinning to core {core}"))
}

/// Raises the limit of open files, here and for the children, to what the machine allows at most.
pub(crate) fn raise_open_files(needed: u64) -> anyhow::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    if hard.is_some_and(|hard| hard < needed) {
        bail!(
            "{needed} open files are needed, the hard limit is {}: set BENCH_CONNECTIONS lower",
            hard.unwrap_or(0)
        );
    }
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
        .context("raising the limit of open files")
}

/// Most files that this process may have open.
pub(crate) fn open_files_limit() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(1_000_000)
}

/// Memory that the machine could still give to programs, bytes.
pub(crate) fn available() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.unwrap_or(0) * 1024
}

/// Bytes that a process has written so far, to sockets and files.
pub(crate) fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}
