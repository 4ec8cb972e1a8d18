//! Requests, by the method that was called.
//!
//! The methods are those of this build's protocol; a path that is none of them counts as `unknown`, so that callers cannot
//! make new series.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::Histogram;
use super::text::{Metric, Sample, Values};
use crate::proto::METHODS;

/// The gRPC codes by number, as they are shown.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// What an unknown method is called.
const UNKNOWN: &str = "unknown";

/// Requests of all methods. Clones share it.
#[derive(Debug, Clone)]
pub struct RequestMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    by_path: HashMap<&'static str, MethodMetrics>,
    unknown: MethodMetrics,
}

/// Requests of one method. Clones share it.
#[derive(Debug, Clone)]
pub struct MethodMetrics {
    /// Name of its service, without the package.
    pub service: &'static str,
    /// Its name.
    pub method: &'static str,
    codes: Arc<[AtomicU64]>,
    /// Of one answer to one request; how long a stream lives says nothing.
    duration: Option<Histogram>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let by_path = METHODS
            .iter()
            .map(|(path, service, method, streams)| (*path, MethodMetrics::new(service, method, !streams)));
        Self(Arc::new(Inner {
            by_path: by_path.collect(),
            unknown: MethodMetrics::new(UNKNOWN, UNKNOWN, false),
        }))
    }
}

impl RequestMetrics {
    /// The method behind the path of a request.
    pub fn method(&self, path: &str) -> MethodMetrics {
        self.0.by_path.get(path).unwrap_or(&self.0.unknown).clone()
    }

    pub(super) fn collect(&self) -> Vec<Metric> {
        let mut methods: Vec<_> = self.0.by_path.values().chain([&self.0.unknown]).collect();
        methods.sort_by_key(|method| (method.service, method.method));
        let requests = methods.iter().flat_map(|method| method.requests()).collect();
        let durations = methods.iter().filter_map(|method| {
            let value = method.duration.as_ref()?.observed();
            Some(Sample { labels: method.labels(), value })
        });
        vec![
            Metric {
                name: "strongroom_requests",
                help: "Requests that were answered, by method and gRPC code; streams when they end.",
                values: Values::Counter(requests),
            },
            Metric {
                name: "strongroom_request_duration_seconds",
                help: "From a request's arrival until its answer was sent; not of streams.",
                values: Values::Histogram(durations.collect()),
            },
        ]
    }
}

impl MethodMetrics {
    fn new(service: &'static str, method: &'static str, timed: bool) -> Self {
        let codes = CODES.iter().map(|_| AtomicU64::new(0)).collect();
        Self { service, method, codes, duration: timed.then(Histogram::of_short_times) }
    }

    /// One was answered with this gRPC code, after so long.
    pub fn answered(&self, code: usize, took: Duration) {
        if let Some(count) = self.codes.get(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(duration) = &self.duration {
            duration.observe(took);
        }
    }

    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![("service", self.service.to_owned()), ("method", self.method.to_owned())]
    }

    /// Success from the start, other codes once there was one: most never come.
    fn requests(&self) -> Vec<Sample<u64>> {
        let counts =
            CODES.iter().zip(self.codes.iter()).map(|(code, count)| (code, count.load(Ordering::Relaxed)));
        counts
            .filter(|(code, count)| **code == "OK" || *count > 0)
            .map(|(code, value)| {
                let mut labels = self.labels();
                labels.push(("code", (*code).to_owned()));
                Sample { labels, value }
            })
            .collect()
    }
}
