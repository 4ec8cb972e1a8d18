//! What other nodes told, and who told each: so that one which tells without end keeps nobody from being heard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FILE_MAX_BYTES, JournalError, TOLD_ENTRIES_MAX};
use crate::escrow::ids::NodeId;
use crate::escrow::journal::JournalEntry;
use crate::store::format;

/// What is in the file of others' entries: the entries, and beside each who told it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Told {
    pub entries: Vec<JournalEntry>,
    tellers: Vec<NodeId>,
}

impl Told {
    pub fn push(&mut self, teller: NodeId, entry: JournalEntry) {
        self.entries.push(entry);
        self.tellers.push(teller);
    }

    fn each(&self) -> impl Iterator<Item = (&NodeId, &JournalEntry)> {
        self.tellers.iter().zip(&self.entries)
    }

    pub fn retain(&mut self, keeps: impl Fn(&JournalEntry) -> bool) {
        let all = std::mem::take(self);
        for (entry, teller) in all.entries.into_iter().zip(all.tellers) {
            if keeps(&entry) {
                self.push(teller, entry);
            }
        }
    }

    /// At most `most` of those that are `due`, of each that told as much as of the others.
    pub fn in_turns(&self, most: usize, due: impl Fn(&JournalEntry) -> bool) -> Vec<JournalEntry> {
        let mut tellers: BTreeMap<NodeId, Vec<&JournalEntry>> = BTreeMap::new();
        for (teller, entry) in self.each().filter(|(_, entry)| due(entry)) {
            tellers.entry(*teller).or_default().push(entry);
        }
        let mut turns: Vec<_> = tellers.into_values().map(Vec::into_iter).collect();
        let mut chosen = Vec::new();
        while chosen.len() < most {
            let before = chosen.len();
            chosen.extend(turns.iter_mut().filter_map(Iterator::next).cloned());
            if chosen.len() == before {
                break;
            }
        }
        chosen.truncate(most);
        chosen
    }

    /// Nobody has more than half of what the others leave.
    pub fn check_part_of(&self, teller: NodeId) -> Result<(), JournalError> {
        let (mut theirs, mut others) = ((0, 0), (0, 0));
        for (from, entry) in self.each() {
            let (entries, bytes) = if *from == teller { &mut theirs } else { &mut others };
            (*entries, *bytes) = (*entries + 1, *bytes + format::encode(entry).len());
        }
        let part = |max: usize, others: usize| max.saturating_sub(others) / 2;
        let (entries, bytes) = (part(TOLD_ENTRIES_MAX, others.0), part(FILE_MAX_BYTES, others.1));
        if theirs.0 > entries {
            return Err(JournalError::Full { what: "entries told by one node", limit: entries });
        }
        if theirs.1 > bytes {
            return Err(JournalError::Full { what: "bytes told by one node", limit: bytes });
        }
        Ok(())
    }

    /// What was read must say it.
    pub fn check(&self) -> Result<(), String> {
        if self.entries.len() == self.tellers.len() {
            return Ok(());
        }
        Err("it does not say of each entry who told it".to_owned())
    }
}
