//! What this node takes of its disk and memory, looked at every few seconds.
//!
//! Asking the file system can hang with the disk, so a task of its own asks, and everybody else reads what it found.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::storage::Storage;
use crate::store::StoreError;
use crate::store::directory::Space;
use crate::store::machine::MachineStats;

/// Between two looks.
const POLL: Duration = Duration::from_secs(2);

/// What a node takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The file system of the data directory.
    pub space: Space,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Bytes of the newest snapshot.
    pub snapshot_bytes: u64,
    /// The state: overlay, base, rows.
    pub machine: MachineStats,
    /// When this was looked at.
    pub at: Instant,
}

impl Usage {
    /// Bytes the data directory takes.
    pub fn disk_bytes(&self) -> u64 {
        self.log_bytes + self.snapshot_bytes + self.machine.base_bytes
    }

    /// Blocks.
    fn look(storage: &Storage, directory: &std::path::Path) -> Result<Self, StoreError> {
        Ok(Self {
            space: Space::of(directory)?,
            log_bytes: storage.log.bytes_on_disk().map_err(StoreError::Log)?,
            snapshot_bytes: storage.machine.snapshots().newest().map_or(0, |file| file.bytes()),
            machine: storage.machine.stats()?,
            at: Instant::now(),
        })
    }
}

/// The last look. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct UsageMeter(Arc<Mutex<Option<Usage>>>);

impl UsageMeter {
    /// What was last seen; `None` before the first look, and if none ever succeeded.
    pub(super) fn last(&self) -> Option<Usage> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks until `stop`.
    pub(super) fn spawn(&self, storage: Storage, directory: PathBuf, stop: CancellationToken) {
        let seen = self.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut ticks = tokio::time::interval(POLL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let (storage, directory) = (storage.clone(), directory.clone());
                match spawn_blocking(move || Usage::look(&storage, &directory)).await {
                    Ok(Ok(usage)) => *seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(usage),
                    Ok(Err(error)) => tracing::debug!(%error, "looking at what the node takes"),
                    // The runtime is shutting down.
                    Err(_) => return,
                }
            }
        }));
    }
}
