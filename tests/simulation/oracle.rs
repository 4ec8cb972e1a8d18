//! What clients asked for and were told, held against what the nodes have.

use std::collections::{BTreeMap, BTreeSet};

use strongroom::escrow::command::{Escrowed, Revealed};
use strongroom::escrow::ids::KeyId;
use strongroom::escrow::lookup;
use strongroom::escrow::records::{AuditEvent, AuditRecord, KeyRecord};
use strongroom::escrow::state::Rows;
use strongroom::raft::Committed;

/// See the module.
#[derive(Default)]
pub struct Oracle {
    /// Acknowledged keys, as they were acknowledged first.
    kept: BTreeMap<KeyId, Escrowed>,
    /// The reasons of all reveals that were asked for. Each request gives one of its own.
    asked: BTreeSet<String>,
    /// Acknowledged reveals, by their reasons.
    shown: BTreeMap<String, Revealed>,
    /// The latest entry that anybody was told of.
    floor: u64,
}

impl Oracle {
    /// Everything acknowledged so far stands at or before this index.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    pub fn told_of(&mut self, index: u64) {
        self.floor = self.floor.max(index);
    }

    /// Keys that were acknowledged.
    pub fn kept(&self) -> Vec<KeyId> {
        self.kept.keys().copied().collect()
    }

    /// A key is acknowledged. It was kept once, whatever came of earlier attempts.
    ///
    /// # Errors
    /// It was acknowledged otherwise before.
    pub fn escrowed(&mut self, escrowed: &Escrowed, committed: &Committed) -> Result<(), String> {
        self.told_of(committed.position.index);
        let told = Escrowed { already_escrowed: false, keys_left: None, ..escrowed.clone() };
        let known = self.kept.entry(told.key_id).or_insert_with(|| told.clone());
        if *known == told { Ok(()) } else { Err(format!("told {told:?}, and before that {known:?}")) }
    }

    /// A reveal is asked for.
    pub fn asked(&mut self, reason: &str) {
        self.asked.insert(reason.to_owned());
    }

    /// A reveal is acknowledged.
    ///
    /// # Errors
    /// It was acknowledged otherwise before.
    pub fn shown(&mut self, reason: &str, revealed: &Revealed, committed: &Committed) -> Result<(), String> {
        self.told_of(committed.position.index);
        let known = self.shown.entry(reason.to_owned()).or_insert_with(|| revealed.clone());
        if known == revealed {
            Ok(())
        } else {
            Err(format!("{reason}: told {revealed:?}, and before {known:?}"))
        }
    }

    /// Whether a record is that of the key as it was acknowledged.
    pub fn is_as_told(&self, id: KeyId, found: Option<&KeyRecord>) -> bool {
        let Some(told) = self.kept.get(&id) else { return true };
        found.is_some_and(|found| {
            (&found.machine, &found.volume, found.fingerprint, found.position, found.escrowed_at)
                == (&told.machine, &told.volume, told.fingerprint, told.position, told.at)
        })
    }

    /// What is missing, at a replica that has applied `index`, of what it should have by then.
    pub fn missing_at(&self, rows: &impl Rows, index: u64) -> Option<String> {
        for (id, told) in self.kept.iter().filter(|(_, told)| told.position.index <= index) {
            let found = lookup::key(rows, *id).expect("read");
            if !self.is_as_told(*id, found.as_ref()) {
                return Some(format!("acknowledged was {told:?}, and it has {found:?}"));
            }
        }
        let records = lookup::audit(rows, 0, usize::MAX).expect("read");
        let on_record = of_reveals(&records);
        for (reason, records) in &on_record {
            if !self.asked.contains(*reason) || records.len() > 1 {
                return Some(format!("{reason}: on record {} times", records.len()));
            }
        }
        for (reason, told) in self.shown.iter().filter(|(_, told)| told.position.index <= index) {
            let sequence = on_record.get(reason.as_str()).map(|records| records[0].sequence);
            if sequence != Some(told.audit_sequence) {
                return Some(format!(
                    "{reason}: shown as record {}, found {sequence:?}",
                    told.audit_sequence
                ));
            }
        }
        None
    }
}

/// Records of reveals that showed a key, by their reasons.
fn of_reveals(records: &[AuditRecord]) -> BTreeMap<&str, Vec<&AuditRecord>> {
    let mut reveals = BTreeMap::<_, Vec<_>>::new();
    for record in records {
        if let AuditEvent::Reveal { reason, denied: None, .. } = &record.event {
            reveals.entry(reason.as_str()).or_default().push(record);
        }
    }
    reveals
}
