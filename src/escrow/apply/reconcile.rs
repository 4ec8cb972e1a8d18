//! Putting on record what a node decided without a quorum: audit record, disclosure, rotation debt and limits in one
//! entry, once for each entry of a journal, whoever proposes it and however often. An entry is known by its hash: two in one
//! place, of a journal that was put back to an older copy, are two.
//!
//! The node may also have proposed the same request before it gave up waiting, or the caller gone on with it to another node
//! that was alone. If the reveal is on record already, then this adds only that the entry belongs to it, and nothing is
//! counted twice; if it is committed later, it is answered from what is remembered here. A denial is no
//! answer to it, for a quorum may know better: then it is decided anew, and put on record if it is granted after all.
//!
//! What is said of approvals is put on record and nothing else comes of it: see [`approvals`](crate::escrow::journal::approvals).

use super::{Halt, SOURCE_ADDRESS_MAX_BYTES, Turn, approval, requests, reveal};
use crate::escrow::command::{Action, Command, Reconcile, Refusal, Reply, Reveal, Revealed};
use crate::escrow::ids::{ClusterName, Invalid, Timestamp};
use crate::escrow::journal::{DegradedReveal, JournalEntry, JournalPlace, Noted, REFUSAL_MAX_BYTES};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{Approval, AuditEvent, KeyRecord, MachineRecord, ReconciledEntry};
use crate::escrow::state::State;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, reconcile: &Reconcile) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::Reconcile) {
        return Err(Refusal::Denied(format!("role {} does not reconcile journals", turn.by().role)).into());
    }
    let entry = &reconcile.entry;
    check(entry, &turn.by().cluster)?;
    let (place, hash) = (entry.place, entry.hash());
    if let Some(known) = turn.state.row::<ReconciledEntry>(&ReconciledEntry::row_key(&place, &hash))? {
        return Ok(Reply::Reconciled { audit_sequence: known.audit_sequence });
    }
    let audit_sequence = match &entry.what {
        Noted::Reveal(reveal) => apply_reveal(turn, place, reveal)?,
        // Only a record: what was asked for or granted without a quorum is good for nothing from here on.
        Noted::ApprovalAsked(ask) => {
            Some(turn.audit(AuditEvent::ApprovalAskReconciled { place, ask: Box::new(ask.clone()) }))
        }
        Noted::ApprovalDecided(decision) => {
            let decision = Box::new(decision.clone());
            Some(turn.audit(AuditEvent::ApprovalDecisionReconciled { place, decision }))
        }
    };
    turn.state.put(&ReconciledEntry { place, hash, audit_sequence });
    Ok(Reply::Reconciled { audit_sequence })
}

/// Answers the audit record that names it; `None` if the denial of the same request is on record.
fn apply_reveal<S: State>(
    turn: &mut Turn<'_, S>,
    place: JournalPlace,
    reveal: &DegradedReveal,
) -> Result<Option<u64>, Halt> {
    let same = equivalent(reveal);
    Ok(match requests::remembered(turn, &same)? {
        Some(Reply::Revealed(shown)) if reveal.was_shown() => Some(turn.audit(AuditEvent::RevealRepeated {
            place,
            key_id: reveal.key_id,
            node: reveal.source.node,
            at: reveal.at,
            audit_sequence: shown.audit_sequence,
        })),
        Some(Reply::Refused(_)) if !reveal.was_shown() => None,
        _ => Some(record(turn, place, reveal, &same)?),
    })
}

/// The command that would have been committed, had there been a quorum.
fn equivalent(reveal: &DegradedReveal) -> Command {
    let DegradedReveal { request, at, by, source, key_id, user, reason, .. } = reveal.clone();
    Command { request, at, by, source, action: Action::Reveal(Reveal { key_id, user, reason }) }
}

fn record<S: State>(
    turn: &mut Turn<'_, S>,
    place: JournalPlace,
    reveal: &DegradedReveal,
    same: &Command,
) -> Result<u64, Halt> {
    // Clocks differ; nothing here was seen after it was put on record.
    let shown_at = reveal.at.min(turn.at);
    if let Some(id) = reveal.approval {
        let row: Option<Approval> = turn.state.row(&Approval::row_key(reveal.key_id, &reveal.by.person()))?;
        // It is gone if it expired since, or if it was used on both sides of a partition.
        if let Some(row) = row.filter(|row| row.id == id) {
            approval::use_up(turn, &row);
        }
    }
    let event = AuditEvent::RevealReconciled { place, reveal: Box::new(reveal.clone()) };
    let audit_sequence = turn.audit(event);
    if !reveal.was_shown() {
        let note = Reply::Reconciled { audit_sequence: Some(audit_sequence) };
        requests::remember_as(turn, same, note)?;
        return Ok(audit_sequence);
    }
    disclose(turn, reveal, shown_at)?;
    reveal::count(turn, &reveal.by, shown_at)?;
    let shown = Revealed { key_id: reveal.key_id, audit_sequence, at: turn.at, position: turn.position };
    // Whoever left may have a certificate still, and no data key: what it says that it showed is on record, and gets nobody
    // a key. The same request, should it come once more, is decided anew.
    let remembered = if lookup::has_departed(turn.state, reveal.source.node)? {
        Reply::Reconciled { audit_sequence: Some(audit_sequence) }
    } else {
        Reply::Revealed(shown)
    };
    requests::remember_as(turn, same, remembered)?;
    Ok(audit_sequence)
}

/// The key may be none that this history knows: it was recovered on a node that had less.
fn disclose<S: State>(
    turn: &mut Turn<'_, S>,
    reveal: &DegradedReveal,
    shown_at: Timestamp,
) -> Result<(), Halt> {
    if let Some(key) = turn.state.row::<KeyRecord>(&reveal.key_id.row_key())? {
        let machine: MachineRecord = turn.required(&key.machine.row_key())?;
        reveal::disclose(turn, key, machine, shown_at)?;
    }
    Ok(())
}

/// An entry comes from a node that decided alone: what every replica keeps of it is bounded here.
///
/// # Errors
/// [`Invalid`] if it is not well formed: then it can never come on record.
pub fn check(entry: &JournalEntry, cluster: &ClusterName) -> Result<(), Invalid> {
    let invalid = |field: &str, expected: &str| Err(Invalid::new(format!("entry.{field}"), expected));
    let what = &entry.what;
    if entry.place.sequence == 0 {
        return invalid("sequence", "from 1");
    }
    if what.by().cluster != *cluster {
        return invalid("by", "an identity of this cluster");
    }
    if what.source().address.len() > SOURCE_ADDRESS_MAX_BYTES {
        return Err(Invalid::new("entry.source", format!("at most {SOURCE_ADDRESS_MAX_BYTES} bytes")));
    }
    let (reason, denied) = match what {
        Noted::Reveal(reveal) => (Some(&reveal.reason), reveal.denied.as_ref()),
        Noted::ApprovalAsked(ask) => (Some(&ask.reason), None),
        Noted::ApprovalDecided(decision) => (None, decision.denied.as_ref()),
    };
    if let Some(reason) = reason
        && reveal::check_reason(reason)? != reason
    {
        return invalid("reason", "without white space around it");
    }
    if denied.is_some_and(|refusal| refusal.to_string().len() > REFUSAL_MAX_BYTES) {
        return Err(Invalid::new("entry.denied", format!("at most {REFUSAL_MAX_BYTES} bytes")));
    }
    Ok(())
}
