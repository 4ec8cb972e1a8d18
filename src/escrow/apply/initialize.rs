//! The first entry of a new cluster.

use super::{Halt, Turn, admit};
use crate::escrow::command::{Initialize, Refusal, Reply};
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, ClusterRecord, NodeRecord};
use crate::escrow::state::State;

pub(super) fn apply<S: State>(
    turn: &mut Turn<'_, S>,
    cluster: Option<&ClusterRecord>,
    initialize: &Initialize,
) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::Initialize) {
        let why = format!("role {} does not initialise clusters", turn.by().role);
        return Err(Refusal::Denied(why).into());
    }
    if let Some(cluster) = cluster {
        // A retry of the entry that made this history changes nothing; another history must not be merged into it.
        if cluster.id == initialize.cluster {
            return Ok(Reply::Initialized);
        }
        return Err(
            Refusal::Conflict(format!("the cluster is already initialised, as {}", cluster.id)).into()
        );
    }
    let Initialize { cluster, name, offline_recipient, node, keyring } = initialize;
    admit::check_recipient("offline_recipient", offline_recipient)?;
    admit::check_node(node)?;
    admit::check_keyring(keyring)?;
    turn.state.put(&ClusterRecord {
        id: *cluster,
        name: name.clone(),
        created_at: turn.at,
        offline_recipient: offline_recipient.clone(),
    });
    turn.state.put(&NodeRecord { admitted_at: turn.at, ..node.clone() });
    turn.state.put(keyring);
    turn.audit(AuditEvent::ClusterInitialized);
    Ok(Reply::Initialized)
}
