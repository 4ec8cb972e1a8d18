//! The recovery audit: who asked for which key, from the audit trail, with the columns of MBAM's report of that name.
//! What was shown without a quorum is in it once it is on record, at the time at which it was shown.

use super::query::RecoveryFilter;
use super::row::ColumnKind::{Number, Text, Time};
use super::row::{Cell, Column, Row, column};
use crate::escrow::audit::facts::{Decided, Facts};
use crate::escrow::audit::query::is_named;
use crate::escrow::ids::{Identity, KeyId, MachineId, NodeId, Role, Timestamp, UserName};
use crate::escrow::records::{AuditEvent, AuditRecord};
use crate::escrow::secrets::SecretKind;

/// Its columns.
pub const COLUMNS: &[Column] = &[
    column("time", Time),
    column("source", Text),
    column("status", Text),
    column("helpdesk_user", Text),
    column("end_user", Text),
    column("computer", Text),
    column("key_type", Text),
    column("reason", Text),
    column("details", Text),
    column("key_id", Text),
    column("decided", Text),
    column("node", Number),
    column("sequence", Number),
];

/// A request for a key, as it is on record.
pub struct KeyRequest<'a> {
    at: Timestamp,
    by: &'a Identity,
    node: NodeId,
    /// Of the key that was asked for.
    pub key_id: KeyId,
    machine: Option<&'a MachineId>,
    user: Option<&'a UserName>,
    reason: &'a str,
    status: &'static str,
    details: String,
    decided: Decided,
    sequence: u64,
}

impl<'a> KeyRequest<'a> {
    /// What `record` says, if it is about a request for a key.
    pub fn of(record: &'a AuditRecord) -> Option<Self> {
        let facts = Facts::of(&record.event);
        let (at, by, node) = (record.at, &record.by, record.source.node);
        let begun = |key_id, reason: &'a str, status, details| Self {
            at,
            by,
            node,
            key_id,
            machine: facts.machine,
            user: facts.user,
            reason,
            status,
            details,
            decided: facts.source,
            sequence: record.sequence,
        };
        match &record.event {
            AuditEvent::Reveal { key_id, reason, denied, .. } => {
                let status = if denied.is_some() { DENIED } else { SHOWN };
                Some(begun(*key_id, reason, status, denied.clone().unwrap_or_default()))
            }
            AuditEvent::ApprovalAsked { key_id, reason, approval, expires_at, .. } => {
                Some(begun(*key_id, reason, WAITING, format!("approval {approval} until {expires_at}")))
            }
            AuditEvent::RevealReconciled { reveal, .. } => {
                let status = if reveal.denied.is_some() { DENIED } else { SHOWN };
                let details = reveal.denied.as_ref().map(ToString::to_string).unwrap_or_default();
                let request = begun(reveal.key_id, &reveal.reason, status, details);
                Some(Self { at: reveal.at, by: &reveal.by, node: reveal.source.node, ..request })
            }
            AuditEvent::ApprovalAskReconciled { ask, .. } => {
                let details = format!("approval {} until {}", ask.approval, ask.expires_at);
                let request = begun(ask.key_id, &ask.reason, WAITING, details);
                Some(Self { at: ask.at, by: &ask.by, node: ask.source.node, ..request })
            }
            _ => None,
        }
    }

    /// Whether it is one of those that are asked for.
    pub fn matches(&self, filter: &RecoveryFilter) -> bool {
        let RecoveryFilter { since, until, actor, machine, user } = filter;
        let is_by = |who: &String| is_named(self.by, who);
        let is_of = |pattern: &super::MachinePattern| {
            self.machine.is_some_and(|machine| pattern.matches(machine.as_str()))
        };
        since.is_none_or(|since| self.at >= since)
            && until.is_none_or(|until| self.at < until)
            && actor.as_ref().is_none_or(is_by)
            && machine.as_ref().is_none_or(is_of)
            && user.as_ref().is_none_or(|user| self.end_user().as_ref() == Some(user))
    }

    /// The user it was for: who asks for themselves, is.
    fn end_user(&self) -> Option<UserName> {
        self.by.user().or_else(|| self.user.cloned())
    }

    /// Its row; `kind` is that of the key, if there is one.
    pub fn row(&self, kind: Option<SecretKind>) -> Row {
        let self_service = self.by.role == Role::SelfService;
        let decided = self.decided.as_str().to_owned();
        vec![
            Cell::Time(self.at),
            Cell::Text(self.by.role.to_string()),
            Cell::Text(self.status.to_owned()),
            if self_service { Cell::Absent } else { Cell::Text(self.by.name.clone()) },
            Cell::text(self.end_user()),
            Cell::text(self.machine),
            Cell::text(kind),
            Cell::Text(self.reason.to_owned()),
            Cell::Text(self.details.clone()),
            Cell::Text(self.key_id.to_string()),
            Cell::Text(decided),
            Cell::Number(self.node),
            Cell::Number(self.sequence),
        ]
    }
}

const SHOWN: &str = "shown";
const DENIED: &str = "denied";
const WAITING: &str = "waits-for-approval";
