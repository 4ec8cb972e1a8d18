//! Metrics and their text form.
//!
//! The text is OpenMetrics 1.0, which Prometheus and everything that scrapes in its stead reads; `prometheus-client`
//! writes it, so that escaping and suffixes are right. Metrics are read off the node when they are asked for, and
//! not kept in a registry beside it: there is nothing to fall out of step.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// What every metric's name begins with, followed by an underscore.
const PREFIX: &str = "strongroom";

/// The media type of [`encode`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One metric and its values now.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name without the leading `strongroom_` and, for a counter, without the trailing `_total`: lower-case
    /// letters, digits and underscores, with the unit at the end where there is one (`_seconds`, `_bytes`).
    pub name: &'static str,
    /// What it says, as one sentence without line breaks.
    pub help: &'static str,
    /// Its values.
    pub values: Values,
}

/// The values of a metric, one for each set of labels.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Only grows while the process runs.
    Counter(Vec<Sample<u64>>),
    /// Goes up and down.
    Gauge(Vec<Sample<f64>>),
}

/// One value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<T> {
    /// What tells it from the metric's other values: names like those of metrics, any text. Of a bounded number:
    /// never a machine, a user or a key.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: T,
}

impl Metric {
    /// A counter without labels.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, values: Values::Counter(vec![Sample { labels: Vec::new(), value }]) }
    }

    /// A gauge without labels.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { name, help, values: Values::Gauge(vec![Sample { labels: Vec::new(), value }]) }
    }
}

/// All `metrics` as text.
pub(super) fn encode(metrics: Vec<Metric>) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape(metrics)));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("writing to a string cannot fail");
    page
}

/// The metrics of one scrape.
#[derive(Debug)]
struct Scrape(Vec<Metric>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, values } in &self.0 {
            match values {
                Values::Counter(samples) => {
                    encode_samples(&mut encoder, name, help, samples, |value| ConstCounter::new(*value))?;
                }
                Values::Gauge(samples) => {
                    encode_samples(&mut encoder, name, help, samples, |value| ConstGauge::new(*value))?;
                }
            }
        }
        Ok(())
    }
}

fn encode_samples<T, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: &[Sample<T>],
    metric: impl Fn(&T) -> M,
) -> fmt::Result {
    let Some(first) = samples.first() else { return Ok(()) };
    let first_metric = metric(&first.value);
    let mut encoder = encoder.encode_descriptor(name, help, None, first_metric.metric_type())?;
    if samples.len() == 1 && first.labels.is_empty() {
        return first_metric.encode(encoder);
    }
    for Sample { labels, value } in samples {
        metric(value).encode(encoder.encode_family(labels)?)?;
    }
    Ok(())
}
