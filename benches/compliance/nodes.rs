//! What each node takes, and what it says of itself on its admin port.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom::escrow::ids::NodeId;

use crate::common::{ALL, TestCluster, try_page};
use crate::machines::{bytes_under, memory_mib};

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

/// The data directory of a node.
pub fn data(test: &TestCluster, node: NodeId) -> PathBuf {
    test.cluster.layout().node(node).expect("a node").data_path()
}

/// The names of a node's snapshots that end in `.extension`: `snapshot` for the newest one, `tmp` while one is written.
pub fn snapshots(test: &TestCluster, node: NodeId, extension: &str) -> Vec<OsString> {
    let entries = std::fs::read_dir(data(test, node).join("snapshots")).expect("there are snapshots");
    let names = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
    names.filter(|name| name.extension().is_some_and(|found| found == extension)).map(Into::into).collect()
}
