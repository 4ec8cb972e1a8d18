//! Showing a recovery key: authorisation, disclosure, audit record and rotation debt in one entry, or nothing.
//!
//! What is denied or does not exist is on record too. Only a request that is not well formed leaves nothing.

use super::{Halt, Turn, requests};
use crate::escrow::command::{Refusal, Reply, Reveal, Revealed};
use crate::escrow::ids::{Invalid, MachineId, Role};
use crate::escrow::policy::{Operation, allows, must_name_user};
use crate::escrow::records::{AuditEvent, KeyRecord, KeyState, MachineRecord};
use crate::escrow::state::{State, StateError};

/// Longest reason, in bytes.
pub const REASON_MAX_BYTES: usize = 1_000;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, reveal: &Reveal) -> Result<Reply, Halt> {
    let reason = check_reason(&reveal.reason)?;
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let decision = decide(turn, reveal)?;
    let machine = match &decision {
        Ok((key, _)) => Some(&key.machine),
        Err(denied) => denied.machine.as_ref(),
    };
    let audit_sequence = turn.audit(AuditEvent::Reveal {
        key_id: reveal.key_id,
        machine: machine.cloned(),
        user: reveal.user.clone(),
        reason: reason.to_owned(),
        denied: decision.as_ref().err().map(|denied| denied.refusal.to_string()),
    });
    let reply = match decision {
        Ok((key, machine)) => disclose(turn, key, machine, audit_sequence),
        Err(denied) => Reply::Refused(denied.refusal),
    };
    requests::remember(turn, reply)
}

/// A reveal that is not allowed, and whose key it was about.
struct Denied {
    refusal: Refusal,
    machine: Option<MachineId>,
}

/// The key to show and its machine, or why not.
fn decide<S: State>(
    turn: &Turn<'_, S>,
    reveal: &Reveal,
) -> Result<Result<(KeyRecord, MachineRecord), Denied>, StateError> {
    let role = turn.by().role;
    let Some(key) = turn.state.row::<KeyRecord>(&reveal.key_id.row_key())? else {
        let refusal = if allows(role, Operation::Recover) {
            Refusal::NotFound(format!("no key {} is kept", reveal.key_id))
        } else {
            may_not_recover(role)
        };
        return Ok(Err(Denied { refusal, machine: None }));
    };
    let machine: MachineRecord = turn.required(&key.machine.row_key())?;
    let refusal = if !allows(role, Operation::Recover) {
        may_not_recover(role)
    } else if must_name_user(role) && !reveal.user.as_ref().is_some_and(|user| machine.users.contains(user)) {
        // One text for every way to be wrong, so that refusals do not help to guess who uses a machine.
        let why = format!("role {role} reveals a key only to a user of its machine, named as DOMAIN\\NAME");
        Refusal::Denied(why)
    } else {
        return Ok(Ok((key, machine)));
    };
    Ok(Err(Denied { refusal, machine: Some(key.machine) }))
}

fn may_not_recover(role: Role) -> Refusal {
    Refusal::Denied(format!("role {role} may not reveal keys"))
}

/// Notes that the key was seen by a person. Its device must replace it.
fn disclose<S: State>(
    turn: &mut Turn<'_, S>,
    mut key: KeyRecord,
    mut machine: MachineRecord,
    audit_sequence: u64,
) -> Reply {
    if key.state == KeyState::Active {
        key.state = KeyState::Disclosed;
        turn.state.put(&key);
    }
    if machine.rotation_owed_since.is_none() {
        machine.rotation_owed_since = Some(turn.at);
        turn.state.put(&machine);
    }
    Reply::Revealed(Revealed { key_id: key.id, audit_sequence, at: turn.at, position: turn.position })
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
