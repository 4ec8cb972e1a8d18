//! Showing a recovery key: authorisation, disclosure, audit record and rotation debt in one entry, or nothing.
//!
//! Who may see a key is decided by the rules in [`disclosure`]. What is denied, must be approved or does not exist is on
//! record too, up to a bound ([`denials`]). Only a request that is not well formed, its reason included, leaves nothing.

use super::{Halt, Turn, approval, denials, requests, rotation};
use crate::escrow::command::{Refusal, Reply, Reveal, Revealed};
use crate::escrow::disclosure::{self, Asked, Decision, Granted, Grounds};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, Invalid, MachineId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::document::Policy;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, KeyRecord, KeyState, MachineRecord, RevealTally};
use crate::escrow::state::{State, StateError};

/// Longest reason, in bytes.
pub const REASON_MAX_BYTES: usize = 1_000;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, reveal: &Reveal) -> Result<Reply, Halt> {
    let reason = check_reason(&reveal.reason)?;
    // Before a level that has policies and tallies, the rules are those that every cluster begins with.
    let desk = lookup::feature_level(turn.state)? >= FeatureLevel::DESK;
    let policy = if desk { lookup::policy(turn.state)? } else { Policy::default() };
    let answered = requests::answered(turn)?;
    let denial_is_on_record = answered.as_ref().is_some_and(requests::is_note);
    if let Some(reply) = answered.filter(|_| !denial_is_on_record) {
        return Ok(reply);
    }
    // Of who may reveal nothing no reason is good: that they asked is on record, whatever they say.
    if allows(turn.by().role, Operation::Recover) {
        policy.reasons.admit(reason)?;
    }
    if desk {
        denials::admit(turn)?;
    }
    let grounds = Grounds {
        policy: &policy,
        person: tally(turn, Some(turn.by().person()))?,
        cluster: tally(turn, None)?,
        always_approve: false,
    };
    let asked =
        Asked { by: turn.by(), key_id: reveal.key_id, user: reveal.user.as_ref(), reason, at: turn.at };
    let deny = |machine, refusal: Refusal, turn: &mut Turn<'_, S>| -> Result<Reply, StateError> {
        if !denial_is_on_record {
            record(turn, reveal, reason, machine, Some(refusal.to_string()));
            if desk {
                denials::count(turn)?;
            }
        }
        Ok(Reply::Refused(refusal))
    };
    let reply = match disclosure::decide(turn.state, &grounds, &asked)? {
        Decision::Granted(granted) => {
            if desk {
                count(turn, turn.by(), turn.at)?;
            }
            grant(turn, reveal, reason, *granted)?
        }
        Decision::NeedsApproval { waiting: Some(waiting), .. } => {
            return Ok(approval::ask_again(turn, *waiting));
        }
        Decision::NeedsApproval { key, waiting: None } => {
            match approval::ask(turn, &policy, &key, reveal, reason)? {
                Ok(reply) => reply,
                Err(refusal) => deny(Some(key.machine), refusal, turn)?,
            }
        }
        Decision::Denied { refusal, machine } => deny(machine, refusal, turn)?,
    };
    requests::remember(turn, reply)
}

/// Puts on record that the key is shown, and all that comes of it.
fn grant<S: State>(
    turn: &mut Turn<'_, S>,
    reveal: &Reveal,
    reason: &str,
    granted: Granted,
) -> Result<Reply, StateError> {
    let Granted { key, machine, approval } = granted;
    if let Some(approval) = approval {
        approval::use_up(turn, &approval);
    }
    let audit_sequence = record(turn, reveal, reason, Some(key.machine.clone()), None);
    let key_id = key.id;
    disclose(turn, key, machine, turn.at)?;
    Ok(Reply::Revealed(Revealed { key_id, audit_sequence, at: turn.at, position: turn.position }))
}

/// How often keys were revealed of late.
fn tally<S: State>(turn: &Turn<'_, S>, person: Option<String>) -> Result<RevealTally, StateError> {
    let row = turn.state.row(&RevealTally::row_key(person.as_deref()))?;
    Ok(row.unwrap_or_else(|| RevealTally::none(person)))
}

/// Counts a reveal to `by` at `shown_at` towards the limits.
pub(super) fn count<S: State>(
    turn: &mut Turn<'_, S>,
    by: &Identity,
    shown_at: Timestamp,
) -> Result<(), StateError> {
    for person in [Some(by.person()), None] {
        let mut tally = tally(turn, person)?;
        tally.slots.count_late(shown_at, turn.at);
        turn.state.put(&tally);
    }
    Ok(())
}

/// Puts a reveal, or its denial, on record.
fn record<S: State>(
    turn: &mut Turn<'_, S>,
    reveal: &Reveal,
    reason: &str,
    machine: Option<MachineId>,
    denied: Option<String>,
) -> u64 {
    turn.audit(AuditEvent::Reveal {
        key_id: reveal.key_id,
        machine,
        user: reveal.user.clone(),
        reason: reason.to_owned(),
        denied,
    })
}

/// Notes that the key was seen by a person at `shown_at`. Its device must replace it, unless it has: a key that was
/// replaced opens nothing in use, and a debt for it could never be settled.
pub(super) fn disclose<S: State>(
    turn: &mut Turn<'_, S>,
    mut key: KeyRecord,
    mut machine: MachineRecord,
    shown_at: Timestamp,
) -> Result<(), StateError> {
    rotation::note_disclosure(turn, &key, shown_at)?;
    if key.state == KeyState::Active {
        key.state = KeyState::Disclosed;
        turn.state.put(&key);
    }
    let was_replaced = lookup::history(turn.state, key.id)?.replaced_by.is_some();
    if machine.rotation_owed_since.is_none() && !was_replaced {
        machine.rotation_owed_since = Some(shown_at);
        turn.state.put(&machine);
    }
    Ok(())
}

/// The reason as it goes on record: without white space around it.
///
/// # Errors
/// [`Invalid`] for the field `reason` if it is blank, too long or has control characters.
pub fn check_reason(reason: &str) -> Result<&str, Invalid> {
    let trimmed = reason.trim();
    let well_formed =
        !trimmed.is_empty() && reason.len() <= REASON_MAX_BYTES && !trimmed.chars().any(char::is_control);
    if well_formed {
        return Ok(trimmed);
    }
    let expected = format!("why the key is needed, 1 to {REASON_MAX_BYTES} bytes without control characters");
    Err(Invalid::new("reason", expected))
}
