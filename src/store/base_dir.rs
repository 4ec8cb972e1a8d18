//! The folder `base/`: which database is in use, and whether it can be trusted.
//!
//! sled's `flush` does not end in an fsync on Linux, so after a power loss the base may be anything. It is therefore
//! used after a crash only if either the page cache survived (same boot, same directory: the process died, not the
//! machine) or every row was read again and the digest matched. If not, it is moved aside and rebuilt.
//!
//! ```text
//! base/current      the number of the directory in use; replaced in one step
//! base/<n>/         a sled database
//! base/witness      how it was left: closed cleanly, or by which boot
//! base/damaged-<n>  the last one that was moved aside, for whoever wants to know why
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::applied::Applied;
use super::base::{Base, SEGMENT_BYTES};
use super::directory::{create_dir, free_bytes, sync_dir, unless_gone, write_durably};
use super::removal;

/// Where Linux says which boot this is.
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";
/// Read at once of what is only looked at, to see that it can be.
const BLOCK_BYTES: usize = 4096;

/// See the module.
pub(super) struct BaseDir {
    path: PathBuf,
    cache_bytes: u64,
    number: u64,
}

/// How the base was left.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Witness {
    /// Closed after its files were fsynced.
    clean: bool,
    /// The boot it was last opened in.
    boot: String,
    /// Device and inode of its directory: a copy or a restored disk image has others.
    device: u64,
    inode: u64,
}

impl BaseDir {
    /// Looks at the folder, makes it if there is none, and clears what a crash left.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        create_dir(path).map_err(|error| StoreError::io("creating", path, error))?;
        let current = path.join("current");
        let number = named(&current).map_err(|error| StoreError::io("reading", &current, error))?;
        let dir = Self { path: path.to_owned(), cache_bytes, number };
        dir.remove_leftovers().map_err(|error| StoreError::io("clearing", path, error))?;
        Ok(dir)
    }

    /// Databases that never came into use or are no longer.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_some_and(|number| number != self.number) {
                // Whoever had the folder open before may be about to remove it as well.
                fs::remove_dir_all(entry.path()).or_else(unless_gone)?;
            }
        }
        Ok(())
    }

    fn database(&self, number: u64) -> PathBuf {
        self.path.join(number.to_string())
    }

    /// The database in use, if there is one that can be trusted.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if there is one that cannot: move it aside.
    pub fn open_current(&self) -> Result<Option<(Base, Applied)>, StoreError> {
        let path = self.database(self.number);
        if self.number == 0 || !path.is_dir() {
            return Ok(None);
        }
        look_at_segments(&path)?;
        // Before sled opens its files, and may write to them: if the power is lost then, a note of a clean base would
        // vouch for whatever is left.
        let trusted = self.is_trusted(&path);
        if trusted {
            self.witness(false)?;
        } else {
            self.distrust();
        }
        let base = Base::open(&path, self.cache_bytes)?;
        let Some(applied) = base.applied()? else {
            return Err(StoreError::Damaged("the base does not say where it stands".to_owned()));
        };
        if !trusted {
            read_through(&base, &applied)?;
            self.witness(false)?;
        }
        Ok(Some((base, applied)))
    }

    /// Makes an empty database beside the one in use.
    pub fn create(&self) -> Result<(u64, Base), StoreError> {
        let number = self.number + 1;
        let path = self.database(number);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|error| StoreError::io("removing", &path, error))?;
        }
        Ok((number, Base::open(&path, self.cache_bytes)?))
    }

    /// Brings a database into use, in one step. The one before is left to [`BaseDir::remove`].
    ///
    /// # Errors
    /// [`StoreError::Io`]: the old one is still in use, and is the one to sync and to vouch for.
    pub fn switch_to(&mut self, number: u64) -> Result<(), StoreError> {
        let current = self.path.join("current");
        if let Err(error) = write_durably(&current, format!("{number}\n").as_bytes()) {
            // It may have failed after the step that counts.
            if named(&current).ok() != Some(number) {
                return Err(StoreError::io("writing", &current, error));
            }
            tracing::warn!(%error, "a power loss may bring the base before this one back");
        }
        self.number = number;
        if let Err(error) = self.witness(false) {
            tracing::warn!(%error, "the base will be read through at the next start");
            self.distrust();
        }
        Ok(())
    }

    /// Bytes that could still be written beside the databases.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        free_bytes(&self.path)
    }

    /// The number of the database in use.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Closes a database that was in use, and removes it, on a thread of its own: sled syncs even what is about to go. What
    /// is left of it goes at the next start.
    pub fn discard(&self, number: u64, base: Base) {
        let path = self.database(number);
        removal::in_background(move || {
            drop(base);
            if let Err(error) = removal::remove_dir(&path) {
                tracing::warn!(%error, path = %path.display(), "what is left of a base goes at the next start");
            }
        });
    }

    /// Removes a database that is not in use.
    pub fn remove(&self, number: u64) -> Result<(), StoreError> {
        let path = self.database(number);
        fs::remove_dir_all(&path)
            .or_else(unless_gone)
            .map_err(|error| StoreError::io("removing", &path, error))
    }

    /// Moves the database in use out of the way; of earlier ones that were, none is kept.
    pub fn set_aside(&self) -> Result<(), StoreError> {
        let path = self.database(self.number);
        self.try_set_aside(&path).map_err(|error| StoreError::io("setting aside", &path, error))
    }

    fn try_set_aside(&self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("damaged-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        if path.is_dir() {
            fs::rename(path, self.path.join(format!("damaged-{}", self.number)))?;
        }
        sync_dir(&self.path)
    }

    /// Notes that the database is in use, or that it was closed cleanly (after [`BaseDir::sync_files`]).
    pub fn witness(&self, clean: bool) -> Result<(), StoreError> {
        let path = self.witness_path();
        let write = || {
            let metadata = fs::metadata(self.database(self.number))?;
            let witness = Witness { clean, boot: boot_id(), device: metadata.dev(), inode: metadata.ino() };
            write_durably(&path, &serde_json::to_vec(&witness)?)
        };
        write().map_err(|error| StoreError::io("writing", &path, error))
    }

    /// Where the note lies that [`BaseDir::witness`] writes.
    pub fn witness_path(&self) -> PathBuf {
        self.path.join("witness")
    }

    /// Forgets how the database was left, so that it is read through before it is used again.
    pub fn distrust(&self) {
        distrust(&self.witness_path());
    }

    /// Syncs every file of the database that is in use: sled does not.
    pub fn sync_files(&self) -> Result<(), StoreError> {
        let path = self.database(self.number);
        sync_tree(&path).map_err(|error| StoreError::io("syncing", &path, error))
    }

    /// Whether it was closed cleanly, or only the process died and not the machine.
    fn is_trusted(&self, database: &Path) -> bool {
        let read = || -> Option<(Witness, fs::Metadata)> {
            let witness = serde_json::from_slice(&fs::read(self.witness_path()).ok()?).ok()?;
            Some((witness, fs::metadata(database).ok()?))
        };
        read().is_some_and(|(witness, metadata)| {
            let same_place = (witness.device, witness.inode) == (metadata.dev(), metadata.ino());
            let same_boot = !witness.boot.is_empty() && witness.boot == boot_id();
            same_place && (witness.clean || same_boot)
        })
    }
}

/// Compares all rows with the digest.
fn read_through(base: &Base, applied: &Applied) -> Result<(), StoreError> {
    let counted = base.read_apart(Base::recount)?;
    if applied.describes(&counted) {
        return Ok(());
    }
    Err(StoreError::Damaged("the rows of the base do not match its digest".to_owned()))
}

/// See [`BaseDir::distrust`].
pub(super) fn distrust(witness: &Path) {
    // If even this fails the disk is gone, and with it what could be trusted wrongly.
    let _ = fs::remove_file(witness);
}

/// The number of the database that is in use, by the file that names it; 0 if it names none.
fn named(current: &Path) -> io::Result<u64> {
    match fs::read_to_string(current) {
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Reads what sled must be able to read of the database at `path` when it opens it: the beginning of each segment, and the
/// snapshot of its table of pages. A segment whose beginning it cannot read it passes over as if it had never been
/// written, and rows would be missing, or old. The rest of the segments is not looked at: where sled cannot read on, it takes
/// an earlier state, and the log is applied from there.
fn look_at_segments(path: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(path).map_err(|error| StoreError::io("reading", path, error))? {
        let path = entry.map_err(|error| StoreError::io("reading", path, error))?.path();
        if path.is_dir() {
            continue;
        }
        let step =
            if path.file_name().is_some_and(|name| name == "db") { SEGMENT_BYTES } else { BLOCK_BYTES };
        let look = || {
            let (file, mut block) = (fs::File::open(&path)?, vec![0; BLOCK_BYTES]);
            let length = file.metadata()?.len();
            // Short at the end.
            (0..length).step_by(step).try_for_each(|offset| file.read_at(&mut block, offset).map(drop))
        };
        look().map_err(|error: io::Error| StoreError::io("reading", &path, error))?;
    }
    Ok(())
}

fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(path)
}

/// Which boot this is; empty where the system does not say, and then nothing is taken for granted.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID_PATH).map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::overlay::Changes;

    #[test]
    fn a_switch_whose_note_cannot_be_written_counts_and_vouches_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut dir = filled(root.path());
        fs::remove_file(dir.witness_path()).unwrap();
        fs::create_dir(dir.witness_path()).unwrap();
        let (number, base) = dir.create().unwrap();
        base.write(&Changes::new(), &Applied::default()).unwrap();
        dir.switch_to(number).unwrap();
        assert_eq!(dir.number(), number);
        drop(base);
        let dir = BaseDir::open(root.path(), 1024 * 1024).unwrap();
        assert_eq!(dir.number(), number);
        assert!(!dir.is_trusted(&dir.database(number)));
    }

    fn filled(path: &Path) -> BaseDir {
        let mut dir = BaseDir::open(path, 1024 * 1024).unwrap();
        let (number, base) = dir.create().unwrap();
        let mut applied = Applied::default();
        applied.change(b"\x01key", None, Some(b"value"));
        base.write(&Changes::from([("\x01key".into(), Some("value".into()))]), &applied).unwrap();
        base.flush().unwrap();
        dir.switch_to(number).unwrap();
        dir
    }

    #[test]
    fn a_clean_base_counts_as_in_use_from_its_next_opening_on() {
        let root = tempfile::tempdir().unwrap();
        let dir = filled(root.path());
        dir.witness(true).unwrap();
        let _base = dir.open_current().unwrap().unwrap();
        let witness: Witness = serde_json::from_slice(&fs::read(dir.witness_path()).unwrap()).unwrap();
        assert!(!witness.clean);
    }

    #[test]
    fn a_copy_of_a_clean_base_is_read_through() {
        let root = tempfile::tempdir().unwrap();
        let dir = filled(root.path());
        let (base, applied) = dir.open_current().unwrap().unwrap();
        let foreign = Changes::from([("\x01more".into(), Some("value".into()))]);
        base.write(&foreign, &applied).unwrap();
        base.flush().unwrap();
        drop(base);
        dir.witness(true).unwrap();
        // As a restored backup does, it has another inode under the same name.
        let (path, copy) = (dir.database(dir.number()), root.path().join("copy"));
        fs::create_dir(&copy).unwrap();
        for name in ["conf", "db"] {
            fs::copy(path.join(name), copy.join(name)).unwrap();
        }
        fs::rename(&path, root.path().join("old")).unwrap();
        fs::rename(&copy, &path).unwrap();
        assert!(matches!(dir.open_current().err(), Some(StoreError::Damaged(_))));
        assert!(!dir.witness_path().exists());
    }

    #[test]
    fn a_switch_that_fails_leaves_the_old_base_in_use() {
        let root = tempfile::tempdir().unwrap();
        let mut dir = filled(root.path());
        let before = dir.number();
        let (number, _base) = dir.create().unwrap();
        fs::remove_file(root.path().join("current")).unwrap();
        fs::create_dir(root.path().join("current")).unwrap();
        assert!(matches!(dir.switch_to(number), Err(StoreError::Io { .. })));
        assert_eq!(dir.number(), before);
    }
}
