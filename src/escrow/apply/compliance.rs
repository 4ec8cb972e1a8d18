//! Keeping what devices say of themselves. Which of two reports counts is decided in [`record`], by the devices' own
//! times; a command only brings them here. So nothing of it is remembered by request: what is kept answers for itself.
//!
//! What one upload costs does not grow with what is kept of its machine: the runs of the history beside its time are read
//! and written, and of one that says nothing new, only the small row that says when it was last heard of.
//!
//! Reports leave no audit record: there are thousands an hour, and who may look at them learns no secret.
//!
//! [`record`]: crate::escrow::compliance::record

use std::collections::BTreeMap;

use super::{Halt, Turn, escrow};
use crate::escrow::command::{Contact, NoteContact, Refusal, Reply, ReportCompliance, UploadOutcome};
use crate::escrow::compliance::contact::CONFIRMATIONS_MAX;
use crate::escrow::compliance::history::HistoryWrites;
use crate::escrow::compliance::{
    ComplianceChange, ComplianceRecord, History, Kept, MachineReport, Merged, Said,
};
use crate::escrow::ids::{Invalid, MachineId, Timestamp, UserName};
use crate::escrow::lookup;
use crate::escrow::policy::may_report;
use crate::escrow::state::{Rows, State, StateError};

/// Most uploads that one command brings.
pub const COMPLIANCE_BATCH_MAX: usize = 256;

/// Keeps whole reports.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, report: &ReportCompliance) -> Result<Reply, Halt> {
    check_batch("reports", report.reports.len())?;
    let mut outcomes: Vec<Option<UploadOutcome>> = vec![None; report.reports.len()];
    // Of one machine together, so that what is kept of it is read and written once however often it is in the batch.
    let mut by_machine: BTreeMap<&MachineId, Vec<(usize, MachineReport)>> = BTreeMap::new();
    for (place, report) in report.reports.iter().enumerate() {
        match checked(turn, report) {
            Ok(checked) => by_machine.entry(&report.machine).or_default().push((place, checked)),
            Err(refusal) => outcomes[place] = Some(UploadOutcome::Refused(refusal)),
        }
    }
    for (machine, reports) in by_machine {
        let (places, reports): (Vec<usize>, Vec<MachineReport>) = reports.into_iter().unzip();
        for (place, outcome) in places.into_iter().zip(keep(turn, machine, reports)?) {
            outcomes[place] = Some(outcome);
        }
    }
    // Each has one by now.
    Ok(Reply::ComplianceNoted(outcomes.into_iter().flatten().collect()))
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

/// Keeps reports of one machine, in the order in which they stand in the batch.
fn keep<S: State>(
    turn: &mut Turn<'_, S>,
    id: &MachineId,
    reports: Vec<MachineReport>,
) -> Result<Vec<UploadOutcome>, StateError> {
    let machine = lookup::machine(turn.state, id)?;
    let rotation_owed_since = machine.as_ref().and_then(|machine| machine.rotation_owed_since);
    let stamp = turn.command.at;
    let mut keeping = Keeping::of(&*turn.state, id)?;
    let mut outcomes = Vec::with_capacity(reports.len());
    for report in reports {
        outcomes.push(UploadOutcome::Taken { merged: keeping.take(report, stamp)?, rotation_owed_since });
    }
    let Keeping { mut said, seen, record, is_replaced, history, .. } = keeping;
    let writes = history.map(History::into_writes);
    if let Some(record) = record.filter(|_| is_replaced) {
        turn.state.put(&record);
    }
    if let Some(writes) = writes {
        write(turn, id, writes);
    }
    if let Some(said) = &mut said {
        settle(turn, id, said)?;
    }
    escrow::heard_of(turn, machine, id, seen, said);
    Ok(outcomes)
}

/// Reports of one machine on their way into what is kept of it, which is read as far as they need it.
struct Keeping<'a, S> {
    rows: &'a S,
    id: &'a MachineId,
    said: Option<Said>,
    record: Option<ComplianceRecord>,
    /// The record is another one than before.
    is_replaced: bool,
    history: Option<History<'a, S>>,
    /// Who was seen on the machine, and when.
    seen: Vec<(UserName, Timestamp)>,
}

impl<'a, S: Rows> Keeping<'a, S> {
    fn of(rows: &'a S, id: &'a MachineId) -> Result<Self, StateError> {
        let said = lookup::said(rows, id)?;
        Ok(Self { rows, id, said, record: None, is_replaced: false, history: None, seen: Vec::new() })
    }

    fn take(&mut self, report: MachineReport, stamp: Timestamp) -> Result<Merged, StateError> {
        if let Some(said) = &mut self.said {
            match said.confirm(report.at, stamp, &report.digest()) {
                Merged::Changed => {}
                merged => return Ok(merged),
            }
        }
        let kept = match self.said.take() {
            None => None,
            Some(said) => {
                let record = match self.record.take() {
                    Some(record) => record,
                    None => self.rows.required(&self.id.row_key())?,
                };
                // Those of the report that is kept were seen until it was confirmed last.
                self.saw(&record.report.users, said.at);
                Some(Kept { record, said })
            }
        };
        let mut history = match self.history.take() {
            Some(history) => history,
            None => History::read(self.rows, self.id)?,
        };
        let users = report.users.clone();
        let (Kept { record, said }, merged, at) = Kept::merge(kept, &mut history, report, stamp)?;
        self.is_replaced |= matches!(merged, Merged::Newest { .. });
        (self.record, self.said, self.history) = (Some(record), Some(said), Some(history));
        if let Some(at) = at {
            self.saw(&users, at);
        }
        Ok(merged)
    }

    /// Notes users of a report: of those at one time each was seen a moment before the next.
    fn saw(&mut self, users: &[UserName], at: Timestamp) {
        let before = (0..users.len() as u64).rev();
        let seen = users.iter().zip(before).map(|(user, before)| {
            let at = Timestamp(at.0.saturating_sub(before));
            (user.clone(), at)
        });
        self.seen.extend(seen);
    }
}

fn confirm<S: State>(turn: &mut Turn<'_, S>, contact: &Contact) -> Result<UploadOutcome, StateError> {
    let known = lookup::said(turn.state, &contact.machine)?;
    let changed = UploadOutcome::Taken { merged: Merged::Changed, rotation_owed_since: None };
    // The whole report follows, and is a contact of its own.
    let Some(mut said) = known else { return Ok(changed) };
    let merged = said.confirm(contact.at, turn.command.at, &contact.digest);
    if merged == Merged::Changed {
        return Ok(changed);
    }
    settle(turn, &contact.machine, &mut said)?;
    let machine = lookup::machine(turn.state, &contact.machine)?;
    let rotation_owed_since = machine.as_ref().and_then(|machine| machine.rotation_owed_since);
    escrow::heard_of(turn, machine, &contact.machine, Vec::new(), Some(said));
    Ok(UploadOutcome::Taken { merged, rotation_owed_since })
}

/// Puts the times of confirmations into the run that they are of, once there are many, and drops what is too old by them.
fn settle<S: State>(turn: &mut Turn<'_, S>, id: &MachineId, said: &mut Said) -> Result<(), StateError> {
    if said.again.len() <= CONFIRMATIONS_MAX {
        return Ok(());
    }
    let mut history = History::read(&*turn.state, id)?;
    history.tell_again(said.run, said.again.drain(..))?;
    history.bound(said.at)?;
    said.dropped = history.floor().map(|floor| floor.at);
    let writes = history.into_writes();
    write(turn, id, writes);
    Ok(())
}

/// Writes the rows that became others.
fn write<S: State>(turn: &mut Turn<'_, S>, id: &MachineId, writes: HistoryWrites) {
    let HistoryWrites { index, changed, gone } = writes;
    for first in gone {
        turn.state.delete::<ComplianceChange>(&ComplianceChange::row_key(id, first));
    }
    for run in &changed {
        turn.state.put(run);
    }
    if let Some(index) = index {
        turn.state.put(&index);
    }
}

#[cfg(test)]
mod tests;
