//! Keys and compliance of many machines: `cargo bench --bench compliance [-- MACHINES]`.
//!
//! A cluster of three real processes takes so many machines (20,000 unless said otherwise) as a migration brings them:
//! first what a directory knows of them, then two recovery keys of each by the bulk path, then what they say, two volumes
//! each, by the stream. Most of them comply and their keys are in escrow. Of each fifty, one has a volume without a key in
//! escrow, one another protector than the one in escrow, and one said nothing for long; one in ten has a volume that is not
//! encrypted. Then one node makes reports of them, one is restarted, all machines say again what they said, and single
//! escrows come in at a steady rate. `STRONGROOM_PROGRAM` measures another binary than the one that is built with the bench.
//! Printed are:
//!
//! - the rate of each load, and how long each report took;
//! - for how long the nodes wrote their bases anew (compaction) once little was written, after the loads and at the end;
//! - after each of these, of each node: its payload, which is what the keys and values of its rows come to, the files of its
//!   log, base and snapshots, all files of its data directory and how many times the payload that is, its memory now, and at
//!   most since the last such table;
//! - of a follower that is killed, or stopped, right behind what machines said, and started again when more was said: how much
//!   log it had, and how long until its admin port answers, until it says that it is ready, and until it has applied what was
//!   committed when it was started;
//! - p50 and p99 of the steady escrows, by the time at which each was to begin: on a quiet cluster, while one node makes a
//!   report of all details as CSV, and while any node writes a snapshot, with the ratio to the quiet p99. For snapshots the log
//!   is filled beforehand until one is due; the escrows begin when it does. Part of that is still in the log of the last table,
//!   among the entries that are kept behind a snapshot.
//!
//! All of it runs on one machine, beside the bench, in the directory for temporary files (`TMPDIR`), which should be on a disk.
//! Compare figures of one run only.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "shared/keys.rs"]
mod keys;
#[path = "compliance/load.rs"]
mod load;
#[path = "shared/machines.rs"]
mod machines;
#[path = "shared/metrics.rs"]
mod metrics;
#[path = "compliance/nodes.rs"]
mod nodes;
#[path = "compliance/restart.rs"]
mod restart;
#[path = "shared/restart.rs"]
mod restarted;
#[path = "shared/running.rs"]
mod running;
#[path = "shared/snapshots.rs"]
mod snapshots;
#[path = "shared/steady.rs"]
mod steady;
#[path = "shared/upload.rs"]
mod upload;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{ALL, TestCluster};
use steady::{Steady, Tally};
use strongroom::escrow::ids::Timestamp;

/// Machines if nothing is said.
const MACHINES: u64 = 20_000;
/// How long before the bench began the machines speak: a day, so that none of it is too old to count.
const BEFORE_MS: u64 = 24 * 60 * 60 * 1_000;
/// As little log calls for a snapshot as may be set, so that with few machines there are some too. With many the share of
/// the state counts.
const CONFIG: &str = "[raft]\nsnapshot_log_bytes = 1048576\n";
/// For how long steady escrows are measured on a quiet cluster, and at least while reports are made.
const MEASURED: Duration = Duration::from_secs(20);
/// The largest of the reports.
const DETAILS: [&str; 4] = ["enterprise", "--details", "--format", "csv"];

#[tokio::main]
async fn main() {
    // `cargo bench` passes a flag of its own.
    let machines = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(MACHINES);
    let beginning = running::now_ms() - BEFORE_MS;
    let mut test = running::form(tempfile::tempdir().expect("a directory"), CONFIG).await;
    running::takes_compliance(&test).await;

    load::machines(&test, machines).await.show("machines imported");
    load::keys(&test, machines).await.show("keys imported");
    load::documents(&test, machines, beginning).await.show("documents taken");
    settled(&test, "after the load").await;
    nodes::compacted(&test).await;
    settled(&test, "written anew").await;
    reports(&test, beginning).await;
    settled(&test, "after the reports").await;
    restart::show_both(&mut test, machines, beginning + 10_000).await;
    load::documents(&test, machines, beginning + 60_000).await.show("documents, nothing new");
    settled(&test, "after nothing new").await;
    steady_escrows(&test, beginning + BEFORE_MS).await;
    settled(&test, "with new snapshots").await;
    nodes::compacted(&test).await;
    settled(&test, "written anew").await;
}

async fn settled(test: &TestCluster, when: &str) {
    test.cluster.wait_settled(&ALL).await.expect("settled");
    nodes::show(test, when).await;
}

async fn reports(test: &TestCluster, beginning: u64) {
    let as_of = Timestamp(beginning + BEFORE_MS / 2).to_string();
    for arguments in [
        &["enterprise", "--format", "csv"][..],
        &DETAILS,
        &["enterprise", "--details", "--format", "csv", "--sort", "model"],
        &["enterprise", "--format", "csv", "--as-of", &as_of],
        &["findings", "--format", "csv"],
    ] {
        let began = Instant::now();
        let lines = make(report(test, arguments)).await;
        let what = arguments.join(" ").replace(" --format csv", "").replace(&as_of, "TIME");
        println!("report {what:<46} {lines:>9} lines {:>8.2} s", began.elapsed().as_secs_f64());
    }
}

/// The command that makes a report at node 1.
fn report(test: &TestCluster, arguments: &[&str]) -> Command {
    let layout = test.cluster.layout();
    let mut command = Command::new(common::program());
    command
        .arg("report")
        .args(arguments)
        .env("STRONGROOM_ENDPOINTS", layout.node(1).expect("a node").api_address())
        .env("STRONGROOM_PROFILE", layout.profile("auditor"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Runs it, and counts its lines.
async fn make(mut command: Command) -> usize {
    let made = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("the command starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines().count();
        assert!(child.wait().expect("it ends").success(), "{command:?}");
        lines
    });
    made.await.expect("it ends")
}

async fn steady_escrows(test: &TestCluster, now: u64) {
    let mut steady = Steady::new(test).await;
    let [mut quiet, mut reporting, mut writing] = [(); 3].map(|()| Tally::new());
    Tally::show_header();
    steady.during(&mut quiet, tokio::time::sleep(MEASURED)).await;
    quiet.show("on a quiet cluster", &quiet);
    let reports = async {
        let began = Instant::now();
        while began.elapsed() < MEASURED {
            make(report(test, &DETAILS)).await;
        }
    };
    steady.during(&mut reporting, reports).await;
    reporting.show("while a report is made as CSV", &quiet);
    let took = snapshots::written(test, &mut steady, &mut writing, now).await;
    let what = format!("while snapshots are written ({:.1} s)", took.as_secs_f64());
    writing.show(&what, &quiet);
}
