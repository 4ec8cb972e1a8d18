//! What a node says of itself on its admin port.

use strongroom::escrow::ids::NodeId;

use crate::common::{TestCluster, try_page};

/// A number of a node's metrics; `name` with its labels.
pub async fn metric(test: &TestCluster, node: NodeId, name: &str) -> f64 {
    try_metric(test, node, name).await.unwrap_or_else(|| panic!("{name} of node {node}"))
}

/// As [`metric`]; `None` while the node does not answer, or does not know it yet.
pub async fn try_metric(test: &TestCluster, node: NodeId, name: &str) -> Option<f64> {
    let (_, page) = try_page(&test.admin(node), "/metrics", "*/*").await?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line?.parse().ok()
}
