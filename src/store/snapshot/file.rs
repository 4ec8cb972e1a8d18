//! One snapshot file: what it says of itself, and reading it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use super::{BUFFER_BYTES, HASH_BYTES, HEADER_MAX_BYTES, KEY_MAX_BYTES, MAGIC};
use crate::escrow::records::LogPosition;
use crate::store::StoreError;
use crate::store::applied::Applied;
use crate::store::format::{self, FormatError, VALUE_MAX_BYTES};

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
pub(super) struct TemporaryPath(pub PathBuf);

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl SnapshotFile {
    /// Whether nobody else has it open, or will.
    pub(super) fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.file) == 1
    }

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
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |error| StoreError::io("reading", path, error);
        let too_short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(path, "it is too short"),
            _ => io(error),
        };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut start = [0; 12];
        file.read_exact_at(&mut start, 0).map_err(too_short)?;
        let (magic, length) = start.split_at(8);
        if magic != MAGIC {
            return Err(damaged(path, "it is not a snapshot"));
        }
        let length = u32::from_le_bytes(length.try_into().expect("the last four of twelve bytes")) as usize;
        if length > HEADER_MAX_BYTES {
            return Err(damaged(path, "its header is too long"));
        }
        let mut header = vec![0; length];
        file.read_exact_at(&mut header, 12).map_err(too_short)?;
        let applied: Applied = format::decode(&header).map_err(|error| match error {
            // Not damage: whoever wrote it can read it.
            FormatError::Newer { found } => StoreError::newer(path, "is a snapshot", found),
            error => damaged(path, &format!("its header is {error}")),
        })?;
        if Some(bytes) != total_bytes(length, &applied) {
            return Err(damaged(path, "its length is not what its header says"));
        }
        let mut sha256 = [0; 32];
        file.read_exact_at(&mut sha256, bytes - HASH_BYTES).map_err(io)?;
        let (applied, file, path) = (applied.into(), file.into(), path.to_owned());
        Ok(Self { applied, bytes, file, path, sha256, _temporary: None })
    }

    pub(super) fn open_temporary(path: TemporaryPath) -> Result<Self, StoreError> {
        let file = Self::open(&path.0)?;
        Ok(Self { _temporary: Some(path.into()), ..file })
    }

    /// The same file under the name it was given for good.
    pub(super) fn renamed(self, path: PathBuf) -> Self {
        Self { path, _temporary: None, ..self }
    }

    /// Reads every row, in order, and checks all of it: hash, digest and counts. What `each` did with the rows may
    /// count only if this returns without error.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if anything is not as it was written; what `each` returns.
    pub(in crate::store) fn read_rows(
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
    pub(in crate::store) fn verify(&self) -> Result<(), StoreError> {
        self.read_rows(|_, _| Ok(()))
    }
}

pub(super) fn damaged(path: &Path, reason: &str) -> StoreError {
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
