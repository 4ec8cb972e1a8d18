//! What each node takes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use strongroom::escrow::ids::NodeId;

use crate::common::{ALL, TestCluster};
use crate::machines::{bytes_under, memory_mib};
use crate::metrics::metric;

/// A node looks at what it takes every two seconds.
const LOOK: Duration = Duration::from_secs(3);

/// A node looks every half a minute whether its base is due to be written anew; that little is written it knows by the
/// second look.
const LOOKS_FOR_COMPACTION: Duration = Duration::from_secs(65);
/// Between two looks of ours at whether one is being written.
const POLL: Duration = Duration::from_millis(500);
/// Longest that it may take, before the bench gives up.
const COMPACTION_MAX: Duration = Duration::from_secs(1_800);

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

/// Waits, while nothing is written, until every node has written its base anew that was to, and prints for how long any
/// of them did.
pub async fn compacted(test: &TestCluster) {
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        let is_any = ALL.iter().any(|node| is_compacting(&data(test, *node)));
        if !is_any && began.elapsed() >= LOOKS_FOR_COMPACTION {
            break;
        }
        assert!(began.elapsed() < COMPACTION_MAX, "a base is written anew without an end");
        if is_any {
            longest += POLL;
        }
        tokio::time::sleep(POLL).await;
    }
    println!("bases written anew {:>37.1} s", longest.as_secs_f64());
}

/// Whether there is a second database beside the one in use.
fn is_compacting(data: &Path) -> bool {
    let entries = std::fs::read_dir(data.join("base")).expect("there is a base");
    let names = entries.flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().parse::<u64>().is_ok()).count() > 1
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
