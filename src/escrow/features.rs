//! Feature levels: which commands every member can apply.
//!
//! A command that a member's release does not know would stop that member. So each release says up to which level it
//! can apply commands, and a command is refused until the replicated level allows it. The leader raises the level once
//! every member says it can; a node that cannot is not admitted any more from then on. It never goes back.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::command::{Action, Command};
use super::ids::Role;

/// Counts the releases that brought new commands, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeatureLevel(pub u32);

impl FeatureLevel {
    /// Where every cluster begins.
    pub const FIRST: Self = Self(1);
    /// Brought what notes that nodes left: removal, and recovery on one survivor. From here on a secret that is sealed
    /// with an older data key than the current one is not kept.
    pub const DEPARTURES: Self = Self(2);
    /// Brought the recovery desk: the policy of reveals, limits, approvals, end users, the reconciliation of journals, and
    /// rotation after a reveal.
    pub const DESK: Self = Self(3);
    /// Brought the rotation of the data key by itself, and sealing what is kept under the newest one.
    pub const RESEALING: Self = Self(3);
    /// Brought compliance: the reports of devices, exemptions, and the policy of compliance.
    pub const COMPLIANCE: Self = Self(4);
    /// Brought imports: many escrows in one entry, and machines.
    pub const BULK: Self = Self(4);
    /// The highest whose commands this release can apply.
    pub const SUPPORTED: Self = Self(4);

    /// The level that allows `command`.
    pub fn required_by(command: &Command) -> Self {
        // A release from before there were end users cannot even read a command of one.
        if command.by.role == Role::SelfService {
            return Self::DESK;
        }
        match command.action {
            Action::Initialize(_)
            | Action::Escrow(_)
            | Action::Reveal(_)
            | Action::AdmitNode(_)
            // What raises the level cannot need it.
            | Action::RaiseFeatureLevel(_) => Self::FIRST,
            Action::RecoverCluster(_) | Action::RemoveNode(_) => Self::DEPARTURES,
            Action::SetPolicy(_)
            | Action::DecideApproval(_)
            | Action::Reconcile(_)
            | Action::EscrowPending(_)
            | Action::ConfirmKey(_) => Self::DESK,
            Action::RotateKeyring(_) | Action::Reseal(_) | Action::DropDataKeys(_) => Self::RESEALING,
            Action::ReportCompliance(_)
            | Action::NoteContact(_)
            | Action::RequestExemption(_)
            | Action::DecideExemption(_)
            | Action::SetCompliancePolicy(_) => Self::COMPLIANCE,
            Action::EscrowMany(_) | Action::ImportMachines(_) => Self::BULK,
        }
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
