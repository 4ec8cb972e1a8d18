//! Registering a node and handing it the keyring.
//!
//! The command is the operator's who asked for it, not the node's: what is admitted is on record under the name of
//! a person or their tool. The keyring was opened and sealed anew by the leader, outside of this room; here it
//! replaces exactly the generation it was made from, so that two admissions at once cannot undo each other.

use super::{Halt, Turn, requests};
use crate::escrow::command::{AdmitNode, Refusal, Reply};
use crate::escrow::ids::Invalid;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, DepartedNode, KeyringRecord, NodeRecord};
use crate::escrow::rows::{ONLY_ROW, node_key};
use crate::escrow::state::State;

/// Most nodes registered in the life of a cluster, those that left included.
pub const NODES_MAX: usize = 1_024;
/// Longest address of a node, in bytes: a DNS name, a colon and a port.
pub const NODE_ADDRESS_MAX_BYTES: usize = 259;
/// Longest name of a zone, in bytes.
pub const ZONE_MAX_BYTES: usize = 63;
/// Longest age recipient, in bytes. An X25519 recipient has 62.
pub const RECIPIENT_MAX_BYTES: usize = 256;
/// Largest keyring, in bytes: tens of thousands of data keys, sealed to more members than a cluster has.
pub const KEYRING_MAX_BYTES: usize = 1 << 20;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, admit: &AdmitNode) -> Result<Reply, Halt> {
    let AdmitNode { node, keyring } = admit;
    if !allows(turn.by().role, Operation::ChangeMembership) {
        return Err(Refusal::Denied(format!("role {} does not add members", turn.by().role)).into());
    }
    check_node(node)?;
    check_keyring(keyring)?;
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    check_replaces(&turn.required(ONLY_ROW)?, keyring)?;
    let admitted_at = match registered(turn, node)? {
        // The same node with the same disk, perhaps moved: a member of old.
        Some(known) => known.admitted_at,
        None => turn.at,
    };
    turn.state.put(&NodeRecord { admitted_at, ..node.clone() });
    turn.state.put(keyring);
    turn.audit(AuditEvent::NodeAdmitted { node: node.id });
    requests::remember(turn, Reply::NodeAdmitted)
}

/// The keyring must be made from the stored one, or data keys that only the stored one has would be lost, and with
/// them every secret they seal.
pub(super) fn check_replaces(stored: &KeyringRecord, keyring: &KeyringRecord) -> Result<(), Refusal> {
    if keyring.generation != stored.generation + 1 {
        return Err(Refusal::Conflict(format!(
            "the keyring is at generation {}; generation {} does not follow it: read it again and retry",
            stored.generation, keyring.generation
        )));
    }
    if keyring.current_key_version < stored.current_key_version {
        return Err(Refusal::Conflict(format!(
            "the keyring seals with key version {}; version {} would be a step back",
            stored.current_key_version, keyring.current_key_version
        )));
    }
    Ok(())
}

/// What is registered under the node's id, if that is the same node.
///
/// A node is its id and its disk together. A wiped disk has forgotten for whom it voted: under its old id it could
/// vote a second time in the same term. A copied disk under another id would be the same voter counted twice.
fn registered<S: State>(turn: &Turn<'_, S>, node: &NodeRecord) -> Result<Option<NodeRecord>, Halt> {
    let nodes: Vec<NodeRecord> = turn.state.rows(&[], None, NODES_MAX)?;
    if let Some(other) = nodes.iter().find(|known| known.id != node.id && known.storage == node.storage) {
        let why = format!("storage {} is registered as node {}, not {}", node.storage, other.id, node.id);
        return Err(Refusal::Conflict(why).into());
    }
    if turn.state.row::<DepartedNode>(&node_key(node.id))?.is_some() {
        let why = format!("node {} left the cluster: an id is never used twice, choose a new one", node.id);
        return Err(Refusal::Conflict(why).into());
    }
    let known: Option<NodeRecord> = turn.state.row(&node_key(node.id))?;
    match &known {
        Some(known) if known.storage != node.storage => {
            let why = format!(
                "node {} is registered with storage {}: an id is never used twice, give a new disk a new id",
                node.id, known.storage
            );
            Err(Refusal::Conflict(why).into())
        }
        None if nodes.len() >= NODES_MAX => {
            Err(Refusal::Conflict(format!("{NODES_MAX} nodes were registered, which is the most")).into())
        }
        _ => Ok(known),
    }
}

pub(super) fn check_node(node: &NodeRecord) -> Result<(), Invalid> {
    if node.id == 0 {
        return Err(Invalid::new("node", "a whole number from 1"));
    }
    check_text("peer_address", &node.peer_address, 1, NODE_ADDRESS_MAX_BYTES)?;
    check_text("api_address", &node.api_address, 1, NODE_ADDRESS_MAX_BYTES)?;
    check_text("zone", &node.zone, 0, ZONE_MAX_BYTES)?;
    check_recipient("recipient", &node.recipient)
}

pub(super) fn check_recipient(field: &str, recipient: &str) -> Result<(), Invalid> {
    check_text(field, recipient, 1, RECIPIENT_MAX_BYTES)
}

pub(super) fn check_keyring(keyring: &KeyringRecord) -> Result<(), Invalid> {
    if (1..=KEYRING_MAX_BYTES).contains(&keyring.age_file.len()) {
        return Ok(());
    }
    Err(Invalid::new("keyring", format!("1 to {KEYRING_MAX_BYTES} bytes, not {}", keyring.age_file.len())))
}

fn check_text(field: &str, text: &str, min: usize, max: usize) -> Result<(), Invalid> {
    if (min..=max).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("{min} to {max} bytes without control characters")))
}
