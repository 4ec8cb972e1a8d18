//! The start of a node that was away: until it says that it is ready, and until it has what the others have committed.

use std::time::{Duration, Instant};

use strongroom::cli::local_cluster::LocalClusterError;
use strongroom::escrow::ids::NodeId;

use crate::common::{ALL, TestCluster, try_page};
use crate::metrics::{metric, try_metric};

/// Between two questions.
const POLL: Duration = Duration::from_millis(10);
/// Longest a restart may take before the bench gives up.
const RESTART_MAX: Duration = Duration::from_secs(600);

/// How long after its start a node was so far.
pub struct Started {
    /// Its admin port answers.
    pub answers: Duration,
    /// It says that it is ready.
    pub ready: Duration,
    /// It has applied what was committed when it was started.
    pub caught_up: Duration,
}

/// Starts a node of a cluster of three that goes on without it.
pub async fn start(test: &mut TestCluster, node: NodeId) -> Started {
    let mut committed = 0.0_f64;
    for other in ALL.into_iter().filter(|other| *other != node) {
        committed = committed.max(metric(test, other, "strongroom_raft_committed_index").await);
    }
    let began = Instant::now();
    match test.cluster.start(node).await {
        // It may be on its way all the same.
        Ok(()) | Err(LocalClusterError::Late { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let answers = began.elapsed();
    let has_caught_up = async || {
        try_metric(test, node, "strongroom_raft_applied_index").await.is_some_and(|index| index >= committed)
    };
    let (ready, caught_up) =
        tokio::join!(until(began, async || is_ready(test, node).await), until(began, has_caught_up));
    Started { answers, ready, caught_up }
}

async fn is_ready(test: &TestCluster, node: NodeId) -> bool {
    try_page(&test.admin(node), "/readyz", "*/*").await.is_some_and(|(code, _)| code == 200)
}

/// How long after `began` it holds.
async fn until(began: Instant, holds: impl AsyncFn() -> bool) -> Duration {
    while !holds().await {
        assert!(began.elapsed() < RESTART_MAX, "it does not come back");
        tokio::time::sleep(POLL).await;
    }
    began.elapsed()
}
