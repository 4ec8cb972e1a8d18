//! All that is known of one machine, as reports are handed it: one machine after the other, so that a report over a
//! million of them holds one at a time.

use crate::escrow::compliance::{ComplianceChange, ComplianceRecord, Exemption, LastContact};
use crate::escrow::inventory::InventoryRecord;
use crate::escrow::lookup;
use crate::escrow::records::{Fingerprint, KeyRecord, MachineRecord, Sealed};
use crate::escrow::rotation::{MachineKeyState, keys_of};
use crate::escrow::state::{Rows, StateError};

/// All that is known of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The machine.
    pub machine: MachineRecord,
    /// When it was last heard of.
    pub contact: Option<LastContact>,
    /// What imports say of it, if one did.
    pub inventory: Option<InventoryRecord>,
    /// What it said last, if it ever said anything.
    pub compliance: Option<ComplianceRecord>,
    /// Its exemption, if one was ever asked for.
    pub exemption: Option<Exemption>,
    /// Its keys, in the order of their ids, [without what is sealed](without_secrets).
    pub keys: Vec<MachineKeyState>,
    /// Its changes of state, the oldest first: at least those [around](crate::escrow::compliance::history::around) the time
    /// that is asked about, if it is in the past.
    pub changes: Vec<ComplianceChange>,
}

impl Bundle {
    /// What there is of `machine` in these rows.
    ///
    /// # Errors
    /// [`StateError`] if the storage fails.
    pub fn read<S: Rows>(rows: &S, machine: MachineRecord) -> Result<Self, StateError> {
        let keys = keys_of(rows, &machine)?.into_iter();
        let keys = keys
            .map(|MachineKeyState { key, history }| MachineKeyState { key: without_secrets(key), history });
        Ok(Self {
            contact: lookup::last_contact(rows, &machine.id)?,
            inventory: lookup::inventory(rows, &machine.id)?,
            compliance: lookup::compliance(rows, &machine.id)?,
            exemption: lookup::exemption(rows, &machine.id)?,
            keys: keys.collect(),
            changes: lookup::compliance_changes(rows, &machine.id)?,
            machine,
        })
    }
}

/// What a report may know of a key: its secret, sealed as it is, and the hash of it stay where they are kept.
pub fn without_secrets(key: KeyRecord) -> KeyRecord {
    let nothing = Sealed { key_version: 0, nonce: [0; 12], ciphertext: Vec::new() };
    KeyRecord { sealed: nothing, sealed_package: None, fingerprint: Fingerprint([0; 32]), ..key }
}
