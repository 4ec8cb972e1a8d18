//! Asking the leader: committing commands and confirming reads, wherever it is.
//!
//! Whoever leads is found anew for each attempt, and an attempt is given up as soon as another leader is known, so that
//! one that has fallen silent costs no more than the election. Repeating is safe: a command is known by its request id,
//! and a read changes nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status};

use crate::escrow::apply::too_new;
use crate::escrow::command::{Command, Refusal};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{NodeId, Timestamp};
use crate::metrics::ProposalOutcome;
use crate::mutation::Mutation;
use crate::proto::peer::{Envelope, ReadIndexRequest};
use crate::store::format;

use super::clock::is_credible;
use super::error::NodeError;
use super::groups::{Groups, Permit, Unwritten, Written};
use super::log_store::position;
use super::node::{Committed, Node};
use super::read_index::ReadIndex;
use super::types::{EncodedCommands, Raft};

/// Longest a proposal waits for a quorum, an election included, before its caller is told that none answered. Shorter
/// than a client's attempt, so that the caller hears this answer and not silence.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_millis(2_800);
/// Longest a quorum read waits for its confirmation.
pub const READ_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Metadata key of a leader's answer: nothing was begun, so the outcome is known.
pub const NOT_BEGUN_KEY: &str = "strongroom-not-begun";
/// Largest encoded command: a keyring is the largest thing in one.
pub const COMMAND_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Memory of the commands under way at one node, in KiB; past it callers are told to try again.
pub const PROPOSALS_MAX_KIB: usize = 64 * 1024;
/// A leader that has not heard of a quorum for this many heartbeats appends nothing until it does.
const QUORUM_FRESH_HEARTBEATS: u64 = 3;
/// Between two attempts at a leader that is not there yet, unless news of one comes first.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A leader that refuses is not asked again this shortly before time is up: a question that is cut off may have been
/// granted, and nobody would know.
const REFUSED_LATE: Duration = Duration::from_millis(100);

/// What is asked of the leader.
trait Question: Sync {
    /// What it answers.
    type Answer;

    /// Asks `leader`, which may be this node.
    fn ask(
        &self,
        node: &Node,
        leader: NodeId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Attempt<Self::Answer>, NodeError>> + Send;
}

/// Commit a command.
#[derive(Clone)]
struct Commit {
    /// Encoded.
    body: Bytes,
    /// Machines do it all day: it waits for others of its kind, and others not for it.
    is_routine: bool,
    /// The feature level that allows it.
    requires: FeatureLevel,
    /// What it takes of [`PROPOSALS_MAX_KIB`].
    permit: Permit,
}

impl Question for Commit {
    type Answer = Committed;

    async fn ask(
        &self,
        node: &Node,
        leader: NodeId,
        deadline: Instant,
    ) -> Result<Attempt<Committed>, NodeError> {
        if leader != node.options().id {
            return node.forward(leader, self.body.clone(), deadline).await;
        }
        match node.commit(self.clone()).await {
            Ok(committed) => Ok(Attempt::Done(committed)),
            Err(NodeError::NotLeader(_) | NodeError::NoQuorum(_) | NodeError::Quarantined(_)) => {
                Ok(Attempt::NotBegun)
            }
            Err(NodeError::Unconfirmed(_)) => Ok(Attempt::Unknown),
            Err(error) => Err(error),
        }
    }
}

/// Confirm that you lead, and say up to where.
struct Confirm;

impl Question for Confirm {
    type Answer = u64;

    async fn ask(&self, node: &Node, leader: NodeId, _: Instant) -> Result<Attempt<u64>, NodeError> {
        if leader == node.options().id {
            return Ok(node.read_index_as_leader().await.map_or(Attempt::NotBegun, Attempt::Done));
        }
        let Some(mut client) = node.member_client(leader) else { return Ok(Attempt::NotBegun) };
        Ok(match client.read_index(ReadIndexRequest {}).await {
            Ok(answer) => Attempt::Done(answer.into_inner().index),
            Err(status) => refused_or(status, Attempt::NotBegun),
        })
    }
}

/// What came of one attempt.
enum Attempt<T> {
    /// The leader's answer.
    Done(T),
    /// The leader said no, with a reason of its own. If it passes, another attempt finds out.
    Refused(Status),
    /// There is reason to look for the leader again, and nothing was begun.
    NotBegun,
    /// As above, but it may have been done.
    Unknown,
}

/// A command that another node forwards, known to be one that a replica can apply.
pub struct Forwarded {
    body: Bytes,
    /// When it says it was given.
    at: Timestamp,
    /// The node it says it came in through.
    pub source: NodeId,
    /// What it does.
    kind: &'static str,
    /// The feature level that allows it.
    requires: FeatureLevel,
    is_routine: bool,
}

impl Forwarded {
    /// Takes an encoded command.
    ///
    /// # Errors
    /// [`NodeError::Decode`] or [`NodeError::TooLarge`] for what no replica could apply: such an entry would stop all of
    /// them.
    pub fn decode(body: Bytes) -> Result<Self, NodeError> {
        if body.len() > COMMAND_MAX_BYTES {
            return Err(NodeError::TooLarge { bytes: body.len() });
        }
        let command: Command = format::decode(&body)?;
        let is_routine = command.action.is_routine();
        let kind = command.action.kind();
        let requires = FeatureLevel::required_by(&command);
        Ok(Self { body, at: command.at, source: command.source.node, kind, requires, is_routine })
    }

    /// The same, given at `now`: a stamp is nobody's word but the node's that passes it on.
    fn restamped(self, now: Timestamp) -> Result<Self, NodeError> {
        let command: Command = format::decode(&self.body)?;
        let body = format::encode(&Command { at: now, ..command }).into();
        Ok(Self { body, at: now, ..self })
    }
}

impl Node {
    /// Commits a command, here or through the leader, and answers what apply answered there. An election under way
    /// is waited for.
    ///
    /// # Errors
    /// [`NodeError::NoQuorum`] after [`PROPOSE_TIMEOUT`] if nothing was begun, [`NodeError::Declined`] if that is because
    /// the leader does not take it; [`NodeError::Unconfirmed`] if the command may still take effect: repeating it with
    /// its request id is safe. [`NodeError::Refused`] for what the domain refuses before it is in the log.
    /// [`NodeError::Overloaded`], [`NodeError::NoRoom`], and [`NodeError::Clock`] if this node has stamped it with a clock
    /// that is wrong: nothing was begun.
    pub async fn propose(&self, command: &Command) -> Result<Committed, NodeError> {
        self.propose_within(command, PROPOSE_TIMEOUT).await
    }

    /// As [`Node::propose`], waiting at most `limit`.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn propose_within(&self, command: &Command, limit: Duration) -> Result<Committed, NodeError> {
        let outcome = self.propose_uncounted(command, limit).await;
        self.options().metrics.raft.proposals.count(match &outcome {
            Ok(_) => ProposalOutcome::Committed,
            Err(NodeError::NoQuorum(_) | NodeError::NotLeader(_)) => ProposalOutcome::NoQuorum,
            Err(NodeError::Unconfirmed(_)) => ProposalOutcome::Unconfirmed,
            Err(NodeError::Overloaded { .. }) => ProposalOutcome::Overloaded,
            Err(_) => ProposalOutcome::Failed,
        });
        outcome
    }

    async fn propose_uncounted(&self, command: &Command, limit: Duration) -> Result<Committed, NodeError> {
        if let Some(skew) = self.clock_fault() {
            return Err(NodeError::Clock(skew));
        }
        self.check_room(&command.action)?;
        let body = Bytes::from(format::encode(command));
        let permit = self.proposal_permit(body.len())?;
        let requires = FeatureLevel::required_by(command);
        let is_routine = command.action.is_routine();
        self.at_the_leader(limit, Commit { body, is_routine, requires, permit }).await
    }

    async fn forward(
        &self,
        leader: NodeId,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Attempt<Committed>, NodeError> {
        let Some(mut client) = self.member_client(leader) else { return Ok(Attempt::NotBegun) };
        let mut request = tonic::Request::new(Envelope { body, quorum_age_ms: None });
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        match client.propose(request).await.map(|answer| format::decode(&answer.into_inner().body)) {
            Ok(Ok(committed)) => Ok(Attempt::Done(committed)),
            Ok(Err(error)) => Ok(Attempt::Refused(Status::internal(error.to_string()))),
            // The domain's own no, given before anything is in the log: an answer, as it is to the leader's own callers.
            Err(status) if status.code() == Code::AlreadyExists => {
                Err(Refusal::Conflict(status.message().to_owned()).into())
            }
            Err(status) => Ok(refused_or(status, Attempt::Unknown)),
        }
    }

    /// Commits a command as the leader, for a peer that forwards it.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node does not lead, [`NodeError::NoQuorum`] if it leads but has lost touch
    /// with the majority: nothing was written then. [`NodeError::Unconfirmed`] if that is not known.
    pub async fn commit_forwarded(&self, mut forwarded: Forwarded) -> Result<Committed, NodeError> {
        let now = self.inner.clock.now();
        // What a leader with a wrong clock knows of the time is no better.
        if !is_credible(forwarded.at, now) && self.clock_fault().is_none() {
            let (source, stamp) = (forwarded.source, forwarded.at);
            tracing::warn!(source, %stamp, "a command from the future counts as given now");
            forwarded = forwarded.restamped(now)?;
        }
        let Forwarded { body, source, kind, requires, is_routine, .. } = forwarded;
        let permit = self.proposal_permit(body.len())?;
        match timeout(PROPOSE_TIMEOUT, self.commit(Commit { body, is_routine, requires, permit })).await {
            Ok(Ok(committed)) => {
                let index = committed.position.index;
                // Not worth a line each, unlike what people do.
                if is_routine {
                    tracing::debug!(index, kind, source, "committed for another node");
                } else {
                    tracing::info!(index, kind, source, "committed for another node");
                }
                Ok(committed)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(NodeError::Unconfirmed(PROPOSE_TIMEOUT)),
        }
    }

    /// Refuses what the feature level does not allow before it is in the log: a member of an older release would meet an
    /// entry that it cannot read. Apply judges again.
    async fn check_allowed(&self, requires: FeatureLevel) -> Result<(), NodeError> {
        if requires == FeatureLevel::FIRST || requires <= self.feature_level()? {
            return Ok(());
        }
        // A new leader may not have applied yet what raised it; and a cluster whose last member has just joined, or has
        // just been upgraded, need not wait for the next look.
        self.confirm_and_apply().await?;
        self.look_at_features_now().await?;
        let allowed = self.feature_level()?;
        if requires <= allowed { Ok(()) } else { Err(too_new(requires, allowed).into()) }
    }

    async fn commit(&self, commit: Commit) -> Result<Committed, NodeError> {
        let Commit { body, is_routine, requires, permit } = commit;
        // It would be answered from this node's state, which is wrong.
        if let Some(why) = self.quarantine() {
            return Err(NodeError::Quarantined(why));
        }
        // A leader cut off from the majority would append what nobody may ever confirm. Better to hold the command
        // back, with nothing stored, than to leave the caller with an unknown outcome. openraft does the same when its
        // lease has run out; this is sooner.
        let fresh = Duration::from_millis(QUORUM_FRESH_HEARTBEATS * self.options().heartbeat_ms);
        if self.inner.quorum.age().is_none_or(|age| age > fresh) {
            return Err(NodeError::NoQuorum(fresh));
        }
        self.check_allowed(requires).await?;
        let began = Instant::now();
        let groups = &self.inner.groups;
        let committed =
            if is_routine { groups.commit(body, permit).await } else { groups.commit_alone(body).await };
        let committed = committed.map_err(|unwritten| match unwritten {
            Unwritten::Discarded => NodeError::Unconfirmed(fresh),
            Unwritten::Failed(why) => NodeError::Fatal(why),
            Unwritten::NotLeader(leader) => NodeError::NotLeader(leader),
        })?;
        self.options().metrics.raft.commit.observe(began.elapsed());
        Ok(committed)
    }

    /// An index such that a replica which has applied it has everything acknowledged before this call.
    ///
    /// # Errors
    /// [`NodeError::NoQuorum`] after [`READ_TIMEOUT`].
    pub async fn read_index(&self) -> Result<u64, Arc<NodeError>> {
        if Mutation::SkipReadIndex.is_active() {
            return Ok(self.applied());
        }
        confirmed(self.inner.reads.get()).await
    }

    /// As [`Node::read_index`], but only if this node leads; for peers that ask it.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if it does not.
    pub async fn read_index_as_leader(&self) -> Result<u64, Arc<NodeError>> {
        confirmed(self.inner.leader_reads.get()).await
    }

    /// Starts the two batches of readers: those of this node, and those of peers that take it for the leader.
    pub(super) fn start_reads(&self) {
        // Weak: the batches' tasks must not keep the node alive that owns them.
        let weak = Arc::downgrade(&self.inner);
        let node = move || {
            let stopping = || NodeError::Fatal("the node is stopping".to_owned());
            weak.upgrade().map(|inner| Self { inner }).ok_or_else(stopping)
        };
        let leader_reads = ReadIndex::new({
            let node = node.clone();
            move || {
                let node = node();
                async move { node?.confirm_leadership().await }
            }
        });
        let reads = ReadIndex::new(move || {
            let node = node();
            async move {
                // A read has no outcome to be unknown.
                node?.at_the_leader(READ_TIMEOUT, Confirm).await.map_err(|error| match error {
                    NodeError::Unconfirmed(waited) => NodeError::NoQuorum(waited),
                    error => error,
                })
            }
        });
        // Set once, here: a second value could only come from a second start.
        let _ = self.inner.leader_reads.set(leader_reads);
        let _ = self.inner.reads.set(reads);
    }

    async fn confirm_leadership(&self) -> Result<u64, NodeError> {
        match self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(NodeError::NotLeader(to.leader_id))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(NodeError::NoQuorum(READ_TIMEOUT))
            }
            Err(RaftError::Fatal(fatal)) => Err(NodeError::Fatal(fatal.to_string())),
        }
    }

    /// Repeats `question` at whoever leads until it is answered, `limit` has passed or this node has stopped.
    async fn at_the_leader<T>(
        &self,
        limit: Duration,
        question: impl Question<Answer = T>,
    ) -> Result<T, NodeError> {
        let deadline = Instant::now() + limit;
        let mut metrics = self.inner.raft.server_metrics();
        // Whether it may have been done, and why the leader does not take it, if it was the last to speak.
        let (mut begun, mut refused) = (false, None);
        loop {
            let leader = metrics.borrow_and_update().current_leader;
            if let Some(leader) = leader {
                let outcome = tokio::select! {
                    outcome = question.ask(self, leader, deadline) => outcome?,
                    () = self.deposed(leader) => Attempt::Unknown,
                    () = self.inner.stop.cancelled() => return Err(NodeError::Fatal("it is stopping".to_owned())),
                    () = sleep_until(deadline) => Attempt::Unknown,
                };
                refused = None;
                match outcome {
                    Attempt::Done(answer) => return Ok(answer),
                    Attempt::NotBegun => {}
                    // A node that was removed, or whose certificate was revoked, is told so and passes it on.
                    Attempt::Refused(status) if status.code() == Code::PermissionDenied => {
                        self.heed(&status);
                        return Err(NodeError::Excluded(status.message().to_owned()));
                    }
                    Attempt::Refused(status) => refused = Some(status),
                    Attempt::Unknown => begun = true,
                }
            }
            // News of another leader cuts the wait short; either way the next attempt looks again.
            let wait = deadline.min(Instant::now() + RETRY_INTERVAL);
            if let Ok(Err(_)) = timeout_at(wait, metrics.changed()).await {
                return Err(NodeError::Fatal("the consensus core has ended".to_owned()));
            }
            let last = if refused.is_some() { deadline - REFUSED_LATE } else { deadline };
            if Instant::now() >= last {
                if let Some(status) = &refused {
                    tracing::warn!(%status, "the leader refuses what this node forwards");
                }
                return Err(match refused {
                    _ if begun => NodeError::Unconfirmed(limit),
                    Some(status) => NodeError::Declined(status.message().to_owned()),
                    None => NodeError::NoQuorum(limit),
                });
            }
        }
    }

    /// Resolves once this node knows of another leader than `leader`, or of none. Never for itself: what it has begun
    /// is answered by its own core.
    async fn deposed(&self, leader: NodeId) {
        let mut metrics = self.inner.raft.server_metrics();
        while leader == self.options().id || metrics.borrow_and_update().current_leader == Some(leader) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    fn proposal_permit(&self, bytes: usize) -> Result<Permit, NodeError> {
        let overloaded = || NodeError::Overloaded { what: "requests", limit: PROPOSALS_MAX_KIB };
        let kib = u32::try_from(bytes / 1024 + 1).map_err(|_| overloaded())?;
        self.inner.proposals.clone().try_acquire_many_owned(kib).map(Arc::new).map_err(|_| overloaded())
    }
}

/// Has the entries of this node's clients written by `raft`.
pub(super) fn groups(raft: Raft) -> Groups {
    Groups::new(move |commands| {
        let raft = raft.clone();
        async move { write(&raft, commands).await }
    })
}

async fn write(raft: &Raft, commands: EncodedCommands) -> Result<Written, Unwritten> {
    let written = raft.client_write(commands).await.map_err(|error| match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => Unwritten::NotLeader(to.leader_id),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => Unwritten::Discarded,
        other => Unwritten::Failed(other.to_string()),
    })?;
    Ok(Written { position: position(&written.log_id), replies: written.data.0 })
}

async fn confirmed(reads: Option<&ReadIndex>) -> Result<u64, Arc<NodeError>> {
    let reads = reads.ok_or_else(|| NodeError::Fatal("the node has not started".to_owned()))?;
    // A reader that arrives during a round that fails would wait for two.
    timeout(READ_TIMEOUT, reads.confirm()).await.map_err(|_| NodeError::NoQuorum(READ_TIMEOUT))?
}

/// What the leader itself says against it, or `otherwise`.
fn refused_or<T>(status: Status, otherwise: Attempt<T>) -> Attempt<T> {
    match status.code() {
        Code::FailedPrecondition
        | Code::Internal
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::ResourceExhausted => Attempt::Refused(status),
        _ if status.metadata().contains_key(NOT_BEGUN_KEY) => Attempt::NotBegun,
        _ => {
            tracing::debug!(%status, "asking the leader");
            otherwise
        }
    }
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
