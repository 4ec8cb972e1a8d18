//! Noting that a node left.
//!
//! The keyring it had opens what was sealed until now. What is sealed from here on uses a data key it never had.

use super::{Halt, Turn, admit, requests};
use crate::escrow::command::{Refusal, RemoveNode, Reply};
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, DepartedNode, KeyringRecord, NodeRecord};
use crate::escrow::rows::{ONLY_ROW, node_key};
use crate::escrow::state::State;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, remove: &RemoveNode) -> Result<Reply, Halt> {
    let RemoveNode { node, keyring } = remove;
    if !allows(turn.by().role, Operation::ChangeMembership) {
        return Err(Refusal::Denied(format!("role {} does not remove members", turn.by().role)).into());
    }
    admit::check_keyring(keyring)?;
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    if turn.state.row::<NodeRecord>(&node_key(*node))?.is_none() {
        return Err(Refusal::NotFound(format!("no node {node} was ever a member")).into());
    }
    if turn.state.row::<DepartedNode>(&node_key(*node))?.is_some() {
        return requests::remember(turn, Reply::NodeRemoved);
    }
    check_rotates(&turn.required(ONLY_ROW)?, keyring)?;
    turn.state.put(&DepartedNode { id: *node, at: turn.at });
    turn.state.put(keyring);
    turn.audit(AuditEvent::NodeRemoved { node: *node });
    requests::remember(turn, Reply::NodeRemoved)
}

/// The keyring must follow the stored one and seal with a data key that one did not have.
pub(super) fn check_rotates(stored: &KeyringRecord, keyring: &KeyringRecord) -> Result<(), Refusal> {
    admit::check_replaces(stored, keyring)?;
    if keyring.current_key_version > stored.current_key_version {
        return Ok(());
    }
    Err(Refusal::Conflict(format!(
        "the keyring goes on sealing with key version {}, which was to be replaced",
        stored.current_key_version
    )))
}
