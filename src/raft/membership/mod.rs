//! Changing who is in the cluster, and who leads.
//!
//! A change is planned before anything is done ([`plan`]), from what the leader knows of itself, its members
//! (`situation`) and the node that is to join (`candidate`). A dry run ends there. What is to be done is then done by
//! the leader alone, one change at a time (`steps`), and each step can be repeated after a crash between any two:
//!
//! - *add*: register the node and seal the keyring to it (one command); make it a learner; wait until it has caught up
//!   (`catch_up`); make it a voter. A crash leaves a registered node or a learner; the same command goes on from there.
//! - *remove*: note that it left and rotate the data key (one command); then take it out of the configuration. In this
//!   order because the record of who left, with the operator's name, is what the next leader goes by: a node that left
//!   and is still in the configuration is taken out (`settle`). The other way round, a crash in between would leave a
//!   node outside that still has the keyring, and nothing to tell it from one that was just admitted.
//! - *replace*: make the new node a learner and wait until it has caught up; enter the joint configuration of old and
//!   new voters; note that the old one left and rotate the data key; leave the joint configuration. The command in the
//!   middle decides: before it, the next leader goes back to the old voters, after it, on to the new ones.
//! - *demote*, *promote*: one joint change. The next leader completes it.
//!
//! A leader that would lose its vote hands over first, and the new one carries the change out.

mod candidate;
mod catch_up;
mod keys;
pub mod plan;
mod refused;
mod settle;
mod situation;
mod steps;
mod turns;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::escrow::ids::{Identity, NodeId, Timestamp};
use crate::escrow::records::Source;
use crate::proto::{self, MemberProgress};

use self::candidate::Candidate;
use self::plan::{Asked, Members, Plan};
use super::error::NodeError;
use super::node::Node;

pub(super) use self::keys::DataKeys;
pub use self::plan::failure_tolerance;
pub use self::refused::{Obstacle, Refused};
pub(super) use self::settle::spawn as spawn_settling;
pub(super) use self::turns::{BackgroundTurn, Turns};

/// Progress messages a slow caller may leave unread; past it, what is only progress is left out.
pub const PROGRESS_MAX: usize = 64;
/// Longest a change waits for a caller that does not read to take its outcome.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest a change waits for what a dead leader left half-done to be settled, or for what is left of a change whose
/// caller has gone.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Who asks for a change, and where what it comes to is told.
#[derive(Debug, Clone)]
pub struct Order {
    /// The operator.
    pub by: Identity,
    /// Where the operator asked.
    pub source: Source,
    /// When.
    pub at: Timestamp,
    /// Who is told of the steps.
    pub progress: mpsc::Sender<MemberProgress>,
}

/// A change that was found possible.
struct Prepared {
    plan: Plan,
    /// The node that joins.
    candidate: Option<Candidate>,
    /// The node that the change is about.
    subject: NodeId,
}

impl Node {
    /// Makes a change, or only says what it would come to.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] anywhere but at the leader, also if the leadership was handed over so that the change can
    /// be made: nothing was begun, ask the new one. [`NodeError::Change`] with what to do instead; otherwise as
    /// [`Node::propose`].
    pub async fn change_membership(&self, change: &Change, order: &Order) -> Result<(), NodeError> {
        let leader = self.leader();
        if leader != Some(self.options().id) {
            return Err(NodeError::NotLeader(leader));
        }
        self.refuse_in_quarantine()?;
        let _turn = self.inner.turns.operator(&order.progress).await?;
        self.settled().await?;
        let prepared = self.prepare(change).await?;
        let Prepared { plan, subject, .. } = &prepared;
        if change.dry_run {
            tell(order, "planned", *subject, plan, &plan.after).await;
            return Ok(());
        }
        tracing::info!(
            by = %order.by, change = ?change.kind, before = %Shown(&plan.before), after = %Shown(&plan.after),
            "changing the membership"
        );
        if let Some(successor) = plan.hand_over {
            self.hand_over_to(successor).await?;
            return Err(NodeError::NotLeader(Some(successor)));
        }
        tell(order, "planned", *subject, plan, &plan.after).await;
        self.carry_out(change, &prepared, order).await.map_err(interrupted)?;
        let now = self.member_ids();
        tracing::info!(by = %order.by, change = ?change.kind, now = %Shown(&now), "the membership is changed");
        tell(order, "done", *subject, plan, &now).await;
        Ok(())
    }

    /// Who is registered and who left is read from this node's state, and the keyring is sealed by that.
    fn refuse_in_quarantine(&self) -> Result<(), NodeError> {
        self.quarantine().map_or(Ok(()), |why| Err(NodeError::Quarantined(why)))
    }

    /// The right to look at the membership without anybody changing it, for short work of the leader's own; none while
    /// an operator's change is under way.
    pub(super) fn background_turn(&self) -> Option<BackgroundTurn<'_>> {
        self.inner.turns.background()
    }

    /// Resolves the addresses of a change and plans it.
    async fn prepare(&self, change: &Change) -> Result<Prepared, NodeError> {
        let mut candidate = None;
        let asked = match &change.kind {
            ChangeKind::Add { peer_address, learner } => {
                let joins = self.candidate(peer_address).await?;
                let asked = Asked::Add { node: joins.id, learner: *learner };
                candidate = Some(joins);
                asked
            }
            ChangeKind::Demote { node } => Asked::Demote(*node),
            ChangeKind::Promote { node } => Asked::Promote(*node),
            ChangeKind::Remove { node } => Asked::Remove(*node),
            ChangeKind::Replace { old, new: Replacement::Learner(new) } => {
                Asked::Replace { old: *old, new: *new, joins: false }
            }
            ChangeKind::Replace { old, new: Replacement::Added(peer_address) } => {
                let joins = self.candidate(peer_address).await?;
                let asked = Asked::Replace { old: *old, new: joins.id, joins: true };
                candidate = Some(joins);
                asked
            }
            ChangeKind::Transfer { to } => Asked::Transfer(*to),
        };
        let plan = plan::plan(&self.situation().await?, asked, change.any_voter_count)?;
        let subject = match asked {
            Asked::Add { node, .. } | Asked::Demote(node) | Asked::Promote(node) | Asked::Remove(node) => {
                node
            }
            Asked::Replace { new, .. } => new,
            Asked::Transfer(to) => plan.after.leader.or(to).unwrap_or_default(),
        };
        Ok(Prepared { plan, candidate, subject })
    }
}

/// What a change that has begun ends with if the leadership moves or no majority answers: the caller repeats it, nobody
/// else does.
fn interrupted(error: NodeError) -> NodeError {
    match error {
        NodeError::NotLeader(_)
        | NodeError::NoQuorum(_)
        | NodeError::Unconfirmed(_)
        | NodeError::Overloaded { .. }
        | NodeError::Behind { .. } => Refused::interrupted(error).into(),
        error => error,
    }
}

/// Tells the caller what must not be left out. One that has gone holds nothing up.
async fn tell(order: &Order, step: &str, node: NodeId, plan: &Plan, after: &Members) {
    let message = MemberProgress {
        step: step.to_owned(),
        node,
        before: Some(message_of(&plan.before)),
        after: Some(message_of(after)),
        warnings: plan.warnings.clone(),
        ..MemberProgress::default()
    };
    let _ = timeout(REPORT_TIMEOUT, order.progress.send(message)).await;
}

/// Tells the caller of a step on the way, if it keeps up.
fn report(order: &Order, step: &str, node: NodeId) {
    let message = MemberProgress { step: step.to_owned(), node, ..MemberProgress::default() };
    let _ = order.progress.try_send(message);
}

fn message_of(members: &Members) -> proto::Members {
    proto::Members {
        voters: members.voters.iter().copied().collect(),
        learners: members.learners.iter().copied().collect(),
        quorum: u32::try_from(members.quorum()).unwrap_or(u32::MAX),
        failure_tolerance: failure_tolerance(members.voters.len()),
        leader: members.leader,
    }
}

/// Members as they are logged.
struct Shown<'a>(&'a Members);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Members { voters, learners, leader } = self.0;
        write!(f, "voters {}; learners {}; leader ", plan::ids(voters), plan::ids(learners))?;
        match leader {
            Some(leader) => write!(f, "{leader}"),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
pub(crate) mod in_process;
