//! The disk under a node's log, in memory: what is written to it, and how much of that a power loss leaves.
//!
//! Writes are taken in order, as a write-ahead log takes them, and a sync makes all of them durable up to a point. A crash
//! leaves what was synced and some beginning of the rest.

use std::collections::{BTreeMap, VecDeque};

use openraft::EntryPayload;
use strongroom::raft::types::{LogId, Vote};

use crate::ledger::Halves;
use crate::types::Entry;

/// One thing that was written.
#[derive(Debug, Clone)]
pub enum Write {
    Append(Vec<Entry>),
    Committed(LogId),
    Purge(LogId),
    Truncate(Option<LogId>),
    Vote(Vote),
}

/// What a log holds.
#[derive(Debug, Clone, Default)]
pub struct Content {
    pub committed: Option<LogId>,
    pub entries: BTreeMap<u64, Entry>,
    pub purged: Option<LogId>,
    pub vote: Option<Vote>,
}

impl Content {
    /// The last entry, or what was purged if there is none behind it.
    pub fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    /// Whether this very entry is here, or was purged.
    pub fn holds(&self, id: LogId) -> bool {
        self.purged.is_some_and(|purged| purged.index >= id.index)
            || self.entries.get(&id.index).is_some_and(|entry| entry.log_id == id)
    }

    /// The configurations that were appended behind this entry.
    pub fn memberships_behind(&self, id: LogId) -> Vec<Halves> {
        let behind = self.entries.range(id.index + 1..).map(|(_, entry)| &entry.payload);
        let memberships = behind.filter_map(|payload| match payload {
            EntryPayload::Membership(membership) => Some(membership.get_joint_config().clone()),
            _ => None,
        });
        memberships.collect()
    }

    fn take(&mut self, write: Write) {
        match write {
            Write::Append(entries) => {
                self.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
            }
            Write::Committed(committed) => self.committed = self.committed.max(Some(committed)),
            Write::Purge(upto) => {
                // A log that says something else there, or ends before it, yields to the snapshot.
                if !self.holds(upto) {
                    self.entries.clear();
                }
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = self.purged.max(Some(upto));
            }
            Write::Truncate(last) => {
                self.entries.split_off(&last.map_or(0, |last| last.index + 1));
            }
            Write::Vote(vote) => self.vote = Some(vote),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Disk {
    durable: Content,
    /// With everything that is written, durable or not.
    written: Content,
    /// Written and not durable yet, the oldest first.
    pending: VecDeque<Write>,
    /// How many writes are durable.
    synced: u64,
}

impl Disk {
    /// What a power loss would leave at least.
    pub fn durable(&self) -> &Content {
        &self.durable
    }

    /// What a reader sees.
    pub fn written(&self) -> &Content {
        &self.written
    }

    /// Writes, and answers up to where a sync has to come for it to be durable.
    pub fn write(&mut self, write: Write) -> u64 {
        self.written.take(write.clone());
        self.pending.push_back(write);
        self.synced + self.pending.len() as u64
    }

    /// As [`Disk::write`], of something that never reaches the disk.
    pub fn write_in_vain(&mut self, write: Write) {
        self.written.take(write);
    }

    /// Makes the writes up to and with this one durable.
    pub fn sync(&mut self, upto: u64) {
        while self.synced < upto
            && let Some(write) = self.pending.pop_front()
        {
            self.durable.take(write);
            self.synced += 1;
        }
    }

    /// How many writes a crash may take.
    pub fn unsynced(&self) -> u64 {
        self.pending.len() as u64
    }

    /// Loses everything behind the first `kept` of the writes that are not durable.
    pub fn crash(&mut self, kept: u64) {
        self.sync(self.synced + kept);
        self.pending.clear();
        self.written = self.durable.clone();
    }

    /// What is found when it is opened again.
    pub fn reopen(&mut self, content: Content) {
        self.durable = content.clone();
        self.written = content;
        self.pending.clear();
    }
}
