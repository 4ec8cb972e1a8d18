//! Restarts of a node that leads nothing: until it says that it is ready, and until it has what the others have committed.

use std::time::{Duration, Instant};

use strongroom::cli::local_cluster::LocalClusterError;
use strongroom::escrow::ids::NodeId;

use crate::common::{ALL, TestCluster, try_page};
use crate::load::documents;
use crate::nodes::{data, metric, mib_under, try_metric};

/// Machines that speak before it goes, and again while it is away.
const SPEAKING: u64 = 4_096;
/// Between two questions.
const POLL: Duration = Duration::from_millis(10);
/// Longest a restart may take before the bench gives up.
const RESTART_MAX: Duration = Duration::from_secs(600);

/// Kills it as a power cut would and starts it again, and then the same with a stop; prints both.
pub async fn show_both(test: &mut TestCluster, machines: u64, at: u64) {
    let leader = test.leader().await;
    let node = *ALL.iter().find(|node| **node != leader).expect("there are three");
    let speaking = machines.min(SPEAKING);
    println!("{:<36} {:>9} {:>10} {:>10} {:>10}", "restart", "log MiB", "answers", "ready", "caught up");
    for (turn, kills) in [true, false].into_iter().enumerate() {
        let at = at + 2_000 * turn as u64;
        // What it has not brought to its disk yet has to be applied again.
        documents(test, speaking, at).await;
        let what = if kills { kill(test, node).await } else { stop(test, node).await };
        documents(test, speaking, at + 1_000).await;
        show(test, node, &what).await;
        test.cluster.wait_settled(&ALL).await.expect("settled");
    }
}

async fn kill(test: &mut TestCluster, node: NodeId) -> String {
    test.cluster.kill(node).await.expect("killed");
    format!("node {node} after kill -9")
}

async fn stop(test: &mut TestCluster, node: NodeId) -> String {
    let began = Instant::now();
    let how = if test.cluster.stop(node).await.expect("stopped") { "a stop" } else { "a stop that FAILED" };
    format!("node {node} after {how} ({:.2} s)", began.elapsed().as_secs_f64())
}

/// Starts a node, and prints how long that took.
async fn show(test: &mut TestCluster, node: NodeId, what: &str) {
    let log = mib_under(&data(test, node).join("log"));
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
    let [answers, ready, caught_up] = [answers, ready, caught_up].map(|took| took.as_secs_f64());
    println!("{what:<36} {log:>9.1} {answers:>8.2} s {ready:>8.2} s {caught_up:>8.2} s");
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
