//! The base: all rows up to some entry, in sled. It is a cache of what snapshot and log say, and is treated as one.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sled::{Batch, Db};

use super::StoreError;
use super::applied::Applied;
use super::directory::create_dir;
use super::format::{self, FormatError};
use super::overlay::Changes;

/// Where [`Applied`] rests: table number 0, which no table of rows has.
const APPLIED_KEY: &[u8] = &[0];
/// The first key of a row.
pub(super) const FIRST_ROW_KEY: &[u8] = &[1];
/// sled's threads hold its lock for a moment after it was dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// One sled database. Clones share it.
#[derive(Clone)]
pub(super) struct Base {
    db: Db,
    path: Arc<Path>,
}

impl Base {
    /// Opens the database at `path`, or makes an empty one. Blocks.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        create_dir(path).map_err(|error| StoreError::io("creating", path, error))?;
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            // The keeper flushes when it has nothing better to do.
            .flush_every_ms(None);
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            // On damaged files sled may panic instead of returning an error; on a thread of its own that is one too.
            let config = config.clone();
            let opened = std::thread::spawn(move || config.open()).join();
            match opened {
                Ok(Ok(db)) => return Ok(Self { db, path: path.into() }),
                Ok(Err(error)) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(StoreError::Damaged("sled panicked while opening the base".to_owned())),
            }
        }
    }

    /// Where the rows in it stand.
    pub fn applied(&self) -> Result<Option<Applied>, StoreError> {
        let Some(bytes) = self.db.get(APPLIED_KEY)? else { return Ok(None) };
        let applied = format::decode(&bytes).map_err(|error| match error {
            // Not damage: it is for the release that wrote it.
            FormatError::Newer { found } => StoreError::newer(&self.path, "holds rows", found),
            error => StoreError::Damaged(format!("what the base says of itself: {error}")),
        })?;
        Ok(Some(applied))
    }

    /// The value under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.db.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The rows whose keys are in `range`, in their order.
    pub fn range<R>(&self, range: R) -> impl Iterator<Item = Result<(Bytes, Bytes), StoreError>> + use<R>
    where
        R: std::ops::RangeBounds<Vec<u8>>,
    {
        self.db.range(range).map(|row| {
            let (key, value) = row?;
            Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
        })
    }

    /// All rows, in the order of keys.
    pub fn rows(&self) -> impl Iterator<Item = Result<(Bytes, Bytes), StoreError>> + use<> {
        self.range(FIRST_ROW_KEY.to_vec()..)
    }

    /// Writes changed rows and where the state stands with them, together or not at all.
    pub fn write(&self, changes: &Changes, upto: &Applied) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (key, change) in changes {
            match change {
                Some(value) => batch.insert(&key[..], &value[..]),
                None => batch.remove(&key[..]),
            }
        }
        batch.insert(APPLIED_KEY, format::encode(upto));
        Ok(self.db.apply_batch(batch)?)
    }

    /// Hands everything written to the operating system: it survives this process, not a power loss.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    /// Bytes it takes on disk.
    pub fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.db.size_on_disk()?)
    }

    /// Reads every row and sums them up.
    pub fn recount(&self) -> Result<Applied, StoreError> {
        let mut counted = Applied::default();
        for row in self.rows() {
            let (key, value) = row?;
            counted.change(&key, None, Some(&value));
        }
        Ok(counted)
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock"))
}
