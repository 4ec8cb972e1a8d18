//! Carrying a planned change out, at the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{EntryPayload, Membership};
use tokio::time::timeout;

use crate::escrow::ids::NodeId;

use super::super::error::NodeError;
use super::super::node::Node;
use super::super::types::{Member, Raft, TypeConfig};
use super::candidate::Candidate;
use super::plan::{self, Asked, Work};
use super::refused::Refused;
use super::{Change, Order, Prepared, report};

/// Longest one step of the configuration waits for a majority. It may still come through after.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// A leadership that is handed over has arrived, or an election is held, within this many of the longest election
/// timeouts.
const HAND_OVER_ELECTIONS: u32 = 4;

impl Node {
    /// Does what was planned.
    pub(super) async fn carry_out(
        &self,
        change: &Change,
        prepared: &Prepared,
        order: &Order,
    ) -> Result<(), NodeError> {
        let term = self.metrics().current_term;
        match prepared.plan.work {
            Work::Nothing => self.follow_move(prepared.candidate.as_ref(), order).await,
            Work::Add { node, vote } => {
                self.bring_in(node, prepared.candidate.as_ref(), order).await?;
                if !vote {
                    return Ok(());
                }
                // Catching up took its time: what was true before it is looked at again.
                plan::plan(&self.situation().await?, Asked::Promote(node), change.any_voter_count)?;
                report(order, "changing", node);
                self.promote(node).await
            }
            Work::Demote(node) => {
                report(order, "changing", node);
                let demoted = ChangeMembers::RemoveVoters(BTreeSet::from([node]));
                self.change(|raft| async move { raft.change_membership(demoted, true).await }).await
            }
            Work::Promote(node) => {
                report(order, "changing", node);
                self.promote(node).await
            }
            Work::Remove(node) => {
                self.note_departure(node, term, order).await?;
                report(order, "removed", node);
                self.take_out(node).await
            }
            Work::Replace { old, new } => {
                self.bring_in(new, prepared.candidate.as_ref(), order).await?;
                let asked = Asked::Replace { old, new, joins: false };
                plan::plan(&self.situation().await?, asked, change.any_voter_count)?;
                report(order, "changing", new);
                self.swap(old, new, term, order).await
            }
            Work::Transfer(to) => self.hand_over_to(to).await,
        }
    }

    /// Makes sure that `node` is registered, a learner and caught up.
    async fn bring_in(
        &self,
        node: NodeId,
        candidate: Option<&Candidate>,
        order: &Order,
    ) -> Result<(), NodeError> {
        if let Some(candidate) = candidate {
            self.admit(candidate, order).await?;
            report(order, "admitted", node);
            let member = candidate.member.clone();
            match self.members().remove(&node) {
                Some((known, _)) if known == member => {}
                Some(_) => self.move_to(node, member).await?,
                None => {
                    self.change(|raft| async move { raft.add_learner(node, member, false).await }).await?
                }
            }
        }
        self.catch_up(node, order).await
    }

    /// A member that is to stay what it is may have moved: the same data directory at another address.
    async fn follow_move(&self, candidate: Option<&Candidate>, order: &Order) -> Result<(), NodeError> {
        let Some(candidate) = candidate else { return Ok(()) };
        match self.members().remove(&candidate.id) {
            Some((known, _)) if known != candidate.member => {
                self.admit(candidate, order).await?;
                self.move_to(candidate.id, candidate.member.clone()).await
            }
            _ => Ok(()),
        }
    }

    /// Only for a node whose identity and data directory have been found to be the same: otherwise it could vote twice.
    async fn move_to(&self, node: NodeId, member: Member) -> Result<(), NodeError> {
        let moved = ChangeMembers::SetNodes(BTreeMap::from([(node, member)]));
        self.change(|raft| async move { raft.change_membership(moved, true).await }).await
    }

    async fn promote(&self, node: NodeId) -> Result<(), NodeError> {
        let promoted = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
        self.change(|raft| async move { raft.change_membership(promoted, true).await }).await
    }

    /// Takes a node that left out of the configuration, if it is in it.
    pub(super) async fn take_out(&self, node: NodeId) -> Result<(), NodeError> {
        let (voter, ids) = match self.members().get(&node) {
            None => return Ok(()),
            Some((_, voter)) => (*voter, BTreeSet::from([node])),
        };
        let change = if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change(|raft| async move { raft.change_membership(change, false).await }).await
    }

    /// Puts `new` in the place of `old` in one joint change, in the middle of which it is noted that `old` left.
    async fn swap(&self, old: NodeId, new: NodeId, term: u64, order: &Order) -> Result<(), NodeError> {
        let members = self.member_ids();
        if !members.voters.contains(&old) {
            self.note_departure(old, term, order).await?;
            report(order, "removed", old);
            return self.take_out(old).await;
        }
        let mut voters = members.voters.clone();
        voters.remove(&old);
        voters.insert(new);
        self.enter_joint(voters).await?;
        match self.note_departure(old, term, order).await {
            Ok(()) => {}
            // Refused for good, so that nothing is decided: back to where it was.
            Err(error @ (NodeError::Refused(_) | NodeError::Keyring(_) | NodeError::Change(_))) => {
                tracing::warn!(%error, old, new, "a replacement is undone");
                self.leave_joint_for(members.voters).await?;
                return Err(error);
            }
            // Whoever leads then goes by whether it was committed.
            Err(error) => return Err(error),
        }
        report(order, "removed", old);
        self.leave_joint(false).await
    }

    /// From the voters there are into the joint configuration of those and `voters`, and no further.
    pub(super) async fn enter_joint(&self, voters: BTreeSet<NodeId>) -> Result<(), NodeError> {
        let metrics = self.metrics();
        let config = metrics.membership_config.membership();
        let mut halves = config.get_joint_config().clone();
        halves.push(voters);
        let nodes: BTreeMap<NodeId, Member> = config.nodes().map(|(id, node)| (*id, node.clone())).collect();
        let joint = Membership::new(halves, nodes).map_err(|error| NodeError::Fatal(error.to_string()))?;
        self.change(|raft| async move { raft.append_membership(joint, EntryPayload::Blank, []).await }).await
    }

    /// On from a joint configuration to its newer half. Who loses its vote by that stays a learner if `retain`.
    pub(super) async fn leave_joint(&self, retain: bool) -> Result<(), NodeError> {
        let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
        self.change(|raft| async move { raft.change_membership(nobody, retain).await }).await
    }

    /// From a joint configuration to one of its halves.
    pub(super) async fn leave_joint_for(&self, voters: BTreeSet<NodeId>) -> Result<(), NodeError> {
        let back = ChangeMembers::ReplaceAllVoters(voters);
        self.change(|raft| async move { raft.change_membership(back, true).await }).await
    }

    /// Hands the leadership to `to` and waits until it has it.
    ///
    /// # Errors
    /// [`NodeError::Change`] if it does not take it in time: then the voters elect.
    pub(super) async fn hand_over_to(&self, to: NodeId) -> Result<(), NodeError> {
        let id = self.options().id;
        let limit = Duration::from_millis(self.options().election_max_ms) * HAND_OVER_ELECTIONS;
        tracing::info!(to, "handing the leadership over");
        let fatal = |error: String| NodeError::Fatal(error);
        self.inner.raft.trigger().transfer_leader(to).await.map_err(|error| fatal(error.to_string()))?;
        let moved = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.current_leader.is_some_and(|leader| leader != id)
        };
        let waited = self.inner.raft.wait(Some(limit)).metrics(moved, "another leader").await;
        let leader = waited.ok().and_then(|metrics| metrics.current_leader);
        if leader == Some(to) {
            return Ok(());
        }
        let reason = match leader {
            Some(other) => format!("node {other} took the leadership over instead of node {to}"),
            None => format!("node {to} did not take the leadership over within {} ms", limit.as_millis()),
        };
        Err(Refused::unavailable(reason, "the voters elect by themselves; then try again").into())
    }

    /// One change of the configuration. Writes go on meanwhile.
    async fn change<F, Fut, T>(&self, change: F) -> Result<(), NodeError>
    where
        F: FnOnce(Raft) -> Fut,
        Fut: Future<Output = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
    {
        let made = timeout(STEP_TIMEOUT, change(self.inner.raft.clone())).await;
        match made.map_err(|_| NodeError::Unconfirmed(STEP_TIMEOUT))? {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(NodeError::NotLeader(to.leader_id))
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Err(NodeError::Unconfirmed(STEP_TIMEOUT))
            }
            Err(RaftError::APIError(error)) => Err(Refused::unavailable(
                format!("the configuration cannot be changed now: {error}"),
                "run the same command again: it goes on where it ended",
            )
            .into()),
            Err(RaftError::Fatal(fatal)) => Err(NodeError::Fatal(fatal.to_string())),
        }
    }

    /// The halves of the configuration: one, or two while it is joint.
    pub(super) fn halves(&self) -> Vec<BTreeSet<NodeId>> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_joint_config().clone()
    }
}
