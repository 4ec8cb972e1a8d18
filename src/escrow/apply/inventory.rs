//! Noting what an importer knows of machines.
//!
//! Whatever a device said of itself stays: what is imported is a row of its own, an import is no contact of the device,
//! and users come in front of those that are known, which are the first to be forgotten, as far as there is room. An import
//! of the same again changes nothing, so nothing of it is remembered by request. Like an escrow that is kept, it leaves no
//! audit record.

use super::{Halt, Turn};
use crate::escrow::command::{ImportOutcome, Refusal, Reply};
use crate::escrow::ids::{Invalid, Timestamp};
use crate::escrow::inventory::{ImportedMachine, InventoryRecord};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{MachineRecord, USERS_PER_MACHINE_MAX};
use crate::escrow::rows::UserMachine;
use crate::escrow::state::{State, StateError};

/// When a user was seen whom an import names: before any that a device or an escrow named.
const NEVER_SEEN: Timestamp = Timestamp(0);
/// Most machines of one entry.
pub const MACHINES_PER_ENTRY_MAX: usize = 256;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, machines: &[ImportedMachine]) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::EscrowMany) {
        let why = format!("role {} may not {}", turn.by().role, Operation::EscrowMany);
        return Err(Refusal::Denied(why).into());
    }
    if !(1..=MACHINES_PER_ENTRY_MAX).contains(&machines.len()) {
        let expected = format!("1 to {MACHINES_PER_ENTRY_MAX} at once, not {}", machines.len());
        return Err(Invalid::new("machines", expected).into());
    }
    let outcomes: Result<_, StateError> = machines.iter().map(|machine| note(turn, machine)).collect();
    Ok(Reply::MachinesImported(outcomes?))
}

fn note<S: State>(turn: &mut Turn<'_, S>, imported: &ImportedMachine) -> Result<ImportOutcome, StateError> {
    if let Err(invalid) = imported.check() {
        return Ok(ImportOutcome::Refused(invalid.into()));
    }
    let id = &imported.machine;
    let before = lookup::inventory(turn.state, id)?.map(|kept| kept.description).unwrap_or_default();
    let description = imported.description.clone().or(&before);
    let says_more = description != before;
    if says_more {
        turn.state.put(&InventoryRecord { machine: id.clone(), description });
    }
    let known: Option<MachineRecord> = lookup::machine(turn.state, id)?;
    let is_new = known.is_none();
    let mut machine = known.unwrap_or_else(|| MachineRecord::first_heard_of(id.clone(), turn.at));
    let users_before = machine.users.len();
    for user in imported.users.iter().rev() {
        if machine.users.len() < USERS_PER_MACHINE_MAX && !machine.users.contains(user) {
            machine.users.insert(0, user.clone());
            machine.users_seen_at.insert(0, NEVER_SEEN);
            turn.state.put(&UserMachine { user: user.clone(), machine: id.clone() });
        }
    }
    let has_more_users = machine.users.len() > users_before;
    if is_new || has_more_users {
        turn.state.put(&machine);
    }
    Ok(if is_new || says_more || has_more_users { ImportOutcome::Noted } else { ImportOutcome::KnownBefore })
}
