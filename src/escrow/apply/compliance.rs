//! Keeping what devices say of themselves. Which of two reports counts is decided in [`record`], by the devices' own
//! times; a command only brings them here. So nothing of it is remembered by request: what is kept answers for itself.
//!
//! Reports leave no audit record: there are thousands an hour, and who may look at them learns no secret.
//!
//! [`record`]: crate::escrow::compliance::record

use super::{Halt, Turn, escrow};
use crate::escrow::command::{Contact, NoteContact, Refusal, Reply, ReportCompliance, UploadOutcome};
use crate::escrow::compliance::{ComplianceChange, ComplianceRecord, History, MachineReport, Merged};
use crate::escrow::ids::{Invalid, MachineId, UserName};
use crate::escrow::lookup;
use crate::escrow::policy::may_report;
use crate::escrow::records::MachineRecord;
use crate::escrow::state::{Row, State, StateError};

/// Most uploads that one command brings.
pub const COMPLIANCE_BATCH_MAX: usize = 256;

/// Keeps whole reports.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, report: &ReportCompliance) -> Result<Reply, Halt> {
    check_batch("reports", report.reports.len())?;
    let mut outcomes = Vec::with_capacity(report.reports.len());
    for report in &report.reports {
        outcomes.push(match checked(turn, report) {
            Ok(report) => keep(turn, report)?,
            Err(refusal) => UploadOutcome::Refused(refusal),
        });
    }
    Ok(Reply::ComplianceNoted(outcomes))
}

/// Notes uploads that say what is kept already. Of a machine that is not known, or of which something else is kept, it
/// is answered that the whole report is needed.
pub(super) fn apply_contacts<S: State>(turn: &mut Turn<'_, S>, note: &NoteContact) -> Result<Reply, Halt> {
    check_batch("contacts", note.contacts.len())?;
    let mut outcomes = Vec::with_capacity(note.contacts.len());
    for contact in &note.contacts {
        outcomes.push(match may(turn, &contact.machine) {
            Ok(()) => confirm(turn, contact)?,
            Err(refusal) => UploadOutcome::Refused(refusal),
        });
    }
    Ok(Reply::ComplianceNoted(outcomes))
}

fn check_batch(field: &str, length: usize) -> Result<(), Invalid> {
    if (1..=COMPLIANCE_BATCH_MAX).contains(&length) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("1 to {COMPLIANCE_BATCH_MAX} of them, not {length}")))
}

fn may<S: State>(turn: &Turn<'_, S>, machine: &MachineId) -> Result<(), Refusal> {
    if may_report(turn.by(), machine) {
        return Ok(());
    }
    Err(Refusal::Denied(format!("{} may not report the compliance of machine {machine}", turn.by())))
}

fn checked<S: State>(turn: &Turn<'_, S>, report: &MachineReport) -> Result<MachineReport, Refusal> {
    may(turn, &report.machine)?;
    Ok(report.clone().checked()?)
}

fn keep<S: State>(turn: &mut Turn<'_, S>, report: MachineReport) -> Result<UploadOutcome, StateError> {
    let (machine_id, users) = (report.machine.clone(), report.users.clone());
    let kept = lookup::compliance(turn.state, &machine_id)?;
    let before = match &kept {
        Some(_) => lookup::compliance_changes(turn.state, &machine_id)?,
        None => Vec::new(),
    };
    let floor = kept.as_ref().and_then(|kept| kept.floor);
    let mut history = History::of(before.clone(), floor);
    let (record, merged) = ComplianceRecord::merge(kept, &mut history, report, turn.command.at);
    if merged != Merged::Repeated {
        turn.state.put(&record);
        write(turn, &before, history.runs());
    }
    heard_of(turn, &machine_id, &users, merged)
}

fn confirm<S: State>(turn: &mut Turn<'_, S>, contact: &Contact) -> Result<UploadOutcome, StateError> {
    let merged = match lookup::compliance(turn.state, &contact.machine)? {
        None => Merged::Changed,
        Some(mut record) => {
            let merged = record.confirm(contact.at, turn.command.at, &contact.digest);
            if let Merged::Newest { .. } = merged {
                turn.state.put(&record);
            }
            merged
        }
    };
    // The whole report follows, and is a contact of its own.
    if merged == Merged::Changed {
        return Ok(UploadOutcome::Taken { merged, rotation_owed_since: None });
    }
    heard_of(turn, &contact.machine, &[], merged)
}

/// Writes the rows that became others.
fn write<S: State>(turn: &mut Turn<'_, S>, before: &[ComplianceChange], after: &[ComplianceChange]) {
    let key = |change: &ComplianceChange| (change.at, change.rank);
    for old in before {
        if after.binary_search_by_key(&key(old), key).is_err() {
            turn.state.delete::<ComplianceChange>(&old.key());
        }
    }
    for new in after {
        let unchanged = before.binary_search_by_key(&key(new), key).is_ok_and(|place| before[place] == *new);
        if !unchanged {
            turn.state.put(new);
        }
    }
}

fn heard_of<S: State>(
    turn: &mut Turn<'_, S>,
    id: &MachineId,
    users: &[UserName],
    merged: Merged,
) -> Result<UploadOutcome, StateError> {
    let known: Option<MachineRecord> = lookup::machine(turn.state, id)?;
    let machine = known.unwrap_or_else(|| escrow::first_heard_of(turn, id));
    let rotation_owed_since = machine.rotation_owed_since;
    escrow::contact(turn, machine, users);
    Ok(UploadOutcome::Taken { merged, rotation_owed_since })
}
