//! How a machine stands, and why: worked out from its state, the policy, its keys, its exemption and a time, and from
//! nothing else. So the same question has the same answer on every node, and a question about the past is asked of the
//! past's state and keys at that time.
//!
//! The rules, in this order; the first that holds decides:
//!
//! 1. an exemption in force: exempt, or temporarily exempt;
//! 2. no report, or none for longer than the policy's `stale_days`: unknown;
//! 3. the device's own management does not enforce a policy on it: not enforced;
//! 4. nothing is amiss: compliant;
//! 5. what is amiss is only what the device cannot say, as of locked drives: unknown;
//! 6. it was first heard of less than `grace_days` ago: not enforced;
//! 7. otherwise non-compliant.
//!
//! The reasons are given whatever the rule: an auditor sees what an exempt machine lacks.

use super::codes::Code;
use super::exemption::Exemption;
use super::policy::CompliancePolicy;
use super::state::{MachineState, VolumeState};
use super::stood::Stood;
use super::words::{Cipher, Conversion, Enforcement, Protection, Protector, ReasonKind, Status, VolumeKind};
use crate::escrow::ids::{KeyId, Timestamp, VolumeId};
use crate::escrow::records::{KeyRecord, KeyState, MachineRecord};
use crate::escrow::rotation::MachineKeyState;
use crate::escrow::secrets::SecretKind;

/// A day, in milliseconds.
pub(super) const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// All that a verdict, or a finding, rests on.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The time it is asked for.
    pub at: Timestamp,
    /// The policy.
    pub policy: &'a CompliancePolicy,
    /// How the machine stood at that time.
    pub stood: &'a Stood,
    /// When it was first heard of.
    pub first_seen: Timestamp,
    /// Since when it owes a rotation.
    pub rotation_owed_since: Option<Timestamp>,
    /// Its keys that were in escrow at that time. In which order does not matter.
    pub keys: &'a [KeyFacts],
    /// Its exemption, if one was ever asked for.
    pub exemption: Option<&'a Exemption>,
}

/// What counts of a key in escrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    /// Its id.
    pub id: KeyId,
    /// The volume it unlocks.
    pub volume: VolumeId,
    /// Since when it is in escrow.
    pub escrowed_at: Timestamp,
    /// Whether it is the one that should open the volume now: active, or disclosed and not replaced.
    pub in_use: bool,
    /// Whether it may open the volume: as before, or it waits to be confirmed.
    pub may_open: bool,
}

impl KeyFacts {
    /// What counts of `key`; `None` if it does not open a volume by itself.
    pub fn of(key: &KeyRecord) -> Option<Self> {
        Self::in_state(key, key.state)
    }

    fn in_state(key: &KeyRecord, state: KeyState) -> Option<Self> {
        let opens = match key.kind {
            SecretKind::BitlockerPassword
            | SecretKind::LuksRecovery
            | SecretKind::FilevaultRecovery
            | SecretKind::Generic => true,
            SecretKind::BitlockerPackage | SecretKind::TpmOwner => false,
        };
        let in_use = matches!(state, KeyState::Active | KeyState::Disclosed);
        let may_open = in_use || state == KeyState::Pending;
        let (id, volume, escrowed_at) = (key.id, key.volume.clone(), key.escrowed_at);
        opens.then_some(Self { id, volume, escrowed_at, in_use, may_open })
    }

    /// As [`KeyFacts::of`], of a key as it was at `at`; `None` as well if it was not in escrow yet.
    pub fn as_of(known: &MachineKeyState, at: Timestamp) -> Option<Self> {
        Self::in_state(&known.key, known.state_as_of(at)?)
    }
}

/// What is known of a machine at one time, as [`lookup::known`](crate::escrow::lookup::known) gathers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The machine.
    pub machine: MachineRecord,
    /// How it stood.
    pub stood: Stood,
    /// Its keys that were in escrow, in the order of their ids.
    pub keys: Vec<KeyFacts>,
    /// Its exemption, as it is now.
    pub exemption: Option<Exemption>,
}

impl Known {
    /// All that a verdict at `at` rests on.
    pub fn evidence<'a>(&'a self, policy: &'a CompliancePolicy, at: Timestamp) -> Evidence<'a> {
        let Self { machine, stood, keys, exemption } = self;
        Evidence::new(at, policy, machine, stood, keys, exemption.as_ref())
    }
}

impl<'a> Evidence<'a> {
    /// What there is of `machine` at `at`: how it `stood`, and its `keys`, both of that time. A rotation that was owed then
    /// and has been done since is not known any more.
    pub fn new(
        at: Timestamp,
        policy: &'a CompliancePolicy,
        machine: &MachineRecord,
        stood: &'a Stood,
        keys: &'a [KeyFacts],
        exemption: Option<&'a Exemption>,
    ) -> Self {
        let MachineRecord { first_seen, rotation_owed_since, .. } = *machine;
        let rotation_owed_since = rotation_owed_since.filter(|since| *since <= at);
        Self { at, policy, stood, first_seen, rotation_owed_since, keys, exemption }
    }

    /// How the machine was at that time, if that is known.
    pub fn state(&self) -> Option<&'a MachineState> {
        self.stood.state.as_ref()
    }

    /// Whether what the machine said by then is older than the policy's `stale_days`, whatever else was heard of it: an escrow says
    /// nothing of its volumes.
    pub fn is_stale(&self) -> bool {
        self.stood.told_at.is_some_and(|told| is_longer_than(self.policy.stale_days, told, self.at))
    }

    /// Since when the machine had not been heard of, if that is longer than the policy's `stale_days`.
    pub fn silent_since(&self) -> Option<Timestamp> {
        let silent = self.stood.silent_since(self.first_seen);
        silent.filter(|since| is_longer_than(self.policy.stale_days, *since, self.at))
    }

    /// When the time of grace of a new machine ends. Of a time before the cluster heard of it, by what was told late, it
    /// counts from what was told.
    fn grace_ends(&self) -> Timestamp {
        let known_late = self.stood.since.filter(|_| self.at < self.first_seen);
        let from = known_late.unwrap_or(self.first_seen);
        match self.policy.grace_days {
            0 => Timestamp(0),
            days => Timestamp(from.0.saturating_add(u64::from(days) * DAY_MS)),
        }
    }

    /// Whether a key is in escrow that opens `volume`: one of those that the device says are on it, or if it does not
    /// say, one that may be.
    pub fn is_recoverable(&self, volume: &VolumeState) -> bool {
        self.keys.iter().any(|key| match &volume.recovery_keys {
            Some(on_it) => on_it.contains(&key.id),
            None => key.volume == volume.volume && key.may_open,
        })
    }
}

/// Whether more than `days` lie between two times.
pub(super) fn is_longer_than(days: u32, from: Timestamp, to: Timestamp) -> bool {
    to.0.saturating_sub(from.0) > u64::from(days) * DAY_MS
}

/// How a machine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How.
    pub status: Status,
    /// Why it is not as it should be, machine first, then volume by volume in the order of their ids.
    pub reasons: Vec<Reason>,
    /// Until when the status holds at most, if a time is known: the end of an exemption or of the time of grace.
    pub until: Option<Timestamp>,
}

/// Why a machine is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// Which of its volumes; absent if it is about the machine.
    pub volume: Option<VolumeId>,
    /// What is amiss.
    pub kind: ReasonKind,
    /// MBAM's code for it, if there is one.
    pub code: Option<Code>,
}

/// Judges a machine.
pub fn verdict(evidence: &Evidence<'_>) -> Verdict {
    let reasons = reasons(evidence);
    let (status, until) = status(evidence, &reasons);
    Verdict { status, reasons, until }
}

fn status(evidence: &Evidence<'_>, reasons: &[Reason]) -> (Status, Option<Timestamp>) {
    if let Some(grant) = evidence.exemption.and_then(|exemption| exemption.in_force(evidence.at)) {
        let status = if grant.until.is_some() { Status::TemporarilyExempt } else { Status::Exempt };
        return (status, grant.until);
    }
    let Some(state) = evidence.state().filter(|_| !evidence.is_stale()) else {
        return (Status::Unknown, None);
    };
    if state.enforcement != Enforcement::Enforced {
        return (Status::NotEnforced, None);
    }
    if reasons.is_empty() {
        return (Status::Compliant, None);
    }
    if reasons.iter().all(|reason| reason.kind == ReasonKind::StateUnknown) {
        return (Status::Unknown, None);
    }
    let grace_ends = evidence.grace_ends();
    if evidence.at < grace_ends {
        return (Status::NotEnforced, Some(grace_ends));
    }
    (Status::NonCompliant, None)
}

/// What is amiss with a machine, whether or not it is held to the policy.
fn reasons(evidence: &Evidence<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let machine = |kind| Reason { volume: None, kind, code: None };
    let Some(state) = evidence.state() else {
        let why = if evidence.stood.is_dropped { ReasonKind::ReportDropped } else { ReasonKind::NoReport };
        return vec![machine(why)];
    };
    if evidence.is_stale() {
        reasons.push(machine(ReasonKind::Stale));
    }
    match state.enforcement {
        Enforcement::Enforced => {}
        Enforcement::NotEnforced => reasons.push(machine(ReasonKind::NotEnforced)),
        Enforcement::Exempt => reasons.push(machine(ReasonKind::ExemptByDevice)),
    }
    let has_os = state.volumes.iter().any(|volume| volume.kind == VolumeKind::Os);
    if evidence.policy.required.os && !has_os {
        reasons.push(machine(ReasonKind::NoOsVolume));
    }
    for volume in &state.volumes {
        judge(evidence, volume, &mut reasons);
    }
    reasons
}

fn judge(evidence: &Evidence<'_>, volume: &VolumeState, reasons: &mut Vec<Reason>) {
    let policy = evidence.policy;
    let mut amiss = |kind, code| {
        reasons.push(Reason { volume: Some(volume.volume.clone()), kind, code });
    };
    if policy.required.includes(volume.kind) {
        match volume.conversion {
            Conversion::Encrypted => {}
            Conversion::Unknown => amiss(ReasonKind::StateUnknown, None),
            _ => amiss(ReasonKind::NotEncrypted, Some(Code::NotEncrypted)),
        }
        if volume.conversion == Conversion::Encrypted {
            match volume.protection {
                Protection::On => {}
                Protection::Off => amiss(ReasonKind::ProtectionOff, Some(Code::Suspended)),
                Protection::Unknown => amiss(ReasonKind::StateUnknown, None),
            }
            if let Some(minimum) = policy.minimum_cipher.of(volume.kind)
                && !volume.method.reaches(minimum)
            {
                amiss(ReasonKind::WeakCipher, weaker_than(minimum));
            }
            let wanted = &policy.os_protectors;
            let has_one = wanted.is_empty() || volume.protectors.iter().any(|one| wanted.contains(one));
            if volume.kind == VolumeKind::Os && !has_one {
                amiss(ReasonKind::ProtectorMissing, none_of(wanted));
            }
        }
        if policy.recovery_key && volume.is_encrypted() && !evidence.is_recoverable(volume) {
            amiss(ReasonKind::RecoveryKeyMissing, None);
        }
    }
    for code in volume.reasons.iter().filter(|code| policy.device_reasons.contains(code)) {
        amiss(ReasonKind::DeviceReason, Some(*code));
    }
}

/// MBAM's code for a cipher that does not reach `minimum`.
fn weaker_than(minimum: Cipher) -> Option<Code> {
    match minimum {
        Cipher::Aes256 | Cipher::Aes256Diffuser => Some(Code::NotAes256),
        Cipher::XtsAes128 => Some(Code::WeakerThanXts128),
        Cipher::XtsAes256 => Some(Code::WeakerThanXts256),
        _ => None,
    }
}

/// MBAM's code for having none of these protectors, if they are what one of its policies asks for.
fn none_of(wanted: &[Protector]) -> Option<Code> {
    let only = |some: &[Protector]| wanted.iter().all(|one| some.contains(one));
    if only(&[Protector::TpmPin, Protector::TpmPinStartupKey]) {
        Some(Code::NoTpmPin)
    } else if only(&[
        Protector::Tpm,
        Protector::TpmPin,
        Protector::TpmStartupKey,
        Protector::TpmPinStartupKey,
        Protector::NetworkUnlock,
    ]) {
        Some(Code::NoTpm)
    } else if only(&[Protector::Password]) {
        Some(Code::NoPassword)
    } else {
        None
    }
}
