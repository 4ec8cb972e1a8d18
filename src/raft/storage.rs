//! Opens log, snapshots and state together, so that they fit each other when openraft sees them.

use std::fmt;
use std::io;
use std::path::Path;

use tokio::task::spawn_blocking;

use super::log_store::LogStore;
use super::pace::Pace;
use super::state_machine::StateMachine;
use crate::store::StoreError;
use crate::store::directory::DataDir;
use crate::store::format::{FormatError, Payload, VERSION};
use crate::store::log::{Log, LogOptions};
use crate::store::machine::{Machine, MachineOptions};
use crate::store::policy::SnapshotPolicy;
use crate::store::quarantine::{Quarantine, QuarantineNote};
use crate::store::snapshot::Snapshots;

/// Sizes and waits of the storage; smaller in tests.
#[derive(Debug, Clone, Default)]
pub struct StorageOptions {
    /// Of the log.
    pub log: LogOptions,
    /// Of the state.
    pub machine: MachineOptions,
    /// When to take a snapshot.
    pub snapshots: SnapshotPolicy,
}

/// The storage of a node. Clones share it.
#[derive(Clone)]
pub struct Storage {
    /// The Raft log.
    pub log: Log,
    /// The state.
    pub machine: Machine,
    /// Where short work over it is done.
    pub(super) pace: Pace,
    /// When to take a snapshot.
    pub policy: SnapshotPolicy,
    /// Whether this node has put itself aside.
    pub quarantine: QuarantineNote,
}

/// The log since the newest snapshot of a node in quarantine, which makes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLog {
    /// How much it is.
    pub bytes: u64,
    /// How much it may be: past it the node stops.
    pub max_bytes: u64,
    /// Why it is held.
    pub quarantine: Quarantine,
}

impl fmt::Display for HeldLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, max) = (self.bytes >> 20, self.max_bytes >> 20);
        write!(f, "{}; {held} MiB of log wait for the repair, at most {max}", self.quarantine)
    }
}

impl HeldLog {
    /// Whether it is more than a node may keep.
    pub fn is_too_much(&self) -> bool {
        self.bytes > self.max_bytes
    }
}

impl Storage {
    /// Opens the storage in `data`.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer release wrote here; as [`Log::open`], [`Snapshots::open`], [`Machine::open`].
    pub async fn open(data: &DataDir, options: StorageOptions) -> Result<Self, StoreError> {
        let paths = (data.log(), data.snapshots(), data.base(), data.quarantine());
        let open = move || {
            let (log_dir, snapshots_dir, base_dir, note) = paths;
            // Before anything is opened for writing: what a newer release wrote stays as it is.
            Snapshots::refuse_newer(&snapshots_dir)?;
            let quarantine = QuarantineNote::open(&note)?;
            let log = Log::open(&log_dir, &options.log)?;
            refuse_newer_entries(&log, &log_dir)?;
            let snapshots = Snapshots::open(&snapshots_dir)?;
            let machine = Machine::open(&base_dir, &options.machine, snapshots, &log)?;
            Ok::<_, StoreError>(Self {
                log,
                machine,
                pace: Pace::new(),
                policy: options.snapshots,
                quarantine,
            })
        };
        let storage =
            spawn_blocking(open).await.map_err(|panic| StoreError::Stopped(panic.to_string()))??;
        storage.reconcile().await.map_err(StoreError::Log)?;
        Ok(storage)
    }

    /// A crash between the installation of a snapshot and the purge that follows it leaves a log that ends before the
    /// snapshot, or says something else where it stands. The snapshot is committed state, so the log yields.
    async fn reconcile(&self) -> io::Result<()> {
        match self.machine.applied().position {
            Some(applied) if !self.log.holds(applied)? => {
                self.log.purge(applied).await?;
                self.log.sync().await
            }
            _ => Ok(()),
        }
    }

    /// The log for openraft.
    pub fn log_store(&self) -> LogStore {
        LogStore::new(self.log.clone())
    }

    /// The state for openraft.
    pub fn state_machine(&self) -> StateMachine {
        StateMachine::new(self.machine.clone(), self.pace.clone(), self.quarantine.clone())
    }

    /// Whether it is time for a snapshot: to be asked now and then, and followed by openraft's trigger.
    ///
    /// # Errors
    /// As [`SnapshotPolicy::is_due_for`].
    pub fn snapshot_is_due(&self) -> Result<bool, StoreError> {
        self.policy.is_due_for(&self.machine, &self.log)
    }

    /// Up to which entry the log may be cut now: one chunk of what the newest snapshot has made superfluous. What is kept
    /// before it spares a follower that lags a little a snapshot: `keep_entries`, but no more
    /// than calls for a snapshot ([`SnapshotPolicy::floor_bytes`]). `None` if nothing is to be cut.
    ///
    /// # Errors
    /// [`StoreError::Log`] if the log is broken by an earlier panic.
    pub fn next_cut(&self, keep_entries: u64) -> Result<Option<u64>, StoreError> {
        let Some(newest) = self.machine.snapshots().newest().and_then(|file| file.position()) else {
            return Ok(None);
        };
        self.next_cut_before(newest.index, keep_entries).map_err(StoreError::Log)
    }

    fn next_cut_before(&self, snapshot: u64, keep_entries: u64) -> io::Result<Option<u64>> {
        if let Some(upto) = snapshot.checked_sub(keep_entries)
            && let Some(cut) = self.log.next_cut(upto)?
        {
            return Ok(Some(cut));
        }
        let Some(cut) = self.log.next_cut(snapshot)? else { return Ok(None) };
        let kept = self.log.bytes_since(Some(cut))?.saturating_sub(self.log.bytes_since(Some(snapshot))?);
        Ok((kept >= self.policy.floor_bytes).then_some(cut))
    }

    /// The log that waits for the end of a quarantine, and how much that may be; `None` for a node that is well.
    ///
    /// # Errors
    /// [`StoreError::Log`] if the log is broken by an earlier panic.
    pub fn held_log(&self) -> Result<Option<HeldLog>, StoreError> {
        let Some(quarantine) = self.quarantine.current() else { return Ok(None) };
        let newest = self.machine.snapshots().newest();
        let since = newest.as_ref().and_then(|file| file.position()).map(|position| position.index);
        let bytes = self.log.bytes_since(since).map_err(StoreError::Log)?;
        // Not the state as it is: that grows with the log, and the bound would run ahead of it.
        let state_bytes = newest.map_or(0, |file| file.applied().bytes);
        let max_bytes = self.policy.quarantine_log_max_bytes(state_bytes);
        Ok(Some(HeldLog { bytes, max_bytes, quarantine }))
    }

    /// Term of the last log entry; 0 if there is none, or the log is broken, which stops the node by itself.
    pub fn last_log_term(&self) -> u64 {
        self.log.state().ok().and_then(|state| state.last).map_or(0, |last| last.term)
    }

    /// Syncs the log and lets go of the state, after openraft has stopped.
    ///
    /// # Errors
    /// What was left could not be written. Nothing acknowledged is lost by that.
    pub async fn close(&self) -> Result<(), StoreError> {
        let machine = self.machine.close().await;
        self.log.sync().await.map_err(StoreError::Log)?;
        machine
    }
}

/// Whether a newer release wrote the last entry, which was the last thing it did before it stopped.
fn refuse_newer_entries(log: &Log, path: &Path) -> Result<(), StoreError> {
    let last = log.last_entry().map_err(StoreError::Log)?;
    match last.map(|(_, record)| Payload::decode(&record).map(drop)) {
        Some(Err(FormatError::Newer { found })) => Err(StoreError::Newer {
            path: path.to_owned(),
            what: "holds entries",
            found: found.into(),
            supported: VERSION.into(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
