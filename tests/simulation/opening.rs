//! Opening a node's storage as its server does it, on what the simulated disk has kept of the log.
//!
//! The log of a simulated node lives in memory. Here it is put into the files of a real one, so that it is the product
//! that finds log, snapshots and base as a crash has left them, and makes them fit each other.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use strongroom::raft::log_store::LogStore;
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::raft::types::TypeConfig;
use strongroom::store::directory::DataDir;
use strongroom::store::log::{Log, LogOptions};
use strongroom::store::machine::MachineOptions;

use crate::disk::Content;

/// A base that is written only when the seed says so: how far it is when a node crashes is not left to threads.
fn options() -> StorageOptions {
    let never = Duration::from_secs(3_600);
    StorageOptions {
        machine: MachineOptions {
            cache_bytes: 1024 * 1024,
            drain_every: never,
            generation_max_bytes: usize::MAX,
            ..MachineOptions::default()
        },
        ..StorageOptions::default()
    }
}

/// Opens the storage in `dir` over a log of this content, and says what the log holds then.
///
/// # Errors
/// As [`Storage::open`], and as the log.
pub async fn open(dir: &Path, kept: Content) -> io::Result<(DataDir, Storage, Content)> {
    let data = DataDir::open_or_create(dir)?;
    lay_down(&data.log(), kept).await?;
    let storage = Storage::open(&data, options()).await?;
    let content = read_back(&mut storage.log_store()).await?;
    Ok((data, storage, content))
}

/// Writes a log into `dir`, in the place of the one that is there.
async fn lay_down(dir: &Path, kept: Content) -> io::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let log = Log::open(dir, &LogOptions::default())?;
    let mut store = LogStore::new(log.clone());
    if let Some(purged) = kept.purged {
        RaftLogStorage::<TypeConfig>::purge(&mut store, purged).await?;
    }
    if let Some(vote) = kept.vote {
        RaftLogStorage::<TypeConfig>::save_vote(&mut store, &vote).await?;
    }
    RaftLogStorage::<TypeConfig>::append(&mut store, kept.entries.into_values(), IOFlushed::noop()).await?;
    RaftLogStorage::<TypeConfig>::save_committed(&mut store, kept.committed).await?;
    log.sync().await
}

async fn read_back(store: &mut LogStore) -> io::Result<Content> {
    let state = RaftLogStorage::<TypeConfig>::get_log_state(store).await?;
    let entries = RaftLogReader::<TypeConfig>::try_get_log_entries(store, ..).await?;
    Ok(Content {
        committed: RaftLogStorage::<TypeConfig>::read_committed(store).await?,
        entries: entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect(),
        purged: state.last_purged_log_id,
        vote: RaftLogReader::<TypeConfig>::read_vote(store).await?,
    })
}
