//! Reveals that a second person must approve: asked for, decided, used once or expired.

use super::{Halt, Turn, requests};
use crate::escrow::command::{ApprovalAsked, DecideApproval, Refusal, Reply, Reveal};
use crate::escrow::ids::{RequestId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::document::Policy;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{Approval, AuditEvent, KeyRecord};
use crate::escrow::state::{State, StateError};

/// Most reveals that can wait for a second person at a time; past it no other can be asked for.
pub const APPROVALS_MAX: usize = 1_000;

/// Puts a reveal down to be approved. The same person's earlier request for the key, with other words, ends.
pub(super) fn ask<S: State>(
    turn: &mut Turn<'_, S>,
    policy: &Policy,
    key: &KeyRecord,
    reveal: &Reveal,
    reason: &str,
) -> Result<Reply, StateError> {
    forget_expired(turn)?;
    let mut others = lookup::approvals(turn.state, turn.at)?;
    others.retain(|other| other.key_id != key.id || other.asked_by.person() != turn.by().person());
    if others.len() >= APPROVALS_MAX {
        let why =
            format!("{APPROVALS_MAX} reveals wait for a second person already: have some of them decided");
        return Ok(Reply::Refused(Refusal::Conflict(why)));
    }
    let id = turn.command.request;
    let expires_at = Timestamp(turn.at.0 + u64::from(policy.approval.expires_minutes) * 60_000);
    turn.audit(AuditEvent::ApprovalAsked {
        approval: id,
        key_id: key.id,
        machine: key.machine.clone(),
        user: reveal.user.clone(),
        reason: reason.to_owned(),
        expires_at,
    });
    turn.state.put(&Approval {
        id,
        key_id: key.id,
        machine: key.machine.clone(),
        asked_by: turn.by().clone(),
        user: reveal.user.clone(),
        reason: reason.to_owned(),
        asked_at: turn.at,
        expires_at,
        granted_by: None,
    });
    Ok(Reply::ApprovalAsked(ApprovalAsked { approval: id, expires_at }))
}

/// Notes that an approval is used for the reveal whose record comes next. It is gone then.
pub(super) fn use_up<S: State>(turn: &mut Turn<'_, S>, approval: &Approval) {
    if let Some(granted_by) = &approval.granted_by {
        turn.audit(AuditEvent::ApprovalUsed { approval: approval.id, granted_by: granted_by.clone() });
    }
    delete(turn, approval);
}

/// Decides about a reveal that another person asked for.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, decide: &DecideApproval) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::Approve) {
        return Err(Refusal::Denied(format!("role {} does not approve reveals", turn.by().role)).into());
    }
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let row: Option<Approval> = turn.state.row(&Approval::row_key(decide.key_id, &decide.person))?;
    let Some(approval) = row.filter(|row| row.id == decide.approval && row.expires_at > turn.at) else {
        return Err(gone(decide.approval).into());
    };
    if !lookup::policy(turn.state)?.may_approve(turn.by(), &decide.person) {
        let why = if turn.by().person() == decide.person {
            "nobody approves what they asked for themselves".to_owned()
        } else {
            format!("role {} does not approve reveals by the policy", turn.by().role)
        };
        return Err(Refusal::Denied(why).into());
    }
    if decide.granted && approval.granted_by.is_some() {
        return Err(Refusal::Conflict(format!("reveal {} is approved already", approval.id)).into());
    }
    turn.audit(AuditEvent::ApprovalDecided {
        approval: approval.id,
        key_id: approval.key_id,
        asked_by: approval.asked_by.clone(),
        granted: decide.granted,
    });
    if decide.granted {
        turn.state.put(&Approval { granted_by: Some(turn.by().clone()), ..approval });
    } else {
        delete(turn, &approval);
    }
    requests::remember(turn, Reply::ApprovalDecided)
}

fn gone(approval: RequestId) -> Refusal {
    Refusal::NotFound(format!(
        "no reveal {approval} waits for approval: it was decided, used, asked for anew, or has expired"
    ))
}

fn forget_expired<S: State>(turn: &mut Turn<'_, S>) -> Result<(), StateError> {
    let all: Vec<Approval> = turn.state.rows(&[], None, APPROVALS_MAX)?;
    let now = turn.at;
    for approval in all.iter().filter(|approval| approval.expires_at <= now) {
        delete(turn, approval);
    }
    Ok(())
}

fn delete<S: State>(turn: &mut Turn<'_, S>, approval: &Approval) {
    let key = Approval::row_key(approval.key_id, &approval.asked_by.person());
    turn.state.delete::<Approval>(&key);
}
