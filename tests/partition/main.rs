//! Partitions with clients on every side at the same time (P4, P5): nodes that run, and a network between them that is
//! cut, one node alone, in one direction, or altogether, while keys are escrowed, looked up and revealed at each of them
//! and nodes are killed. After the heal the audit trail has every reveal once, and nothing that was not asked for.
//!
//! What happens in a run is told by its seed, but for what the machine does with the time. A run that fails names its
//! seed, and leaves its nodes' directories where it says. Two environment variables:
//!
//! - `STRONGROOM_PARTITION_SEEDS=100` runs the seeds from 1 to that, instead of [`SEEDS`] of them;
//! - `STRONGROOM_PARTITION_SEED=17` runs this one alone.

#[path = "../common/mod.rs"]
mod common;

mod asked;
mod clients;
mod links;
mod on_record;
mod plan;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use common::network::{Network, three_nodes_on_a_network};
use common::trail::{all_on_record, audit_of};
use common::*;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use strongroom::escrow::audit::ChainHead;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::membership_change::Change;
use strongroom::proto::{MembershipChange, TransferLeader};
use tokio::time::{Instant, sleep_until};

use self::asked::{Asked, Tally};
use self::clients::Clients;
use self::plan::{Event, Plan};

/// How many seeds a normal run has: a minute's worth.
const SEEDS: u64 = 16;
/// How many clusters run side by side: most of the time is waiting.
const CLUSTERS: u64 = 2;
/// A reveal waits less long for a quorum than it does by default, so that there are more of them.
const CONFIG: &str = "[recovery]\nquorum_timeout_ms = 500\n";

/// A cluster and what is known of it so far.
struct Trial {
    test: TestCluster,
    network: Network,
    /// Up to where its audit trail was looked at.
    head: ChainHead,
}

#[tokio::test(flavor = "multi_thread")]
async fn with_clients_on_each_side_of_a_partition_every_reveal_is_on_record_once() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (from, to) = match number("STRONGROOM_PARTITION_SEED") {
        Some(seed) => (seed, seed),
        None => (1, number("STRONGROOM_PARTITION_SEEDS").unwrap_or(SEEDS)),
    };
    let (next, total) = (Cell::new(from), RefCell::new(Tally::default()));
    let trials = (0..CLUSTERS.min(to + 1 - from)).map(|_| async {
        let mut trial = Trial::begin().await;
        let mut all = Asked::default();
        while next.get() <= to {
            let asked = trial.run_or_tell(next.replace(next.get() + 1)).await;
            total.borrow_mut().count(&asked);
            all.extend(asked);
        }
        trial.end(&all).await;
    });
    join_all(trials).await;
    let total = total.into_inner();
    eprintln!("{} seeds: {total:?}", to + 1 - from);
    if from < to {
        assert!(total.is_a_partition(), "both sides must have shown keys, and denied them: {total:?}");
    }
}

impl Trial {
    async fn begin() -> Self {
        let (test, network) = three_nodes_on_a_network(CONFIG).await;
        Self { test, network, head: ChainHead::default() }
    }

    /// As [`Trial::run`]; if it fails, it is said which it was, and what it left is kept.
    async fn run_or_tell(&mut self, seed: u64) -> Asked {
        match AssertUnwindSafe(self.run(seed)).catch_unwind().await {
            Ok(asked) => asked,
            Err(failed) => {
                self.test.dir.disable_cleanup(true);
                let left = self.test.dir.path().display();
                eprintln!(
                    "seed {seed} failed: STRONGROOM_PARTITION_SEED={seed} repeats it; its nodes are in {left}"
                );
                resume_unwind(failed)
            }
        }
    }

    /// One partition, from a cluster that has settled to one that has settled again.
    async fn run(&mut self, seed: u64) -> Asked {
        let plan = Plan::of(seed);
        eprintln!("{plan}");
        self.lead(plan.leader).await;
        if let Some((from, to, delay)) = plan.slow {
            self.network.delay(from, to, delay);
        }
        let clients = Clients::start(&self.test, seed).await;
        let began = Instant::now();
        for (at, event) in plan.events {
            sleep_until(began + at).await;
            self.cause(event).await;
        }
        let asked = clients.finish().await;
        all_on_record(&self.test, &ALL).await;
        self.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
        if let Some((from, to, _)) = plan.slow {
            self.network.delay(from, to, Duration::ZERO);
        }
        self.head = on_record::check(&self.test, self.head, &asked).await;
        asked
    }

    /// Has `node` lead.
    async fn lead(&self, node: NodeId) {
        if self.test.leader().await == node {
            return;
        }
        let change = Some(Change::Transfer(TransferLeader { to: Some(node) }));
        let change = MembershipChange { change, ..MembershipChange::default() };
        let mut steps = self.test.client("operator", &ALL).change_membership(&change).await.expect("begun");
        while steps.next().await.expect("it goes on").is_some() {}
    }

    async fn cause(&mut self, event: Event) {
        match event {
            Event::Cut(links, how) => {
                self.network.heal();
                links.into_iter().for_each(|(from, to)| self.network.cut(from, to, how));
            }
            Event::Heal => self.network.heal(),
            Event::Kill(node) => self.test.cluster.kill(node).await.expect("killed"),
            // It may have been killed, and started, twice at almost the same time.
            Event::Start(node) if self.test.cluster.pid(node).is_some() => {}
            Event::Start(node) => self.test.cluster.start(node).await.expect("comes back"),
        }
    }

    /// The same once more on what is on the disks, all seeds at once.
    async fn end(&mut self, all: &Asked) {
        for node in ALL {
            assert!(self.test.cluster.stop(node).await.expect("stopped"), "by itself");
        }
        for node in ALL {
            let records = audit_of(&self.test, node).await;
            assert_eq!(records.last().map(ChainHead::of), Some(self.head), "node {node}");
            on_record::compare(&records, all);
        }
    }
}
