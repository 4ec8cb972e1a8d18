//! What nodes have written to their logs.

use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom::escrow::ids::NodeId;

use super::{SOON, TestCluster};

/// Between two looks at a log.
const POLL: Duration = Duration::from_millis(20);

impl TestCluster {
    /// Everything a node has written to its log.
    pub fn log(&self, node: NodeId) -> String {
        let path = self.cluster.layout().node(node).expect("a node").log_path();
        std::fs::read_to_string(path).expect("its log")
    }

    /// The lines of a node's log that are JSON documents: what is written before logging begins is not.
    pub fn log_lines(&self, node: NodeId) -> Vec<Value> {
        self.log(node).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until a node's log says `what`.
    pub async fn logs(&self, node: NodeId, what: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            let log = self.log(node);
            if log.contains(what) {
                return;
            }
            assert!(Instant::now() < deadline, "the log of node {node} does not say {what:?}:\n{log}");
            tokio::time::sleep(POLL).await;
        }
    }
}
