//! Whether a node may join: who it says it is, held against what the cluster knows of it.

use std::time::Duration;

use uuid::Uuid;

use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, NodeId};
use crate::escrow::records::{DepartedNode, NodeRecord};
use crate::proto::peer::DescribeResponse;
use crate::seal::is_recipient;
use crate::tls::ExpectedPeer;

use super::super::error::NodeError;
use super::super::features::supported_by;
use super::super::node::Node;
use super::super::peers::describe;
use super::super::types::Member;
use super::refused::Refused;

/// Longest a node may take to say who it is.
pub(super) const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its id.
    pub(super) id: NodeId,
    /// Where it is reached.
    pub(super) member: Member,
    /// What the keyring is to be sealed to for it.
    pub(super) recipient: String,
}

/// What the cluster knows of nodes.
#[derive(Debug, Clone)]
pub(super) struct Register {
    /// Which cluster it is.
    pub(super) cluster: ClusterId,
    /// Up to which level commands are allowed.
    pub(super) level: FeatureLevel,
    /// Every node ever admitted.
    pub(super) nodes: Vec<NodeRecord>,
    /// Those that left.
    pub(super) departed: Vec<DepartedNode>,
}

const NEW_NODE: &str = "give it an id never used before and an empty data directory";
const EMPTY: &str = "give it an empty data directory";

/// Judges a node by what it says of itself.
///
/// # Errors
/// [`Refused`], with what to do instead.
pub(super) fn judge(described: &DescribeResponse, register: &Register) -> Result<Candidate, Refused> {
    let refused = |why: String, instead: &str| Err(Refused::conflict(why, instead));
    let status = described.status.clone().unwrap_or_default();
    let id = status.id;
    if id == 0 {
        return refused(
            "the node does not say its id".to_owned(),
            "check that it runs a release of this kind",
        );
    }
    if !described.cluster.is_empty() && described.cluster != register.cluster.to_string() {
        return refused(format!("node {id} belongs to another cluster ({})", described.cluster), EMPTY);
    }
    let Ok(storage) = described.storage.parse::<Uuid>() else {
        return refused(
            format!("node {id} does not name its data directory"),
            "check that it runs a release of this kind",
        );
    };
    if register.departed.iter().any(|departed| departed.id == id) {
        return refused(format!("node {id} left the cluster: ids are never used twice"), NEW_NODE);
    }
    let known = register.nodes.iter().find(|node| node.id == id);
    if known.is_some_and(|known| known.storage != storage) {
        return refused(
            format!("node id {id} was used before, on another data directory; ids are never used twice"),
            NEW_NODE,
        );
    }
    if let Some(other) = register.nodes.iter().find(|node| node.id != id && node.storage == storage) {
        return refused(format!("the data directory of node {id} is that of node {}", other.id), EMPTY);
    }
    // Only who was admitted can have got a log from the cluster.
    if known.is_none() && status.last_log > 0 {
        return refused(
            format!("node {id} holds a log of its own"),
            "finish its `init` if it is to be a cluster of its own; otherwise give it an empty data directory",
        );
    }
    let supported = supported_by(&status);
    if supported < register.level {
        return refused(
            format!(
                "node {id} supports commands up to feature level {supported}, the cluster is at {}",
                register.level
            ),
            "upgrade it to the release that the members run",
        );
    }
    if !is_recipient(&described.recipient) {
        return refused(
            format!("node {id} does not say what to seal the keyring to"),
            "check that it runs a release of this kind",
        );
    }
    let member = Member {
        peer_address: status.peer_address,
        api_address: status.api_address,
        zone: status.zone,
        storage,
    };
    Ok(Candidate { id, member, recipient: described.recipient.clone() })
}

impl Node {
    /// Asks the node at `address` who it is, and asks again over a connection that accepts only that node, at the
    /// address that it gives to the others: a node that only the operator can reach would never catch up.
    ///
    /// # Errors
    /// [`Refused`] if it does not answer, or not as one node.
    pub(super) async fn describe(&self, address: &str) -> Result<DescribeResponse, Refused> {
        let claimed = self.describe_as(address, ExpectedPeer::AnyNode).await?;
        let status = claimed.status.unwrap_or_default();
        let id = status.id;
        let given = if status.peer_address.is_empty() { address } else { &status.peer_address };
        let described = self.describe_as(given, ExpectedPeer::Node(id)).await?;
        let then = described.status.as_ref().map_or(0, |status| status.id);
        if id == then {
            return Ok(described);
        }
        Err(Refused::conflict(
            format!("the node at {address} called itself {id}, then {then}"),
            "check which node listens there",
        ))
    }

    async fn describe_as(&self, address: &str, expected: ExpectedPeer) -> Result<DescribeResponse, Refused> {
        let unreachable = |why: String| {
            Refused::unavailable(
                format!("the node at {address} cannot be reached: {why}"),
                "start it, and check the address and port it advertises to its peers",
            )
        };
        let mut client = self.inner.peers.stranger(address, expected);
        let described = describe(&mut client, DESCRIBE_TIMEOUT).await;
        described.map_err(|status| unreachable(crate::error::status(&status)))
    }

    /// The node at `address`, if it may join.
    ///
    /// # Errors
    /// [`NodeError::Change`] if it may not; [`NodeError::State`] if the replica cannot be read.
    pub(super) async fn candidate(&self, address: &str) -> Result<Candidate, NodeError> {
        let described = self.describe(address).await?;
        Ok(judge(&described, &self.register()?)?)
    }
}

#[cfg(test)]
#[path = "candidate_tests.rs"]
mod tests;
