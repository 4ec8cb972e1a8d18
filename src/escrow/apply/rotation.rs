//! Confirming that a device uses a key, and what becomes of the ones before it. See [`rotation`](crate::escrow::rotation)
//! for the whole of a rotation.

use super::{Halt, Turn, escrow, requests};
use crate::escrow::command::{ConfirmKey, Escrow, KeyConfirmed, Refusal, Reply};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{KeyId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::may_escrow;
use crate::escrow::records::{AuditEvent, KeyHistory, KeyRecord, KeyState, MachineRecord};
use crate::escrow::rotation::{MachineKeyState, PENDING_PER_VOLUME_MAX, key_of, keys_of};
use crate::escrow::rows::MachineKey;
use crate::escrow::state::{Row, State, StateError};

/// Confirming again changes nothing and leaves no record: nothing older is left to be retired.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, confirm: &ConfirmKey) -> Result<Reply, Halt> {
    if !may_escrow(turn.by(), &confirm.machine) {
        let why = format!("{} may not confirm keys of machine {}", turn.by(), confirm.machine);
        return Err(Refusal::Denied(why).into());
    }
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let stored: Option<KeyRecord> = turn.state.row(&confirm.key_id.row_key())?;
    if stored.is_none_or(|key| key.machine != confirm.machine) {
        let why = format!("no key {} of machine {} is kept", confirm.key_id, confirm.machine);
        return Err(Refusal::NotFound(why).into());
    }
    let mut confirmed = key_of(turn.state, confirm.key_id)?;
    if let Some(newer) = confirmed.history.replaced_by {
        return Err(replaced(confirm.key_id, newer).into());
    }
    let mut machine: MachineRecord = turn.required(&confirm.machine.row_key())?;
    let was_unconfirmed = confirmed.is_unconfirmed();
    if was_unconfirmed {
        bring_into_use(turn, &mut confirmed);
    }
    let replaced = retire_older(turn, &confirmed, &machine)?;
    if !was_unconfirmed && replaced.is_empty() {
        let reply = answer(&confirmed, replaced, &machine);
        escrow::contact(turn, machine, None)?;
        return Ok(reply);
    }
    machine.rotation_owed_since = still_owed(turn, &machine)?;
    turn.audit(AuditEvent::KeyConfirmed {
        key_id: confirmed.key.id,
        machine: machine.id.clone(),
        replaced: replaced.clone(),
        rotation_owed_since: machine.rotation_owed_since,
    });
    turn.state.put(&machine);
    let reply = answer(&confirmed, replaced, &machine);
    escrow::contact(turn, machine, None)?;
    requests::remember(turn, reply)
}

/// Makes room for one more pending key of the volume and kind of `escrow`, whose machine has `keys`.
pub(super) fn displace<S: State>(
    turn: &mut Turn<'_, S>,
    keys: &[MachineKey],
    escrow: &Escrow,
) -> Result<(), StateError> {
    let mut pending = Vec::new();
    for row in keys {
        let key: KeyRecord = turn.required(&row.key_id.row_key())?;
        if key.state == KeyState::Pending && key.volume == escrow.volume && key.kind == escrow.kind {
            pending.push(key);
        }
    }
    pending.sort_by_key(|key| key.position);
    let excess = (pending.len() + 1).saturating_sub(PENDING_PER_VOLUME_MAX);
    for key in pending.into_iter().take(excess) {
        let history = lookup::history(turn.state, key.id)?;
        turn.state.put(&KeyHistory { retired_at: Some(turn.at), ..history });
        turn.state.put(&KeyRecord { state: KeyState::Retired, ..key });
    }
    Ok(())
}

/// Notes when `key` was first revealed, once the cluster keeps that. Of one that was revealed before, its machine knows.
pub(super) fn note_disclosure<S: State>(
    turn: &mut Turn<'_, S>,
    key: &KeyRecord,
    shown_at: Timestamp,
) -> Result<(), StateError> {
    if key.state == KeyState::Disclosed || lookup::feature_level(turn.state)? < FeatureLevel::DESK {
        return Ok(());
    }
    let history = lookup::history(turn.state, key.id)?;
    if history.disclosed_at.is_none() {
        turn.state.put(&KeyHistory { disclosed_at: Some(shown_at), ..history });
    }
    Ok(())
}

fn replaced(key_id: KeyId, newer: KeyId) -> Refusal {
    Refusal::Conflict(format!(
        "key {key_id} was replaced by key {newer}, which its device confirmed; if the volume is opened by the old one \
         again, rotate it to a new key"
    ))
}

fn bring_into_use<S: State>(turn: &mut Turn<'_, S>, confirmed: &mut MachineKeyState) {
    let MachineKeyState { key, history } = confirmed;
    // Somebody saw it before it was confirmed: it owes a rotation as any disclosed key does.
    key.state = if history.disclosed_at.is_some() { KeyState::Disclosed } else { KeyState::Active };
    history.retired_at = None;
    turn.state.put(key);
    if history.disclosed_at.is_some() {
        turn.state.put(history);
    } else {
        turn.state.delete::<KeyHistory>(&history.key());
    }
}

/// Retires what `confirmed` replaces, and says which keys those are.
fn retire_older<S: State>(
    turn: &mut Turn<'_, S>,
    confirmed: &MachineKeyState,
    machine: &MachineRecord,
) -> Result<Vec<KeyId>, StateError> {
    let mut retired = Vec::new();
    for older in keys_of(turn.state, machine)?.into_iter().filter(|other| confirmed.replaces(other)) {
        let MachineKeyState { key, history } = older;
        retired.push(key.id);
        turn.state.put(&KeyHistory {
            retired_at: history.retired_at.or(Some(turn.at)),
            replaced_by: Some(confirmed.key.id),
            ..history
        });
        turn.state.put(&KeyRecord { state: KeyState::Retired, ..key });
    }
    Ok(retired)
}

/// Since when the machine owes a rotation for what is left.
fn still_owed<S: State>(
    turn: &Turn<'_, S>,
    machine: &MachineRecord,
) -> Result<Option<Timestamp>, StateError> {
    let keys = keys_of(turn.state, machine)?;
    Ok(keys.iter().filter_map(|known| known.owes_since(machine)).min())
}

fn answer(confirmed: &MachineKeyState, replaced: Vec<KeyId>, machine: &MachineRecord) -> Reply {
    Reply::KeyConfirmed(KeyConfirmed {
        key_id: confirmed.key.id,
        state: confirmed.key.state,
        replaced,
        rotation_owed_since: machine.rotation_owed_since,
    })
}
