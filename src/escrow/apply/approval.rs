//! Reveals that a second person must approve: asked for, decided, used once or expired.

use super::{Halt, Turn, denials, requests};
use crate::escrow::command::{ApprovalAsked, DecideApproval, Refusal, Reply, Reveal};
use crate::escrow::ids::{RequestId, Timestamp};
use crate::escrow::journal::JournalEntry;
use crate::escrow::lookup;
use crate::escrow::policy::document::Policy;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{Approval, AuditEvent, KeyRecord, UsedApproval};
use crate::escrow::state::{State, StateError};

/// Most reveals that can wait for a second person at a time; past it no other can be asked for.
pub const APPROVALS_MAX: usize = 1_000;

/// Puts a reveal down to be approved, unless too many wait. The same person's earlier request for the key, with other
/// words, ends. Nobody sees a key by it, so that it counts as a denial does.
pub(super) fn ask<S: State>(
    turn: &mut Turn<'_, S>,
    policy: &Policy,
    key: &KeyRecord,
    reveal: &Reveal,
    reason: &str,
) -> Result<Result<Reply, Refusal>, StateError> {
    forget_expired(turn)?;
    let mut others = lookup::approvals(turn.state, turn.at)?;
    others.retain(|other| other.key_id != key.id || other.asked_by.person() != turn.by().person());
    if others.len() >= APPROVALS_MAX {
        let why =
            format!("{APPROVALS_MAX} reveals wait for a second person already: have some of them decided");
        return Ok(Err(Refusal::Conflict(why)));
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
        asked_again: 0,
    });
    denials::count(turn)?;
    Ok(Ok(Reply::ApprovalAsked(ApprovalAsked { approval: id, expires_at })))
}

/// Says that it waits to who asks for it again. On record at the first time, the tenth, the hundredth and so on, and not
/// remembered: whoever waits may ask as often as they like.
pub(super) fn ask_again<S: State>(turn: &mut Turn<'_, S>, waiting: Approval) -> Reply {
    let times = waiting.asked_again + 1;
    if denials::is_power_of_ten(times) {
        turn.audit(AuditEvent::ApprovalAskedAgain {
            approval: waiting.id,
            key_id: waiting.key_id,
            machine: waiting.machine.clone(),
            user: waiting.user.clone(),
            times,
        });
    }
    let asked = ApprovalAsked { approval: waiting.id, expires_at: waiting.expires_at };
    turn.state.put(&Approval { asked_again: times, ..waiting });
    Reply::ApprovalAsked(asked)
}

/// Notes that an approval is used for the reveal whose record comes next. It is gone then.
pub(super) fn use_up<S: State>(turn: &mut Turn<'_, S>, approval: &Approval) {
    if let Some(granted_by) = &approval.granted_by {
        let audit_sequence = turn.audit(AuditEvent::ApprovalUsed {
            approval: approval.id,
            key_id: approval.key_id,
            machine: approval.machine.clone(),
            user: approval.user.clone(),
            asked_by: approval.asked_by.clone(),
            granted_by: granted_by.clone(),
        });
        turn.state.put(&UsedApproval { approval: approval.id, audit_sequence });
    }
    delete(turn, approval);
}

/// Notes that the reveal of `entry`, which came on record now, used an approval. Puts on record too if it had been used
/// before: neither of two nodes that are cut off can tell, and somebody should look into it.
pub(super) fn note_use<S: State>(
    turn: &mut Turn<'_, S>,
    entry: &JournalEntry,
    reply: &Reply,
) -> Result<(), StateError> {
    let Reply::Reconciled { audit_sequence: Some(audit_sequence) } = *reply else { return Ok(()) };
    let before = turn.heads_before.audit.sequence;
    let reveal = entry.what.reveal().filter(|reveal| reveal.was_shown() && audit_sequence > before);
    let Some((reveal, approval)) = reveal.and_then(|reveal| Some((reveal, reveal.approval?))) else {
        return Ok(());
    };
    match turn.state.row::<UsedApproval>(&approval.row_key())? {
        None => turn.state.put(&UsedApproval { approval, audit_sequence }),
        // By this very entry.
        Some(used) if used.audit_sequence > before => {}
        Some(used) => {
            turn.audit(AuditEvent::ApprovalUsedAgain {
                approval,
                key_id: reveal.key_id,
                machine: reveal.machine.clone(),
                user: reveal.user.clone(),
                used_by: reveal.by.clone(),
                first_use: used.audit_sequence,
            });
        }
    }
    Ok(())
}

/// Decides about a reveal that another person asked for. What is denied is on record too, also about a reveal that waits no
/// more or never did: nothing here tells these two apart. It counts as reveals that are denied do ([`denials`]).
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, decide: &DecideApproval) -> Result<Reply, Halt> {
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    denials::admit(turn)?;
    let found = lookup::approval(turn.state, decide.approval)?;
    let approval = match judge(turn, decide, found.as_ref())? {
        Ok(approval) => approval.clone(),
        Err(refusal) => {
            turn.audit(AuditEvent::ApprovalRefused {
                approval: decide.approval,
                key_id: found.as_ref().map(|found| found.key_id),
                machine: found.as_ref().map(|found| found.machine.clone()),
                user: found.as_ref().and_then(|found| found.user.clone()),
                asked_by: found.map(|found| found.asked_by),
                granted: decide.granted,
                denied: refusal.to_string(),
            });
            denials::count(turn)?;
            return requests::remember(turn, Reply::Refused(refusal));
        }
    };
    if decide.granted && lookup::policy(turn.state)?.grants(&approval) {
        return Err(Refusal::Conflict(format!("reveal {} is approved already", approval.id)).into());
    }
    turn.audit(AuditEvent::ApprovalDecided {
        approval: approval.id,
        key_id: approval.key_id,
        machine: approval.machine.clone(),
        user: approval.user.clone(),
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

/// The reveal that is decided about, if the caller may.
fn judge<'a, S: State>(
    turn: &Turn<'_, S>,
    decide: &DecideApproval,
    found: Option<&'a Approval>,
) -> Result<Result<&'a Approval, Refusal>, StateError> {
    let by = turn.by();
    if !allows(by.role, Operation::Approve) {
        return Ok(Err(Refusal::Denied(format!("role {} does not approve reveals", by.role))));
    }
    let Some(approval) = found.filter(|found| found.expires_at > turn.at) else {
        return Ok(Err(gone(decide.approval)));
    };
    let may = lookup::policy(turn.state)?.may_approve(by, &approval.asked_by.person());
    Ok(may.map(|()| approval))
}

/// What is answered about a reveal that does not wait for a second person.
pub fn gone(approval: RequestId) -> Refusal {
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
