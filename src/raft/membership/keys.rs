//! The commands of a change: who is registered and who left, and the keyring sealed to exactly those who stay.

use std::time::Duration;

use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::time::timeout;
use uuid::Uuid;

use crate::escrow::command::{Action, AdmitNode, Command, RemoveNode, Reply};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{NodeId, RequestId};
use crate::escrow::lookup;
use crate::escrow::records::{KeyringRecord, NodeRecord};
use crate::store::format;

use super::super::error::NodeError;
use super::super::node::Node;
use super::super::types::EncodedCommand;
use super::Order;
use super::candidate::Candidate;
use super::refused::Refused;

/// Longest a command of a change waits for a majority.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

impl Node {
    /// Registers the node and seals the keyring to it too, unless both are done.
    pub(super) async fn admit(&self, candidate: &Candidate, order: &Order) -> Result<(), NodeError> {
        let Candidate { id, member, recipient } = candidate;
        let node = NodeRecord {
            id: *id,
            peer_address: member.peer_address.clone(),
            api_address: member.api_address.clone(),
            zone: member.zone.clone(),
            storage: member.storage,
            recipient: recipient.clone(),
            admitted_at: order.at,
        };
        let known = lookup::node(&self.view()?, *id)?;
        // Registering and sealing are one command, so who is registered as it is now has the keyring.
        if known.is_some_and(|known| known == NodeRecord { admitted_at: known.admitted_at, ..node.clone() }) {
            return Ok(());
        }
        let keyring = self.resealed(Some(&node), None)?;
        let command = self.command(order, Action::AdmitNode(AdmitNode { node, keyring }));
        match self.propose(&command).await?.reply {
            Reply::NodeAdmitted => Ok(()),
            other => Err(refused(other)),
        }
    }

    /// Notes that `node` left and rotates the data key, as the leader of `term` or not at all: what this decides rests
    /// on a configuration that another leader may have changed since.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node does not lead in that term any more: nothing was written.
    /// [`NodeError::Unconfirmed`] if it may still be committed.
    pub(super) async fn note_departure(
        &self,
        node: NodeId,
        term: u64,
        order: &Order,
    ) -> Result<(), NodeError> {
        if lookup::departed(&self.view()?)?.iter().any(|departed| departed.id == node) {
            return Ok(());
        }
        // The plan has found that everybody who stays supports it.
        if self.feature_level()? < FeatureLevel::DEPARTURES {
            self.raise_feature_level(FeatureLevel::DEPARTURES).await?;
        }
        let keyring = self.resealed(None, Some(node))?;
        let command = self.command(order, Action::RemoveNode(RemoveNode { node, keyring }));
        let (responder, answer) = ProgressResponder::complete_only();
        let body = EncodedCommand(format::encode(&command));
        let fatal = |why: String| NodeError::Fatal(why);
        let write = self.inner.raft.write(body).with_leader(term).responder(responder);
        write.await.map_err(|error| fatal(error.to_string()))?;
        let unconfirmed = |_| NodeError::Unconfirmed(COMMAND_TIMEOUT);
        let answer = timeout(COMMAND_TIMEOUT, answer).await.map_err(unconfirmed)?;
        let answer = answer.map_err(|_| fatal("the consensus core has ended".to_owned()))?;
        match answer {
            Ok(written) => match written.data.0 {
                Some(Reply::NodeRemoved) => Ok(()),
                Some(other) => Err(refused(other)),
                None => Err(fatal("a command was applied without an answer".to_owned())),
            },
            Err(ClientWriteError::ForwardToLeader(to)) => Err(NodeError::NotLeader(to.leader_id)),
            Err(ClientWriteError::LogEntryDiscarded(_)) => Err(NodeError::Unconfirmed(COMMAND_TIMEOUT)),
            Err(other) => Err(fatal(other.to_string())),
        }
    }

    /// The keyring sealed anew: to every member registered, to `joins` as well, and with a new data key and not to
    /// `leaves` if a node leaves. Never to one that left before.
    fn resealed(
        &self,
        joins: Option<&NodeRecord>,
        leaves: Option<NodeId>,
    ) -> Result<KeyringRecord, NodeError> {
        // The view goes before anything is waited for: one that is kept holds back the store.
        let (cluster, current, nodes, departed) = {
            let view = self.view()?;
            let keyring = lookup::keyring(&view)?;
            (lookup::cluster(&view)?, keyring, lookup::nodes(&view)?, lookup::departed(&view)?)
        };
        let (cluster, current) = cluster.zip(current).ok_or(NodeError::NoCluster)?;
        let opened = self.inner.keyring.open(&current)?;
        let gone = |id: NodeId| leaves == Some(id) || departed.iter().any(|departed| departed.id == id);
        // Of a node that joins again with another key, only the new one counts.
        let stays =
            nodes.iter().filter(|node| !gone(node.id) && joins.is_none_or(|joins| joins.id != node.id));
        let mut recipients: Vec<String> = stays.map(|node| node.recipient.clone()).collect();
        recipients.extend(joins.map(|node| node.recipient.clone()));
        recipients.push(cluster.offline_recipient);
        let (version, age_file) = if leaves.is_some() {
            let rotated = opened.rotated()?;
            (rotated.current_version(), rotated.seal_to(&recipients)?)
        } else {
            (opened.current_version(), opened.seal_to(&recipients)?)
        };
        Ok(KeyringRecord { generation: current.generation + 1, current_key_version: version, age_file })
    }

    fn command(&self, order: &Order, action: Action) -> Command {
        Command {
            request: RequestId(Uuid::new_v4()),
            at: order.at,
            by: order.by.clone(),
            source: order.source.clone(),
            action,
        }
    }
}

fn refused(reply: Reply) -> NodeError {
    match reply {
        Reply::Refused(refusal) => refusal.into(),
        other => Refused::conflict(format!("unexpected answer {other:?}"), "look at the leader's log").into(),
    }
}
