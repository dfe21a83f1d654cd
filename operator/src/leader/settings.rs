//! How the lease is held, and which times fit together.

use std::time::Duration;

/// How the lease is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Name of this operator in the lease; no other operator has the same.
    pub(crate) identity: String,
    /// How long others wait after the last renewal that they saw. Whole seconds.
    pub(crate) lease_duration: Duration,
    /// How long we act after our last renewal.
    pub(crate) renew_deadline: Duration,
    /// Pause between two attempts.
    pub(crate) retry_period: Duration,
}

impl Settings {
    /// Refuses times with which two could act at once, or a renewal could not be tried twice.
    ///
    /// # Errors
    /// What to change.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let Self { name, lease_duration, renew_deadline, retry_period, .. } = self;
        if lease_duration.subsec_nanos() != 0 || lease_duration.is_zero() {
            return Err(format!(
                "--lease-duration is {lease_duration:?}: must be whole seconds, as a Lease has them"
            ));
        }
        if renew_deadline >= lease_duration {
            return Err(format!(
                "--renew-deadline ({renew_deadline:?}) must be shorter than --lease-duration ({lease_duration:?})"
            ));
        }
        if retry_period >= renew_deadline || retry_period.is_zero() {
            return Err(format!(
                "--retry-period ({retry_period:?}) must be shorter than --renew-deadline ({renew_deadline:?}), and not 0"
            ));
        }
        let is_name = |label: &str| {
            let bytes = label.as_bytes();
            let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
            !bytes.is_empty()
                && bytes.iter().all(inner)
                && bytes.first() != Some(&b'-')
                && bytes.last() != Some(&b'-')
        };
        if name.len() > 253 || !name.split('.').all(is_name) {
            return Err(format!(
                "--lease-name is {name:?}: must be a DNS subdomain of lower-case letters, digits, '-' and '.'"
            ));
        }
        Ok(())
    }

    /// Longest wait for one answer: the deadline leaves room for a second attempt on a new
    /// connection.
    pub(super) fn request_limit(&self) -> Duration {
        self.renew_deadline / 2
    }
}
