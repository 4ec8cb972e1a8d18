use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use tower::ServiceExt;

use super::*;
use crate::metrics::{Sample, Values};

/// As Prometheus asks, shortened.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2";

#[derive(Clone)]
struct Node {
    ready: Result<(), Vec<String>>,
    metrics: Vec<Metric>,
}

impl Admin for Node {
    fn ready(&self) -> Result<(), Vec<String>> {
        self.ready.clone()
    }

    fn metrics(&self) -> Vec<Metric> {
        self.metrics.clone()
    }
}

fn node() -> Node {
    Node { ready: Ok(()), metrics: Vec::new() }
}

async fn ask(node: Node, method: Method, path: &str) -> (StatusCode, String, String) {
    let request =
        Request::builder().method(method).uri(path).header(ACCEPT, PROMETHEUS).body(Body::empty()).unwrap();
    let response = admin(node).oneshot(request).await.unwrap();
    let status = response.status();
    let content_type = response
        .headers()
        .get(CONTENT_TYPE)
        .map(|value| value.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, content_type, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_process_that_answers_is_alive_even_if_it_is_not_ready() {
    let node = Node { ready: Err(vec!["no leader known".into()]), ..node() };
    let (status, content_type, body) = ask(node, Method::GET, "/livez").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "ok\n"));
    assert!(content_type.starts_with("text/plain"), "{content_type}");
}

#[tokio::test]
async fn a_ready_node_says_so() {
    let (status, _, body) = ask(node(), Method::GET, "/readyz").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "ready\n"));
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_every_reason_in_plain_text() {
    let node = Node { ready: Err(vec!["no leader known".into(), "data_dir: disk full".into()]), ..node() };
    let (status, content_type, body) = ask(node, Method::GET, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "not ready\nno leader known\ndata_dir: disk full\n");
    assert!(content_type.starts_with("text/plain"), "{content_type}");
}

#[tokio::test]
async fn metrics_are_written_as_prometheus_reads_them() {
    let peer =
        |zone: &str, value| Sample { labels: vec![("peer", "2".into()), ("zone", zone.into())], value };
    let metrics = vec![
        Metric::counter("strongroom_escrows", "Keys kept through this node.", 3),
        Metric::gauge("strongroom_applied_index", "Last log entry applied.", 41.0),
        Metric {
            name: "strongroom_peer_lag_entries",
            help: "Entries a peer lacks.",
            values: Values::Gauge(vec![peer("east", 0.0), peer("a\"b\\c\nd", 1.5)]),
        },
        Metric { name: "strongroom_nothing", help: "Has no values.", values: Values::Counter(Vec::new()) },
    ];
    let (status, content_type, body) = ask(Node { metrics, ..node() }, Method::GET, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let expected = r#"# HELP strongroom_escrows Keys kept through this node.
# TYPE strongroom_escrows counter
strongroom_escrows_total 3
# HELP strongroom_applied_index Last log entry applied.
# TYPE strongroom_applied_index gauge
strongroom_applied_index 41.0
# HELP strongroom_peer_lag_entries Entries a peer lacks.
# TYPE strongroom_peer_lag_entries gauge
strongroom_peer_lag_entries{peer="2",zone="east"} 0.0
strongroom_peer_lag_entries{peer="2",zone="a\"b\\c\nd"} 1.5
# EOF
"#;
    assert_eq!(body, expected);
}

#[tokio::test]
async fn other_pages_and_methods_are_refused() {
    let (status, _, body) = ask(node(), Method::GET, "/").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("/metrics"), "{body}");
    for path in ["/livez", "/readyz", "/metrics"] {
        let (status, ..) = ask(node(), Method::POST, path).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
}
