//! A cluster that goes through one plan after the other, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use strongroom::cli::local_cluster::{ClusterPlan, Layout, NODES_MAX, NodePlan};
use strongroom::escrow::audit::{self, ChainHead};
use strongroom::escrow::ids::NodeId;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::changes;
use crate::clients::{At, Clients};
use crate::common::network::Network;
use crate::common::trail::{self, all_on_record, audit_after, shown};
use crate::common::*;
use crate::disks::Disk;
use crate::history::Seen;
use crate::namespaces::Namespaces;
use crate::plan::Plan;
use crate::record::Reveal;
use crate::shim::{Shim, program_with_faults};
use crate::wires::Wires;

/// A reveal waits less long for a quorum than it does by default, so that there are more without one. Snapshots are taken
/// and logs are purged while faults go on.
const CONFIG: &str = "[recovery]\nquorum_timeout_ms = 500\n\n[raft]\nsnapshot_log_bytes = 1048576\n";
/// Longest it takes, everything healed, until each member takes a new key.
const PROGRESS: Duration = Duration::from_secs(30);
/// Longest that a change may go on after the heal.
const CHANGE_ENDS: Duration = Duration::from_secs(90);
/// How many questions are asked at once when everything is read back.
const AT_ONCE: usize = 16;
/// How many keys are revealed at each node when everything is read back; all of them are looked up.
const OPENED: usize = 4;

/// On a node's disk.
const DATA_DIR: &str = "data";

/// How often what happened.
pub type Tally = BTreeMap<&'static str, u64>;

/// A cluster and what is known of it so far.
pub struct Trial {
    // Dropped first: mounted in the directory that goes with the cluster.
    pub(crate) disks: BTreeMap<NodeId, Disk>,
    pub(crate) shims: BTreeMap<NodeId, Shim>,
    pub(crate) test: TestCluster,
    pub(crate) wires: Wires,
    pub(crate) members: Vec<NodeId>,
    /// Nodes that were no members yet.
    pub(crate) spare: Vec<NodeId>,
    /// Nodes that are stopped by SIGSTOP.
    pub(crate) paused: BTreeSet<NodeId>,
    /// Nodes whose disk was full or failed in this plan: they end by themselves, and a service manager would start them again.
    pub(crate) excused: BTreeSet<NodeId>,
    pub(crate) change: Option<JoinHandle<Option<String>>>,
    /// Up to where the audit trail was looked at.
    head: ChainHead,
    /// What earlier plans have kept.
    kept: Vec<Kept>,
    pub(crate) tally: Tally,
}

impl Trial {
    /// A new cluster of `voters`, each node with a disk of its own if this process may mount one.
    pub async fn begin(voters: u64) -> Self {
        Self::between(|layout| Wires::Proxy(Network::between(layout)), disks, voters, CONFIG).await
    }

    /// Three voters that all keep their data where the test does, with more lines in the section `raft`.
    pub async fn without_disks(raft: &str) -> Self {
        let proxy = |layout: &Layout| Wires::Proxy(Network::between(layout));
        Self::between(proxy, |_| BTreeMap::new(), 3, &format!("{CONFIG}{raft}")).await
    }

    /// As [`Trial::begin`], each node in a network namespace of its own, around that of this process, and without a disk.
    pub async fn in_namespaces(voters: u64) -> Self {
        let cables = |layout: &Layout| Wires::Cables(Namespaces::of(layout));
        Self::between(cables, |_| BTreeMap::new(), voters, CONFIG).await
    }

    async fn between(
        wires: impl FnOnce(&Layout) -> Wires,
        disks: impl FnOnce(&Layout) -> BTreeMap<NodeId, Disk>,
        voters: u64,
        config: &str,
    ) -> Self {
        let plan = ClusterPlan { nodes: NODES_MAX, members: voters, ..plan(config) };
        let mut test = laid_out_for(&plan, program_with_faults());
        let (wires, disks) = (wires(test.cluster.layout()), disks(test.cluster.layout()));
        let shims = test.cluster.layout().nodes.iter().map(|node| (node.id, Shim::of(node))).collect();
        test.cluster.form().await.expect("a cluster forms");
        Self {
            disks,
            shims,
            test,
            wires,
            members: (1..=voters).collect(),
            spare: (voters + 1..=NODES_MAX).collect(),
            paused: BTreeSet::new(),
            excused: BTreeSet::new(),
            change: None,
            head: ChainHead::default(),
            kept: Vec::new(),
            tally: Tally::new(),
        }
    }

    /// As [`Trial::run`] with the plan of a seed; if it fails, it is said which it was, and what it left is kept.
    pub async fn run_or_tell(&mut self, seed: u64) {
        if let Err(failed) = AssertUnwindSafe(self.run(Plan::of(seed, &self.members))).catch_unwind().await {
            self.test.dir.disable_cleanup(true);
            let left = self.test.dir.path().display();
            eprintln!(
                "seed {seed} failed: STRONGROOM_NEMESIS_SEED={seed} repeats it; its nodes are in {left}"
            );
            resume_unwind(failed)
        }
    }

    /// One plan, from a cluster that has settled to one that has settled again.
    pub async fn run(&mut self, plan: Plan) {
        let seed = plan.seed;
        eprintln!("{plan}");
        changes::lead(&self.test, &self.members, plan.leader).await;
        let clients = Clients::new(seed);
        let tasks = clients.start(&self.test, &self.members);
        let began = Instant::now();
        for (at, event) in plan.events {
            sleep_until(began + at).await;
            self.cause(event, &clients).await;
        }
        self.heal().await;
        let healed = Instant::now();
        self.takes_a_key(&clients, &self.running()).await;
        let progress = healed.elapsed();
        self.settle_members().await;
        for node in self.members.clone() {
            self.takes_a_key(&clients, &[node]).await;
        }
        self.excused.clear();
        let (progress, all) = (progress.as_millis(), healed.elapsed().as_millis());
        eprintln!(
            "seed {seed}: keys are taken {progress} ms after the heal, by every member {all} ms after it"
        );
        clients.finish(tasks).await;
        self.settle(&clients).await;
        self.read_back(&clients).await;
        clients.record().check();
        self.check_trail(seed, &clients).await;
        let mut record = clients.record();
        record.count(|what| *self.tally.entry(what).or_default() += 1);
        self.kept.extend_from_slice(record.kept());
        *record = Default::default();
    }

    /// A new key is taken soon, at one of these nodes.
    async fn takes_a_key(&mut self, clients: &Clients, nodes: &[NodeId]) {
        let (at, n) = (At::of(&self.test, nodes), clients.a_new_key());
        let taken = async {
            while !clients.escrow(&at, n).await {
                self.supervise().await;
            }
        };
        assert!(timeout(PROGRESS, taken).await.is_ok(), "nodes {nodes:?} take no keys after the heal");
    }

    /// Has as many members as before.
    async fn settle_members(&mut self) {
        if let Some(change) = self.change.take() {
            let ended = timeout(CHANGE_ENDS, change).await.expect("a change ends").expect("it ran");
            eprintln!("{}", ended.as_deref().unwrap_or("no node is left to be added"));
        }
        let running = self.running();
        self.members = changes::settle(&self.test, &running, self.members.len()).await;
        for node in running.into_iter().filter(|node| !self.members.contains(node)) {
            self.test.cluster.kill(node).await.expect("it is no member any more");
        }
    }

    /// Has every key acknowledged, every reveal on record, and all members alike.
    async fn settle(&self, clients: &Clients) {
        let at = At::of(&self.test, &self.members);
        let unanswered = clients.record().not_acknowledged();
        for n in unanswered {
            let taken = async { while !clients.escrow(&at, n).await {} };
            timeout(PROGRESS, taken).await.expect("who got no answer asks again");
        }
        all_on_record(&self.test, &self.members).await;
        self.test.cluster.wait_settled(&self.members).await.expect("settled, with equal digests");
    }

    /// Every key that was ever acknowledged is at every member; each of this plan is what a quorum says, and some are
    /// opened everywhere.
    async fn read_back(&self, clients: &Clients) {
        let kept = clients.record().kept().to_vec();
        for node in &self.members {
            assert_all_held(&self.test, *node, &kept).await;
            assert_all_held(&self.test, *node, &self.kept).await;
        }
        let at: Vec<At> = self.members.iter().map(|node| At::of(&self.test, &[*node])).collect();
        let begun: Vec<u64> = clients.record().begun().iter().map(|(n, _)| *n).collect();
        let asked = begun.iter().zip(at.iter().cycle()).map(|(n, at)| clients.read_by_quorum(at, *n));
        let asked: Vec<_> = asked.collect();
        let seen: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        assert!(seen.iter().all(|seen| matches!(seen, Some(Seen::Active | Seen::Disclosed))), "{seen:?}");
        for at in &at {
            for n in begun.iter().rev().step_by(begun.len().div_ceil(OPENED)) {
                let reason = format!("read back at node {:?}: key {n}", at.nodes);
                assert!(clients.reveal(at, *n, &reason).await, "{reason}: not shown");
            }
        }
        self.test.cluster.wait_settled(&self.members).await.expect("settled, with equal digests");
    }

    /// Every member has the same audit trail, whose chain is whole, and in it every reveal as often as it was shown.
    async fn check_trail(&mut self, seed: u64, clients: &Clients) {
        let mut trails = Vec::new();
        for node in &self.members {
            trails.push(audit_after(&self.test, *node, self.head).await);
        }
        let records = trails.pop().expect("members");
        assert!(trails.iter().all(|trail| *trail == records), "every member has the same trail");
        self.head = audit::follow(&records, self.head).expect("the chain is whole");
        let on_record = shown(&records);
        let record = clients.record();
        for (reason, how) in record.reveals() {
            let times = on_record.get(reason).copied().unwrap_or(0);
            let fits = match how {
                Reveal::Shown | Reveal::ShownAlone => times == 1,
                Reveal::Unknown => times <= 1,
                Reveal::Denied => times == 0,
            };
            assert!(fits, "seed {seed}: {reason}: {how:?}, and on record {times} times as shown");
        }
        let unasked: Vec<_> =
            on_record.keys().filter(|reason| !record.reveals().contains_key(*reason)).collect();
        assert!(unasked.is_empty(), "seed {seed}: nobody asked for this: {unasked:?}");
    }

    /// Where a node keeps everything.
    pub(crate) fn data(&self, node: NodeId) -> PathBuf {
        match self.disks.get(&node) {
            Some(disk) => disk.root().join(DATA_DIR),
            None => trail::data(&self.test, node),
        }
    }

    /// Nodes that were started and not stopped since.
    pub(crate) fn running(&self) -> Vec<NodeId> {
        (1..=NODES_MAX).filter(|node| self.test.cluster.pid(*node).is_some()).collect()
    }
}

/// A disk for each node, if this process may mount one.
fn disks(layout: &Layout) -> BTreeMap<NodeId, Disk> {
    let mut disks = BTreeMap::new();
    for node in &layout.nodes {
        let Some(disk) = Disk::in_dir(&node.dir) else {
            eprintln!("SKIPPED: full disks and power cuts (this process may not mount a file system)");
            break;
        };
        keep_data_in(node, &disk.root().join(DATA_DIR));
        disks.insert(node.id, disk);
    }
    disks
}

/// Has `node`, which was not started yet, keep its data there.
fn keep_data_in(node: &NodePlan, data: &Path) {
    let path = node.config_path();
    let text = fs::read_to_string(&path).expect("its configuration");
    let mut config: toml::Table = text.parse().expect("TOML");
    let data = data.to_str().expect("a path in UTF-8");
    config.insert("data_dir".to_owned(), data.into()).expect("written out");
    fs::write(&path, config.to_string()).expect("written");
}
