//! Metrics as text.
//!
//! `prometheus-client` writes OpenMetrics 1.0, so that escaping and suffixes are right. Who does not ask for that gets
//! the older text format of Prometheus, which differs in a few words of the comments, and which every tool reads.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::histogram::Observed;

/// One metric and its values now.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name, for a counter without the trailing `_total`, for an info without `_info`: lower-case letters, digits
    /// and underscores, with the unit at the end where there is one (`_seconds`, `_bytes`).
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
    /// Times in buckets.
    Histogram(Vec<Sample<Observed>>),
    /// Text that does not change while the process runs.
    Info(Vec<(&'static str, String)>),
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

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, 0.0.4.
    Prometheus,
}

impl Format {
    /// The one to answer a request with that has this `Accept` header.
    pub fn accepted_by(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All `metrics` as text.
pub fn encode(metrics: Vec<Metric>, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(metrics)));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("writing to a string cannot fail");
    match format {
        Format::OpenMetrics => page,
        Format::Prometheus => without_openmetrics(&page),
    }
}

/// The same in the older format: a counter and an info have their suffix in the comments too, and there is no end mark.
fn without_openmetrics(page: &str) -> String {
    let mut lines = String::with_capacity(page.len() + page.len() / 8);
    let mut help = None;
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|text| text.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, text)) = help.take() {
                lines.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            lines.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    lines
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
                Values::Histogram(samples) => {
                    encode_samples(&mut encoder, name, help, samples, |value| Buckets(value.clone()))?;
                }
                Values::Info(labels) => {
                    let info = Info::new(labels.clone());
                    info.encode(encoder.encode_descriptor(name, help, None, info.metric_type())?)?;
                }
            }
        }
        Ok(())
    }
}

/// A histogram as the library writes it.
struct Buckets(Observed);

impl EncodeMetric for Buckets {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.0.sum, self.0.count(), &self.0.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
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
