//! The commands of a change: who is registered and who left, and the keyring sealed to exactly those who stay.

use std::sync::Arc;
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

use super::super::error::NodeError;
use super::super::node::Node;
use super::super::types::EncodedCommands;
use super::Order;
use super::candidate::Candidate;
use super::refused::Refused;

/// Longest a command of a change waits for a majority.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a change seals the keyring, if each time another command replaces it first: a rotation of the data key, or
/// the end of one.
const KEYRING_ATTEMPTS_MAX: u32 = 4;

/// What becomes of the data keys when the keyring is sealed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::raft) enum DataKeys {
    /// They stay.
    Kept,
    /// All but the current one go.
    OnlyCurrent,
    /// There is a new one, which is current.
    Rotated,
}

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
        let mut attempts = 1..KEYRING_ATTEMPTS_MAX;
        loop {
            let keyring = self.resealed(Some(&node), None, DataKeys::Kept)?;
            let generation = keyring.generation;
            let command = self.command(order, Action::AdmitNode(AdmitNode { node: node.clone(), keyring }));
            match self.propose(&command).await?.reply {
                Reply::NodeAdmitted => return Ok(()),
                _ if self.keyring_has_moved(generation)? && attempts.next().is_some() => {}
                other => return Err(refused(other)),
            }
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
        let mut attempts = 1..KEYRING_ATTEMPTS_MAX;
        loop {
            let keyring = self.resealed(None, Some(node), DataKeys::Rotated)?;
            let generation = keyring.generation;
            let command = self.command(order, Action::RemoveNode(RemoveNode { node, keyring }));
            match self.commit_in(term, &command).await? {
                Reply::NodeRemoved => return Ok(()),
                _ if self.keyring_has_moved(generation)? && attempts.next().is_some() => {}
                other => return Err(refused(other)),
            }
        }
    }

    /// Commits a command as the leader of `term`, or not at all.
    async fn commit_in(&self, term: u64, command: &Command) -> Result<Reply, NodeError> {
        let (responder, answer) = ProgressResponder::complete_only();
        let commands = EncodedCommands::one(command);
        let fatal = |why: String| NodeError::Fatal(why);
        let write = self.inner.raft.write(commands).with_leader(term).responder(responder);
        write.await.map_err(|error| fatal(error.to_string()))?;
        let unconfirmed = |_| NodeError::Unconfirmed(COMMAND_TIMEOUT);
        let answer = timeout(COMMAND_TIMEOUT, answer).await.map_err(unconfirmed)?;
        let answer = answer.map_err(|_| fatal("the consensus core has ended".to_owned()))?;
        match answer {
            Ok(written) => {
                let reply = written.data.0.into_iter().next();
                reply.ok_or_else(|| fatal("a command was applied without an answer".to_owned()))
            }
            Err(ClientWriteError::ForwardToLeader(to)) => Err(NodeError::NotLeader(to.leader_id)),
            Err(ClientWriteError::LogEntryDiscarded(_)) => Err(NodeError::Unconfirmed(COMMAND_TIMEOUT)),
            Err(other) => Err(fatal(other.to_string())),
        }
    }

    /// Whether the keyring has been replaced by another command than the one that was to make this generation of it.
    pub(in crate::raft) fn keyring_has_moved(&self, generation: u64) -> Result<bool, NodeError> {
        Ok(lookup::keyring(&self.view()?)?.is_some_and(|stored| stored.generation >= generation))
    }

    /// The keyring sealed anew: to every member registered, to `joins` as well, and not to `leaves`. Never to one that
    /// left before.
    pub(in crate::raft) fn resealed(
        &self,
        joins: Option<&NodeRecord>,
        leaves: Option<NodeId>,
        data_keys: DataKeys,
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
        let keyring = match data_keys {
            DataKeys::Kept => opened,
            DataKeys::OnlyCurrent => Arc::new(opened.without_old_data_keys()),
            DataKeys::Rotated => Arc::new(opened.rotated()?),
        };
        Ok(KeyringRecord {
            generation: current.generation + 1,
            current_key_version: keyring.current_version(),
            age_file: keyring.seal_to(&recipients)?,
        })
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
