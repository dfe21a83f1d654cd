//! Latencies, counted in buckets of at most 3 % width.

use std::time::Duration;

/// Buckets to each power of two.
const STEPS: u64 = 32;
const BUCKETS: usize = 32 * STEPS as usize;

/// Counts of durations from 1 µs to an hour.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros).min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// What was counted: pairs of a bucket and its count.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    /// Adds what another one has counted.
    pub(crate) fn merge(&mut self, counts: impl IntoIterator<Item = (usize, u64)>) {
        for (bucket, count) in counts {
            self.counts[bucket] += count;
            self.total += count;
        }
    }

    /// The duration that `share` of all do not pass, milliseconds.
    pub(crate) fn quantile_millis(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return upper(index as u64) as f64 / 1000.0;
            }
        }
        f64::NAN
    }
}

/// Values below `STEPS` have a bucket each; above, each power of two is divided into `STEPS`.
fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let power = u64::from(micros.ilog2() - STEPS.ilog2());
    (power * STEPS + (micros >> power)) as usize
}

/// The greatest value of a bucket.
const fn upper(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let power = bucket / STEPS - 1;
    (((bucket - power * STEPS) + 1) << power) - 1
}

/// Every value lies in a bucket whose upper end is at most 1/32 above it.
pub(crate) fn self_test() -> Result<(), String> {
    for micros in (0..100_000).chain([1 << 20, 3_600_000_000]) {
        let upper = upper(bucket(micros) as u64);
        if upper < micros || upper - micros > micros / STEPS {
            return Err(format!("{micros} µs is counted as {upper} µs"));
        }
    }
    Ok(())
}
