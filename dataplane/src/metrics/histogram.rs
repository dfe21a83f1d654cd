//! A histogram of latencies that takes many equal observations at once: one write of a fan-out
//! thread is a delivery to thousands of subscribers, and `prometheus_client`'s own histogram would
//! be locked for each.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Buckets: 1 ms, 2 ms, … 32.768 s, and one for the rest.
const BUCKETS: usize = 17;

#[derive(Debug, Default)]
struct Counts {
    sum: f64,
    count: u64,
    buckets: [u64; BUCKETS],
}

/// Seconds, from 1 ms to 32 s in powers of two.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram(Arc<Mutex<Counts>>);

/// Upper bound of a bucket, seconds.
fn bound(bucket: usize) -> f64 {
    if bucket + 1 == BUCKETS { f64::INFINITY } else { 0.001 * f64::from(1u32 << bucket) }
}

impl Histogram {
    /// Counts `count` observations of `seconds`.
    pub(crate) fn observe(&self, seconds: f64, count: u64) {
        let bucket = (0..BUCKETS).find(|bucket| seconds <= bound(*bucket)).unwrap_or(BUCKETS - 1);
        let mut counts = self.0.lock();
        counts.sum += seconds * count as f64;
        counts.count += count;
        counts.buckets[bucket] += count;
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts = self.0.lock();
        let buckets: Vec<(f64, u64)> =
            counts.buckets.iter().enumerate().map(|(i, count)| (bound(i), *count)).collect();
        encoder.encode_histogram::<NoLabelSet>(counts.sum, counts.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn many_at_once_count_as_many() {
        let histogram = Histogram::default();
        histogram.observe(0.001, 3);
        histogram.observe(0.0011, 1);
        histogram.observe(100.0, 2);
        let mut registry = Registry::default();
        registry.register("h", "help", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "h_count 6",
            "h_bucket{le=\"0.001\"} 3",
            "h_bucket{le=\"0.002\"} 4",
            "h_bucket{le=\"32.768\"} 4",
            "h_bucket{le=\"+Inf\"} 6",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
