//! Restarts of a node that leads nothing: until it says that it is ready, and until it has what the others have committed.

use std::time::Instant;

use strongroom::escrow::ids::NodeId;

use crate::common::{ALL, TestCluster};
use crate::load::documents;
use crate::nodes::{data, mib_under};
use crate::restarted::{Started, start};

/// Machines that speak before it goes, and again while it is away.
const SPEAKING: u64 = 4_096;

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
    let Started { answers, ready, caught_up } = start(test, node).await;
    let [answers, ready, caught_up] = [answers, ready, caught_up].map(|took| took.as_secs_f64());
    println!("{what:<36} {log:>9.1} {answers:>8.2} s {ready:>8.2} s {caught_up:>8.2} s");
}
