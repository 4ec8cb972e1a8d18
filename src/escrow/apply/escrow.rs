//! Keeping a recovery key.
//!
//! Nothing that is kept is overwritten. An escrow of the same key again is answered from what is stored; an escrow
//! that contradicts it is refused and leaves an audit record, because either a device or an importer is wrong about
//! a key somebody may need.
//!
//! What is kept is sealed with the current data key. A node that lags seals with the one its replica has, and a node
//! that was removed since has that one as well; so it is told to seal again.
//! What a device is about to use is kept as pending beside the key in use. An escrow of a key that is kept already, in
//! whatever state, changes no state: only the device's confirmation does (`rotation.rs`).

use super::{Halt, Turn, denials, requests, rotation};
use crate::escrow::command::{Escrow, Escrowed, Refusal, Reply};
use crate::escrow::compliance::{LastContact, Said};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Invalid, MachineId, Timestamp, UserName};
use crate::escrow::lookup;
use crate::escrow::policy::may_escrow;
use crate::escrow::records::{
    AuditEvent, KEYS_PER_MACHINE_MAX, KeyRecord, KeyState, KeyringRecord, MachineRecord, Sealed,
};
use crate::escrow::rows::{MachineKey, ONLY_ROW, UserMachine};
use crate::escrow::secrets::SECRET_MAX_BYTES;
use crate::escrow::state::{State, StateError};
use crate::mutation::Mutation;

/// Most bytes that sealing adds to a secret: the tag, and room for a header or for padding.
pub const SEALED_OVERHEAD_MAX_BYTES: usize = 64;

/// Keeps a key in `state`: active or pending.
pub(super) fn apply<S: State>(
    turn: &mut Turn<'_, S>,
    escrow: &Escrow,
    state: KeyState,
) -> Result<Reply, Halt> {
    if !may_escrow(turn.by(), &escrow.machine) {
        let why = format!("{} may not escrow keys of machine {}", turn.by(), escrow.machine);
        return Err(Refusal::Denied(why).into());
    }
    check_size("secret", &escrow.sealed)?;
    if let Some(package) = &escrow.sealed_package {
        check_size("package", package)?;
    }

    let stored: Option<KeyRecord> = turn.state.row(&escrow.key_id.row_key())?;
    if let Some(stored) = stored.as_ref().filter(|stored| differences(stored, escrow).is_empty()) {
        return Ok(already_escrowed(turn, stored, escrow)?);
    }
    let machine: Option<MachineRecord> = turn.state.row(&escrow.machine.row_key())?;
    // A machine that is not known has no keys: the common case in a roll-out needs no look at the index.
    let keys: Vec<MachineKey> = match machine {
        Some(_) => turn.state.rows(&MachineKey::prefix(&escrow.machine), None, KEYS_PER_MACHINE_MAX)?,
        None => Vec::new(),
    };
    if !escrow.key_id_given
        && let Some(same) = same_key(turn, &keys, escrow)?
    {
        return Ok(already_escrowed(turn, &same, escrow)?);
    }
    if let Some(stored) = stored {
        if Mutation::AcknowledgeConflict.is_active() {
            return Ok(already_escrowed(turn, &stored, escrow)?);
        }
        return conflict(turn, &stored, escrow);
    }
    if keys.len() >= KEYS_PER_MACHINE_MAX {
        let why = format!("machine {} has {KEYS_PER_MACHINE_MAX} keys, which is the most", escrow.machine);
        return Err(Refusal::Conflict(why).into());
    }
    if let Some(reply) = sealed_with_old_key(turn, escrow)? {
        return Ok(reply);
    }
    if state == KeyState::Pending {
        rotation::displace(turn, &keys, escrow)?;
    }
    let keys_left = Some(KEYS_PER_MACHINE_MAX - keys.len() - 1);
    let key = keep(turn, machine, escrow, state)?;
    Ok(Reply::Escrowed(Escrowed { keys_left, ..escrowed(&key, false) }))
}

/// What is answered to an escrow that is sealed with another data key than the current one. Nothing of it is
/// remembered: the same request comes again, sealed anew.
fn sealed_with_old_key<S: State>(turn: &Turn<'_, S>, escrow: &Escrow) -> Result<Option<Reply>, Halt> {
    let current = turn.required::<KeyringRecord>(ONLY_ROW)?.current_key_version;
    let versions =
        [Some(&escrow.sealed), escrow.sealed_package.as_ref()].map(|sealed| sealed.map(|s| s.key_version));
    let mut versions = versions.into_iter().flatten();
    if versions.clone().all(|version| version == current) {
        return Ok(None);
    }
    // Releases of the first level keep it, and so must whoever applies the same entry.
    if lookup::feature_level(turn.state)? < FeatureLevel::DEPARTURES {
        return Ok(None);
    }
    if versions.any(|version| version > current) {
        // Nobody could open it.
        return Err(Invalid::new("sealed", format!("sealed with data key {current} at the most")).into());
    }
    Ok(Some(Reply::OldDataKey { current }))
}

/// Writes a new key and everything it is found by.
fn keep<S: State>(
    turn: &mut Turn<'_, S>,
    machine: Option<MachineRecord>,
    escrow: &Escrow,
    state: KeyState,
) -> Result<KeyRecord, StateError> {
    let key = KeyRecord {
        id: escrow.key_id,
        machine: escrow.machine.clone(),
        volume: escrow.volume.clone(),
        kind: escrow.kind,
        sealed: escrow.sealed.clone(),
        sealed_package: escrow.sealed_package.clone(),
        fingerprint: escrow.fingerprint,
        state,
        escrowed_at: turn.at,
        escrowed_by: turn.by().clone(),
        position: turn.position,
    };
    turn.state.put_new(&key);
    turn.state.put_new(&MachineKey {
        machine: key.machine.clone(),
        key_id: key.id,
        fingerprint: key.fingerprint,
    });
    let said = match machine {
        Some(_) => lookup::said(turn.state, &escrow.machine)?,
        None => None,
    };
    let seen = escrow.user.iter().map(|user| (user.clone(), turn.at));
    heard_of(turn, machine, &escrow.machine, seen.collect(), said);
    Ok(key)
}

/// Answers from the key that is kept. Only what is known of its machine moves on.
fn already_escrowed<S: State>(
    turn: &mut Turn<'_, S>,
    stored: &KeyRecord,
    escrow: &Escrow,
) -> Result<Reply, StateError> {
    let machine = turn.required(&stored.machine.row_key())?;
    contact(turn, machine, escrow.user.as_ref())?;
    Ok(Reply::Escrowed(escrowed(stored, true)))
}

fn escrowed(key: &KeyRecord, already_escrowed: bool) -> Escrowed {
    Escrowed {
        key_id: key.id,
        machine: key.machine.clone(),
        volume: key.volume.clone(),
        fingerprint: key.fingerprint,
        at: key.escrowed_at,
        position: key.position,
        already_escrowed,
        keys_left: None,
    }
}

/// Refuses an escrow that contradicts the `stored` key of its id, and puts the attempt on record.
fn conflict<S: State>(turn: &mut Turn<'_, S>, stored: &KeyRecord, escrow: &Escrow) -> Result<Reply, Halt> {
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let differing = differences(stored, escrow).join(", ");
    let why = format!("key {} is already kept with another {differing}; nothing was changed", stored.id);
    let refusal = Refusal::Conflict(why);
    let event = AuditEvent::EscrowConflict { key_id: stored.id, machine: escrow.machine.clone() };
    if lookup::feature_level(turn.state)? < FeatureLevel::DESK {
        turn.audit(event);
    } else if !denials::record(turn, event)? {
        return Err(refusal.into());
    }
    requests::remember(turn, Reply::Refused(refusal))
}

/// The fields in which an escrow contradicts a stored key.
fn differences(stored: &KeyRecord, escrow: &Escrow) -> Vec<&'static str> {
    let fields = [
        ("machine", stored.machine == escrow.machine),
        ("volume", stored.volume == escrow.volume),
        ("kind", stored.kind == escrow.kind),
        ("secret", stored.fingerprint == escrow.fingerprint),
        ("package", covers(stored.sealed_package.as_ref(), escrow.sealed_package.as_ref())),
    ];
    fields.into_iter().filter(|(_, same)| !same).map(|(field, _)| field).collect()
}

/// Whether acknowledging `offered` with what is `stored` loses nothing. A package has no fingerprint, and the same
/// one is sealed to other bytes each time, but of the same length. Without this line a package that comes after
/// its password would be acknowledged and dropped.
fn covers(stored: Option<&Sealed>, offered: Option<&Sealed>) -> bool {
    match (stored, offered) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(stored), Some(offered)) => stored.ciphertext.len() == offered.ciphertext.len(),
    }
}

/// The key of the machine that the escrow names again under another id: of several with the same secret, the one that was
/// kept first, so that a repeated escrow is answered as before whatever else was kept meanwhile.
fn same_key<S: State>(
    turn: &Turn<'_, S>,
    keys: &[MachineKey],
    escrow: &Escrow,
) -> Result<Option<KeyRecord>, StateError> {
    let mut first: Option<KeyRecord> = None;
    for row in keys.iter().filter(|row| row.fingerprint == escrow.fingerprint) {
        let key: KeyRecord = turn.required(&row.key_id.row_key())?;
        let is_earlier = first.as_ref().is_none_or(|first| key.position < first.position);
        if is_earlier && differences(&key, escrow).is_empty() {
            first = Some(key);
        }
    }
    Ok(first)
}

/// Notes that a known machine was heard of, and who was seen on it.
pub(super) fn contact<S: State>(
    turn: &mut Turn<'_, S>,
    machine: MachineRecord,
    user: Option<&UserName>,
) -> Result<(), StateError> {
    let said = lookup::said(turn.state, &machine.id)?;
    let id = machine.id.clone();
    let seen = user.map(|user| (user.clone(), turn.at)).into_iter().collect();
    heard_of(turn, Some(machine), &id, seen, said);
    Ok(())
}

/// Notes that a machine was heard of, known or not, who was seen on it when, and what it said last. Unless that is new, it
/// is the time alone that is written.
pub(super) fn heard_of<S: State>(
    turn: &mut Turn<'_, S>,
    known: Option<MachineRecord>,
    id: &MachineId,
    seen: Vec<(UserName, Timestamp)>,
    said: Option<Said>,
) {
    let is_known = known.is_some();
    let mut machine = known.unwrap_or_else(|| MachineRecord::first_heard_of(id.clone(), turn.at));
    let before = is_known.then(|| machine.clone());
    for (user, at) in seen {
        if !machine.users.contains(&user) {
            turn.state.put(&UserMachine { user: user.clone(), machine: id.clone() });
        }
        if let Some(forgotten) = machine.saw(&user, at) {
            turn.state.delete::<UserMachine>(&UserMachine::row_key(&forgotten, id));
        }
    }
    if before.as_ref() != Some(&machine) {
        turn.state.put(&machine);
    }
    let contact = LastContact { machine: id.clone(), at: turn.at, said };
    if is_known {
        turn.state.put(&contact);
    } else {
        turn.state.put_new(&contact);
    }
}

fn check_size(field: &str, sealed: &Sealed) -> Result<(), Invalid> {
    let max = SECRET_MAX_BYTES + SEALED_OVERHEAD_MAX_BYTES;
    if (1..=max).contains(&sealed.ciphertext.len()) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("1 to {max} bytes once sealed, not {}", sealed.ciphertext.len())))
}
