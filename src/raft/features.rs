//! Raising the replicated feature level, by the leader, once every member says that it can apply the commands of a
//! higher one.
//!
//! Every member, for a learner applies the log as well. One that cannot be asked holds the level back: it may come back
//! with an older release. Nothing is lost by that but the commands of the newer release, and `status` says who it is;
//! a member that is gone for good is to be removed anyway.
//!
//! A node admitted from then on must support the level (see `membership`), and a node whose own replica stands at a
//! level that it does not support refuses to start: what it would do with the next entry is not known.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::escrow::command::{Action, Command, RaiseFeatureLevel, Reply};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{NodeId, RequestId};
use crate::escrow::lookup;
use crate::escrow::records::Source;
use crate::proto::NodeStatus;

use super::error::NodeError;
use super::node::Node;
use super::now;
use super::peers::describe;

/// Between two looks of the leader at what the members support.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest a member may take to say what it supports.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A member because of which commands of a newer release are not allowed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBack {
    /// Which.
    pub node: NodeId,
    /// What it supports; `None` if it could not be asked.
    pub supports: Option<FeatureLevel>,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.supports {
            Some(level) => write!(f, "node {} supports feature level {level} only", self.node),
            None => write!(f, "node {} cannot be asked what it supports", self.node),
        }
    }
}

/// The level whose commands a node can apply, by what it says of itself.
pub fn supported_by(node: &NodeStatus) -> FeatureLevel {
    // Releases from before there were levels say nothing of them.
    FeatureLevel(node.feature_level).max(FeatureLevel::FIRST)
}

/// The members that keep a cluster at `level` although another of `members` supports more; nobody if none does.
/// `members` are all of them, with what they support if that is known.
pub fn held_back(level: FeatureLevel, members: &[(NodeId, Option<FeatureLevel>)]) -> Vec<HeldBack> {
    let supports_more = |supports: Option<FeatureLevel>| supports.is_some_and(|supports| supports > level);
    if !members.iter().any(|(_, supports)| supports_more(*supports)) {
        return Vec::new();
    }
    let holding = members.iter().filter(|(_, supports)| !supports_more(*supports));
    holding.map(|(node, supports)| HeldBack { node: *node, supports: *supports }).collect()
}

/// Whether a node that supports up to `supported` may run on a replica that stands at `level`.
pub(super) fn check(level: FeatureLevel, supported: FeatureLevel) -> Result<(), NodeError> {
    if level <= supported { Ok(()) } else { Err(NodeError::FeatureLevel { level, supported }) }
}

impl Node {
    /// Up to which feature level commands are allowed, as this replica has it.
    ///
    /// # Errors
    /// [`NodeError::Store`], [`NodeError::State`] if the replica cannot be read.
    pub fn feature_level(&self) -> Result<FeatureLevel, NodeError> {
        Ok(lookup::feature_level(&self.view()?)?)
    }

    /// The members that keep the level from being raised, as this node last found them while it led; nobody if it does
    /// not lead.
    pub fn feature_level_held_back_by(&self) -> Vec<HeldBack> {
        self.inner.held_back.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Starts looking: when this node comes to lead, and every [`LOOK_EVERY`] from then on. Ends with the node.
    pub(super) fn watch_features(&self) {
        // Weak: a task that waits must not keep the node alive that it serves.
        let (weak, stop) = (Arc::downgrade(&self.inner), self.inner.stop.clone());
        let (id, mut metrics) = (self.options().id, self.inner.raft.server_metrics());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut warned = false;
            loop {
                let led = metrics.borrow_and_update().current_leader == Some(id);
                let Some(inner) = weak.upgrade() else { return };
                let node = Self { inner };
                if let Err(error) = node.look_at_features(led).await {
                    tracing::debug!(%error, "looking at what the members support");
                }
                if !std::mem::replace(&mut warned, true) {
                    warned = node.warn_if_left_behind();
                }
                drop(node);
                let next = Instant::now() + LOOK_EVERY;
                loop {
                    match timeout_at(next, metrics.changed()).await {
                        Err(_) => break,
                        Ok(Err(_)) => return,
                        Ok(Ok(())) if !led && metrics.borrow_watched().current_leader == Some(id) => break,
                        Ok(Ok(())) => {}
                    }
                }
            }
        }));
    }

    /// As the leader, without waiting for the next look. Boxed, for raising the level is a command, and a command may
    /// look.
    pub(super) fn look_at_features_now(&self) -> BoxFuture<'_, Result<(), NodeError>> {
        Box::pin(self.look_at_features(true))
    }

    /// As the leader: raises the level as far as every member supports, and notes who holds it back.
    async fn look_at_features(&self, leads: bool) -> Result<(), NodeError> {
        let (level, supported) = (self.feature_level()?, self.options().feature_level);
        if !leads || level >= supported || self.cluster()?.is_none() {
            self.note_held_back(Vec::new());
            return Ok(());
        }
        // While a node is being added it may be registered and not yet be a member that is asked here.
        let Some(_no_change) = self.background_turn() else { return Ok(()) };
        let own = self.options().id;
        let ask =
            |id| async move { (id, if id == own { Some(supported) } else { self.ask_level(id).await }) };
        let members = join_all(self.members().into_keys().map(ask)).await;
        let holding = held_back(level, &members);
        let common = members.iter().filter_map(|(_, supports)| *supports).min();
        let may_raise = holding.is_empty();
        self.note_held_back(holding);
        match common {
            Some(common) if may_raise && common > level => self.raise_feature_level(common).await,
            _ => Ok(()),
        }
    }

    /// Commits that commands of `level` are allowed. The caller knows that every member can apply them.
    ///
    /// # Errors
    /// As [`Node::propose`]; [`NodeError::Refused`].
    pub async fn raise_feature_level(&self, level: FeatureLevel) -> Result<(), NodeError> {
        let command = Command {
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: self.inner.peers.identity(),
            source: Source { node: self.options().id, address: String::new() },
            action: Action::RaiseFeatureLevel(RaiseFeatureLevel { level }),
        };
        match self.propose(&command).await?.reply {
            Reply::FeatureLevel(now) => {
                tracing::info!(level = now.0, "the feature level is raised");
                Ok(())
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(NodeError::Fatal(format!("unexpected answer {other:?}"))),
        }
    }

    /// What member `id` says it supports.
    async fn ask_level(&self, id: NodeId) -> Option<FeatureLevel> {
        let mut client = self.member_client(id)?;
        let described = describe(&mut client, DESCRIBE_TIMEOUT).await.ok()?;
        Some(supported_by(&described.status?))
    }

    fn note_held_back(&self, holding: Vec<HeldBack>) {
        let mut noted = self.inner.held_back.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *noted != holding {
            for held in &holding {
                tracing::debug!("the feature level is not raised: {held}");
            }
            *noted = holding;
        }
    }

    /// Says so if the cluster went past what this node supports while it was away: it can still follow, but will not
    /// start again. Answers whether it is so.
    fn warn_if_left_behind(&self) -> bool {
        let left_behind =
            self.feature_level().and_then(|level| check(level, self.options().feature_level)).err();
        if let Some(error @ NodeError::FeatureLevel { .. }) = &left_behind {
            tracing::error!(%error, "this node will not start again");
        }
        left_behind.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_support_more_holds_the_level_back_once_somebody_does() {
        let level = FeatureLevel;
        let ids = |members: &[(NodeId, Option<FeatureLevel>)]| -> Vec<NodeId> {
            held_back(level(1), members).into_iter().map(|held| held.node).collect()
        };
        assert_eq!(ids(&[(1, Some(level(2))), (2, Some(level(1))), (3, None)]), [2, 3]);
        assert_eq!(ids(&[(1, Some(level(2))), (2, Some(level(3)))]), [0; 0]);
        assert_eq!(
            ids(&[(1, Some(level(1))), (2, Some(level(1))), (3, None)]),
            [0; 0],
            "nobody supports more"
        );
    }

    #[test]
    fn the_refusal_says_what_is_needed() {
        let newer = FeatureLevel(FeatureLevel::SUPPORTED.0 + 1);
        let error = check(newer, FeatureLevel::SUPPORTED).unwrap_err().to_string();
        assert!(error.contains(&format!("install a release that supports level {newer}")), "{error}");
        let error = check(FeatureLevel::SUPPORTED, FeatureLevel::FIRST).unwrap_err().to_string();
        assert!(error.contains("hold_feature_level"), "{error}");
        check(FeatureLevel::FIRST, FeatureLevel::SUPPORTED).unwrap();
    }
}
