//! Receiving a snapshot from a peer.

use aws_lc_rs::digest::{Context, SHA256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::file::{TemporaryPath, damaged};
use super::{HASH_BYTES, SnapshotFile, Snapshots};
use crate::store::StoreError;
use crate::store::directory::create_file;

/// What a fresh base takes on the disk, in lengths of the snapshot file it is filled from.
const BASE_SHARE: u64 = 2;
/// What else must stay free, for the log and the base in use, in bytes.
const SPARE_BYTES: u64 = 32 * 1024 * 1024;

/// A snapshot on its way in: written to a temporary file chunk by chunk, never held in memory. Dropped before it is
/// finished and installed, it leaves nothing.
pub struct SnapshotReceiver {
    announced_bytes: u64,
    announced_sha256: [u8; 32],
    context: Context,
    file: File,
    path: TemporaryPath,
    received: u64,
}

impl Snapshots {
    /// Begins to receive a snapshot of the announced length and hash (see [`SnapshotFile::sha256`]).
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the file and the base made of it would not fit on the disk; [`StoreError::Io`].
    pub async fn receive(&self, bytes: u64, sha256: [u8; 32]) -> Result<SnapshotReceiver, StoreError> {
        let path = self.temporary();
        // A disk that fills up while the snapshot is installed would stop a replica that is well.
        let needed = bytes.saturating_mul(1 + BASE_SHARE).saturating_add(SPARE_BYTES);
        let free = self.free_bytes()?;
        if needed > free {
            let reason = format!("its {bytes} bytes need {needed} on the disk, which has {free}");
            return Err(damaged(&path.0, &reason));
        }
        let file = create_file(&path.0).map_err(|error| StoreError::io("creating", &path.0, error))?;
        Ok(SnapshotReceiver {
            announced_bytes: bytes,
            announced_sha256: sha256,
            context: Context::new(&SHA256),
            file: File::from_std(file),
            path,
            received: 0,
        })
    }
}

impl SnapshotReceiver {
    /// How many bytes came so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if they are more than was announced; [`StoreError::Io`].
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let end = self.received + chunk.len() as u64;
        if end > self.announced_bytes {
            return Err(damaged(&self.path.0, "it is longer than was announced"));
        }
        let hashed_end = self.announced_bytes.saturating_sub(HASH_BYTES);
        let hashed = usize::try_from(hashed_end.saturating_sub(self.received)).unwrap_or(usize::MAX);
        self.context.update(&chunk[..hashed.min(chunk.len())]);
        self.received = end;
        let written = self.file.write_all(chunk).await;
        written.map_err(|error| StoreError::io("writing", &self.path.0, error))
    }

    /// Ends it: the length and the hash must be those announced. The file may then be installed; its rows are
    /// checked there.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if it is not what was announced, or not a snapshot; [`StoreError::Io`].
    pub async fn finish(mut self) -> Result<SnapshotFile, StoreError> {
        if self.received != self.announced_bytes {
            return Err(damaged(&self.path.0, "it ended before its announced length"));
        }
        if self.context.finish().as_ref() != self.announced_sha256 {
            return Err(damaged(&self.path.0, "its hash is not the one announced"));
        }
        let io = |error| StoreError::io("writing", &self.path.0, error);
        self.file.flush().await.map_err(io)?;
        // Before it is installed: the log is purged on the strength of this file.
        self.file.sync_all().await.map_err(io)?;
        let file = SnapshotFile::open_temporary(self.path)?;
        if file.sha256() != self.announced_sha256 {
            return Err(damaged(file.path(), "the hash in it is not the one announced"));
        }
        Ok(file)
    }
}
