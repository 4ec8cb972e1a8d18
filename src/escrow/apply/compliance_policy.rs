//! Replacing the policy of compliance. What is kept of machines does not change by it: they are judged when somebody
//! looks.

use super::{Halt, Turn, requests};
use crate::escrow::command::{Refusal, Reply, SetCompliancePolicy};
use crate::escrow::compliance::{CompliancePolicy, CompliancePolicyRecord};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::AuditEvent;
use crate::escrow::state::State;

/// Setting the policy that is followed already changes nothing and leaves no record.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, set: &SetCompliancePolicy) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::SetCompliancePolicy) {
        let why = format!("role {} does not set the policy of compliance", turn.by().role);
        return Err(Refusal::Denied(why).into());
    }
    // As it is written here, so that it reads the same on every replica and in every record.
    let policy = CompliancePolicy::from_json(&set.policy)?.to_json();
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let current = lookup::compliance_policy_record(turn.state)?;
    let version = current.as_ref().map_or(0, |current| current.version);
    if current.is_some_and(|current| current.policy == policy) {
        return requests::remember(turn, Reply::CompliancePolicySet { version });
    }
    if set.replaces != version {
        return Err(Refusal::Conflict(format!(
            "the policy of compliance is at version {version}, not {}: somebody else has set it since; look at it again",
            set.replaces
        ))
        .into());
    }
    let version = version + 1;
    turn.audit(AuditEvent::CompliancePolicySet { version, policy: policy.clone() });
    let record = CompliancePolicyRecord { version, policy, set_at: turn.at, set_by: turn.by().clone() };
    turn.state.put(&record);
    requests::remember(turn, Reply::CompliancePolicySet { version })
}
