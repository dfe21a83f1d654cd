//! The pod's phase: probes, metrics and tests read it here and nowhere else.

use serde::Serialize;
use tokio::sync::watch;

/// Where the pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Phase {
    /// Not every channel's log covers its tail yet.
    Starting,
    /// Sends for subscribers. Stays so when the store goes away: open streams and memory are still
    /// of use.
    Ready,
    /// No longer ready; still accepts while the endpoints are being taken out of the Service.
    Draining,
    /// Accepts nothing more; open streams are being closed.
    Closing,
    /// Done.
    Stopped,
}

/// The phase, published.
#[derive(Debug)]
pub(crate) struct PhaseCell(watch::Sender<Phase>);

impl Default for PhaseCell {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }
}

impl PhaseCell {
    #[must_use]
    pub(crate) fn get(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        let moved = self.0.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
        if moved {
            tracing::info!(?phase, "phase");
        }
    }
}
