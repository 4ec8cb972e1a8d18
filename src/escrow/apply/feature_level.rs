//! Allowing the commands of a newer release, and refusing them until then.

use super::{Halt, Turn};
use crate::escrow::command::{Command, RaiseFeatureLevel, Refusal, Reply};
use crate::escrow::features::FeatureLevel;
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, FeatureLevelRecord};
use crate::escrow::state::State;

/// Refuses a command that not every member may be able to apply.
pub(super) fn check<S: State>(state: &S, command: &Command) -> Result<(), Halt> {
    let required = FeatureLevel::required_by(command);
    // Nearly every command: nothing is read for it.
    if required == FeatureLevel::FIRST {
        return Ok(());
    }
    let allowed = lookup::feature_level(state)?;
    if required <= allowed { Ok(()) } else { Err(too_new(required, allowed).into()) }
}

/// What is answered to a command that the level does not allow yet.
pub fn too_new(required: FeatureLevel, allowed: FeatureLevel) -> Refusal {
    Refusal::Conflict(format!(
        "this needs feature level {required}; the cluster is at {allowed} until every member runs a release that has it"
    ))
}

/// Raising to a level that is reached already changes nothing, so a repeated command leaves one audit record.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, raise: &RaiseFeatureLevel) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::RaiseFeatureLevel) {
        let why = format!("role {} does not raise the feature level", turn.by().role);
        return Err(Refusal::Denied(why).into());
    }
    let before = lookup::feature_level(turn.state)?;
    if raise.level <= before {
        return Ok(Reply::FeatureLevel(before));
    }
    turn.state.put(&FeatureLevelRecord { level: raise.level, raised_at: turn.at });
    turn.audit(AuditEvent::FeatureLevelRaised { level: raise.level });
    Ok(Reply::FeatureLevel(raise.level))
}
