//! Changes among nodes of this process, where a test can stop one at a step that no command line reaches.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cli::local_cluster::{ClusterPlan, LocalCluster};
use crate::client::Client;
use crate::config::Config;
use crate::server::{Server, ServerError, initialize};

/// Longest a test waits for something that should happen soon.
const SOON: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A node that serves in this process.
pub(crate) struct Running {
    pub(crate) node: Node,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        // Holders of the node keep its directory.
        drop(self.node);
        self.stop.cancel();
        self.ended.await.expect("ran").expect("stopped");
    }
}

pub(crate) struct Fixture {
    layout: LocalCluster,
    _dir: TempDir,
}

impl Fixture {
    pub(crate) fn new(nodes: u64) -> Self {
        Self::configured(nodes, "")
    }

    /// With more lines in every configuration.
    pub(crate) fn configured(nodes: u64, extra_config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plan = ClusterPlan {
            name: "test".parse().unwrap(),
            nodes,
            members: nodes,
            base_port: None,
            extra_config: extra_config.to_owned(),
        };
        // No process is started of it.
        let layout = LocalCluster::open_or_create(dir.path(), &plan, PathBuf::new()).unwrap();
        Self { layout, _dir: dir }
    }

    fn config(&self, id: NodeId) -> Config {
        Config::load(&self.layout.layout().node(id).unwrap().config_path()).unwrap()
    }

    /// A client with a profile of the layout.
    pub(crate) fn client(&self, profile: &str, nodes: &[NodeId]) -> Client {
        self.layout.client(profile, nodes).unwrap()
    }

    pub(crate) async fn initialize(&self, id: NodeId) {
        let (_, recipient) = crate::seal::offline_identity();
        initialize(&self.config(id), recipient).await.unwrap();
    }

    pub(crate) async fn serve(&self, id: NodeId) -> Running {
        let server = Server::start(&self.config(id)).await.unwrap();
        let (node, stop) = (server.node().clone(), CancellationToken::new());
        Running { node, ended: tokio::spawn(server.run(stop.clone())), stop }
    }

    /// Nodes 1 to 3 as voters, led by node 1.
    pub(crate) async fn three(&self) -> [Running; 3] {
        self.initialize(1).await;
        let nodes = [self.serve(1).await, self.serve(2).await, self.serve(3).await];
        let first = &nodes[0].node;
        until("node 1 leads", || first.leader() == Some(1)).await;
        for id in [2, 3] {
            let outcome = add(first, &self.config(id).advertise.peer).await;
            outcome.unwrap_or_else(|error| panic!("adding node {id}: {error}"));
        }
        for Running { node, .. } in &nodes {
            until("it knows the voters", || node.voters() == [1, 2, 3] && node.is_settled()).await;
        }
        nodes
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to be that {what}");
        sleep(POLL).await;
    }
}

async fn add(leader: &Node, address: &str) -> Result<(), NodeError> {
    let kind = ChangeKind::Add { peer_address: address.to_owned(), learner: false };
    let change = Change { kind, dry_run: false, any_voter_count: true };
    let (progress, _listening) = mpsc::channel(PROGRESS_MAX);
    let order = Order {
        by: "spiffe://test/operator/ops".parse().unwrap(),
        source: Source { node: leader.options().id, address: "192.0.2.1:1".to_owned() },
        at: crate::raft::now(),
        progress,
    };
    leader.change_membership(&change, &order).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_completes_its_own_demotion_hands_over_to_a_voter() {
    let fixture = Fixture::new(3);
    let [first, second, third] = fixture.three().await;
    {
        // As the leader before it left it: in the middle of taking its vote.
        let (caller, _progress) = mpsc::channel(1);
        let turn = first.node.inner.turns.operator(&caller).await.unwrap();
        first.node.enter_joint(BTreeSet::from([2, 3])).await.unwrap();
        assert_eq!(first.node.leader(), Some(1));
        drop(turn);
    }
    for Running { node, .. } in [&first, &second, &third] {
        until("one of the voters leads", || {
            let members = node.member_ids();
            members.voters == BTreeSet::from([2, 3])
                && members.learners == BTreeSet::from([1])
                && members.leader.is_some_and(|leader| leader != 1)
        })
        .await;
    }
    for running in [first, second, third] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_judged_by_a_register_that_may_be_out_of_date() {
    let fixture = Fixture::new(4);
    let [first, second, third] = fixture.three().await;
    fixture.initialize(4).await;
    let stranger = fixture.serve(4).await;
    until("node 4 leads its own cluster", || stranger.node.leader() == Some(4)).await;
    let address = fixture.config(4).advertise.peer;

    let outcome = add(&first.node, &address).await;
    assert!(matches!(outcome, Err(NodeError::Change(_))), "it belongs to another cluster: {outcome:?}");
    // A leader that cannot confirm that it is one may be looking at what others have changed since.
    second.stop().await;
    third.stop().await;
    let outcome = add(&first.node, &address).await;
    assert!(matches!(outcome, Err(NodeError::NoQuorum(_) | NodeError::NotLeader(_))), "{outcome:?}");
    first.stop().await;
    stranger.stop().await;
}
