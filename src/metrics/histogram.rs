//! Times in buckets, without a lock.
//!
//! `prometheus-client`'s own histogram takes a mutex to observe and holds it while it is written out, so that a scrape
//! could hold up whoever waits for the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::text::{Metric, Sample, Values};

/// Upper ends of the buckets for what takes microseconds to seconds, in microseconds.
const SHORT_MICROS: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];
/// The same for what takes milliseconds to minutes.
const LONG_MICROS: [u64; 13] = [
    1_000,
    5_000,
    25_000,
    100_000,
    250_000,
    1_000_000,
    2_500_000,
    5_000_000,
    15_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
];

/// Times in buckets. Clones share them.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds_micros: &'static [u64],
    /// One for each bound, and one for what is longer than all.
    buckets: Box<[AtomicU64]>,
    /// Wraps after 584 years.
    sum_nanos: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The sum of all times, in seconds.
    pub sum: f64,
    /// How many lay at or below each bound (seconds) and above the one before; the last bound is infinity.
    pub buckets: Vec<(f64, u64)>,
}

impl Observed {
    /// How many times were observed.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

impl Histogram {
    /// For what takes microseconds to seconds: a write, a request.
    pub fn of_short_times() -> Self {
        Self::with_bounds(&SHORT_MICROS)
    }

    /// For what takes milliseconds to minutes: a snapshot.
    pub fn of_long_times() -> Self {
        Self::with_bounds(&LONG_MICROS)
    }

    fn with_bounds(bounds_micros: &'static [u64]) -> Self {
        let buckets = (0..=bounds_micros.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds_micros, buckets, sum_nanos: AtomicU64::new(0) }))
    }

    /// Takes one in: two atomic additions.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.0.bounds_micros.partition_point(|micros| micros * 1_000 < nanos);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was observed so far. One that is observed meanwhile may be in the sum only, or in the count only.
    pub fn observed(&self) -> Observed {
        let bounds = self.0.bounds_micros.iter().map(|micros| *micros as f64 / 1e6);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        Observed {
            sum: self.0.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
            buckets: bounds.chain([f64::INFINITY]).zip(counts).collect(),
        }
    }

    /// It as a metric without labels.
    pub(super) fn metric(&self, name: &'static str, help: &'static str) -> Metric {
        let sample = Sample { labels: Vec::new(), value: self.observed() };
        Metric { name, help, values: Values::Histogram(vec![sample]) }
    }
}
