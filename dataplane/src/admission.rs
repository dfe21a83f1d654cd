//! Whether the pod has room for one more stream: file descriptors and memory. How many streams a
//! channel may have is its own configuration; how fast they come needs no limit, because live
//! events do not wait for them (`docs/performance.md`).

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use crate::cgroup::Cgroup;

/// How often memory is looked at: less than a crowd that connects as fast as it can needs for the
/// last tenth.
const TICK: Duration = Duration::from_millis(100);
/// File descriptors that are left to everything that is no stream: connections that have not asked
/// yet, NATS, files.
const OTHER_FILES: u64 = 256;

#[derive(Debug)]
pub(crate) struct Admission {
    most_streams: usize,
    cgroup: Cgroup,
    scarce: AtomicBool,
}

impl Admission {
    /// Limits for a process that may have `files` open files (`None`: any number), in
    /// `cgroup`.
    #[must_use]
    pub(crate) fn new(files: Option<u64>, cgroup: Cgroup) -> Self {
        let most = files.map_or(u64::MAX, |files| files - (files / 2).min(OTHER_FILES));
        let scarce = AtomicBool::new(cgroup.memory_is_scarce());
        Self { most_streams: usize::try_from(most).unwrap_or(usize::MAX), cgroup, scarce }
    }

    /// Whether one more stream may come when there are `open`.
    #[must_use]
    pub(crate) fn has_room(&self, open: usize) -> bool {
        open < self.most_streams && !self.scarce.load(Relaxed)
    }

    /// Looks at the memory for as long as it is polled.
    pub(crate) async fn watch(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let scarce = self.cgroup.memory_is_scarce();
            if self.scarce.swap(scarce, Relaxed) != scarce {
                let (used, limit) = (self.cgroup.memory_used(), self.cgroup.memory_limit());
                if scarce {
                    tracing::warn!(
                        ?used,
                        ?limit,
                        "memory is scarce: new subscribers are told to come back later"
                    );
                } else {
                    tracing::info!(?used, ?limit, "there is memory for new subscribers again");
                }
            }
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(None, Cgroup::find(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_before_the_file_descriptors_do() {
        let admission = Admission::new(Some(20_000), Cgroup::find(Some(u64::MAX)));
        assert!(admission.has_room(19_743));
        assert!(!admission.has_room(19_744));
        let few = Admission::new(Some(128), Cgroup::find(Some(u64::MAX)));
        assert!(few.has_room(63) && !few.has_room(64));
        assert!(Admission::new(None, Cgroup::find(Some(u64::MAX))).has_room(usize::MAX - 1));
    }

    #[test]
    fn no_room_while_memory_is_scarce() {
        assert!(!Admission::new(None, Cgroup::find(Some(1))).has_room(0));
    }
}
