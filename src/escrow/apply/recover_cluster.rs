//! Beginning a new history on what one node has, after a quorum was lost for ever.
//!
//! Everything stays but the identity of the cluster and the register: every node other than the survivor has departed,
//! so that none of them can come back with a history of its own.

use super::{Halt, Turn, admit, remove};
use crate::escrow::apply::NODES_MAX;
use crate::escrow::command::{RecoverCluster, Refusal, Reply};
use crate::escrow::ids::NodeId;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, ClusterRecord, DepartedNode, NodeRecord};
use crate::escrow::rows::{ONLY_ROW, node_key};
use crate::escrow::state::State;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, recover: &RecoverCluster) -> Result<Reply, Halt> {
    let RecoverCluster { cluster, survivor, keyring } = recover;
    if !allows(turn.by().role, Operation::RecoverCluster) {
        return Err(Refusal::Denied(format!("role {} does not recover clusters", turn.by().role)).into());
    }
    admit::check_keyring(keyring)?;
    let stored: ClusterRecord = turn.required(ONLY_ROW)?;
    // A retry of the entry that began this history.
    if stored.id == *cluster {
        return Ok(Reply::ClusterRecovered);
    }
    remove::check_rotates(&turn.required(ONLY_ROW)?, keyring)?;
    let lost = others(turn, *survivor)?;
    for id in &lost {
        turn.state.put(&DepartedNode { id: *id, at: turn.at });
    }
    turn.state.put(keyring);
    let previous = stored.id;
    turn.state.put(&ClusterRecord { id: *cluster, ..stored });
    turn.audit(AuditEvent::ClusterRecovered { survivor: *survivor, lost, previous });
    Ok(Reply::ClusterRecovered)
}

/// The members other than the survivor.
fn others<S: State>(turn: &Turn<'_, S>, survivor: NodeId) -> Result<Vec<NodeId>, Halt> {
    let nodes: Vec<NodeRecord> = turn.state.rows(&[], None, NODES_MAX)?;
    let (mut others, mut found) = (Vec::new(), false);
    for node in nodes {
        if turn.state.row::<DepartedNode>(&node_key(node.id))?.is_some() {
            continue;
        }
        if node.id == survivor {
            found = true;
        } else {
            others.push(node.id);
        }
    }
    if found { Ok(others) } else { Err(Refusal::NotFound(format!("node {survivor} is no member")).into()) }
}
