//! What is read at opening must be on the disk.
//!
//! A process that was killed between a write and its sync leaves records that only the page cache holds; after a failed
//! sync they may never reach the disk, though the kernel calls their pages clean and a later sync succeeds. Once the
//! log is open they look like any other, and are acknowledged without another write: a leader that sends such an entry
//! again is told that it is there, a vote is not cast twice. A power loss would then take an acknowledged entry with it.
//! So the files that may hold such records are written anew, which no page of the old ones has a part in.

use std::fs::{self, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use raft_log::chunked_wal::Config;

use crate::store::StoreError;
use crate::store::directory::{create_file, sync_dir};

/// raft-log writes the first record of a chunk only after it synced the chunk before. So what was never synced lies
/// in the last chunk that has such a record; one more is rewritten for good measure.
const CHUNKS: usize = 2;
/// A file that is shorter may lack its first record, which takes at most 83 bytes, and does not count as a chunk.
const BEGUN_BYTES: u64 = 128;
/// raft-log passes over names that do not end in `.wal`.
const TEMPORARY: &str = ".settling";
/// What raft-log locks, in the directory of the log.
const LOCK_FILE: &str = "LOCK";

/// Makes everything in the newest chunks durable, before the log in `dir` is opened.
///
/// # Errors
/// [`StoreError::Locked`] if the log is open; [`StoreError::Log`] if a chunk was emptied; [`StoreError::Io`], on a full disk
/// too: a chunk is copied.
pub(super) fn settle(dir: &Path) -> Result<(), StoreError> {
    let lock_path = dir.join(LOCK_FILE);
    // Whoever has the log open would go on writing to a file that has no name any more.
    let lock = create_file(&lock_path).map_err(|error| StoreError::io("opening", &lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => return Err(StoreError::io("locking", &lock_path, error)),
    }
    let chunks = newest_first(dir).map_err(|error| StoreError::io("listing", dir, error))?;
    refuse_emptied(&chunks)?;
    let mut begun = 0;
    for chunk in chunks {
        let bytes = rewrite(&chunk).map_err(|error| StoreError::io("settling", &chunk, error))?;
        begun += usize::from(bytes >= BEGUN_BYTES);
        if begun == CHUNKS {
            break;
        }
    }
    // Without it the old files could come back.
    sync_dir(dir).map_err(|error| StoreError::io("syncing", dir, error))
}

/// The chunk files, by name and so by where they begin. Removes what an earlier rewrite left behind.
fn newest_first(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut chunks = Vec::new();
    for file in fs::read_dir(dir)? {
        let name = file?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(TEMPORARY) {
            fs::remove_file(dir.join(name))?;
        } else if Config::parse_chunk_file_name(name).is_ok() {
            chunks.push(dir.join(name));
        }
    }
    chunks.sort_by(|one, other| other.cmp(one));
    Ok(chunks)
}

/// Files of chunks are made ahead of their first record, which is written once the chunk before is synced. So none is empty
/// in front of one that is not, unless something has emptied it; raft-log takes that for impossible, and panics.
fn refuse_emptied(newest_first: &[PathBuf]) -> Result<(), StoreError> {
    let mut is_begun = false;
    for chunk in newest_first {
        let length = fs::metadata(chunk).map_err(|error| StoreError::io("reading", chunk, error))?.len();
        if length == 0 && is_begun {
            let why = format!("{} is empty, and the chunks behind it are not", chunk.display());
            return Err(StoreError::Log(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        is_begun |= length > 0;
    }
    Ok(())
}

fn rewrite(chunk: &Path) -> io::Result<u64> {
    let mut temporary = chunk.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let mut copy = create_file(Path::new(&temporary))?;
    // Through memory, not `fs::copy`: a copy within the kernel may share the old file's blocks, which is what we flee.
    let content = fs::read(chunk)?;
    copy.write_all(&content)?;
    // Before the rename, or a power loss could leave the name on an empty file.
    copy.sync_all()?;
    fs::rename(&temporary, chunk)?;
    Ok(content.len() as u64)
}
