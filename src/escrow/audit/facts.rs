//! What an audit record says that people look for, whatever its event.

use std::fmt;
use std::str::FromStr;

use crate::escrow::compliance::ExemptionDecision;
use crate::escrow::ids::{Identity, Invalid, KeyId, MachineId, Timestamp, UserName};
use crate::escrow::records::{AuditEvent, Source};

/// How what was asked for ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Allowed,
    /// It was refused.
    Denied,
}

impl Outcome {
    const ALL: [Self; 2] = [Self::Allowed, Self::Denied];

    /// Its name in exports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// On whose word it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// By one node alone, and put on record once there was a quorum again.
    Degraded,
    /// In a log entry that a quorum committed.
    Quorum,
}

impl Decided {
    const ALL: [Self; 2] = [Self::Degraded, Self::Quorum];

    /// Its name in exports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Degraded => "degraded",
            Self::Quorum => "quorum",
        }
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// How it ended.
    pub outcome: Outcome,
    /// On whose word.
    pub source: Decided,
    /// Who did it, if that is not who put it on record.
    pub actor: Option<&'a Identity>,
    /// Where they asked, if that is not where it was put on record.
    pub came_in: Option<&'a Source>,
    /// When it was decided, by the clock of the node that did, if it was put on record later.
    pub decided_at: Option<Timestamp>,
    /// Whose machine, if any.
    pub machine: Option<&'a MachineId>,
    /// Which key, if any.
    pub key_id: Option<KeyId>,
    /// Which other keys it is about as well.
    pub other_keys: &'a [KeyId],
    /// Which user of the machine, if any.
    pub user: Option<&'a UserName>,
}

impl<'a> Facts<'a> {
    const NONE: Self = Self {
        outcome: Outcome::Allowed,
        source: Decided::Quorum,
        actor: None,
        came_in: None,
        decided_at: None,
        machine: None,
        key_id: None,
        other_keys: &[],
        user: None,
    };

    /// What `event` says of them.
    pub fn of(event: &'a AuditEvent) -> Self {
        // No arm for the rest: a new event says here what it is about.
        match event {
            AuditEvent::EscrowConflict { key_id, machine } => {
                Self { outcome: Outcome::Denied, machine: Some(machine), key_id: Some(*key_id), ..Self::NONE }
            }
            AuditEvent::Reveal { key_id, machine, user, reason: _, denied } => Self {
                outcome: if denied.is_some() { Outcome::Denied } else { Outcome::Allowed },
                machine: machine.as_ref(),
                key_id: Some(*key_id),
                user: user.as_ref(),
                ..Self::NONE
            },
            AuditEvent::ApprovalAsked { key_id, machine, user, .. }
            | AuditEvent::ApprovalAskedAgain { key_id, machine, user, .. } => {
                Self { machine: Some(machine), key_id: Some(*key_id), user: user.as_ref(), ..Self::NONE }
            }
            AuditEvent::ApprovalDecided { key_id, machine, user, granted, .. } => Self {
                outcome: if *granted { Outcome::Allowed } else { Outcome::Denied },
                machine: Some(machine),
                key_id: Some(*key_id),
                user: user.as_ref(),
                ..Self::NONE
            },
            AuditEvent::ExemptionRequested { machine, .. } => Self { machine: Some(machine), ..Self::NONE },
            AuditEvent::ExemptionDecided { machine, decision, .. } => Self {
                outcome: match decision {
                    ExemptionDecision::Reject => Outcome::Denied,
                    ExemptionDecision::Grant { .. } | ExemptionDecision::Revoke => Outcome::Allowed,
                },
                machine: Some(machine),
                ..Self::NONE
            },
            AuditEvent::ApprovalRefused { key_id, machine, user, .. } => Self {
                outcome: Outcome::Denied,
                machine: machine.as_ref(),
                key_id: *key_id,
                user: user.as_ref(),
                ..Self::NONE
            },
            // Put on record by a node, if it was used without a quorum.
            AuditEvent::ApprovalUsed { key_id, machine, user, asked_by, .. } => Self {
                actor: Some(asked_by),
                machine: Some(machine),
                key_id: Some(*key_id),
                user: user.as_ref(),
                ..Self::NONE
            },
            AuditEvent::ApprovalUsedAgain { key_id, machine, user, used_by, .. } => Self {
                source: Decided::Degraded,
                actor: Some(used_by),
                machine: machine.as_ref(),
                key_id: Some(*key_id),
                user: user.as_ref(),
                ..Self::NONE
            },
            AuditEvent::DenialsUnrecorded { .. } => Self { outcome: Outcome::Denied, ..Self::NONE },
            AuditEvent::KeyConfirmed { key_id, machine, replaced, .. } => {
                Self { machine: Some(machine), key_id: Some(*key_id), other_keys: replaced, ..Self::NONE }
            }
            AuditEvent::RevealReconciled { reveal, .. } => Self {
                outcome: if reveal.denied.is_some() { Outcome::Denied } else { Outcome::Allowed },
                machine: reveal.machine.as_ref(),
                key_id: Some(reveal.key_id),
                user: reveal.user.as_ref(),
                ..Self::alone(&reveal.by, &reveal.source, reveal.at)
            },
            AuditEvent::ApprovalAskReconciled { ask, .. } => Self {
                machine: Some(&ask.machine),
                key_id: Some(ask.key_id),
                user: ask.user.as_ref(),
                ..Self::alone(&ask.by, &ask.source, ask.at)
            },
            AuditEvent::ApprovalDecisionReconciled { decision, .. } => Self {
                outcome: if decision.granted && decision.denied.is_none() {
                    Outcome::Allowed
                } else {
                    Outcome::Denied
                },
                key_id: Some(decision.key_id),
                ..Self::alone(&decision.by, &decision.source, decision.at)
            },
            AuditEvent::RevealRepeated { key_id, .. } => {
                Self { source: Decided::Degraded, key_id: Some(*key_id), ..Self::NONE }
            }
            AuditEvent::ClusterInitialized
            | AuditEvent::ClusterRecovered { .. }
            | AuditEvent::CompliancePolicySet { .. }
            | AuditEvent::DataKeysDropped { .. }
            | AuditEvent::FeatureLevelRaised { .. }
            | AuditEvent::KeyringRotated { .. }
            | AuditEvent::NodeAdmitted { .. }
            | AuditEvent::NodeRemoved { .. }
            | AuditEvent::PolicySet { .. } => Self::NONE,
        }
    }

    /// Of what one node decided alone: the record is by the node that proposed it.
    fn alone(by: &'a Identity, source: &'a Source, at: Timestamp) -> Self {
        Self {
            source: Decided::Degraded,
            actor: Some(by),
            came_in: Some(source),
            decided_at: Some(at),
            ..Self::NONE
        }
    }
}

macro_rules! named {
    ($type:ident, $field:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or_else(|| {
                    Invalid::new($field, format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
                })
            }
        }
    };
}

named!(Outcome, "outcome");
named!(Decided, "source");
