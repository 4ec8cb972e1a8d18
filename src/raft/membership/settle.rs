//! Finishing what a change left half-done when its leader died, without help.
//!
//! Whoever leads looks now and then at the configuration and at who left. What is to be done follows from those two
//! alone (see the room's description): a decision that was committed is carried through, one that was not is undone.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use openraft::ServerState;
use tokio::time::{Instant, MissedTickBehavior, sleep};
use tokio_util::sync::CancellationToken;

use crate::escrow::ids::NodeId;

use super::super::error::NodeError;
use super::super::node::{Inner, Node};
use super::SETTLE_TIMEOUT;
use super::plan::{Asked, Work, plan};
use super::refused::Refused;

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Between two looks of a change that waits.
const WAIT_POLL: Duration = Duration::from_millis(50);

/// What is left to do of an earlier change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rest {
    /// Leave the joint configuration for the newer half; who loses its vote stays a learner if `retain`.
    Forward {
        /// Whether it stays.
        retain: bool,
    },
    /// Leave the joint configuration for the older half.
    Back(BTreeSet<NodeId>),
    /// Take this node, which left, out.
    TakeOut(NodeId),
    /// Move the leadership to a voter: whoever leads lost its vote by a change that it completed itself.
    HandOver,
}

/// What is left to do for `leader` in the configuration of `halves` and `learners`, of which `departed` left.
fn rest(
    leader: NodeId,
    halves: &[BTreeSet<NodeId>],
    learners: &BTreeSet<NodeId>,
    departed: &BTreeSet<NodeId>,
) -> Option<Rest> {
    if let [old, .., new] = halves {
        let leaving: BTreeSet<NodeId> = old.difference(new).copied().collect();
        let joining = new.difference(old).next().is_some();
        // Noted as having left before the configuration is touched (remove), or in its middle (replace).
        let decided = !leaving.is_empty() && leaving.is_subset(departed);
        return Some(if decided {
            Rest::Forward { retain: false }
        } else if !leaving.is_empty() && joining {
            Rest::Back(old.clone())
        } else {
            Rest::Forward { retain: true }
        });
    }
    // First: what else there is to do needs a leader that stays. One that is no member at all steps down by itself.
    if learners.contains(&leader) {
        return Some(Rest::HandOver);
    }
    let members = halves.iter().flatten().chain(learners);
    members.copied().find(|node| departed.contains(node)).map(Rest::TakeOut)
}

/// Settles, at whoever leads, until `stop`.
pub(in crate::raft) fn spawn(node: Weak<Inner>, stop: CancellationToken) {
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Weak: this task must not keep the node alive that started it.
            let Some(inner) = node.upgrade() else { return };
            let node = Node { inner };
            if let Err(error) = node.settle().await {
                tracing::warn!(%error, "settling a membership change that was left half-done");
            }
        }
    }));
}

impl Node {
    /// Waits until nothing is left half-done and this replica has all that was committed before, so that a change begins
    /// from there.
    ///
    /// # Errors
    /// [`NodeError::Change`] or [`NodeError::Behind`] if that takes too long; [`NodeError::NoQuorum`],
    /// [`NodeError::NotLeader`].
    pub(super) async fn settled(&self) -> Result<(), NodeError> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            self.running()?;
            if self.is_settled() {
                // What an earlier leader committed counts before anything is judged: a node that it admitted would be
                // taken for one that has its log from elsewhere.
                match self.confirm_and_apply().await {
                    Err(NodeError::Behind { .. }) if Instant::now() < deadline => continue,
                    outcome => return outcome,
                }
            }
            if let Err(error) = self.settle_now().await {
                tracing::warn!(%error, "settling a membership change that was left half-done");
            }
            if Instant::now() >= deadline {
                return Err(Refused::conflict(
                    "an earlier membership change is not complete: its configuration is not agreed to yet",
                    "bring back the voters that are missing; the change completes by itself then",
                )
                .into());
            }
            sleep(WAIT_POLL).await;
        }
    }

    async fn settle(&self) -> Result<(), NodeError> {
        if self.metrics().state != ServerState::Leader || !self.something_is_left()? {
            return Ok(());
        }
        // Whose change is under way finishes it.
        let Some(_turn) = self.background_turn() else { return Ok(()) };
        self.settle_now().await
    }

    fn something_is_left(&self) -> Result<bool, NodeError> {
        let members = self.member_ids();
        Ok(rest(self.options().id, &self.halves(), &members.learners, &self.departed()?).is_some())
    }

    fn departed(&self) -> Result<BTreeSet<NodeId>, NodeError> {
        Ok(crate::escrow::lookup::departed(&self.view()?)?.into_iter().map(|node| node.id).collect())
    }

    /// Does what is left. The caller has the right to change the membership.
    async fn settle_now(&self) -> Result<(), NodeError> {
        self.refuse_in_quarantine()?;
        // Who left is read only after everything that an earlier leader committed is applied here, and what this one has
        // appended as well: a departure that waits for its majority decides which way to go.
        self.confirm_and_apply().await?;
        self.wait_applied(self.metrics().last_log_index.unwrap_or(0)).await?;
        let members = self.member_ids();
        let rest = rest(self.options().id, &self.halves(), &members.learners, &self.departed()?);
        let Some(rest) = rest else { return Ok(()) };
        tracing::info!(?rest, "a membership change was left half-done: it is settled");
        match rest {
            Rest::Forward { retain } => self.leave_joint(retain).await,
            Rest::Back(voters) => self.leave_joint_for(voters).await,
            Rest::HandOver => match plan(&self.situation().await?, Asked::Transfer(None), true)?.work {
                Work::Transfer(to) => self.hand_over_to(to).await,
                _ => Ok(()),
            },
            Rest::TakeOut(node) => {
                // What was judged when it began may have changed since: entering the joint configuration without a
                // majority of each half would stop the writes.
                let plan = plan(&self.situation().await?, Asked::Remove(node), true)?;
                match plan.hand_over {
                    // One that left, and was elected before it was out.
                    Some(successor) => self.hand_over_to(successor).await,
                    None => self.take_out(node).await,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<const N: usize>(nodes: [NodeId; N]) -> BTreeSet<NodeId> {
        BTreeSet::from(nodes)
    }

    #[test]
    fn a_promotion_and_a_demotion_are_completed() {
        let none = set([]);
        assert_eq!(
            rest(1, &[set([1, 2]), set([1, 2, 3])], &none, &none),
            Some(Rest::Forward { retain: true })
        );
        assert_eq!(
            rest(1, &[set([1, 2, 3]), set([1, 2])], &none, &none),
            Some(Rest::Forward { retain: true })
        );
    }

    #[test]
    fn a_removal_that_was_noted_is_completed_wherever_it_ended() {
        let (none, three) = (set([]), set([3]));
        assert_eq!(
            rest(1, &[set([1, 2, 3]), set([1, 2])], &none, &three),
            Some(Rest::Forward { retain: false })
        );
        assert_eq!(rest(1, &[set([1, 2, 3])], &none, &three), Some(Rest::TakeOut(3)));
        assert_eq!(rest(1, &[set([1, 2])], &three, &three), Some(Rest::TakeOut(3)), "as a learner too");
        assert_eq!(rest(1, &[set([1, 2])], &none, &three), None, "it is out");
    }

    #[test]
    fn a_replacement_is_completed_if_it_was_noted_and_undone_if_not() {
        let (halves, none) = ([set([1, 2, 3]), set([1, 2, 4])], set([]));
        assert_eq!(rest(1, &halves, &none, &none), Some(Rest::Back(set([1, 2, 3]))));
        assert_eq!(rest(1, &halves, &none, &set([3])), Some(Rest::Forward { retain: false }));
        assert_eq!(rest(1, &halves, &none, &set([9])), Some(Rest::Back(set([1, 2, 3]))), "another one left");
    }

    #[test]
    fn a_leader_that_lost_its_vote_hands_over_before_anything_else() {
        let (voters, learners) = ([set([2, 3])], set([1, 4]));
        assert_eq!(rest(1, &voters, &learners, &set([])), Some(Rest::HandOver));
        assert_eq!(rest(1, &voters, &learners, &set([4])), Some(Rest::HandOver));
        assert_eq!(rest(2, &voters, &learners, &set([4])), Some(Rest::TakeOut(4)));
        let joint = [set([1, 2, 3]), set([2, 3])];
        assert_eq!(rest(1, &joint, &set([]), &set([])), Some(Rest::Forward { retain: true }), "not before");
        assert_eq!(rest(1, &voters, &set([4]), &set([])), None, "it is out, and steps down by itself");
    }

    #[test]
    fn a_configuration_in_which_everybody_belongs_is_left_alone() {
        assert_eq!(rest(1, &[set([1, 2, 3])], &set([4]), &set([9])), None);
        assert_eq!(rest(1, &[], &set([]), &set([])), None, "no cluster yet");
    }
}
