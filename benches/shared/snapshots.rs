//! Snapshots of all nodes. Nobody can ask for one: a node writes it when its log has become heavy, beside its state. So the
//! log is filled, as fast as it goes and without a change of what the state weighs, until snapshots are written.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use strongroom::client::Client;
use strongroom::escrow::ids::{NodeId, Timestamp};

use crate::common::{ALL, TestCluster};
use crate::steady::{Steady, Tally};
use crate::upload::upload;

/// Between two looks at whether a snapshot is written.
const POLL: Duration = Duration::from_millis(2);
/// A node looks every second whether it should write one: those that follow at once belong together.
const TOGETHER: Duration = Duration::from_millis(1_500);
/// Longest until every node has written one, before the bench gives up: the disk may be full.
const SNAPSHOTS_MAX: Duration = Duration::from_secs(3_600);
/// Machines that fill the log, all at once and an entry each: few, so that hardly anything is under way when a snapshot
/// begins. Larger entries would stay on the disk, of which many are kept behind a snapshot.
const HEAVY: u64 = 8;
/// Volumes of each.
const VOLUMES: u64 = 64;

/// Has every node write a snapshot, and escrows while any of them does. Says how long that was in all.
pub async fn written(test: &TestCluster, steady: &mut Steady, tally: &mut Tally, at: u64) -> Duration {
    let before = ALL.map(|node| snapshots(test, node, "snapshot"));
    let has_new = || ALL.iter().zip(&before).all(|(node, old)| snapshots(test, *node, "snapshot") != *old);
    let mut filler = Filler { client: test.client("importer", &ALL), at };
    let (began, mut took) = (Instant::now(), Duration::ZERO);
    while !has_new() {
        assert!(began.elapsed() < SNAPSHOTS_MAX, "not every node writes a snapshot");
        while !is_writing(test) && !has_new() && began.elapsed() < SNAPSHOTS_MAX {
            filler.fill().await;
        }
        while begins_within(test, TOGETHER).await {
            let began = Instant::now();
            steady.during(tally, end(test)).await;
            took += began.elapsed();
        }
    }
    took
}

fn is_writing(test: &TestCluster) -> bool {
    ALL.iter().any(|node| !snapshots(test, *node, "tmp").is_empty())
}

/// The names of a node's snapshots that end in `.extension`: `snapshot` for the newest one, `tmp` while one is written.
fn snapshots(test: &TestCluster, node: NodeId, extension: &str) -> Vec<OsString> {
    let data = test.cluster.layout().node(node).expect("a node").data_path();
    let entries = std::fs::read_dir(data.join("snapshots")).expect("there are snapshots");
    let names = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
    names.filter(|name| name.extension().is_some_and(|found| found == extension)).map(Into::into).collect()
}

async fn begins_within(test: &TestCluster, time: Duration) -> bool {
    let began = Instant::now();
    while !is_writing(test) {
        if began.elapsed() > time {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

async fn end(test: &TestCluster) {
    while is_writing(test) {
        tokio::time::sleep(POLL).await;
    }
}

/// Says more and more of the same few machines.
struct Filler {
    client: Client,
    at: u64,
}

impl Filler {
    async fn fill(&mut self) {
        let documents: Vec<_> = (0..HEAVY).map(|machine| [self.document(machine)]).collect();
        join_all(documents.iter().map(|document| upload(&self.client, document))).await;
    }

    /// A document as large as they come, and new: the labels are others.
    fn document(&mut self, machine: u64) -> String {
        self.at += 1;
        let at = Timestamp(self.at);
        let label = format!("{:>0100}", self.at);
        let mut volumes = String::new();
        for volume in 0..VOLUMES {
            let comma = if volume == 0 { "" } else { "," };
            let _ = write!(
                volumes,
                r#"{comma}{{"volume":"V{volume}:","kind":"fixed","label":"{label}","protection":"on","conversion":"encrypted"}}"#
            );
        }
        format!(
            r#"{{"machine":"HEAVY-{machine}","at":"{at}","policy":{{"enforcement":"enforced"}},"volumes":[{volumes}]}}"#
        )
    }
}
