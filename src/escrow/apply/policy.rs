//! Replacing the policy of reveals.

use super::{Halt, Turn, requests};
use crate::escrow::command::{Refusal, Reply, SetPolicy};
use crate::escrow::lookup;
use crate::escrow::policy::document::Policy;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, PolicyRecord};
use crate::escrow::state::State;

/// Setting the policy that is followed already changes nothing and leaves no record.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, set: &SetPolicy) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::SetPolicy) {
        return Err(Refusal::Denied(format!("role {} does not set the policy", turn.by().role)).into());
    }
    // As it is written here, so that it reads the same on every replica and in every record.
    let policy = Policy::from_json(&set.policy)?.to_json();
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let current = lookup::policy_record(turn.state)?;
    let version = current.as_ref().map_or(0, |current| current.version);
    if current.is_some_and(|current| current.policy == policy) {
        return requests::remember(turn, Reply::PolicySet { version });
    }
    if set.replaces != version {
        return Err(Refusal::Conflict(format!(
            "the policy is at version {version}, not {}: somebody else has set it since; look at it again",
            set.replaces
        ))
        .into());
    }
    let version = version + 1;
    turn.audit(AuditEvent::PolicySet { version, policy: policy.clone() });
    turn.state.put(&PolicyRecord { version, policy, set_at: turn.at, set_by: turn.by().clone() });
    requests::remember(turn, Reply::PolicySet { version })
}
