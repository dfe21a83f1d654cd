//! How much memory the pod may use, and uses, as its cgroup counts: what a container is killed for,
//! sockets' buffers in the kernel included.
//!
//! Source: the kernel's `admin-guide/cgroup-v2`, "Memory Interface Files". A cgroup of version 1 is
//! not looked at.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Share of the limit, percent, above which no more subscribers are taken. The rest is for the
/// streams that are open: their replays, and what the kernel keeps for sockets that are slow.
const SCARCE_PERCENT: u64 = 90;

/// The cgroup of this process and its limit.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// Bytes; none: nothing is ever scarce.
    memory_limit: Option<u64>,
    /// Where its files are; none: only what is resident of this process is known.
    path: Option<PathBuf>,
}

impl Cgroup {
    /// Finds the cgroup of this process. `limit`, in bytes, takes the place of the cgroup's own.
    #[must_use]
    pub(crate) fn find(limit: Option<u64>) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::in_hierarchy(Path::new("/sys/fs/cgroup"), &own, limit)
    }

    /// The cgroup that `own` (the text of `/proc/self/cgroup`) names below `root`.
    fn in_hierarchy(root: &Path, own: &str, limit: Option<u64>) -> Self {
        let path =
            own.lines().find_map(|line| line.strip_prefix("0::/")).map(|path| root.join(path));
        let path = path.filter(|path| path.join("memory.current").exists());
        let own_limit = || number(&fs::read_to_string(path.as_ref()?.join("memory.max")).ok()?);
        Self { memory_limit: limit.or_else(own_limit), path }
    }

    /// The limit, bytes.
    #[must_use]
    pub(crate) const fn memory_limit(&self) -> Option<u64> {
        self.memory_limit
    }

    /// Bytes in use, without what the kernel takes back first (cached files that were not used of
    /// late), as the kubelet counts.
    #[must_use]
    pub(crate) fn memory_used(&self) -> Option<u64> {
        let Some(path) = &self.path else { return resident() };
        let current = number(&fs::read_to_string(path.join("memory.current")).ok()?)?;
        let stat = fs::read_to_string(path.join("memory.stat")).unwrap_or_default();
        let idle =
            stat.lines().find_map(|line| number(line.strip_prefix("inactive_file ")?)).unwrap_or(0);
        Some(current.saturating_sub(idle))
    }

    /// Whether so much is in use that no more subscribers should come.
    #[must_use]
    pub(crate) fn memory_is_scarce(&self) -> bool {
        match (self.memory_limit, self.memory_used()) {
            (Some(limit), Some(used)) => used > limit / 100 * SCARCE_PERCENT,
            _ => false,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status
        .lines()
        .find_map(|line| number(line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?))?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_files(max: &str, current: u64, idle: u64) -> (tempfile::TempDir, Cgroup) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("kubepods/pod1");
        fs::create_dir_all(&path).unwrap();
        for (file, text) in [
            ("memory.max", format!("{max}\n")),
            ("memory.current", format!("{current}\n")),
            ("memory.stat", format!("anon 5\ninactive_file {idle}\nactive_file 7\n")),
        ] {
            fs::write(path.join(file), text).unwrap();
        }
        let cgroup = Cgroup::in_hierarchy(root.path(), "0::/kubepods/pod1\n", None);
        (root, cgroup)
    }

    #[test]
    fn nine_tenths_of_the_limit() {
        let (_root, cgroup) = with_files("1000", 900, 0);
        assert_eq!(
            (cgroup.memory_limit(), cgroup.memory_used(), cgroup.memory_is_scarce()),
            (Some(1_000), Some(900), false)
        );
        assert!(with_files("1000", 901, 0).1.memory_is_scarce());
        let (_root, cgroup) = with_files("1000", 990, 100);
        assert_eq!(
            (cgroup.memory_used(), cgroup.memory_is_scarce()),
            (Some(890), false),
            "idle files are taken back first"
        );
    }

    #[test]
    fn without_a_limit_nothing_is_scarce() {
        let (_root, cgroup) = with_files("max", u64::MAX, 0);
        assert_eq!((cgroup.memory_limit(), cgroup.memory_is_scarce()), (None, false));
        let none = Cgroup::in_hierarchy(Path::new("/nowhere"), "12:memory:/x\n", None);
        assert_eq!((none.memory_limit(), none.memory_is_scarce()), (None, false));
    }

    #[test]
    fn a_limit_of_ones_own_is_held_against_what_is_resident() {
        assert!(Cgroup::in_hierarchy(Path::new("/nowhere"), "", Some(1_000)).memory_is_scarce());
        assert!(!Cgroup::in_hierarchy(Path::new("/nowhere"), "", Some(1 << 50)).memory_is_scarce());
    }
}
