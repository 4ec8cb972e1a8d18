//! Rotation: a key that a person saw must be replaced by its device.
//!
//! A device escrows the new key as pending, puts it on the volume, takes every older key of that kind off the volume, and
//! confirms. At each of these steps the key that opens the volume is kept, whatever is lost or repeated: the new one since
//! before it was used, the old one for ever. What the confirmation changes is only what the cluster calls them:
//!
//! - the confirmed key becomes active, or disclosed if somebody saw it while it was pending;
//! - the keys of its volume and kind that were escrowed *before* it are retired. Not the later ones: a confirmation may
//!   come late, after the next rotation began.

use super::ids::{KeyId, Timestamp};
use super::lookup;
use super::records::{KEYS_PER_MACHINE_MAX, KeyHistory, KeyRecord, KeyState, MachineRecord};
use super::rows::MachineKey;
use super::state::{Rows, StateError};

/// Most pending keys of one volume and kind. A device that never gets to confirm leaves them behind; past this many the
/// one escrowed first is called retired. It can still be revealed, and confirmed unless a newer one was.
pub const PENDING_PER_VOLUME_MAX: usize = 8;

/// A key of a machine and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineKeyState {
    /// The key; its secret is sealed.
    pub key: KeyRecord,
    /// What became of it.
    pub history: KeyHistory,
}

impl MachineKeyState {
    /// Whether its device may have begun to use it without having said so.
    pub fn is_unconfirmed(&self) -> bool {
        match self.key.state {
            KeyState::Pending => true,
            KeyState::Retired => self.history.replaced_by.is_none(),
            KeyState::Active | KeyState::Disclosed => false,
        }
    }

    /// In which state it was at `at`; `None` if it was not in escrow yet. When a pending key was confirmed is not kept, so
    /// it counts as confirmed from when it was escrowed.
    pub fn state_as_of(&self, at: Timestamp) -> Option<KeyState> {
        let Self { key, history } = self;
        if key.escrowed_at > at {
            return None;
        }
        let was_seen = match history.disclosed_at {
            Some(seen) => seen <= at,
            // Seen before the cluster kept when.
            None => key.state == KeyState::Disclosed,
        };
        let is_retired_later = history.retired_at.is_some_and(|retired| at < retired);
        Some(match key.state {
            KeyState::Pending => KeyState::Pending,
            KeyState::Retired if !is_retired_later => KeyState::Retired,
            // Displaced without ever having been confirmed: it was never known to be in use.
            KeyState::Retired if history.replaced_by.is_none() => KeyState::Pending,
            KeyState::Active | KeyState::Disclosed | KeyState::Retired if was_seen => KeyState::Disclosed,
            KeyState::Active | KeyState::Disclosed | KeyState::Retired => KeyState::Active,
        })
    }

    /// Since when it owes a rotation: a person saw it, and its device has not confirmed another one since. `machine`
    /// knows for keys that were revealed before the cluster kept when.
    pub fn owes_since(&self, machine: &MachineRecord) -> Option<Timestamp> {
        let Self { key, history } = self;
        if history.replaced_by.is_some() {
            return None;
        }
        let of_old = || machine.rotation_owed_since.filter(|_| key.state == KeyState::Disclosed);
        history.disclosed_at.or_else(of_old)
    }

    /// Whether a confirmation of this key retires `other`.
    pub fn replaces(&self, other: &Self) -> bool {
        let (new, old) = (&self.key, &other.key);
        new.volume == old.volume
            && new.kind == old.kind
            && old.position < new.position
            && other.history.replaced_by.is_none()
    }
}

/// What a device is told when it asks whether a rotation is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Since when its machine owes one; absent if it owes none.
    pub owed_since: Option<Timestamp>,
    /// The keys that owe a rotation, each with since when, and the pending ones, which wait to be confirmed.
    pub keys: Vec<(KeyRecord, Option<Timestamp>)>,
}

/// How `machine` stands.
///
/// # Errors
/// [`StateError`] if the storage fails.
pub fn standing<R: Rows>(rows: &R, machine: &MachineRecord) -> Result<Standing, StateError> {
    let keys = keys_of(rows, machine)?.into_iter().filter_map(|known| {
        let owes = known.owes_since(machine);
        (owes.is_some() || known.key.state == KeyState::Pending).then_some((known.key, owes))
    });
    Ok(Standing { owed_since: machine.rotation_owed_since, keys: keys.collect() })
}

/// Every key of `machine`, in the order of their ids.
///
/// # Errors
/// [`StateError`] if the storage fails or a key is not there.
pub fn keys_of<R: Rows>(rows: &R, machine: &MachineRecord) -> Result<Vec<MachineKeyState>, StateError> {
    let index: Vec<MachineKey> = rows.rows(&MachineKey::prefix(&machine.id), None, KEYS_PER_MACHINE_MAX)?;
    index.iter().map(|row| key_of(rows, row.key_id)).collect()
}

/// The key of this id, which another row says is there.
///
/// # Errors
/// As [`keys_of`].
pub fn key_of<R: Rows>(rows: &R, id: KeyId) -> Result<MachineKeyState, StateError> {
    Ok(MachineKeyState { key: rows.required(&id.row_key())?, history: lookup::history(rows, id)? })
}
