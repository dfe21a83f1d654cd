//! Log lines that would repeat for as long as a fault lasts.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets one line through in each period, and counts those that it keeps back.
#[derive(Debug)]
pub(crate) struct Throttle {
    period: Duration,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    last: Option<Instant>,
    passed_over: u64,
}

impl Throttle {
    pub(crate) const fn new(period: Duration) -> Self {
        Self { period, lines: Mutex::new(Lines { last: None, passed_over: 0 }) }
    }

    /// `Some` when a line may be written now, with how many were passed over since the one before.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock();
        if lines.last.is_some_and(|last| now.saturating_duration_since(last) < self.period) {
            lines.passed_over += 1;
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.passed_over))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_period_and_a_count_of_the_others() {
        let throttle = Throttle::new(Duration::from_secs(1));
        let start = Instant::now();
        let at = |millis| throttle.admit_at(start + Duration::from_millis(millis));
        assert_eq!(at(0), Some(0), "the first one at once");
        assert_eq!((at(1), at(999)), (None, None));
        assert_eq!(at(1_000), Some(2));
        assert_eq!(at(1_999), None);
        assert_eq!(at(60_000), Some(1));
    }
}
