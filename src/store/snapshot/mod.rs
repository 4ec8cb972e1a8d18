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

mod receive;
mod write;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

pub use self::receive::SnapshotReceiver;
use super::StoreError;
use super::applied::Applied;
use super::directory::{create_dir, sync_dir};
use super::format::{self, VALUE_MAX_BYTES};
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

/// A complete snapshot file. Clones share the open file.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    applied: Arc<Applied>,
    bytes: u64,
    file: Arc<File>,
    path: PathBuf,
    sha256: [u8; 32],
    /// Until it gets its final name.
    _temporary: Option<Arc<TemporaryPath>>,
}

/// A file that is being written; removed when dropped, unless it was renamed by then.
#[derive(Debug)]
struct TemporaryPath(PathBuf);

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl SnapshotFile {
    /// What it holds: position, membership, digest and counts.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// The last entry in it.
    pub fn position(&self) -> Option<LogPosition> {
        self.applied.position
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of all but its last 32 bytes, which hold it.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Where it was written; it may have been removed since.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// At most `length` bytes from `offset` on; empty at the end.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn chunk(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let length =
            usize::try_from(self.bytes.saturating_sub(offset)).map_or(length, |rest| rest.min(length));
        let file = self.file.clone();
        let read = move || {
            let mut chunk = vec![0; length];
            file.read_exact_at(&mut chunk, offset)?;
            Ok(chunk.into())
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// Opens the file at `path` and reads its header and its end; its rows are not looked at.
    fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |error| StoreError::io("reading", path, error);
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut start = [0; 12];
        file.read_exact_at(&mut start, 0).map_err(|_| damaged(path, "it is too short"))?;
        let (magic, length) = start.split_at(8);
        if magic != MAGIC {
            return Err(damaged(path, "it is not a snapshot"));
        }
        let length = u32::from_le_bytes(length.try_into().expect("the last four of twelve bytes")) as usize;
        if length > HEADER_MAX_BYTES {
            return Err(damaged(path, "its header is too long"));
        }
        let mut header = vec![0; length];
        file.read_exact_at(&mut header, 12).map_err(|_| damaged(path, "it is too short"))?;
        let applied: Applied =
            format::decode(&header).map_err(|error| damaged(path, &format!("its header is {error}")))?;
        if Some(bytes) != total_bytes(length, &applied) {
            return Err(damaged(path, "its length is not what its header says"));
        }
        let mut sha256 = [0; 32];
        file.read_exact_at(&mut sha256, bytes - HASH_BYTES).map_err(io)?;
        let (applied, file, path) = (applied.into(), file.into(), path.to_owned());
        Ok(Self { applied, bytes, file, path, sha256, _temporary: None })
    }

    fn open_temporary(path: TemporaryPath) -> Result<Self, StoreError> {
        let file = Self::open(&path.0)?;
        Ok(Self { _temporary: Some(path.into()), ..file })
    }

    /// Reads every row, in order, and checks all of it: hash, digest and counts. What `each` did with the rows may
    /// count only if this returns without error.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if anything is not as it was written; what `each` returns.
    pub(super) fn read_rows(
        &self,
        mut each: impl FnMut(Bytes, Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut reader = Hashing::new(BufReader::with_capacity(BUFFER_BYTES, FromStart::new(&self.file)));
        let cut = |error| StoreError::io("reading", &self.path, error);
        let body = self.bytes - HASH_BYTES - self.applied.bytes - 8 * self.applied.rows;
        io::copy(&mut (&mut reader).take(body), &mut io::sink()).map_err(cut)?;
        let mut counted = Applied::default();
        for _ in 0..self.applied.rows {
            let key_length = reader.length(KEY_MAX_BYTES).map_err(cut)?;
            let value_length = reader.length(VALUE_MAX_BYTES).map_err(cut)?;
            let key = reader.part(key_length).map_err(cut)?;
            let value = reader.part(value_length).map_err(cut)?;
            if counted.bytes + (key_length + value_length) as u64 > self.applied.bytes {
                return Err(damaged(&self.path, "its rows are longer than its header says"));
            }
            counted.change(&key, None, Some(&value));
            each(key, value)?;
        }
        if reader.finish() != self.sha256 {
            return Err(damaged(&self.path, "its hash does not match"));
        }
        if !self.applied.describes(&counted) {
            return Err(damaged(&self.path, "its rows do not have the digest its header says"));
        }
        Ok(())
    }

    /// Reads all of it and checks it.
    ///
    /// # Errors
    /// As [`SnapshotFile::read_rows`].
    pub(super) fn verify(&self) -> Result<(), StoreError> {
        self.read_rows(|_, _| Ok(()))
    }
}

fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Snapshot { path: path.to_owned(), reason: reason.to_owned() }
}

/// How long a snapshot with such a header is, unless the numbers in it are nonsense.
fn total_bytes(header: usize, applied: &Applied) -> Option<u64> {
    let lengths = applied.rows.checked_mul(8)?;
    (MAGIC.len() as u64 + 4 + header as u64 + HASH_BYTES).checked_add(lengths)?.checked_add(applied.bytes)
}

/// Reads a shared file from its beginning, whatever others read of it.
struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> FromStart<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Hashes what it reads.
struct Hashing<R> {
    context: Context,
    reader: R,
}

impl<R: Read> Hashing<R> {
    fn new(reader: R) -> Self {
        Self { context: Context::new(&SHA256), reader }
    }

    fn length(&mut self, max: usize) -> io::Result<usize> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a length of {length}")));
        }
        Ok(length)
    }

    fn part(&mut self, length: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }

    fn finish(self) -> [u8; 32] {
        self.context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.context.update(&buffer[..read]);
        Ok(read)
    }
}

/// The folder `snapshots/`. Clones share it.
#[derive(Debug, Clone)]
pub struct Snapshots(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    newest: Mutex<Option<SnapshotFile>>,
    path: PathBuf,
}

impl Snapshots {
    /// Opens the folder, makes it if there is none, removes what was never finished and reads the newest snapshot
    /// through. Blocks.
    ///
    /// A damaged one is renamed, so that it is not taken again and can be looked at; then the next older counts, if
    /// there is one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_dir(path).map_err(|error| StoreError::io("creating", path, error))?;
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
                Err(error) => {
                    tracing::error!(%error, "a snapshot is damaged and is set aside");
                    let aside = candidate.with_extension("damaged");
                    fs::rename(&candidate, &aside)
                        .map_err(|error| StoreError::io("setting aside", &candidate, error))?;
                }
            }
        }
        Ok(Self(Arc::new(Folder { newest: newest.into(), path: path.to_owned() })))
    }

    /// The newest complete snapshot.
    pub fn newest(&self) -> Option<SnapshotFile> {
        self.0.lock().clone()
    }

    /// Gives a verified file its final name and makes it the newest, unless there is a newer one. Durable when it
    /// returns; older ones are removed after that.
    pub(super) fn adopt(&self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        let mut newest = self.0.lock();
        if let Some(newest) = newest.as_ref().filter(|newest| newest.position() >= file.position()) {
            return Ok(newest.clone());
        }
        let path = self.0.path.join(file_name(&file));
        self.publish(&file.path, &path).map_err(|error| StoreError::io("publishing", &path, error))?;
        let file = SnapshotFile { path, _temporary: None, ..file };
        *newest = Some(file.clone());
        drop(newest);
        self.remove_but(&file.path);
        Ok(file)
    }

    fn publish(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        // Without this a power loss could take the name back after the log was purged.
        sync_dir(&self.0.path)
    }

    /// Removes all complete snapshots but one. What cannot be removed now is at the next start.
    fn remove_but(&self, keep: &Path) {
        let removed = sweep_paths(&self.0.path, EXTENSION)
            .map(|paths| paths.iter().filter(|path| *path != keep).try_for_each(fs::remove_file));
        if let Ok(Err(error)) | Err(error) = removed {
            tracing::warn!(%error, "an older snapshot could not be removed");
        }
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
    let hash = data_encoding::HEXLOWER.encode(&file.sha256[..8]);
    format!("{index:020}-{term:020}-{hash}.{EXTENSION}")
}

/// Removes unfinished files and all but the newest damaged one, and lists the complete ones.
fn sweep(path: &Path) -> io::Result<Vec<PathBuf>> {
    for unfinished in sweep_paths(path, TEMPORARY)? {
        fs::remove_file(unfinished)?;
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
