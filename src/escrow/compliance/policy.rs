//! The policy of compliance: what is wanted of every machine. One document, replicated and versioned, set by an officer;
//! every change is on record, and judges every machine anew at once.
//!
//! It is kept as JSON text, so that a release may add settings: what an older document does not say has its default.

use serde::{Deserialize, Serialize};

use super::codes::Code;
use super::words::{Cipher, Protector, VolumeKind};
use crate::escrow::ids::{Identity, Invalid, Timestamp};
use crate::escrow::state::StateError;

/// Longest policy as JSON, in bytes: it is kept in every audit record of a change.
pub const POLICY_MAX_BYTES: usize = 16 * 1_024;
/// Longest time in days that can be set: ten years.
pub const DAYS_MAX: u32 = 3_650;

/// What the fields of a policy are named after in errors.
const FIELD: &str = "policy";

/// What is wanted of every machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompliancePolicy {
    /// Which drives must be encrypted.
    pub required: RequiredDrives,
    /// The weakest cipher that will do, by [`Cipher::RANKED`]; `null` for any. Asked of drives that must be encrypted.
    pub minimum_cipher: MinimumCiphers,
    /// Of which protectors the operating system's drive must have one; empty for any.
    pub os_protectors: Vec<Protector>,
    /// Whether the recovery key of a drive that must be encrypted must be in escrow.
    pub recovery_key: bool,
    /// What a device itself reports as a reason that counts here too. By default what only the device can see.
    pub device_reasons: Vec<Code>,
    /// Days from when a machine was first heard of in which it is not held to the policy.
    pub grace_days: u32,
    /// Days after which what a machine said counts for nothing, and one that was not heard of at all is found to be silent.
    pub stale_days: u32,
    /// Days after which a rotation that is owed is found to be overdue.
    pub rotation_days: u32,
}

/// Which drives must be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequiredDrives {
    /// The operating system's. A machine that reports none does not comply.
    pub os: bool,
    /// Built in, for data.
    pub fixed: bool,
    /// Can be taken away.
    pub removable: bool,
}

impl RequiredDrives {
    /// Whether drives of `kind` must be.
    pub fn includes(&self, kind: VolumeKind) -> bool {
        match kind {
            VolumeKind::Os => self.os,
            VolumeKind::Fixed => self.fixed,
            VolumeKind::Removable => self.removable,
        }
    }
}

impl Default for RequiredDrives {
    fn default() -> Self {
        Self { os: true, fixed: true, removable: false }
    }
}

/// The weakest cipher that will do, for each kind of drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinimumCiphers {
    /// For the operating system's.
    pub os: Option<Cipher>,
    /// For those built in, for data.
    pub fixed: Option<Cipher>,
    /// For those that can be taken away.
    pub removable: Option<Cipher>,
}

impl MinimumCiphers {
    /// That for drives of `kind`.
    pub fn of(&self, kind: VolumeKind) -> Option<Cipher> {
        match kind {
            VolumeKind::Os => self.os,
            VolumeKind::Fixed => self.fixed,
            VolumeKind::Removable => self.removable,
        }
    }
}

impl Default for MinimumCiphers {
    /// Any AES in software.
    fn default() -> Self {
        let any = Some(Cipher::Aes128);
        Self { os: any, fixed: any, removable: any }
    }
}

impl Default for CompliancePolicy {
    fn default() -> Self {
        Self {
            required: RequiredDrives::default(),
            minimum_cipher: MinimumCiphers::default(),
            os_protectors: Vec::new(),
            recovery_key: true,
            device_reasons: vec![
                Code::TpmNotVisible,
                Code::PolicyConflict,
                Code::NoSystemVolume,
                Code::AutoUnlockUnsafe,
            ],
            grace_days: 0,
            stale_days: 30,
            rotation_days: 7,
        }
    }
}

/// The policy of compliance: one row, absent until an officer sets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompliancePolicyRecord {
    /// Counts every change, from 1.
    pub version: u64,
    /// The whole of it, as JSON.
    pub policy: String,
    /// When it was set.
    pub set_at: Timestamp,
    /// By whom.
    pub set_by: Identity,
}

impl CompliancePolicy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the setting that is wrong.
    pub fn from_json(text: &str) -> Result<Self, Invalid> {
        if text.len() > POLICY_MAX_BYTES {
            return Err(Invalid::new(FIELD, format!("at most {POLICY_MAX_BYTES} bytes")));
        }
        let policy: Self = super::document::read(FIELD, text)?;
        policy.check()?;
        Ok(policy)
    }

    /// Reads a policy that was checked when it was set.
    ///
    /// # Errors
    /// [`StateError`] if it does not read: this release is older than the one that took it.
    pub fn stored(text: &str) -> Result<Self, StateError> {
        serde_json::from_str(text).map_err(|error| StateError(error.into()))
    }

    /// As JSON, every setting written out.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and numbers only, by construction")
    }

    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the setting that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        for kind in VolumeKind::ALL {
            let minimum = self.minimum_cipher.of(*kind);
            if minimum.is_some_and(|cipher| cipher.rank().is_none()) {
                let ranked = Cipher::RANKED.map(Cipher::as_str).join(", ");
                let expected = format!("one of {ranked}, or null for any");
                return Err(Invalid::new(format!("{FIELD}.minimum_cipher.{kind}"), expected));
            }
        }
        check_set("os_protectors", &self.os_protectors)?;
        check_set("device_reasons", &self.device_reasons)?;
        let days = [
            ("grace_days", self.grace_days, 0),
            ("stale_days", self.stale_days, 1),
            ("rotation_days", self.rotation_days, 1),
        ];
        for (name, days, least) in days {
            if !(least..=DAYS_MAX).contains(&days) {
                let expected = format!("{least} to {DAYS_MAX} days, not {days}");
                return Err(Invalid::new(format!("{FIELD}.{name}"), expected));
            }
        }
        Ok(())
    }
}

/// That nothing stands twice in a list, which bounds it by how many words there are.
fn check_set<T: PartialEq>(name: &str, list: &[T]) -> Result<(), Invalid> {
    match (1..list.len()).find(|index| list[..*index].contains(&list[*index])) {
        None => Ok(()),
        Some(index) => Err(Invalid::new(format!("{FIELD}.{name}[{index}]"), "each once")),
    }
}
