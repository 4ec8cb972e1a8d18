//! What changes to a running cluster cost its clients: `cargo bench --bench operations [-- MACHINES]`.
//!
//! A cluster of real processes is filled with machines (100,000 unless said otherwise); then, under the load of a few
//! clients, each change an operator makes is made once. `STRONGROOM_PROGRAM` measures another binary than the one that is
//! built with the bench. For each: how long it took, the longest time in which no
//! client had a write acknowledged, and how many requests failed. Failover is in it as a yardstick.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{TestCluster, deposit};
use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::membership_change::Change;
use strongroom::proto::replace_member::Replacement;
use strongroom::proto::{
    DemoteMember, MembershipChange, PromoteMember, RemoveMember, ReplaceMember, TransferLeader,
};
use tokio::task::JoinSet;

/// Machines to begin with.
const MACHINES: u64 = 100_000;
/// Clients that fill the cluster.
const FILLERS: u64 = 64;
/// Clients under whose load the changes are made.
const CLIENTS: u64 = 4;
/// Longest a step may take before the bench gives up.
const STEP_MAX: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() {
    // `cargo bench` passes a flag of its own.
    let machines = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(MACHINES);
    let mut test = cluster().await;
    let numbers = Arc::new(AtomicU64::new(1));
    let began = Instant::now();
    fill(&test, machines, &numbers).await;
    println!("{machines} machines escrowed in {:.0} s", began.elapsed().as_secs_f64());
    test.cluster.wait_settled(&[1, 2, 3]).await.expect("agreement");

    let load = Load::start(&test, &numbers);
    println!("{:<44} {:>8} {:>17} {:>7}", "change, under load", "took", "longest pause", "failed");
    load.measure("none (10 s)", async || tokio::time::sleep(Duration::from_secs(10)).await).await;
    test.cluster.start(4).await.expect("node 4 runs");
    test.cluster.start(5).await.expect("node 5 runs");
    let four = peer(&test, 4);
    load.measure("add node 4: 3 -> 4 voters", async || add(&test, &four).await).await;
    let five = peer(&test, 5);
    load.measure("add node 5: 4 -> 5 voters", async || add(&test, &five).await).await;
    load.measure("transfer the leadership", async || {
        change(&test, Change::Transfer(TransferLeader { to: None })).await
    })
    .await;
    load.measure("demote node 5", async || change(&test, Change::Demote(DemoteMember { node: 5 })).await)
        .await;
    load.measure("promote node 5", async || change(&test, Change::Promote(PromoteMember { node: 5 })).await)
        .await;
    load.measure("remove node 5", async || change(&test, Change::Remove(RemoveMember { node: 5 })).await)
        .await;
    let leader = leader(&test, &[1, 2, 3, 4]).await;
    let removed = format!("remove node {leader}, the leader");
    load.measure(&removed, async || change(&test, Change::Remove(RemoveMember { node: leader })).await).await;

    let mut members: Vec<NodeId> = (1..=4).filter(|id| *id != leader).collect();
    let dead = members.remove(0);
    test.cluster.kill(dead).await.expect("killed");
    test.cluster.start(6).await.expect("node 6 runs");
    let six = peer(&test, 6);
    let replaced = format!("replace dead node {dead} by node 6");
    let replace = ReplaceMember { old: dead, replacement: Some(Replacement::PeerAddress(six)) };
    load.measure(&replaced, async || change(&test, Change::Replace(replace.clone())).await).await;
    members.push(6);

    for id in &members {
        let restarted = format!("restart node {id} (drained)");
        let cluster = &mut test.cluster;
        load.measure(&restarted, async || {
            assert!(cluster.stop(*id).await.expect("stopped"), "it ends by itself");
            cluster.start(*id).await.expect("it comes back");
            cluster
                .wait_for("its return", STEP_MAX, &members, |status| {
                    status.leader.is_some() && status.nodes.iter().all(|node| node.reachable)
                })
                .await
                .expect("it is back");
        })
        .await;
    }
    let leader = self::leader(&test, &members).await;
    let cluster = &mut test.cluster;
    load.measure("kill -9 of the leader", async || {
        cluster.kill(leader).await.expect("killed");
        cluster
            .wait_for("another leader", STEP_MAX, &members, |status| {
                status.leader.is_some_and(|elected| elected != leader)
            })
            .await
            .expect("elected");
    })
    .await;
    load.finish().await;
}

async fn cluster() -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory");
    let plan = ClusterPlan { nodes: 6, members: 3, ..common::plan("") };
    let program = std::env::var_os("STRONGROOM_PROGRAM").map_or_else(common::program, PathBuf::from);
    let mut cluster = LocalCluster::open_or_create(dir.path(), &plan, program).expect("a layout");
    cluster.form().await.expect("a cluster forms");
    TestCluster { cluster, dir }
}

async fn fill(test: &TestCluster, machines: u64, numbers: &Arc<AtomicU64>) {
    let mut fillers = JoinSet::new();
    for n in 0..FILLERS {
        let mut nodes = [1, 2, 3];
        nodes.rotate_left((n % 3) as usize);
        let (client, numbers) = (test.client("importer", &nodes), numbers.clone());
        fillers.spawn(async move {
            loop {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                if number > machines {
                    return;
                }
                client.escrow(&deposit(number)).await.expect("acknowledged");
            }
        });
    }
    while let Some(ended) = fillers.join_next().await {
        ended.expect("ran to its end");
    }
}

fn peer(test: &TestCluster, id: NodeId) -> String {
    test.cluster.layout().node(id).expect("a node").peer_address()
}

async fn leader(test: &TestCluster, nodes: &[NodeId]) -> NodeId {
    let status = test.cluster.wait_for("a leader", STEP_MAX, nodes, |status| status.leader.is_some()).await;
    status.expect("a leader").leader.expect("just seen")
}

async fn add(test: &TestCluster, address: &str) {
    let mut change = test.client("operator", &[1, 2, 3]).add_member(address, false).await.expect("begun");
    while change.next().await.expect("goes on").is_some() {}
}

async fn change(test: &TestCluster, change: Change) {
    let change =
        MembershipChange { change: Some(change), any_voter_count: true, ..MembershipChange::default() };
    let client = test.client("operator", &[1, 2, 3, 4]);
    let mut change = client.change_membership(&change).await.expect("begun");
    while change.next().await.expect("goes on").is_some() {}
}

/// Clients that escrow until they are told to stop, and note when something was last acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    began: Instant,
    /// Milliseconds from `began` to the last acknowledgement, and the longest pause since it was last asked for.
    last_ms: Arc<AtomicU64>,
    pause_ms: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(test: &TestCluster, numbers: &Arc<AtomicU64>) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            began: Instant::now(),
            last_ms: Arc::default(),
            pause_ms: Arc::default(),
            failed: Arc::default(),
            clients: JoinSet::new(),
        };
        for n in 0..CLIENTS {
            let mut nodes = [1, 2, 3, 4, 5, 6];
            nodes.rotate_left((n % 6) as usize);
            let (client, numbers) = (test.client("importer", &nodes), numbers.clone());
            let (stop, began) = (load.stop.clone(), load.began);
            let (last, pause, failed) = (load.last_ms.clone(), load.pause_ms.clone(), load.failed.clone());
            load.clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    if client.escrow(&deposit(number)).await.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let before = last.fetch_max(now, Ordering::Relaxed);
                    pause.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
                }
            });
        }
        load
    }

    async fn measure(&self, what: &str, step: impl AsyncFnOnce()) {
        let failed = self.failed.load(Ordering::Relaxed);
        self.pause_ms.store(0, Ordering::Relaxed);
        let began = Instant::now();
        tokio::time::timeout(STEP_MAX, step()).await.unwrap_or_else(|_| panic!("{what}: too long"));
        let took = began.elapsed();
        // A pause that has begun is seen when it ends.
        let seen = self.last_ms.load(Ordering::Relaxed);
        while self.last_ms.load(Ordering::Relaxed) == seen && began.elapsed() < STEP_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let pause = self.pause_ms.load(Ordering::Relaxed);
        let failed = self.failed.load(Ordering::Relaxed) - failed;
        println!("{what:<44} {:>6.2} s {pause:>14} ms {failed:>7}", took.as_secs_f64());
    }

    async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("ran to its end");
        }
    }
}
