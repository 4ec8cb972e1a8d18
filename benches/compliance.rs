//! Compliance of many machines: `cargo bench --bench compliance [-- MACHINES]`.
//!
//! A cluster of real processes takes what so many machines say (20,000 unless said otherwise), two volumes each, by the
//! stream; then one node makes the reports. `STRONGROOM_PROGRAM` measures another binary than the one that is built with
//! the bench. Printed are rates, what a node takes, and how long the overview and all details as CSV took.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "shared/machines.rs"]
mod machines;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{ALL, TestCluster};
use machines::{bytes_under, document, memory_mib};
use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::client::ClientError;
use strongroom::escrow::features::FeatureLevel;

/// Machines if nothing is said.
const MACHINES: u64 = 20_000;
/// Documents handed to the client at once, and such calls under way.
const ROUND: u64 = 4_096;
const UPLOADERS: u64 = 2;
/// 2026-02-01T00:00:00Z, when the first of them speaks.
const BEGINNING_MS: u64 = 1_769_904_000_000;

#[tokio::main]
async fn main() {
    // `cargo bench` passes a flag of its own.
    let machines = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(MACHINES);
    let test = cluster().await;
    let load = upload(&test, machines, BEGINNING_MS).await;
    println!("{machines} machines taken, {}", load.text(machines));
    test.cluster.wait_settled(&ALL).await.expect("settled");
    show_node(&test, "after that");
    for report in [
        &["enterprise", "--format", "csv"][..],
        &["enterprise", "--details", "--format", "csv"],
        &["enterprise", "--details", "--format", "csv", "--sort", "model"],
        &["enterprise", "--format", "csv", "--as-of", "2026-02-01T12:00:00Z"],
        &["findings", "--format", "csv"],
    ] {
        let (took, lines) = make(&test, report);
        println!("report {}: {lines} lines in {:.2} s", report.join(" "), took.as_secs_f64());
    }
    show_node(&test, "after the reports");
    let load = upload(&test, machines, BEGINNING_MS + 60_000).await;
    println!("{machines} machines that say nothing new, {}", load.text(machines));
    test.cluster.wait_settled(&ALL).await.expect("settled");
    show_node(&test, "after that");
}

/// How an upload went.
struct Upload {
    took: Duration,
    /// Calls that were made again, because the cluster did not take them in time.
    again: u64,
}

impl Upload {
    fn text(&self, machines: u64) -> String {
        format!("{} a second, {} calls made again", rate(machines, self.took), self.again)
    }
}

fn rate(machines: u64, took: Duration) -> u64 {
    (machines as f64 / took.as_secs_f64()) as u64
}

async fn cluster() -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory");
    let program = std::env::var_os("STRONGROOM_PROGRAM").map_or_else(common::program, PathBuf::from);
    let plan = ClusterPlan { nodes: 3, ..common::plan("") };
    let mut cluster = LocalCluster::open_or_create(dir.path(), &plan, program).expect("a layout");
    cluster.form().await.expect("a cluster forms");
    let allowed =
        |status: &strongroom::proto::StatusResponse| status.feature_level >= FeatureLevel::COMPLIANCE.0;
    cluster.wait_for("the feature level", common::SOON, &ALL, allowed).await.expect("raised");
    TestCluster { cluster, dir }
}

async fn upload(test: &TestCluster, machines: u64, at: u64) -> Upload {
    let began = Instant::now();
    let mut uploaders = tokio::task::JoinSet::new();
    for uploader in 0..UPLOADERS {
        let client = test.client("importer", &ALL);
        uploaders.spawn(async move {
            let (mut first, mut again) = (uploader * ROUND, 0);
            while first < machines {
                let last = machines.min(first + ROUND);
                let documents: Vec<String> = (first..last).map(|n| document(n, at)).collect();
                let outcomes = loop {
                    match client.put_compliance_many(&documents).await {
                        Ok(outcomes) => break outcomes,
                        // Safe to do again; what was taken is repeated then.
                        Err(ClientError::Unavailable { .. }) => again += 1,
                        Err(error) => panic!("{error}"),
                    }
                };
                assert!(outcomes.iter().all(|outcome| ["newest", "repeated"].contains(&&*outcome.outcome)));
                first += UPLOADERS * ROUND;
            }
            again
        });
    }
    let mut again = 0;
    while let Some(ended) = uploaders.join_next().await {
        again += ended.expect("no uploader fails");
    }
    Upload { took: began.elapsed(), again }
}

/// Makes a report at node 1 by the command line, and counts its lines.
fn make(test: &TestCluster, report: &[&str]) -> (Duration, usize) {
    let layout = test.cluster.layout();
    let began = Instant::now();
    let mut child = Command::new(common::program())
        .arg("report")
        .args(report)
        .env("STRONGROOM_ENDPOINTS", layout.node(1).expect("a node").api_address())
        .env("STRONGROOM_PROFILE", layout.profile("auditor"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().count();
    assert!(child.wait().expect("it ends").success(), "{report:?}");
    (began.elapsed(), lines)
}

/// Memory and disk of node 1.
fn show_node(test: &TestCluster, when: &str) {
    let pid = test.cluster.pid(1).expect("it runs");
    let (memory, most) = memory_mib(&pid.to_string());
    let data = test.cluster.layout().node(1).expect("a node").data_path();
    let disk = bytes_under(&data) >> 20;
    println!("  {when}: node 1 has {memory} MiB of memory (at most {most} MiB so far), {disk} MiB of disk");
}
