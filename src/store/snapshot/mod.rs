//! Snapshots: the whole state after one entry, in one file.
//!
//! ```text
//! "STRGSNAP"            8 bytes
//! length of the header  4 bytes, little endian
//! header                `Applied`, by `format`
//! rows                  each: length of key and of value (4 bytes each, little endian), key, value; in order of keys
//! SHA-256               32 bytes, of everything before
//! ```
//!
//! The header says how many rows and bytes follow, so a file's length is known from its beginning, and the digest of
//! the rows, so that a file is checked against the state it was made from and not only against itself.
//!
//! A snapshot is durable before anything rests on it: written under a temporary name, fsynced, renamed, the directory
//! fsynced. Only then is an older one removed, and only then may the log be purged. A file stays readable for who has
//! it open, also when it was removed meanwhile.

mod file;
mod receive;
mod replace;
mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use self::file::SnapshotFile;
use self::file::TemporaryPath;
pub use self::receive::SnapshotReceiver;
use super::StoreError;
use super::directory::{create_dir, free_bytes, sync_dir, unless_gone};
use super::removal;
use crate::escrow::records::LogPosition;

const MAGIC: &[u8; 8] = b"STRGSNAP";
const HASH_BYTES: u64 = 32;
/// Longest header: a membership and sixteen digests.
const HEADER_MAX_BYTES: usize = 1024 * 1024;
/// Longest key of a row: a volume path and an id have far less.
const KEY_MAX_BYTES: usize = 4_096;
const BUFFER_BYTES: usize = 1024 * 1024;
const EXTENSION: &str = "snapshot";
const TEMPORARY: &str = "tmp";
/// Of a snapshot that is being removed.
const RETIRED: &str = "old";

/// The folder `snapshots/`. Clones share it.
#[derive(Debug, Clone)]
pub struct Snapshots(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    newest: Mutex<Option<SnapshotFile>>,
    path: PathBuf,
    /// Where the snapshot stands that last took the place of wrong ones, until somebody has heard of it.
    replacement: watch::Sender<Option<LogPosition>>,
}

impl Snapshots {
    /// Opens the folder, makes it if there is none, removes what was never finished and reads the newest snapshot
    /// through. Blocks.
    ///
    /// A damaged one is renamed, so that it is not taken again and can be looked at; then the next older counts, if
    /// there is one. One that cannot be read says nothing of what is in it, and stays for when it can be.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Newer`] if a newer release wrote one of them: then nothing is touched.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_dir(path).map_err(|error| StoreError::io("creating", path, error))?;
        Self::refuse_newer(path)?;
        let mut complete = sweep(path).map_err(|error| StoreError::io("clearing", path, error))?;
        complete.sort();
        let mut newest = None;
        while let Some(candidate) = complete.pop() {
            let opened = SnapshotFile::open(&candidate).and_then(|file| file.verify().map(|()| file));
            match opened {
                Ok(file) => {
                    newest = Some(file);
                    break;
                }
                Err(error) if !error.is_damage() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "a snapshot is damaged and is set aside");
                    let aside = candidate.with_extension("damaged");
                    fs::rename(&candidate, &aside)
                        .map_err(|error| StoreError::io("setting aside", &candidate, error))?;
                }
            }
        }
        let (newest, path, replacement) = (newest.into(), path.to_owned(), watch::Sender::default());
        Ok(Self(Arc::new(Folder { newest, path, replacement })))
    }

    /// Looks whether a newer release wrote one of the snapshots in `path`; changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if so, [`StoreError::Io`] if that cannot be seen.
    pub fn refuse_newer(path: &Path) -> Result<(), StoreError> {
        if !path.exists() {
            return Ok(());
        }
        let complete =
            sweep_paths(path, EXTENSION).map_err(|error| StoreError::io("listing", path, error))?;
        for snapshot in complete {
            // What is damaged is seen to when it is opened.
            if let Err(error @ StoreError::Newer { .. }) = SnapshotFile::open(&snapshot) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The newest complete snapshot.
    pub fn newest(&self) -> Option<SnapshotFile> {
        self.0.lock().clone()
    }

    /// Bytes that could still be written to the file system of the folder.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it does not say.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        free_bytes(&self.0.path)
    }

    /// Gives a verified file its final name and makes it the newest, unless there is a newer one. Durable when it
    /// returns; older ones are removed after that.
    pub(super) fn adopt(&self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        let newest = self.0.lock();
        if let Some(newest) = newest.as_ref().filter(|newest| newest.position() >= file.position()) {
            return Ok(newest.clone());
        }
        self.put(newest, file)
    }

    /// Checks a received file completely and makes it the newest snapshot, unless there is a newer one: for a node whose
    /// state is not open. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if it is damaged; [`StoreError::Io`].
    pub fn keep(&self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        file.verify()?;
        self.adopt(file)
    }

    fn put(
        &self,
        mut newest: MutexGuard<'_, Option<SnapshotFile>>,
        file: SnapshotFile,
    ) -> Result<SnapshotFile, StoreError> {
        let path = self.0.path.join(file_name(&file));
        let before = newest.clone();
        let file = self.publish(&mut newest, file, path)?;
        drop(newest);
        if let Some(before) = before.filter(|before| before.path() != file.path() && before.is_unshared()) {
            retire(before.path());
        }
        // What cannot be removed now is at the next start.
        if let Err(error) = self.remove(|other| other != file.path()) {
            tracing::warn!(%error, "an older snapshot could not be removed");
        }
        Ok(file)
    }

    fn publish(
        &self,
        newest: &mut Option<SnapshotFile>,
        file: SnapshotFile,
        path: PathBuf,
    ) -> Result<SnapshotFile, StoreError> {
        // Without the sync a power loss could take the name back after the log was purged.
        let named = fs::rename(file.path(), &path).and_then(|()| sync_dir(&self.0.path));
        named.map_err(|error| StoreError::io("publishing", &path, error))?;
        let file = file.renamed(path);
        *newest = Some(file.clone());
        Ok(file)
    }

    /// Removes the complete snapshots that `which` says; how many. Not durable by itself.
    fn remove(&self, which: impl Fn(&Path) -> bool) -> Result<usize, StoreError> {
        let paths = sweep_paths(&self.0.path, EXTENSION)
            .map_err(|error| StoreError::io("listing", &self.0.path, error))?;
        let mut removed = 0;
        for path in paths.iter().filter(|path| which(path)) {
            fs::remove_file(path).map_err(|error| StoreError::io("removing", path, error))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// A path for a file that is being written.
    fn temporary(&self) -> TemporaryPath {
        TemporaryPath(self.0.path.join(format!("{}.{TEMPORARY}", uuid::Uuid::new_v4().simple())))
    }
}

impl Folder {
    fn lock(&self) -> MutexGuard<'_, Option<SnapshotFile>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sorts as the snapshots do: by index, then term.
fn file_name(file: &SnapshotFile) -> String {
    let LogPosition { term, index } = file.position().unwrap_or_default();
    let hash = data_encoding::HEXLOWER.encode(&file.sha256()[..8]);
    format!("{index:020}-{term:020}-{hash}.{EXTENSION}")
}

/// Removes a snapshot that nobody reads any more, on a thread of its own. What is left of it is no snapshot, and goes at the
/// next start.
fn retire(path: &Path) {
    let retired = path.with_extension(RETIRED);
    if let Err(error) = fs::rename(path, &retired) {
        return tracing::warn!(%error, "an older snapshot could not be renamed");
    }
    removal::in_background(move || {
        if let Err(error) = removal::remove_file(&retired) {
            tracing::warn!(%error, path = %retired.display(), "an older snapshot could not be removed");
        }
    });
}

/// Removes unfinished files and all but the newest damaged one, and lists the complete ones.
fn sweep(path: &Path) -> io::Result<Vec<PathBuf>> {
    for extension in [TEMPORARY, RETIRED] {
        for unfinished in sweep_paths(path, extension)? {
            // Whoever had the folder open before may be about to remove it as well.
            fs::remove_file(unfinished).or_else(unless_gone)?;
        }
    }
    let mut damaged = sweep_paths(path, "damaged")?;
    damaged.sort();
    damaged.pop();
    for older in damaged {
        fs::remove_file(older)?;
    }
    sweep_paths(path, EXTENSION)
}

fn sweep_paths(path: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    Ok(paths)
}
