//! The audit chain: every record carries the hash of the one before it, so that a record which is altered,
//! removed, moved or slipped in is found by whoever holds the newest hash.

pub mod check;
pub mod facts;
pub mod line;
pub mod query;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::compliance::ExemptionDecision;
use super::digest::Canonical;
use super::journal::JournalPlace;
use super::records::{AuditEvent, AuditRecord};

/// Names what is hashed and the version of its layout. A changed layout gets a new version; records hashed with
/// the old one must go on verifying.
const RECORD_LABEL: &str = "strongroom audit record v1";

/// The newest record of a chain, or of a part of it. Zeros stand before the first.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Its sequence; 0 if there is none yet.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl ChainHead {
    /// The head once `record` is appended.
    pub fn of(record: &AuditRecord) -> Self {
        Self { sequence: record.sequence, hash: record_hash(record) }
    }
}

impl fmt::Debug for ChainHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainHead({}, {})", self.sequence, data_encoding::HEXLOWER.encode(&self.hash))
    }
}

/// Where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit chain is broken at record {sequence}: {why}")]
pub struct BrokenChain {
    /// The sequence that was expected there.
    pub sequence: u64,
    /// What was found instead.
    pub why: String,
}

/// The hash of a record: SHA-256 over its canonical bytes, the hash of the record before it among them.
pub fn record_hash(record: &AuditRecord) -> [u8; 32] {
    let AuditRecord { sequence, previous, at, by, source, position, event } = record;
    let canonical = Canonical::new(RECORD_LABEL)
        .number(*sequence)
        .bytes(previous)
        .number(at.0)
        .text(&by.to_string())
        .number(source.node)
        .text(&source.address)
        .number(position.term)
        .number(position.index);
    let canonical = match event {
        AuditEvent::ClusterInitialized => canonical.number(1),
        AuditEvent::EscrowConflict { key_id, machine } => {
            canonical.number(2).bytes(key_id.0.as_bytes()).text(machine.as_str())
        }
        AuditEvent::NodeAdmitted { node } => canonical.number(3).number(*node),
        AuditEvent::Reveal { key_id, machine, user, reason, denied } => canonical
            .number(4)
            .bytes(key_id.0.as_bytes())
            .optional_text(machine.as_ref().map(|machine| machine.as_str()))
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(reason)
            .optional_text(denied.as_deref()),
        AuditEvent::ClusterRecovered { survivor, lost, previous } => {
            let canonical = canonical.number(5).number(*survivor).number(lost.len() as u64);
            lost.iter().fold(canonical, |canonical, id| canonical.number(*id)).bytes(previous.0.as_bytes())
        }
        AuditEvent::FeatureLevelRaised { level } => canonical.number(6).number(u64::from(level.0)),
        AuditEvent::NodeRemoved { node } => canonical.number(7).number(*node),
        AuditEvent::PolicySet { version, policy } => canonical.number(8).number(*version).text(policy),
        AuditEvent::ApprovalAsked { approval, key_id, machine, user, reason, expires_at } => canonical
            .number(9)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .text(machine.as_str())
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(reason)
            .number(expires_at.0),
        AuditEvent::ApprovalDecided { approval, key_id, machine, user, asked_by, granted } => canonical
            .number(10)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .text(machine.as_str())
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(&asked_by.to_string())
            .number(u64::from(*granted)),
        AuditEvent::ApprovalUsed { approval, key_id, machine, user, asked_by, granted_by } => canonical
            .number(11)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .text(machine.as_str())
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(&asked_by.to_string())
            .text(&granted_by.to_string()),
        AuditEvent::KeyringRotated { key_version } => canonical.number(20).number(u64::from(*key_version)),
        AuditEvent::DataKeysDropped { key_version } => canonical.number(21).number(u64::from(*key_version)),
        AuditEvent::RevealReconciled { place, reveal } => {
            reveal.hashed_into(reconciled(canonical.number(12), place))
        }
        AuditEvent::KeyConfirmed { key_id, machine, replaced, rotation_owed_since } => {
            let canonical = canonical
                .number(13)
                .bytes(key_id.0.as_bytes())
                .text(machine.as_str())
                .number(replaced.len() as u64);
            let canonical = replaced.iter().fold(canonical, |canonical, id| canonical.bytes(id.0.as_bytes()));
            canonical.optional_text(rotation_owed_since.map(|since| since.0.to_string()).as_deref())
        }
        AuditEvent::ApprovalRefused { approval, key_id, machine, user, asked_by, granted, denied } => {
            canonical
                .number(14)
                .bytes(approval.0.as_bytes())
                .optional_text(key_id.map(|id| id.to_string()).as_deref())
                .optional_text(machine.as_ref().map(|machine| machine.as_str()))
                .optional_text(user.as_ref().map(ToString::to_string).as_deref())
                .optional_text(asked_by.as_ref().map(ToString::to_string).as_deref())
                .number(u64::from(*granted))
                .text(denied)
        }
        AuditEvent::ApprovalAskReconciled { place, ask } => {
            ask.hashed_into(reconciled(canonical.number(15), place))
        }
        AuditEvent::ApprovalDecisionReconciled { place, decision } => {
            decision.hashed_into(reconciled(canonical.number(16), place))
        }
        AuditEvent::ExemptionRequested { exemption, machine, reason, until } => canonical
            .number(30)
            .bytes(exemption.0.as_bytes())
            .text(machine.as_str())
            .text(reason)
            .optional_text(until.map(|until| until.0.to_string()).as_deref()),
        AuditEvent::ExemptionDecided { exemption, machine, asked_by, decision } => {
            let until = match decision {
                ExemptionDecision::Grant { until } => *until,
                ExemptionDecision::Reject | ExemptionDecision::Revoke => None,
            };
            canonical
                .number(31)
                .bytes(exemption.0.as_bytes())
                .text(machine.as_str())
                .text(&asked_by.to_string())
                .text(decision.as_str())
                .optional_text(until.map(|until| until.0.to_string()).as_deref())
        }
        AuditEvent::CompliancePolicySet { version, policy } => {
            canonical.number(32).number(*version).text(policy)
        }
        AuditEvent::ApprovalUsedAgain { approval, key_id, machine, user, used_by, first_use } => canonical
            .number(19)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .optional_text(machine.as_ref().map(|machine| machine.as_str()))
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(&used_by.to_string())
            .number(*first_use),
        AuditEvent::ApprovalAskedAgain { approval, key_id, machine, user, times } => canonical
            .number(18)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .text(machine.as_str())
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .number(*times),
        AuditEvent::DenialsUnrecorded { count, until } => canonical.number(17).number(*count).number(until.0),
        AuditEvent::RevealRepeated { place, key_id, node, at, audit_sequence } => {
            reconciled(canonical.number(33), place)
                .bytes(key_id.0.as_bytes())
                .number(*node)
                .number(at.0)
                .number(*audit_sequence)
        }
    };
    canonical.sha256()
}

fn reconciled(canonical: Canonical, place: &JournalPlace) -> Canonical {
    canonical.bytes(place.journal.as_bytes()).number(place.sequence)
}

/// Follows `records` on from the head `from` and answers the head they lead to, so that a long chain can be
/// followed in parts.
///
/// # Errors
/// [`BrokenChain`] at the first record that does not follow the one before it.
pub fn follow<'a>(
    records: impl IntoIterator<Item = &'a AuditRecord>,
    from: ChainHead,
) -> Result<ChainHead, BrokenChain> {
    let mut head = from;
    for record in records {
        let sequence = head.sequence + 1;
        if record.sequence != sequence {
            return Err(BrokenChain {
                sequence,
                why: format!("record {} stands in its place", record.sequence),
            });
        }
        if record.previous != head.hash {
            let why = match sequence - 1 {
                0 => "it does not begin the chain".to_owned(),
                before => format!("it does not follow record {before} as that one stands"),
            };
            return Err(BrokenChain { sequence, why });
        }
        head = ChainHead::of(record);
    }
    Ok(head)
}

/// Verifies that `records` lead from the head `from` exactly to the head `to`. Only against a head that was kept
/// elsewhere is a change of the last record, or its loss, found.
///
/// # Errors
/// [`BrokenChain`] at the first record that is not what the chain says.
pub fn verify<'a>(
    records: impl IntoIterator<Item = &'a AuditRecord>,
    from: ChainHead,
    to: ChainHead,
) -> Result<(), BrokenChain> {
    let reached = follow(records, from)?;
    if reached == to {
        return Ok(());
    }
    Err(if reached.sequence < to.sequence {
        let why = format!("the records end here, the chain ends at {}", to.sequence);
        BrokenChain { sequence: reached.sequence + 1, why }
    } else if reached.sequence > to.sequence {
        let why = format!("the records go on to {}, the chain ends before", reached.sequence);
        BrokenChain { sequence: to.sequence + 1, why }
    } else {
        BrokenChain { sequence: to.sequence, why: "it is not the record the chain ends with".to_owned() }
    })
}

#[cfg(test)]
mod tests;
