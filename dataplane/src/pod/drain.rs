//! The end of a pod: out of the endpoints first, then the streams one by one, each with its own
//! time to return.

use std::{sync::Arc, time::Duration};

use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{frame::CloseReason, phase::Phase, state::Shared};

/// How a pod ends.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long it still accepts: the time until the last proxy has heard that it is no longer
    /// ready.
    pub delay: Duration,
    /// The closes are spread over this long at most.
    pub period: Duration,
}

/// Few streams need not use the whole period: one is closed at least this often.
const MAX_SPACING: Duration = Duration::from_millis(100);
/// How long the last streams may take to write their last frame.
const LAST_FRAMES: Duration = Duration::from_secs(2);

/// Drains the pod. `stop_accepting` ends the accept loop and lets go of idle connections.
pub(super) async fn drain(shared: &Arc<Shared>, pace: Pace, stop_accepting: &CancellationToken) {
    shared.phase.advance(Phase::Draining);
    sleep(pace.delay).await;
    shared.phase.advance(Phase::Closing);
    stop_accepting.cancel();
    let mut entries = shared.registry.entries();
    // In an order that has nothing to do with when they came.
    entries.shuffle(&mut rand::rng());
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX).max(1);
    let spacing = (pace.period / count).min(MAX_SPACING);
    tracing::info!(streams = entries.len(), ?spacing, "closing streams");
    let start = Instant::now();
    for (index, entry) in (0u32..).zip(entries) {
        sleep_until(start + spacing * index).await;
        entry.close(CloseReason::Drain, entry.channel().retry());
    }
    let deadline = Instant::now() + LAST_FRAMES;
    while !shared.registry.is_empty() && Instant::now() < deadline {
        // Streams that were opened over an open connection in the meantime.
        for entry in shared.registry.entries() {
            entry.close(CloseReason::Drain, entry.channel().retry());
        }
        sleep(Duration::from_millis(20)).await;
    }
    if !shared.registry.is_empty() {
        tracing::warn!(
            streams = shared.registry.len(),
            "some streams did not take their last frame in time"
        );
    }
}
