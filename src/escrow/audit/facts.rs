//! What an audit record says that people look for, whatever its event.

use std::fmt;
use std::str::FromStr;

use crate::escrow::ids::{Invalid, KeyId, MachineId, UserName};
use crate::escrow::records::AuditEvent;

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
    /// Whose machine, if any.
    pub machine: Option<&'a MachineId>,
    /// Which key, if any.
    pub key_id: Option<KeyId>,
    /// Which user of the machine, if any.
    pub user: Option<&'a UserName>,
}

impl<'a> Facts<'a> {
    const NONE: Self =
        Self { outcome: Outcome::Allowed, source: Decided::Quorum, machine: None, key_id: None, user: None };

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
            AuditEvent::ApprovalAsked { key_id, machine, user, .. } => {
                Self { machine: Some(machine), key_id: Some(*key_id), user: user.as_ref(), ..Self::NONE }
            }
            AuditEvent::ApprovalDecided { key_id, granted, .. } => Self {
                outcome: if *granted { Outcome::Allowed } else { Outcome::Denied },
                key_id: Some(*key_id),
                ..Self::NONE
            },
            AuditEvent::ApprovalRefused { key_id, .. } => {
                Self { outcome: Outcome::Denied, key_id: *key_id, ..Self::NONE }
            }
            AuditEvent::KeyConfirmed { key_id, machine, .. } => {
                Self { machine: Some(machine), key_id: Some(*key_id), ..Self::NONE }
            }
            AuditEvent::RevealReconciled { reveal, .. } => Self {
                outcome: if reveal.denied.is_some() { Outcome::Denied } else { Outcome::Allowed },
                source: Decided::Degraded,
                machine: reveal.machine.as_ref(),
                key_id: Some(reveal.key_id),
                user: reveal.user.as_ref(),
            },
            AuditEvent::ApprovalAskReconciled { ask, .. } => Self {
                outcome: Outcome::Allowed,
                source: Decided::Degraded,
                machine: Some(&ask.machine),
                key_id: Some(ask.key_id),
                user: ask.user.as_ref(),
            },
            AuditEvent::ApprovalDecisionReconciled { decision, .. } => Self {
                outcome: if decision.granted && decision.denied.is_none() {
                    Outcome::Allowed
                } else {
                    Outcome::Denied
                },
                source: Decided::Degraded,
                key_id: Some(decision.key_id),
                ..Self::NONE
            },
            AuditEvent::RevealRepeated { key_id, .. } => {
                Self { source: Decided::Degraded, key_id: Some(*key_id), ..Self::NONE }
            }
            AuditEvent::ApprovalUsed { .. }
            | AuditEvent::ClusterInitialized
            | AuditEvent::ClusterRecovered { .. }
            | AuditEvent::DataKeysDropped { .. }
            | AuditEvent::FeatureLevelRaised { .. }
            | AuditEvent::KeyringRotated { .. }
            | AuditEvent::NodeAdmitted { .. }
            | AuditEvent::NodeRemoved { .. }
            | AuditEvent::PolicySet { .. } => Self::NONE,
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
