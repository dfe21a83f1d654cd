//! How much memory the pod may use, and uses: what a container is killed for, sockets' buffers in
//! the kernel included.
//!
//! Source: the kernel's `admin-guide/cgroup-v2`, "Memory Interface Files". A cgroup of version 1 is
//! not looked at.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Share of the limit, percent, above which no more subscribers are taken. What is left is for
/// those who are there: their replays, and what the kernel keeps for sockets that are slow.
const SCARCE_PERCENT: u64 = 90;

/// The cgroup of this process and its limit.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Bytes; none: nothing is ever scarce.
    limit: Option<u64>,
    /// Where its files are; none: only what is resident of this process is known.
    cgroup: Option<PathBuf>,
}

impl Memory {
    /// Finds the cgroup of this process. `limit`, in bytes, takes the place of the cgroup's own.
    #[must_use]
    pub fn find(limit: Option<u64>) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::in_hierarchy(Path::new("/sys/fs/cgroup"), &own, limit)
    }

    /// The cgroup that `own` (the text of `/proc/self/cgroup`) names below `root`.
    fn in_hierarchy(root: &Path, own: &str, limit: Option<u64>) -> Self {
        let path =
            own.lines().find_map(|line| line.strip_prefix("0::/")).map(|path| root.join(path));
        let cgroup = path.filter(|path| path.join("memory.current").exists());
        let of_cgroup = || number(&fs::read_to_string(cgroup.as_ref()?.join("memory.max")).ok()?);
        Self { limit: limit.or_else(of_cgroup), cgroup }
    }

    /// The limit, bytes.
    #[must_use]
    pub const fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes in use, without what the kernel takes back first (files that nobody has used of late),
    /// as the kubelet counts.
    #[must_use]
    pub fn used(&self) -> Option<u64> {
        let Some(cgroup) = &self.cgroup else { return resident() };
        let current = number(&fs::read_to_string(cgroup.join("memory.current")).ok()?)?;
        let stat = fs::read_to_string(cgroup.join("memory.stat")).unwrap_or_default();
        let idle =
            stat.lines().find_map(|line| number(line.strip_prefix("inactive_file ")?)).unwrap_or(0);
        Some(current.saturating_sub(idle))
    }

    /// Whether so much is in use that nobody else should come.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        match (self.limit, self.used()) {
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

    fn cgroup(max: &str, current: u64, idle: u64) -> (tempfile::TempDir, Memory) {
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
        let memory = Memory::in_hierarchy(root.path(), "0::/kubepods/pod1\n", None);
        (root, memory)
    }

    #[test]
    fn nine_tenths_of_the_limit() {
        let (_root, memory) = cgroup("1000", 900, 0);
        assert_eq!(
            (memory.limit(), memory.used(), memory.is_scarce()),
            (Some(1_000), Some(900), false)
        );
        assert!(cgroup("1000", 901, 0).1.is_scarce());
        let (_root, memory) = cgroup("1000", 990, 100);
        assert_eq!(
            (memory.used(), memory.is_scarce()),
            (Some(890), false),
            "idle files are taken back first"
        );
    }

    #[test]
    fn without_a_limit_nothing_is_scarce() {
        let (_root, memory) = cgroup("max", u64::MAX, 0);
        assert_eq!((memory.limit(), memory.is_scarce()), (None, false));
        let none = Memory::in_hierarchy(Path::new("/nowhere"), "12:memory:/x\n", None);
        assert_eq!((none.limit(), none.is_scarce()), (None, false));
    }

    #[test]
    fn a_limit_of_ones_own_is_held_against_what_is_resident() {
        assert!(Memory::in_hierarchy(Path::new("/nowhere"), "", Some(1_000)).is_scarce());
        assert!(!Memory::in_hierarchy(Path::new("/nowhere"), "", Some(1 << 50)).is_scarce());
    }
}
