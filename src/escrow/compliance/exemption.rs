//! Machines that need not be as the policy of compliance wants them: somebody of the help desk asks for it with a
//! reason, an officer grants it, for good or until a date, or rejects it. The audit trail has the history; the row of a
//! machine has what holds now.

use serde::{Deserialize, Serialize};

use crate::escrow::ids::{Identity, MachineId, RequestId, Timestamp};

/// The exemption of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exemption {
    /// The machine.
    pub machine: MachineId,
    /// What was asked for and is not decided. A later request takes its place.
    pub request: Option<ExemptionRequest>,
    /// What was granted last. A request, or the rejection of one, does not end it.
    pub grant: Option<ExemptionGrant>,
    /// What was rejected last, until something is granted or asked for again.
    pub rejection: Option<ExemptionRejection>,
    /// What was granted before, and ended when it was revoked or something else was granted: one may ask how the machine
    /// stood then.
    pub ended: Option<EndedExemption>,
}

/// A grant that holds no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedExemption {
    /// What had been granted.
    pub grant: ExemptionGrant,
    /// When it ended, unless its own end was before.
    pub at: Timestamp,
}

/// An exemption that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExemptionRequest {
    /// The request that asked for it, by which it is decided.
    pub id: RequestId,
    /// Who asked.
    pub by: Identity,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
    /// Until when it is wanted; absent for good.
    pub until: Option<Timestamp>,
}

/// An exemption that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExemptionGrant {
    /// What was asked for.
    pub request: ExemptionRequest,
    /// Who granted it.
    pub by: Identity,
    /// When.
    pub at: Timestamp,
    /// Until when it holds; absent for good.
    pub until: Option<Timestamp>,
}

/// An exemption that was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExemptionRejection {
    /// What was asked for.
    pub request: ExemptionRequest,
    /// Who rejected it.
    pub by: Identity,
    /// When.
    pub at: Timestamp,
}

/// What an officer decides about an exemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExemptionDecision {
    /// What is asked for is granted.
    Grant {
        /// Until when; absent for good. It need not be what was asked for.
        until: Option<Timestamp>,
    },
    /// What is asked for is rejected.
    Reject,
    /// What was granted ends now.
    Revoke,
}

impl ExemptionDecision {
    /// Its name in the audit trail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grant { .. } => "grant",
            Self::Reject => "reject",
            Self::Revoke => "revoke",
        }
    }
}

impl Exemption {
    /// That of a machine for which nothing was ever asked.
    pub fn none(machine: MachineId) -> Self {
        Self { machine, request: None, grant: None, rejection: None, ended: None }
    }

    /// What holds at `at`, or held then, if something does: a grant from when it was given until its end.
    pub fn in_force(&self, at: Timestamp) -> Option<&ExemptionGrant> {
        let ended = self.ended.as_ref().filter(|ended| at < ended.at).map(|ended| &ended.grant);
        let mut grants = self.grant.iter().chain(ended);
        grants.find(|grant| grant.at <= at && grant.until.is_none_or(|until| at < until))
    }

    /// The same without what is granted, which ends at `at`.
    #[must_use]
    pub fn without_grant(mut self, at: Timestamp) -> Self {
        self.ended = self.grant.take().map(|grant| EndedExemption { grant, at }).or(self.ended);
        self
    }
}
