//! The moments at which a subscriber has something to do even if nothing happens.

use std::time::Duration;

use rand::Rng;
use sluice_channel::config::Delivery;
use tokio::time::Instant;

/// First pause after a failed read of the store; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause after a failed read of the store.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// When a subscriber is due.
#[derive(Debug)]
pub(super) struct Clock {
    /// Each write moves it on.
    heartbeat_at: Instant,
    /// The end of the stream by its age.
    ends_at: Option<Instant>,
    /// The store did not answer: it is not asked again before this.
    paused_until: Option<Instant>,
    /// Length of the next pause, or less: each is random.
    backoff: Duration,
}

impl Clock {
    pub(super) fn new(delivery: &Delivery, now: Instant) -> Self {
        let age = delivery.max_connection_age;
        // 80–100 %, so that subscribers that came together do not go together.
        let ends_at =
            (!age.is_zero()).then(|| now + age.mul_f64(rand::rng().random_range(0.8..1.0)));
        Self {
            heartbeat_at: now + delivery.heartbeat,
            ends_at,
            paused_until: None,
            backoff: MIN_BACKOFF,
        }
    }

    /// The earliest of its moments.
    pub(super) fn due(&self) -> Instant {
        [self.ends_at, self.paused_until]
            .into_iter()
            .flatten()
            .fold(self.heartbeat_at, Instant::min)
    }

    /// The end of the stream by its age.
    pub(super) const fn ends_at(&self) -> Option<Instant> {
        self.ends_at
    }

    /// Whether the stream has reached its age.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends_at.is_some_and(|end| now >= end)
    }

    pub(super) fn heartbeat_is_due(&self, now: Instant) -> bool {
        now >= self.heartbeat_at
    }

    /// Notes a write: the next heartbeat is due at `heartbeat_at`.
    pub(super) const fn wrote(&mut self, heartbeat_at: Instant) {
        self.heartbeat_at = heartbeat_at;
    }

    /// Notes that the store did not answer.
    pub(super) fn pause(&mut self, now: Instant) {
        self.paused_until = Some(now + self.backoff.mul_f64(rand::rng().random_range(0.5..1.0)));
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }

    /// Notes that the store answered.
    pub(super) const fn reset_backoff(&mut self) {
        self.backoff = MIN_BACKOFF;
    }

    /// Whether a pause has begun that [`Self::resume`] has not ended.
    pub(super) const fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// Ends a pause whose time has come; `false` while one lasts.
    pub(super) fn resume(&mut self, now: Instant) -> bool {
        if self.paused_until.is_some_and(|until| now < until) {
            return false;
        }
        self.paused_until = None;
        true
    }
}
