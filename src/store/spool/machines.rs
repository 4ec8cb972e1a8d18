//! What is known of every machine, from one pass over the base: written to temporary files as it comes, and joined from
//! there machine by machine.
//!
//! Machines, what they and imports say of them, exemptions and changes are kept in the order of machine ids, and are read
//! side by side. Keys are kept in the order of key ids, as what became of them is: the two are joined, and sorted by machine.
//! Of the changes the one that counts at the time that is asked about is taken, with the next one, and no other.

use std::iter::Peekable;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::file::Record;
use super::sort::{Sorted, Sorter};
use super::{Spool, SpoolFile, SpoolReader, SpoolWriter};
use crate::escrow::compliance::history::AROUND_MAX;
use crate::escrow::compliance::{ComplianceChange, CompliancePolicyRecord, ComplianceRecord, LastContact};
use crate::escrow::ids::Timestamp;
use crate::escrow::records::{KeyHistory, KeyRecord};
use crate::escrow::reports::{Bundle, without_secrets};
use crate::escrow::rotation::MachineKeyState;
use crate::escrow::rows::MachineKey;
use crate::escrow::state::{StateError, Table};
use crate::store::StoreError;
use crate::store::export::RowSink;
use crate::store::format;

/// The tables to hand to a [`MachineSink`], for a time in the past.
pub const TABLES_WITH_CHANGES: &[Table] = &[
    Table::CompliancePolicy,
    Table::Machine,
    Table::Inventory,
    Table::Key,
    Table::KeyHistory,
    Table::LastContact,
    Table::Compliance,
    Table::Exemption,
    Table::ComplianceChange,
];
/// The same without the past, which is the last of them.
pub const TABLES: &[Table] = TABLES_WITH_CHANGES.split_at(TABLES_WITH_CHANGES.len() - 1).0;

/// Takes what reports need, without what is sealed.
pub struct MachineSink {
    spool: Spool,
    policy: Option<CompliancePolicyRecord>,
    machines: SpoolWriter,
    contacts: SpoolWriter,
    inventory: SpoolWriter,
    compliance: SpoolWriter,
    exemptions: SpoolWriter,
    changes: Changes,
    keys: SpoolWriter,
    histories: SpoolWriter,
}

impl RowSink for MachineSink {
    fn take(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        match table {
            Table::CompliancePolicy => self.policy = Some(decoded(table, value)?),
            Table::Machine => self.machines.write(key, value)?,
            Table::LastContact => self.contacts.write(key, value)?,
            Table::Inventory => self.inventory.write(key, value)?,
            Table::Compliance => self.compliance.write(key, value)?,
            Table::Exemption => self.exemptions.write(key, value)?,
            Table::ComplianceChange => self.changes.take(key, value)?,
            Table::Key => {
                let record: KeyRecord = decoded(table, value)?;
                self.keys.write(key, &format::encode(&without_secrets(record)))?;
            }
            Table::KeyHistory => self.histories.write(key, value)?,
            other => return Err(unreadable(format!("no report needs table {other:?}"))),
        }
        Ok(())
    }
}

impl MachineSink {
    /// An empty one. Of changes it takes those [around](crate::escrow::compliance::history::around) `as_of`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn new(spool: Spool, as_of: Option<Timestamp>) -> Result<Self, StoreError> {
        Ok(Self {
            policy: None,
            machines: spool.file()?,
            contacts: spool.file()?,
            inventory: spool.file()?,
            compliance: spool.file()?,
            exemptions: spool.file()?,
            changes: Changes { as_of, last: None, count: None, taken: spool.file()? },
            keys: spool.file()?,
            histories: spool.file()?,
            spool,
        })
    }

    /// The policy of compliance as an officer set it, if one did.
    pub fn policy(&self) -> Option<&CompliancePolicyRecord> {
        self.policy.as_ref()
    }

    /// What was taken, machine by machine in the order of their ids. Blocks; sorts the keys first.
    ///
    /// # Errors
    /// [`StoreError::SpoolFull`], [`StoreError::Io`]; [`StoreError::State`] if a row does not decode.
    pub fn bundles(self) -> Result<Bundles, StoreError> {
        let keys = by_machine(self.spool, &self.keys.finish()?, &self.histories.finish()?)?;
        let peekable = |writer: SpoolWriter| Ok::<_, StoreError>(writer.finish()?.reader().peekable());
        Ok(Bundles {
            machines: self.machines.finish()?.reader(),
            contacts: peekable(self.contacts)?,
            inventory: peekable(self.inventory)?,
            compliance: peekable(self.compliance)?,
            exemptions: peekable(self.exemptions)?,
            changes: peekable(self.changes.finish()?)?,
            keys: keys.peekable(),
        })
    }
}

/// The change of each machine that counted at a time, and the next: a history may be of a hundred times as many bytes.
struct Changes {
    as_of: Option<Timestamp>,
    /// The last one by then of the machine whose changes come now, until one behind it comes.
    last: Option<(Vec<u8>, Vec<u8>)>,
    /// The machine of which changes were taken last, and how many.
    count: Option<(Vec<u8>, usize)>,
    taken: SpoolWriter,
}

impl Changes {
    /// Takes the next change, in the order of machines and times.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let Some((machine, at)) = ComplianceChange::parts(key) else {
            return Err(unreadable("a change under a key that is too short".to_owned()));
        };
        let Some(as_of) = self.as_of else { return Ok(()) };
        let is_by_then = at <= as_of;
        let is_of_another =
            |key: &[u8]| ComplianceChange::parts(key).is_none_or(|(other, _)| other != machine);
        if let Some((key, value)) = self.last.take_if(|(last, _)| !is_by_then || is_of_another(last)) {
            self.write(&key, &value)?;
        }
        if is_by_then {
            self.last = Some((key.to_vec(), value.to_vec()));
        } else if self.taken_of(machine) < AROUND_MAX {
            self.write(key, value)?;
        }
        Ok(())
    }

    fn taken_of(&self, machine: &[u8]) -> usize {
        self.count.as_ref().filter(|(of, _)| of == machine).map_or(0, |(_, count)| *count)
    }

    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if let Some((machine, _)) = ComplianceChange::parts(key) {
            self.count = Some((machine.to_vec(), self.taken_of(machine) + 1));
        }
        self.taken.write(key, value)
    }

    fn finish(mut self) -> Result<SpoolWriter, StoreError> {
        if let Some((key, value)) = self.last {
            self.taken.write(&key, &value)?;
        }
        Ok(self.taken)
    }
}

/// Keys with what became of them, by machine and key id.
fn by_machine(spool: Spool, keys: &SpoolFile, histories: &SpoolFile) -> Result<Sorted, StoreError> {
    let mut sorter = Sorter::new(spool);
    let mut histories = histories.reader().peekable();
    for record in keys.reader() {
        let (id, value) = record?;
        let key: KeyRecord = decoded(Table::Key, &value)?;
        let history = taken(&mut histories, &id)?.map(|value| decoded(Table::KeyHistory, &value));
        let none = KeyHistory { key_id: key.id, disclosed_at: None, retired_at: None, replaced_by: None };
        let mut place = MachineKey::prefix(&key.machine);
        place.extend_from_slice(&id);
        let known = (key, history.transpose()?.unwrap_or(none));
        sorter.push(&place, &format::encode(&known))?;
    }
    sorter.finish()
}

/// Everything of every machine, in the order of machine ids.
pub struct Bundles {
    machines: SpoolReader,
    contacts: Peekable<SpoolReader>,
    inventory: Peekable<SpoolReader>,
    compliance: Peekable<SpoolReader>,
    exemptions: Peekable<SpoolReader>,
    changes: Peekable<SpoolReader>,
    keys: Peekable<Sorted>,
}

impl Bundles {
    fn bundle(&mut self, id: &[u8], machine: &[u8]) -> Result<Bundle, StoreError> {
        // What the keys of a machine's rows in other tables begin with.
        let prefix = [id, &[0]].concat();
        let contact: Option<LastContact> = one(&mut self.contacts, Table::LastContact, id)?;
        let inventory = one(&mut self.inventory, Table::Inventory, id)?;
        let record: Option<ComplianceRecord> = one(&mut self.compliance, Table::Compliance, id)?;
        let exemption = one(&mut self.exemptions, Table::Exemption, id)?;
        let mut keys = Vec::new();
        while let Some(value) = taken_under(&mut self.keys, &prefix)? {
            let (key, history) = decoded(Table::Key, &value)?;
            keys.push(MachineKeyState { key, history });
        }
        let mut changes = Vec::new();
        while let Some(value) = taken_under(&mut self.changes, &prefix)? {
            changes.push(decoded(Table::ComplianceChange, &value)?);
        }
        // The times of the record and of the newest change are those of when they were written.
        let said = contact.as_ref().and_then(|contact| contact.said.as_ref());
        if let Some(said) = said {
            said.tell_again_in(&mut changes);
        }
        let compliance = record.map(|record| record.with_times_of(said));
        let machine = decoded(Table::Machine, machine)?;
        Ok(Bundle { machine, inventory, contact, compliance, exemption, keys, changes })
    }
}

impl Iterator for Bundles {
    type Item = Result<Bundle, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let machine = self.machines.next()?;
        Some(machine.and_then(|(id, machine)| self.bundle(&id, &machine)))
    }
}

/// The row under `key`, as [`taken`].
fn one<T, I>(records: &mut Peekable<I>, table: Table, key: &[u8]) -> Result<Option<T>, StoreError>
where
    T: DeserializeOwned,
    I: Iterator<Item = Result<Record, StoreError>>,
{
    taken(records, key)?.map(|value| decoded(table, &value)).transpose()
}

/// The value under `key`, if it comes next; what comes before it is of nobody and is left out.
fn taken<I>(records: &mut Peekable<I>, key: &[u8]) -> Result<Option<Bytes>, StoreError>
where
    I: Iterator<Item = Result<Record, StoreError>>,
{
    skip_before(records, key)?;
    let next = records.next_if(|record| record.as_ref().is_ok_and(|(found, _)| found[..] == *key));
    Ok(next.transpose()?.map(|(_, value)| value))
}

/// The next value whose key begins with `prefix`, as [`taken`].
fn taken_under<I>(records: &mut Peekable<I>, prefix: &[u8]) -> Result<Option<Bytes>, StoreError>
where
    I: Iterator<Item = Result<Record, StoreError>>,
{
    skip_before(records, prefix)?;
    let next = records.next_if(|record| record.as_ref().is_ok_and(|(found, _)| found.starts_with(prefix)));
    Ok(next.transpose()?.map(|(_, value)| value))
}

fn skip_before<I>(records: &mut Peekable<I>, key: &[u8]) -> Result<(), StoreError>
where
    I: Iterator<Item = Result<Record, StoreError>>,
{
    while let Some(before) = records.next_if(|record| !matches!(record, Ok((found, _)) if found[..] >= *key))
    {
        before?;
    }
    Ok(())
}

fn decoded<T: DeserializeOwned>(table: Table, value: &[u8]) -> Result<T, StoreError> {
    format::decode(value).map_err(|error| unreadable(format!("a row of table {table:?}: {error}")))
}

/// A failure of the report, not of the base: that is for those who compare the rows with the digest.
fn unreadable(why: String) -> StoreError {
    StoreError::State(StateError(why.into()))
}
