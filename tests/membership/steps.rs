//! What the tests of membership share: changes as an operator makes them, and changes whose leader dies at a given step.

use std::process::Output;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use strongroom::cli::local_cluster::SETTLE_TIMEOUT;
use strongroom::client::ClientError;
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::membership_change::Change;
use strongroom::proto::replace_member::Replacement;
use strongroom::proto::{
    AddMember, DemoteMember, MembershipChange, NodeStatus, PromoteMember, RemoveMember, ReplaceMember,
    StatusResponse, TransferLeader,
};

use crate::common::*;

/// Longest an operator repeats a change whose leader died.
const REPEAT_TIMEOUT: Duration = Duration::from_secs(60);
/// Past the bound of entries that a learner may lag behind and still be promoted, well above what is on its way.
pub const LAGGING_KEYS: u64 = 400;

/// `strongroom member …` as the operator, asked at `nodes`.
pub async fn member(test: &TestCluster, nodes: &[NodeId], arguments: &[&str]) -> Output {
    member_as(test, "operator", nodes, arguments).await
}

/// `strongroom member …` with the credentials of `profile`.
pub async fn member_as(test: &TestCluster, profile: &str, nodes: &[NodeId], arguments: &[&str]) -> Output {
    let arguments: Vec<&str> = std::iter::once("member").chain(arguments.iter().copied()).collect();
    let command = test.command(&test.cluster.layout().profile(profile), nodes, &arguments);
    // Not on a thread of the runtime: load goes on there.
    tokio::task::spawn_blocking(move || run(command, "")).await.expect("the command ran")
}

/// The result of a change that was made, or of a dry run that found it possible.
pub fn done(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a JSON document")
}

/// Checks that a command was refused with `exit`, and that message and hint together say all of `words`.
pub fn refused(output: &Output, exit: i32, words: &[&str]) -> Value {
    let (code, error) = failure(output);
    assert_eq!(code, exit, "{error}");
    let text = format!("{} {}", error["message"], error["hint"]);
    for word in words {
        assert!(text.contains(word), "{word:?} is not said: {text}");
    }
    error
}

/// Makes a change, repeating the command for as long as its error says that it may pass, as an operator would.
pub async fn repeat(test: &TestCluster, nodes: &[NodeId], arguments: &[&str]) -> Value {
    let deadline = Instant::now() + REPEAT_TIMEOUT;
    loop {
        let output = member(test, nodes, arguments).await;
        if output.status.success() {
            return done(&output);
        }
        let (code, error) = failure(&output);
        eprintln!("member {arguments:?} is to be repeated: {error}");
        // 75: try again. 5: of what stands in the way, such as a member that is not back yet, some passes too.
        assert!(matches!(code, 5 | 75), "{error}");
        assert!(Instant::now() < deadline, "member {arguments:?} does not come through: {error}");
    }
}

/// Voters, or learners, of a result.
pub fn ids(members: &Value) -> Vec<NodeId> {
    let ids = members.as_array().unwrap_or_else(|| panic!("no list of nodes: {members}"));
    ids.iter().map(|id| id.as_u64().expect("a node id")).collect()
}

/// The change that adds `node`.
pub fn add(test: &TestCluster, node: NodeId, learner: bool) -> Change {
    Change::Add(AddMember { peer_address: peer(test, node), learner })
}

pub fn demote(node: NodeId) -> Change {
    Change::Demote(DemoteMember { node })
}

pub fn promote(node: NodeId) -> Change {
    Change::Promote(PromoteMember { node })
}

pub fn remove(node: NodeId) -> Change {
    Change::Remove(RemoveMember { node })
}

/// The change that puts `new`, which is no member yet, in the place of `old`.
pub fn replace(test: &TestCluster, old: NodeId, new: NodeId) -> Change {
    Change::Replace(ReplaceMember { old, replacement: Some(Replacement::PeerAddress(peer(test, new))) })
}

pub fn transfer(to: NodeId) -> Change {
    Change::Transfer(TransferLeader { to: Some(to) })
}

/// Host and port of a node's peer service.
pub fn peer(test: &TestCluster, node: NodeId) -> String {
    test.cluster.layout().node(node).expect("a node").peer_address()
}

/// Makes a change through the client library to its end.
pub async fn make(test: &TestCluster, nodes: &[NodeId], change: Change) {
    let change = MembershipChange { change: Some(change), ..MembershipChange::default() };
    let mut steps = test.client("operator", nodes).change_membership(&change).await.expect("begun");
    let mut last = String::new();
    while let Some(step) = steps.next().await.expect("it goes on") {
        last = step.step;
    }
    assert_eq!(last, "done");
}

/// Entries behind which a member counts as caught up here, well within what a change allows.
const LAG_SMALL: u64 = 64;

/// Begins a change at `nodes` and kills the leader that makes it the moment it reports `step`. Answers who that was.
pub async fn kill_leader_at(test: &mut TestCluster, nodes: &[NodeId], change: Change, step: &str) -> NodeId {
    // A member that has just come back still lags, and until it does not a change that counts on it is refused.
    let close = |status: &StatusResponse| {
        let committed = status.nodes.iter().map(|node| node.committed).max().unwrap_or(0);
        let lags = |node: &NodeStatus| node.reachable && node.applied + LAG_SMALL < committed;
        status.leader.is_some() && !status.nodes.iter().any(lags)
    };
    test.cluster.wait_for("everybody to catch up", SETTLE_TIMEOUT, nodes, close).await.expect("caught up");
    let change = MembershipChange { change: Some(change), ..MembershipChange::default() };
    let client = test.client("operator", nodes);
    let mut steps = client.change_membership(&change).await.expect("begun");
    let (mut leader, mut seen) = (None, Vec::new());
    loop {
        let progress = match steps.next().await {
            Ok(Some(progress)) => progress,
            Ok(None) => panic!("{change:?} was made without the step {step}: {seen:?}"),
            Err(error) => panic!("{change:?} ended before the step {step}, after {seen:?}: {error}"),
        };
        // The first message says who leads, and so who makes the change.
        leader = leader.or(progress.before.as_ref().and_then(|before| before.leader));
        let reached = progress.step == step;
        seen.push(progress.step);
        if reached {
            let leader = leader.expect("the first step says who leads");
            test.cluster.kill(leader).await.expect("killed");
            return leader;
        }
    }
}

/// Waits until the members are exactly these, each of them reachable, as `nodes` see it.
pub async fn members_are(
    test: &TestCluster,
    nodes: &[NodeId],
    voters: &[NodeId],
    learners: &[NodeId],
) -> StatusResponse {
    let what = format!("voters {voters:?} and learners {learners:?}");
    let are = |status: &StatusResponse| {
        status.leader.is_some()
            && status.nodes.iter().all(|node| node.reachable)
            && (voters_of(status), learners_of(status)) == (voters.to_vec(), learners.to_vec())
    };
    test.cluster.wait_for(&what, SETTLE_TIMEOUT, nodes, are).await.expect("the membership")
}

pub fn voters_of(status: &StatusResponse) -> Vec<NodeId> {
    sorted(status.nodes.iter().filter(|node| node.voter).map(|node| node.id))
}

pub fn learners_of(status: &StatusResponse) -> Vec<NodeId> {
    sorted(status.nodes.iter().filter(|node| !node.voter).map(|node| node.id))
}

fn sorted(ids: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = ids.collect();
    ids.sort_unstable();
    ids
}

/// Waits until removal is allowed: the level of a new cluster is raised soon after its last member has joined, with an
/// entry of the log of its own.
pub async fn removal_allowed(test: &TestCluster, nodes: &[NodeId]) {
    let allowed = |status: &StatusResponse| status.feature_level == FeatureLevel::SUPPORTED.0;
    test.cluster.wait_for("the feature level", SOON, nodes, allowed).await.expect("raised");
}

pub fn signal(test: &TestCluster, node: NodeId, signal: Signal) {
    let pid = test.cluster.pid(node).expect("the node runs");
    let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero");
    kill_process(pid, signal).expect("the node can be signalled");
}

/// Keeps `count` keys from number `from` on.
pub async fn escrow(test: &TestCluster, nodes: &[NodeId], from: u64, count: u64) -> Vec<Kept> {
    escrow_at_once(test, nodes, from, count, 16).await
}

/// As [`escrow`], `at_once` at a time: of those that are under way together several may share an entry of the log.
pub async fn escrow_at_once(
    test: &TestCluster,
    nodes: &[NodeId],
    from: u64,
    count: u64,
    at_once: usize,
) -> Vec<Kept> {
    use futures_util::StreamExt as _;

    let client = test.client("importer", nodes);
    let kept = (from..from + count).map(|n| {
        let client = client.clone();
        async move {
            let deposit = deposit(n);
            let receipt = client.escrow(&deposit).await.expect("kept");
            (deposit, receipt)
        }
    });
    futures_util::stream::iter(kept).buffer_unordered(at_once).collect().await
}

/// Whether an error says that the node that was asked was removed.
pub fn says_removed(error: &ClientError) -> bool {
    matches!(error, ClientError::Unavailable { .. })
        && error.to_string().contains("was removed from the cluster")
}
