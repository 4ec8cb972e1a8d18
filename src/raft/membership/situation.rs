//! What is known when a change is planned.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;

use crate::escrow::ids::NodeId;
use crate::escrow::lookup;

use super::super::error::NodeError;
use super::super::features::supported_by;
use super::super::node::Node;
use super::super::peers::describe;
use super::candidate::Register;
use super::plan::{Members, Situation, Standing};

/// Longest a member may take to say that it is there.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// Who the members are, as this node knows it: of a joint configuration, the voters of both halves.
    pub(super) fn member_ids(&self) -> Members {
        let metrics = self.metrics();
        let config = &metrics.membership_config;
        Members {
            voters: config.voter_ids().collect(),
            learners: config.membership().learner_ids().collect(),
            leader: metrics.current_leader,
        }
    }

    /// Gathers what a plan rests on. Confirms with a majority that this node leads, so that it is not the view of a
    /// leader that was replaced.
    ///
    /// # Errors
    /// [`NodeError::NoQuorum`], [`NodeError::NotLeader`], [`NodeError::Behind`].
    pub(super) async fn situation(&self) -> Result<Situation, NodeError> {
        self.confirm_and_apply().await?;
        let members = self.member_ids();
        // Taken before the members are asked: an answer that takes its time must not look like lag.
        let last = self.metrics().last_log_index.unwrap_or(0);
        let ids: Vec<NodeId> = members.voters.iter().chain(&members.learners).copied().collect();
        let reached = join_all(ids.iter().map(|id| self.reach(*id))).await;
        let metrics = self.metrics();
        let Some(replication) = &metrics.replication else {
            return Err(NodeError::NotLeader(metrics.current_leader));
        };
        let standing = ids.iter().zip(reached).map(|(id, (reached, applied))| {
            let matched = replication.get(id).copied().flatten().map_or(0, |matched| matched.index);
            // A new leader finds out step by step how far each log matches its own, and takes it to be empty until
            // then. What a member has applied was committed, so that much of its log does.
            let lag = if *id == self.options().id { 0 } else { last.saturating_sub(matched.max(applied)) };
            (*id, Standing { lag, unapplied: last.saturating_sub(applied), ..reached })
        });
        let standing: BTreeMap<NodeId, Standing> = standing.collect();
        let register = self.register()?;
        Ok(Situation {
            members,
            standing,
            registered: register.nodes.iter().map(|node| node.id).collect(),
            departed: register.departed.iter().map(|node| node.id).collect(),
            level: register.level,
        })
    }

    /// Whether this node belongs to the cluster still, as far as its own replica knows.
    ///
    /// # Errors
    /// [`NodeError::Excluded`] if it was removed; [`NodeError::State`] if the replica cannot be read.
    pub fn check_stays(&self) -> Result<(), NodeError> {
        let id = self.options().id;
        if lookup::has_departed(&self.view()?, id)? {
            return Err(NodeError::Excluded(format!("node {id} was removed; ask another")));
        }
        Ok(())
    }

    /// What the cluster knows of nodes.
    ///
    /// # Errors
    /// [`NodeError::NoCluster`], [`NodeError::State`].
    pub(super) fn register(&self) -> Result<Register, NodeError> {
        let view = self.view()?;
        Ok(Register {
            cluster: lookup::cluster(&view)?.ok_or(NodeError::NoCluster)?.id,
            level: lookup::feature_level(&view)?,
            nodes: lookup::nodes(&view)?,
            departed: lookup::departed(&view)?,
        })
    }

    /// Confirms that this node leads, and waits until it has applied what was committed before.
    pub(in crate::raft) async fn confirm_and_apply(&self) -> Result<(), NodeError> {
        let index = self.read_index_as_leader().await.map_err(|error| match &*error {
            NodeError::NotLeader(leader) => NodeError::NotLeader(*leader),
            NodeError::NoQuorum(waited) => NodeError::NoQuorum(*waited),
            error => NodeError::Fatal(error.to_string()),
        })?;
        self.wait_applied(index).await
    }

    /// How member `id` says it is, if it answers as the node it is known as, and which index it has applied.
    pub(in crate::raft) async fn reach(&self, id: NodeId) -> (Standing, u64) {
        let own = self.options();
        if id == own.id {
            let standing = Standing { reachable: true, supports: own.feature_level, ..Standing::default() };
            return (standing, self.applied());
        }
        let Some(mut client) = self.member_client(id) else { return Default::default() };
        let Ok(described) = describe(&mut client, REACH_TIMEOUT).await else { return Default::default() };
        let status = described.status.unwrap_or_default();
        let standing = Standing {
            reachable: true,
            draining: status.draining || !status.quarantine.is_empty() || !status.clock_fault.is_empty(),
            supports: supported_by(&status),
            ..Standing::default()
        };
        (standing, status.applied)
    }

    /// Whether the configuration is one that is committed and not joint.
    pub(super) fn is_settled(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_joint_config().len() <= 1
            && metrics.membership_config.log_id() == metrics.committed_membership_config.log_id()
    }
}
