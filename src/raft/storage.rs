//! Opens log, snapshots and state together, so that they fit each other when openraft sees them.

use std::io;
use std::path::Path;

use tokio::task::spawn_blocking;

use super::log_store::LogStore;
use super::state_machine::StateMachine;
use crate::store::StoreError;
use crate::store::directory::DataDir;
use crate::store::format::{FormatError, Payload, VERSION};
use crate::store::log::{Log, LogOptions};
use crate::store::machine::{Machine, MachineOptions};
use crate::store::policy::SnapshotPolicy;
use crate::store::quarantine::QuarantineNote;
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
    /// When to take a snapshot.
    pub policy: SnapshotPolicy,
    /// Whether this node has put itself aside.
    pub quarantine: QuarantineNote,
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
            Ok::<_, StoreError>(Self { log, machine, policy: options.snapshots, quarantine })
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
        StateMachine::new(self.machine.clone(), self.quarantine.clone())
    }

    /// Whether it is time for a snapshot: to be asked now and then, and followed by openraft's trigger.
    ///
    /// # Errors
    /// As [`SnapshotPolicy::is_due_for`].
    pub fn snapshot_is_due(&self) -> Result<bool, StoreError> {
        self.policy.is_due_for(&self.machine, &self.log)
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
