//! Writing a snapshot.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use super::{BUFFER_BYTES, MAGIC, SnapshotFile, Snapshots};
use crate::mutation::Mutation;
use crate::store::StoreError;
use crate::store::applied::Applied;
use crate::store::directory::create_file;
use crate::store::format;

/// After so many bytes they are synced. All at the end, a file of a gigabyte would hold up the fsyncs of the log, which share
/// the journal of the file system, for about a second.
const SYNC_EVERY_BYTES: usize = 2 * 1024 * 1024;

impl Snapshots {
    /// Writes the rows of a state that stands at `applied`, in the order of keys, and makes it the newest snapshot.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the rows are not those `applied` describes, and then nothing is published;
    /// [`StoreError::Io`]; what `rows` returns.
    pub(in crate::store) fn write(
        &self,
        applied: &Applied,
        rows: impl Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
    ) -> Result<SnapshotFile, StoreError> {
        let path = self.temporary();
        write_file(&path.0, applied, rows)?;
        self.adopt(SnapshotFile::open_temporary(path)?)
    }
}

fn write_file(
    path: &Path,
    applied: &Applied,
    rows: impl Iterator<Item = Result<(Bytes, Bytes), StoreError>>,
) -> Result<(), StoreError> {
    let mut file = HashedFile::create(path)?;
    let header = format::encode(applied);
    file.write(MAGIC)?;
    file.write_length(header.len())?;
    file.write(&header)?;
    let mut counted = Applied::default();
    for row in rows {
        let (key, value) = row?;
        counted.change(&key, None, Some(&value));
        file.write_length(key.len())?;
        file.write_length(value.len())?;
        file.write(&key)?;
        file.write(&value)?;
    }
    if !applied.describes(&counted) {
        let reason = "the rows read for a snapshot do not match the digest".to_owned();
        return Err(StoreError::Damaged(reason));
    }
    file.finish()
}

struct HashedFile {
    context: Context,
    file: BufWriter<std::fs::File>,
    path: PathBuf,
    unsynced: usize,
}

impl HashedFile {
    fn create(path: &Path) -> Result<Self, StoreError> {
        let file = create_file(path).map_err(|error| StoreError::io("creating", path, error))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { context: Context::new(&SHA256), file, path: path.to_owned(), unsynced: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.context.update(bytes);
        self.try_write(bytes).map_err(|error| StoreError::io("writing", &self.path, error))
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len();
        if self.unsynced < SYNC_EVERY_BYTES {
            return Ok(());
        }
        self.unsynced = 0;
        self.file.flush()?;
        self.file.get_ref().sync_data()
    }

    fn write_length(&mut self, length: usize) -> Result<(), StoreError> {
        let length = u32::try_from(length)
            .map_err(|_| StoreError::Damaged(format!("a row has a part of {length} bytes")))?;
        self.write(&length.to_le_bytes())
    }

    fn finish(self) -> Result<(), StoreError> {
        let Self { context, mut file, path, .. } = self;
        let finish = move || -> io::Result<()> {
            file.write_all(context.finish().as_ref())?;
            file.flush()?;
            if Mutation::SnapshotUnsynced.is_active() {
                return Ok(());
            }
            // Before it gets its name: a name on a file without its content would pass for a snapshot's loss.
            file.get_ref().sync_all()
        };
        finish().map_err(|error| StoreError::io("writing", &path, error))
    }
}
