//! Changing who is in the cluster.
//!
//! Adding a node is four steps, each safe to repeat after a crash between any two: ask the node who it is; register
//! it and seal the keyring to it, in one command; make it a learner and wait until it has caught up; make it a
//! voter. Only the leader does it, one change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::Response;
use uuid::Uuid;

use crate::escrow::command::{Action, AdmitNode, Command, Reply};
use crate::escrow::ids::{Identity, NodeId, RequestId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::records::{KeyringRecord, NodeRecord, Source};
use crate::proto::MemberProgress;
use crate::proto::peer::{DescribeRequest, DescribeResponse};
use crate::tls::ExpectedPeer;

use super::error::NodeError;
use super::node::Node;
use super::types::{Member, TypeConfig};

/// Longest a node to be added may take to say who it is.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// A learner that makes no progress this long is left a learner, and the operator is told.
const CATCH_UP_STALL: Duration = Duration::from_secs(30);
/// Between two looks at a learner's progress.
const CATCH_UP_POLL: Duration = Duration::from_millis(100);
/// A learner this many entries behind is close enough to vote: less than one batch of appends.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Progress messages a slow caller may leave unread before the change waits for it.
pub const PROGRESS_MAX: usize = 64;

/// A change to the membership, or of the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub kind: ChangeKind,
    /// Only say what it would come to.
    pub dry_run: bool,
    /// Fewer than three voters, or more than five, are meant.
    pub any_voter_count: bool,
}

/// What is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// Register a node, hand it the keyring, wait until it has caught up, make it a voter.
    Add {
        /// Host and port of its peer service.
        peer_address: String,
        /// Keep it a learner.
        learner: bool,
    },
    /// Make a voter a learner.
    Demote {
        /// Which.
        node: NodeId,
    },
    /// Make a learner that has caught up a voter.
    Promote {
        /// Which.
        node: NodeId,
    },
    /// Take a member out for ever.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// Add one node and remove another, in one joint change.
    Replace {
        /// The member that goes.
        old: NodeId,
        /// Who comes.
        new: Replacement,
    },
    /// Move the leadership.
    Transfer {
        /// To this voter; to the one that has most of the log if none is named.
        to: Option<NodeId>,
    },
}

/// Who comes in the place of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replacement {
    /// The node whose peer service answers there.
    Added(String),
    /// A learner there is.
    Learner(NodeId),
}

/// How many voters may fail before writes stop: `n - (n / 2 + 1)`.
pub fn failure_tolerance(voters: usize) -> u32 {
    u32::try_from(voters.saturating_sub(voters / 2 + 1)).unwrap_or(u32::MAX)
}

impl Node {
    /// Makes a change, for operator `by`; tells `progress` what is happening.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] anywhere but at the leader; [`NodeError::Admission`] in words for the operator;
    /// otherwise as [`Node::propose`].
    pub async fn change_membership(
        &self,
        change: &Change,
        by: &Identity,
        source: Source,
        now: Timestamp,
        progress: &mpsc::Sender<MemberProgress>,
    ) -> Result<(), NodeError> {
        match &change.kind {
            ChangeKind::Add { peer_address, learner } if !change.dry_run => {
                self.add_member(peer_address, *learner, by, source, now, progress).await.map(drop)
            }
            _ => Err(NodeError::Admission("only adding is built in this commit".to_owned())),
        }
    }

    /// Adds the node whose peer service answers at `address`, for operator `by`; tells `progress` what is happening.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] anywhere but at the leader; [`NodeError::Admission`] if the node cannot be added, in
    /// words for the operator; otherwise as [`Node::propose`].
    async fn add_member(
        &self,
        address: &str,
        learner: bool,
        by: &Identity,
        source: Source,
        now: Timestamp,
        progress: &mpsc::Sender<MemberProgress>,
    ) -> Result<NodeId, NodeError> {
        let leader = self.leader();
        if leader != Some(self.options().id) {
            return Err(NodeError::NotLeader(leader));
        }
        let _change = self.inner.membership_change.try_lock().map_err(|_| {
            NodeError::Admission("another membership change is under way; try again when it is done".into())
        })?;
        let candidate = self.describe(address).await?;
        let id = candidate.status.as_ref().map_or(0, |status| status.id);
        let before = self.voters();
        let member = self.check_candidate(&candidate)?;
        let known = self.members().remove(&id);
        if known.as_ref().is_some_and(|(known, votes)| *votes && *known == member) {
            self.leave_joint().await?;
            report(progress, "done", id, &before, &self.voters());
            return Ok(id);
        }
        self.admit(&candidate, &member, by, source, now).await?;
        report(progress, "admitted", id, &before, &before);
        match known {
            // The same data directory at another address: `check_candidate` has seen to that.
            Some((known, _)) if known != member => {
                let moved = ChangeMembers::SetNodes(BTreeMap::from([(id, member)]));
                self.change(|raft| async move { raft.change_membership(moved, true).await }).await?;
            }
            Some(_) => {}
            None => self.change(|raft| async move { raft.add_learner(id, member, false).await }).await?,
        }
        self.catch_up(id, &before, progress).await?;
        if !learner {
            let promoted = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
            self.change(|raft| async move { raft.change_membership(promoted, true).await }).await?;
        }
        report(progress, "done", id, &before, &self.voters());
        Ok(id)
    }

    /// Finishes a change whose leader died between its two steps: until then both configurations must agree.
    async fn leave_joint(&self) -> Result<(), NodeError> {
        if self.metrics().membership_config.get_joint_config().len() > 1 {
            let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
            self.change(|raft| async move { raft.change_membership(nobody, true).await }).await?;
        }
        Ok(())
    }

    /// Asks the node at `address` who it is, and asks again over a connection that accepts only that node.
    async fn describe(&self, address: &str) -> Result<DescribeResponse, NodeError> {
        let id = |described: &DescribeResponse| described.status.as_ref().map_or(0, |status| status.id);
        let claimed = self.describe_as(address, ExpectedPeer::AnyNode).await?;
        let described = self.describe_as(address, ExpectedPeer::Node(id(&claimed))).await?;
        let (first, then) = (id(&claimed), id(&described));
        if first != then {
            return Err(NodeError::Admission(format!(
                "the node at {address} called itself {first}, then {then}"
            )));
        }
        Ok(described)
    }

    async fn describe_as(
        &self,
        address: &str,
        expected: ExpectedPeer,
    ) -> Result<DescribeResponse, NodeError> {
        let unreachable =
            |why| NodeError::Admission(format!("the node at {address} cannot be reached: {why}"));
        let mut client = self.inner.peers.stranger(address, expected);
        let answer = timeout(DESCRIBE_TIMEOUT, client.describe(DescribeRequest {})).await;
        let answer =
            answer.map_err(|_| unreachable(format!("no answer within {} s", DESCRIBE_TIMEOUT.as_secs())))?;
        answer.map(Response::into_inner).map_err(|status| unreachable(crate::error::status(&status)))
    }

    /// Whether a node that says this of itself may join.
    fn check_candidate(&self, candidate: &DescribeResponse) -> Result<Member, NodeError> {
        let refused = |why: String| Err(NodeError::Admission(why));
        let status = candidate.status.clone().unwrap_or_default();
        let id = status.id;
        let cluster = self.cluster()?.ok_or(NodeError::NoCluster)?;
        if !candidate.cluster.is_empty() && candidate.cluster != cluster.id.to_string() {
            return refused(format!(
                "node {id} belongs to another cluster ({}); give it an empty data directory",
                candidate.cluster
            ));
        }
        let known = lookup::nodes(&self.view()?)?.into_iter().find(|node| node.id == id);
        if candidate.cluster.is_empty() && status.last_log > 0 && known.is_none() {
            return refused(format!(
                "node {id} holds a log of its own: finish its `init`, or give it an empty data directory"
            ));
        }
        let Ok(storage) = candidate.storage.parse::<Uuid>() else {
            return refused(format!("node {id} does not name its data directory"));
        };
        if known.is_some_and(|known| known.storage != storage) {
            return refused(format!(
                "node id {id} was used before, on another data directory; ids are never used twice: choose a new one"
            ));
        }
        Ok(Member {
            peer_address: status.peer_address,
            api_address: status.api_address,
            zone: status.zone,
            storage,
        })
    }

    /// Registers the node and seals the keyring to it too.
    async fn admit(
        &self,
        candidate: &DescribeResponse,
        member: &Member,
        by: &Identity,
        source: Source,
        now: Timestamp,
    ) -> Result<(), NodeError> {
        // The view goes before anything is waited for: one that is kept holds back the store.
        let (cluster, current, members) = {
            let view = self.view()?;
            (lookup::cluster(&view)?, lookup::keyring(&view)?, lookup::nodes(&view)?)
        };
        let (cluster, current) = cluster.zip(current).ok_or(NodeError::NoCluster)?;
        let keyring = self.inner.keyring.open(&current)?;
        let mut recipients: Vec<String> = members.into_iter().map(|node| node.recipient).collect();
        recipients.extend([candidate.recipient.clone(), cluster.offline_recipient]);
        let node = NodeRecord {
            id: candidate.status.as_ref().map_or(0, |status| status.id),
            peer_address: member.peer_address.clone(),
            api_address: member.api_address.clone(),
            zone: member.zone.clone(),
            storage: member.storage,
            recipient: candidate.recipient.clone(),
            admitted_at: now,
        };
        let keyring = KeyringRecord {
            generation: current.generation + 1,
            current_key_version: keyring.current_version(),
            age_file: keyring.seal_to(&recipients)?,
        };
        let command = Command {
            request: RequestId(Uuid::new_v4()),
            at: now,
            by: by.clone(),
            source,
            action: Action::AdmitNode(AdmitNode { node, keyring }),
        };
        match self.propose(&command).await?.reply {
            Reply::NodeAdmitted => Ok(()),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(NodeError::Admission(format!("unexpected answer {other:?}"))),
        }
    }

    /// Waits until learner `id` is within [`CAUGHT_UP_ENTRIES`] of the leader.
    async fn catch_up(
        &self,
        id: NodeId,
        voters: &[NodeId],
        progress: &mpsc::Sender<MemberProgress>,
    ) -> Result<(), NodeError> {
        let (mut furthest, mut moved_at) = (0, Instant::now());
        loop {
            self.running()?;
            let metrics = self.metrics();
            let Some(replication) = metrics.replication else {
                return Err(NodeError::NotLeader(metrics.current_leader));
            };
            let matched = replication.get(&id).copied().flatten().map_or(0, |log_id| log_id.index);
            let target = metrics.last_log_index.unwrap_or(0);
            if matched > 0 && matched + CAUGHT_UP_ENTRIES >= target {
                return Ok(());
            }
            if matched > furthest {
                (furthest, moved_at) = (matched, Instant::now());
                let step = MemberProgress {
                    step: "catching-up".to_owned(),
                    node: id,
                    before: Some(members_of(voters)),
                    after: Some(members_of(voters)),
                    matched,
                    target,
                    ..MemberProgress::default()
                };
                let _ = progress.try_send(step);
            }
            if moved_at.elapsed() > CATCH_UP_STALL {
                return Err(NodeError::Admission(format!(
                    "node {id} has made no progress for {} s (at index {matched} of {target}); it stays a learner: look at its log, then run the same command again",
                    CATCH_UP_STALL.as_secs()
                )));
            }
            tokio::time::sleep(CATCH_UP_POLL).await;
        }
    }

    async fn change<F, Fut, T>(&self, change: F) -> Result<(), NodeError>
    where
        F: FnOnce(super::types::Raft) -> Fut,
        Fut: Future<Output = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
    {
        match change(self.inner.raft.clone()).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
            )) => Err(NodeError::NotLeader(to.leader_id)),
            Err(RaftError::APIError(error)) => Err(NodeError::Admission(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(NodeError::Fatal(fatal.to_string())),
        }
    }
}

/// Tells the caller. One that has gone, or does not read, holds nothing up.
fn report(
    progress: &mpsc::Sender<MemberProgress>,
    step: &str,
    node: NodeId,
    voters_before: &[NodeId],
    voters_after: &[NodeId],
) {
    let step = MemberProgress {
        step: step.to_owned(),
        node,
        before: Some(members_of(voters_before)),
        after: Some(members_of(voters_after)),
        ..MemberProgress::default()
    };
    let _ = progress.try_send(step);
}

fn members_of(voters: &[NodeId]) -> crate::proto::Members {
    crate::proto::Members {
        voters: voters.to_vec(),
        failure_tolerance: failure_tolerance(voters.len()),
        ..crate::proto::Members::default()
    }
}

#[cfg(test)]
mod tests {
    use super::failure_tolerance;

    #[test]
    fn failure_tolerance_is_what_is_left_beyond_a_majority() {
        assert_eq!([1, 2, 3, 4, 5].map(failure_tolerance), [0, 0, 1, 1, 2]);
    }
}
