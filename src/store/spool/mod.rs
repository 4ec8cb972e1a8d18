//! Temporary files of reports.
//!
//! A [`Spool`] is what one report may put on the disk: any number of files, and so many bytes in all. Its files have no
//! names, so that nothing of them is left after a crash, and go with the last handle. The folder they are in is emptied at
//! every start all the same, for file systems that know only files with names.
//!
//! Nothing in them is secret: what [`machines`] takes of the base, it takes without what is sealed.

mod file;
pub mod machines;
pub mod sort;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::file::{SpoolFile, SpoolReader, SpoolWriter};
use super::StoreError;
use super::directory::{create_dir, free_bytes};

/// Most bytes that one report may put on the disk, sorting included. A million machines with two volumes and a year of
/// history take about a gigabyte.
pub const SPOOL_MAX_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// Bytes of the file system that reports leave to the log and the state.
pub const SPOOL_FREE_MIN_BYTES: u64 = 512 * 1024 * 1024;
/// Bytes that one report writes between two looks at how much is free: reports that are made at once go past what is to
/// stay free by no more than that each.
const LOOK_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// How much reports may write; less in tests.
#[derive(Debug, Clone, Copy)]
pub struct SpoolLimits {
    /// See [`SPOOL_MAX_BYTES`].
    pub max_bytes: u64,
    /// See [`SPOOL_FREE_MIN_BYTES`].
    pub free_min_bytes: u64,
    /// See [`sort::SORT_MEMORY_BYTES`].
    pub sort_memory_bytes: usize,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self {
            max_bytes: SPOOL_MAX_BYTES,
            free_min_bytes: SPOOL_FREE_MIN_BYTES,
            sort_memory_bytes: sort::SORT_MEMORY_BYTES,
        }
    }
}

/// The folder `reports/`. Clones share it.
#[derive(Debug, Clone)]
pub struct Spools {
    path: Arc<Path>,
    limits: SpoolLimits,
}

impl Spools {
    /// Opens the folder, makes it if there is none, and empties it. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(path: &Path, limits: SpoolLimits) -> Result<Self, StoreError> {
        create_dir(path).map_err(|error| StoreError::io("creating", path, error))?;
        clear(path).map_err(|error| StoreError::io("clearing", path, error))?;
        Ok(Self { path: path.into(), limits })
    }

    /// Room for one report.
    pub fn begin(&self) -> Spool {
        let (path, limits) = (self.path.clone(), self.limits);
        Spool(Arc::new(Budget { path, limits, written: AtomicU64::new(0) }))
    }
}

fn clear(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry: PathBuf = entry?.path();
        if entry.is_dir() { fs::remove_dir_all(entry)? } else { fs::remove_file(entry)? }
    }
    Ok(())
}

/// What one report may put on the disk. Clones share it.
#[derive(Debug, Clone)]
pub struct Spool(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    path: Arc<Path>,
    limits: SpoolLimits,
    written: AtomicU64,
}

impl Spool {
    /// A new file. Nothing is written where little is free: the log needs it more.
    ///
    /// # Errors
    /// [`StoreError::SpoolFull`], [`StoreError::Io`].
    pub fn file(&self) -> Result<SpoolWriter, StoreError> {
        self.look_at_the_disk()?;
        let file =
            tempfile::tempfile_in(&self.0.path).map_err(|error| self.failed("creating a file in", error))?;
        Ok(SpoolWriter::new(file, self.clone()))
    }

    /// Bytes written by now, those of files that are gone included.
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    fn limits(&self) -> SpoolLimits {
        self.0.limits
    }

    /// Takes room for `bytes` more.
    fn take(&self, bytes: u64) -> Result<(), StoreError> {
        let before = self.0.written.fetch_add(bytes, Ordering::Relaxed);
        let (after, limits) = (before + bytes, self.0.limits);
        if after > limits.max_bytes {
            let most = limits.max_bytes;
            return Err(StoreError::SpoolFull(format!("more than {most} bytes, the most that one may take")));
        }
        if before / LOOK_EVERY_BYTES != after / LOOK_EVERY_BYTES {
            self.look_at_the_disk()?;
        }
        Ok(())
    }

    fn look_at_the_disk(&self) -> Result<(), StoreError> {
        let (free, least) = (free_bytes(&self.0.path)?, self.0.limits.free_min_bytes);
        if free >= least {
            return Ok(());
        }
        let (free, least) = (free >> 20, least >> 20);
        Err(StoreError::SpoolFull(format!(
            "{free} MiB of its disk are free, and {least} MiB are left to what is kept"
        )))
    }

    fn failed(&self, action: &'static str, error: io::Error) -> StoreError {
        // It may have room again, and another node has its own: not a failure of this one's storage.
        if error.kind() == io::ErrorKind::StorageFull {
            return StoreError::SpoolFull("the disk is full".to_owned());
        }
        StoreError::io(action, &self.0.path, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spools(dir: &Path, max_bytes: u64, free_min_bytes: u64) -> Spools {
        Spools::open(dir, SpoolLimits { max_bytes, free_min_bytes, ..SpoolLimits::default() }).unwrap()
    }

    #[test]
    fn what_is_written_reads_back_in_its_order_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spools(dir.path(), 1_000_000, 0).begin();
        let mut writer = spool.file().unwrap();
        for number in 0..1_000_u32 {
            writer.write(&number.to_be_bytes(), &vec![7; number as usize % 50]).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a crash leaves nothing");
        let read: Vec<_> = writer.finish().unwrap().reader().map(Result::unwrap).collect();
        assert_eq!(read.len(), 1_000);
        for (number, (key, value)) in (0..1_000_u32).zip(&read) {
            assert_eq!(key[..], number.to_be_bytes());
            assert_eq!(value.len(), number as usize % 50);
        }
    }

    #[test]
    fn the_folder_is_emptied_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("left"), "behind").unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        spools(dir.path(), 1, 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_report_past_its_bytes_fails_and_another_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let spools = spools(dir.path(), 100, 0);
        let spool = spools.begin();
        let mut writer = spool.file().unwrap();
        writer.write(&[1; 40], &[]).unwrap();
        let error = spool.file().unwrap().write(&[1; 60], &[]).unwrap_err();
        assert!(matches!(error, StoreError::SpoolFull(_)), "{error}");
        spools.begin().file().unwrap().write(&[1; 60], &[]).unwrap();
    }

    #[test]
    fn on_a_full_disk_a_report_writes_nothing_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spools(dir.path(), u64::MAX, u64::MAX).begin();
        assert!(matches!(spool.file().err(), Some(StoreError::SpoolFull(_))));
        assert_eq!(spool.written(), 0);
    }

    #[test]
    fn a_disk_that_fills_up_under_a_report_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spools(dir.path(), u64::MAX, u64::MAX).begin();
        // As if it had been opened while more was free.
        let mut writer = SpoolWriter::new(tempfile::tempfile_in(dir.path()).unwrap(), spool.clone());
        let mebibyte = vec![0; 1024 * 1024];
        let failed = (0..64).find_map(|_| writer.write(&[], &mebibyte).err());
        assert!(matches!(failed, Some(StoreError::SpoolFull(_))));
        assert!(spool.written() <= 17 * 1024 * 1024);
    }
}
