//! Changes of the membership: one in the midst of everything, which may fail, and what is settled after the heal.

use std::time::{Duration, Instant};

use strongroom::client::{Client, ClientError};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::membership_change;
use strongroom::proto::replace_member::Replacement;
use strongroom::proto::{
    AddMember, DemoteMember, MembershipChange, PromoteMember, RemoveMember, ReplaceMember, StatusResponse,
    TransferLeader,
};

use crate::clients::is_silence;
use crate::common::TestCluster;
use crate::plan::Change;

/// Longest it may take, everything healed, until a change that is repeated is made.
const SETTLES: Duration = Duration::from_secs(60);
/// Between two attempts at a change.
const POLL: Duration = Duration::from_millis(100);

/// Which changes to make one after the other. `newcomer` is the address of a node that is no member yet.
fn steps(change: Change, newcomer: Option<String>) -> Option<Vec<membership_change::Change>> {
    use membership_change::Change::{Add, Demote, Promote, Remove, Replace, Transfer};
    Some(match change {
        Change::AddAndRemove(node) => {
            let peer_address = newcomer?;
            vec![Add(AddMember { peer_address, learner: false }), Remove(RemoveMember { node })]
        }
        Change::Demote(node) => vec![Demote(DemoteMember { node }), Promote(PromoteMember { node })],
        Change::Replace(old) => {
            let replacement = Some(Replacement::PeerAddress(newcomer?));
            vec![Replace(ReplaceMember { old, replacement })]
        }
        Change::Transfer(node) => vec![Transfer(TransferLeader { to: Some(node) })],
    })
}

/// Makes a change as far as it can be made; answers what became of it. `None` if it needs a newcomer and there is none.
pub async fn attempt(operator: Client, change: Change, newcomer: Option<String>) -> Option<String> {
    for step in steps(change, newcomer)? {
        if let Err(error) = make(&operator, step).await {
            return Some(format!("{change:?} was not made: {error}"));
        }
    }
    Some(format!("{change:?} was made"))
}

/// Has `node` lead.
pub async fn lead(test: &TestCluster, members: &[NodeId], node: NodeId) {
    let operator = test.client("operator", members);
    let status = operator.status().await.expect("status");
    if status.leader != Some(node) {
        let transfer = membership_change::Change::Transfer(TransferLeader { to: Some(node) });
        repeat(&operator, transfer).await;
    }
}

/// Has exactly `count` voters and no learners again, and answers who they are.
pub async fn settle(test: &TestCluster, running: &[NodeId], count: usize) -> Vec<NodeId> {
    let operator = test.client("operator", running);
    loop {
        let (voters, learners) = members(&of_the_leader(test, running).await);
        let change = match learners.first() {
            Some(node) => membership_change::Change::Promote(PromoteMember { node: *node }),
            None if voters.len() > count => {
                membership_change::Change::Remove(RemoveMember { node: voters[0] })
            }
            None => {
                assert_eq!(voters.len(), count, "{voters:?}");
                return voters;
            }
        };
        repeat(&operator, change).await;
    }
}

/// What the leader says: another may not have applied the last change yet, and whoever it names may be no member any more.
async fn of_the_leader(test: &TestCluster, running: &[NodeId]) -> StatusResponse {
    let deadline = Instant::now() + SETTLES;
    loop {
        let led = test.cluster.wait_for("a leader", SETTLES, running, |status| status.leader.is_some());
        let leader = led.await.expect("a leader after the heal").leader.expect("just seen");
        match test.client("operator", &[leader]).status().await {
            Ok(status) if status.leader == Some(leader) => return status,
            _ => assert!(Instant::now() < deadline, "no leader says that it leads"),
        }
        tokio::time::sleep(POLL).await;
    }
}

fn members(status: &StatusResponse) -> (Vec<NodeId>, Vec<NodeId>) {
    let of = |voter: bool| {
        let nodes = status.nodes.iter().filter(|node| node.voter == voter);
        let mut ids: Vec<NodeId> = nodes.map(|node| node.id).collect();
        ids.sort_unstable();
        ids
    };
    (of(true), of(false))
}

/// Makes a change, again as long as it may pass what is in its way.
async fn repeat(operator: &Client, change: membership_change::Change) {
    let deadline = Instant::now() + SETTLES;
    while let Err(error) = make(operator, change.clone()).await {
        assert!(Instant::now() < deadline, "{change:?} does not come through: {error}");
        tokio::time::sleep(POLL).await;
    }
}

/// Makes a change to its end.
///
/// # Errors
/// What may pass: a conflict with what is under way, or no quorum.
async fn make(operator: &Client, change: membership_change::Change) -> Result<(), ClientError> {
    // A voter of three that is made a learner leaves two.
    let change = MembershipChange { change: Some(change), any_voter_count: true, dry_run: false };
    let made = async {
        let mut steps = operator.change_membership(&change).await?;
        while steps.next().await?.is_some() {}
        Ok(())
    };
    match made.await {
        Err(error @ ClientError::Conflict(_)) => Err(error),
        Err(error) if is_silence(&error) => Err(error),
        // It was made before, by an attempt that got no answer.
        Err(ClientError::NotFound(_)) => Ok(()),
        Err(error) => panic!("{change:?}: {error:?}"),
        Ok(()) => Ok(()),
    }
}
