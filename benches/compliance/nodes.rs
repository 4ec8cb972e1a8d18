//! What each node takes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom::escrow::ids::NodeId;

use crate::common::{ALL, TestCluster};
use crate::machines::{bytes_under, memory_mib};
use crate::metrics::metric;

/// A node looks at what it takes every two seconds.
const LOOK: Duration = Duration::from_secs(3);

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// Prints what each node takes, in MiB: the keys and values of its rows, the files of its log, base and snapshots, all files
/// of its data directory, and memory now and at most since this was last printed.
pub async fn show(test: &TestCluster, when: &str) {
    tokio::time::sleep(LOOK).await;
    let columns = ["payload", "log", "base", "snaps", "disk", "times", "memory", "peak"];
    println!("{:<24}{}", format!("MiB {when}"), columns.map(|column| format!("{column:>7}")).concat());
    for node in ALL {
        let payload = metric(test, node, "strongroom_state_bytes").await;
        let data = data(test, node);
        let [log, base, snapshots] = ["log", "base", "snapshots"].map(|part| mib_under(&data.join(part)));
        let (payload, disk) = (payload / MIB, mib_under(&data));
        let pid = test.cluster.pid(node).expect("it runs").to_string();
        let (memory, peak) = memory_mib(&pid);
        println!(
            "{:<24}{payload:>7.1}{log:>7.1}{base:>7.1}{snapshots:>7.1}{disk:>7.1}{:>7.2}{memory:>7}{peak:>7}",
            format!("  node {node}"),
            disk / payload,
        );
        forget_peak(&pid);
    }
}

/// MiB of all files below `path`.
pub fn mib_under(path: &Path) -> f64 {
    bytes_under(path) as f64 / MIB
}

/// Begins the peak of a process's memory anew. Where the system does not let us, it stays that since the start.
fn forget_peak(pid: &str) {
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// The data directory of a node.
pub fn data(test: &TestCluster, node: NodeId) -> PathBuf {
    test.cluster.layout().node(node).expect("a node").data_path()
}
