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
/// File descriptors that are left to everything that is no stream.
const OTHER_FILES: u64 = 256;
/// Those of them that are left to everything that is no connection of the public listener: the
/// admin listener, NATS, the fan-out threads, files.
const OWN_FILES: u64 = 128;

#[derive(Debug)]
pub(crate) struct Admission {
    most_streams: usize,
    most_connections: usize,
    cgroup: Cgroup,
    scarce: AtomicBool,
}

impl Admission {
    /// Limits for a process that may have `files` open files (`None`: any number), in
    /// `cgroup`.
    #[must_use]
    pub(crate) fn new(files: Option<u64>, cgroup: Cgroup) -> Self {
        let most = |left: u64, part: u64| {
            let most = files.map_or(u64::MAX, |files| files - (files / part).min(left));
            usize::try_from(most).unwrap_or(usize::MAX)
        };
        let scarce = AtomicBool::new(cgroup.memory_is_scarce());
        let (most_streams, most_connections) = (most(OTHER_FILES, 2), most(OWN_FILES, 4));
        Self { most_streams, most_connections, cgroup, scarce }
    }

    /// Whether one more stream may come when there are `open`.
    #[must_use]
    pub(crate) fn has_room(&self, open: usize) -> bool {
        open < self.most_streams && !self.scarce.load(Relaxed)
    }

    /// Most connections of the public listener, with a stream or without.
    #[must_use]
    pub(crate) const fn most_connections(&self) -> usize {
        self.most_connections
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
        assert_eq!((admission.most_connections(), few.most_connections()), (19_872, 96));
        assert!(Admission::new(None, Cgroup::find(Some(u64::MAX))).has_room(usize::MAX - 1));
    }

    #[test]
    fn no_room_while_memory_is_scarce() {
        assert!(!Admission::new(None, Cgroup::find(Some(1))).has_room(0));
    }
}
