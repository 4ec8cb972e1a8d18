use std::time::Duration;

use super::*;

#[test]
fn a_time_is_counted_in_the_first_bucket_that_holds_it() {
    let histogram = Histogram::of_short_times();
    for micros in [0, 10, 11, 1_000, 10_000_000] {
        histogram.observe(Duration::from_micros(micros));
    }
    let observed = histogram.observed();
    let counted: Vec<_> = observed.buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
    assert_eq!(counted, [(0.000_01, 2), (0.000_025, 1), (0.001, 1), (f64::INFINITY, 1)]);
    assert_eq!(observed.count(), 5);
    assert!((observed.sum - 10.001_021).abs() < 1e-9, "{}", observed.sum);
}

#[test]
fn two_nodes_in_one_process_count_apart_and_clones_together() {
    let (one, other) = (Metrics::default(), Metrics::default());
    one.clone().escrows.count(EscrowOutcome::Kept);
    one.raft.commit.clone().observe(Duration::from_millis(1));
    assert_eq!(one.escrows.counted(EscrowOutcome::Kept), 1);
    assert_eq!(one.raft.commit.observed().count(), 1);
    assert_eq!(other.escrows.counted(EscrowOutcome::Kept), 0);
}

#[test]
fn an_unknown_path_makes_no_new_series() {
    let requests = RequestMetrics::default();
    let series = |requests: &RequestMetrics| match &requests.collect()[0].values {
        Values::Counter(samples) => samples.len(),
        other => panic!("{other:?}"),
    };
    let before = series(&requests);
    for n in 0..100 {
        requests.method(&format!("/made.up/{n}")).answered(12, Duration::ZERO);
    }
    assert_eq!(series(&requests), before + 1, "one code more of the one unknown method");
    let known = requests.method("/strongroom.v1.EscrowService/Escrow");
    assert_eq!((known.service, known.method), ("EscrowService", "Escrow"));
}

#[test]
fn a_connection_is_counted_while_it_is_open() {
    let connections = ConnectionMetrics::default();
    let open = connections.open(PortName::Api);
    let count = || connections.open[PortName::Api.index()].get();
    assert_eq!(count(), 1);
    drop(open);
    assert_eq!(count(), 0);
    assert_eq!(connections.accepted.counted(PortName::Api), 1);
}

#[test]
fn both_formats_say_the_same() {
    let histogram = Histogram::of_long_times();
    histogram.observe(Duration::from_millis(2));
    let metrics = || {
        vec![
            Metric::counter("a_things", "Things.", 3),
            Metric::gauge("a_level", "A level.", 1.5),
            Metric { name: "a_build", help: "It.", values: Values::Info(vec![("version", "1".into())]) },
            histogram.metric("a_duration_seconds", "A time."),
        ]
    };
    let open = encode(metrics(), Format::OpenMetrics);
    assert!(
        open.starts_with("# HELP a_things Things.\n# TYPE a_things counter\na_things_total 3\n"),
        "{open}"
    );
    assert!(open.contains("# TYPE a_build info\na_build_info{version=\"1\"} 1\n"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    let plain = encode(metrics(), Format::Prometheus);
    assert!(
        plain.starts_with("# HELP a_things_total Things.\n# TYPE a_things_total counter\na_things_total 3\n")
    );
    assert!(
        plain.contains("# HELP a_build_info It.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n")
    );
    assert!(plain.contains("a_duration_seconds_bucket{le=\"0.005\"} 1\n"), "{plain}");
    assert!(
        plain.contains("a_duration_seconds_bucket{le=\"+Inf\"} 1\n") && !plain.contains("# EOF"),
        "{plain}"
    );
    assert_eq!(samples(&open), samples(&plain));
}

fn samples(page: &str) -> Vec<&str> {
    page.lines().filter(|line| !line.starts_with('#')).collect()
}
