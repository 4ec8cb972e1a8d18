//! Sealing what is kept under the current data key, and dropping the older ones at the end.
//!
//! The leader opens some keys, seals them under the current data key and proposes them; here each takes the place of
//! exactly what it was made from, or of nothing. The secret itself is not seen here, so what could lose one is refused:
//! another length, a package that comes or goes.
//!
//! Each step goes over the next keys in the order of their ids and itself looks which of them are under older data keys
//! afterwards. So it is the state, not the leader's word, that says at the end of a pass that none is: from the first
//! entry of a pass on no key is kept under an older data key (see `escrow`), and the pass has looked at all others.

use super::{Halt, Turn, admit};
use crate::escrow::command::{DropDataKeys, Refusal, Reply, Reseal, ResealedKey};
use crate::escrow::digest::Canonical;
use crate::escrow::ids::Invalid;
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{AuditEvent, KeyRecord, KeyringRecord, ResealRecord, Sealed};
use crate::escrow::rows::ONLY_ROW;
use crate::escrow::state::State;

/// Most keys a step looks at.
pub const RESEAL_ROWS_MAX: u32 = 256;

/// Names what is hashed and the version of its layout. It is compared within one release's commands only.
const SEALED_LABEL: &str = "strongroom sealed key v1";

/// What a key is sealed as, hashed.
pub fn sealed_digest(key: &KeyRecord) -> [u8; 32] {
    let part = |canonical: Canonical, sealed: &Sealed| {
        canonical.number(u64::from(sealed.key_version)).bytes(&sealed.nonce).bytes(&sealed.ciphertext)
    };
    let canonical = part(Canonical::new(SEALED_LABEL), &key.sealed);
    match &key.sealed_package {
        None => canonical.number(0).sha256(),
        Some(package) => part(canonical.number(1), package).sha256(),
    }
}

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, step: &Reseal) -> Result<Reply, Halt> {
    check_role(turn)?;
    if !(1..=RESEAL_ROWS_MAX).contains(&step.rows) {
        return Err(Invalid::new("rows", format!("1 to {RESEAL_ROWS_MAX}, not {}", step.rows)).into());
    }
    let current = turn.required::<KeyringRecord>(ONLY_ROW)?.current_key_version;
    if step.key_version != current {
        return Ok(Reply::OldDataKey { current });
    }
    let mut pass = pass(turn, step)?;
    let keys = lookup::keys_after(turn.state, step.after, step.rows as usize)?;
    pass.done = keys.len() < step.rows as usize;
    pass.after = keys.last().map(|key| key.id).or(pass.after);
    for key in keys.into_iter().filter(|key| !key.is_sealed_under(current)) {
        let anew = step.keys.iter().find(|anew| anew.key_id == key.id);
        match anew.and_then(|anew| replaced(key, anew, current)) {
            None => pass.left += 1,
            Some(key) => {
                turn.state.put(&key);
                pass.resealed += 1;
            }
        }
    }
    turn.state.put(&pass);
    Ok(Reply::Resealed(pass))
}

/// The pass that the step begins or goes on with. A step that comes twice is refused: the pass is further already.
fn pass<S: State>(turn: &Turn<'_, S>, step: &Reseal) -> Result<ResealRecord, Halt> {
    let key_version = step.key_version;
    let pass = lookup::resealing(turn.state)?.filter(|pass| pass.key_version == key_version);
    match (pass, step.after) {
        (Some(pass), Some(after)) if pass.after == Some(after) && !pass.done => Ok(pass),
        (Some(pass), None) if !pass.done || pass.left == 0 => {
            Err(Refusal::Conflict(format!("the pass for data key {key_version} has begun already")).into())
        }
        (_, None) => {
            let (resealed, left, done, dropped) = (0, 0, false, false);
            Ok(ResealRecord { key_version, after: None, to_do: step.to_do, resealed, left, done, dropped })
        }
        (_, Some(after)) => {
            Err(Refusal::Conflict(format!("no pass for data key {key_version} stands at {after}")).into())
        }
    }
}

/// The key as `anew` has it, if that is the same secret as far as can be seen from here.
fn replaced(key: KeyRecord, anew: &ResealedKey, current: u32) -> Option<KeyRecord> {
    if anew.was != sealed_digest(&key) {
        return None;
    }
    let fits = |old: &Sealed, new: &Sealed| {
        new.key_version == current && new.ciphertext.len() == old.ciphertext.len()
    };
    let package_fits = match (&key.sealed_package, &anew.sealed_package) {
        (None, None) => true,
        (Some(old), Some(new)) => fits(old, new),
        _ => false,
    };
    if !fits(&key.sealed, &anew.sealed) || !package_fits {
        return None;
    }
    Some(KeyRecord { sealed: anew.sealed.clone(), sealed_package: anew.sealed_package.clone(), ..key })
}

/// Data keys may go once a pass for the current one has looked at every key and left none.
///
/// Nobody needs them then: whatever holds keys that are sealed under them (a replica that lags, a snapshot, a backup)
/// holds the keyring of its own entry beside them.
pub(super) fn apply_drop<S: State>(turn: &mut Turn<'_, S>, drop: &DropDataKeys) -> Result<Reply, Halt> {
    check_role(turn)?;
    admit::check_keyring(&drop.keyring)?;
    let stored: KeyringRecord = turn.required(ONLY_ROW)?;
    let current = stored.current_key_version;
    let complete =
        |pass: &ResealRecord| pass.key_version == current && pass.done && pass.left == 0 && !pass.dropped;
    let Some(pass) = lookup::resealing(turn.state)?.filter(complete) else {
        let why = format!("older data keys than {current} are needed, or dropped already");
        return Err(Refusal::Conflict(why).into());
    };
    admit::check_replaces(&stored, &drop.keyring)?;
    if drop.keyring.current_key_version != current {
        return Err(Refusal::Conflict(format!("the data key that is kept must be {current}")).into());
    }
    turn.state.put(&drop.keyring);
    turn.state.put(&ResealRecord { dropped: true, ..pass });
    turn.audit(AuditEvent::DataKeysDropped { key_version: current });
    Ok(Reply::DataKeysDropped)
}

fn check_role<S: State>(turn: &Turn<'_, S>) -> Result<(), Refusal> {
    let role = turn.by().role;
    if allows(role, Operation::Reseal) {
        return Ok(());
    }
    Err(Refusal::Denied(format!("role {role} does not seal keys anew")))
}
