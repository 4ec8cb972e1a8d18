//! Where keys and compliance do not go together. Neither an escrow without the state of volumes nor an inventory without
//! the keys can see it: that a disk which nobody can open is encrypted, or that the key in escrow opens nothing any more.
//!
//! Findings do not depend on exemptions: a machine that need not comply still loses its data.

use super::verdict::{Evidence, is_longer_than};
use super::words::FindingKind;
use crate::escrow::ids::{KeyId, Timestamp, VolumeId};

/// Something that was found of a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// Of which volume, if of one.
    pub volume: Option<VolumeId>,
    /// Of which key, if of one.
    pub key_id: Option<KeyId>,
    /// Since when, if that is known.
    pub since: Option<Timestamp>,
}

/// What is found of a machine, in the order of kinds, volumes and keys.
pub fn findings(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let volumes = evidence.state().map_or(&[][..], |state| &state.volumes);
    for volume in volumes.iter().filter(|volume| volume.is_encrypted()) {
        let about = |kind, key_id| Finding { kind, volume: Some(volume.volume.clone()), key_id, since: None };
        if !evidence.is_recoverable(volume) {
            found.push(about(FindingKind::RecoveryKeyMissing, None));
        }
        let Some(on_it) = &volume.recovery_keys else { continue };
        let in_use = evidence.keys.iter().filter(|key| key.in_use && key.volume == volume.volume);
        for key in in_use.filter(|key| !on_it.contains(&key.id)) {
            found.push(about(FindingKind::RecoveryKeyMismatch, Some(key.id)));
        }
    }
    let machine = |kind, since| Finding { kind, volume: None, key_id: None, since: Some(since) };
    if let Some(since) = evidence.rotation_owed_since
        && is_longer_than(evidence.policy.rotation_days, since, evidence.at)
    {
        found.push(machine(FindingKind::RotationOverdue, since));
    }
    if let Some(since) = evidence.silent_since() {
        found.push(machine(FindingKind::MachineSilent, since));
    }
    found.sort();
    found
}
