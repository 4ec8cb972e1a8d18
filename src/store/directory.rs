//! The data directory: who may open it, what lies where, and the file operations that must survive power loss.
//!
//! ```text
//! <data>/storage.json   the identity of this storage, its format and that of what lies in it
//! <data>/lock           held by the process that has the directory open
//! <data>/log/           the Raft log (see `log`)
//! <data>/base/          the rebuildable base of the state (see `base`)
//! <data>/snapshots/     the newest snapshot (see `snapshot`)
//! <data>/recovery.json  a new history was begun here and is not complete (see `recovery`)
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{StoreError, format};

/// The layout written, and the newest one that is opened.
pub const DIRECTORY_FORMAT: u32 = 1;
/// Only the owner enters: what rests here is sealed, but names and times are nobody else's business either.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Longest `storage.json` that is read; ours has some hundred bytes.
const IDENTITY_MAX_BYTES: u64 = 4_096;

const IDENTITY_FILE: &str = "storage.json";
const LOCK_FILE: &str = "lock";

/// What `storage.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    /// The newest [`format::VERSION`] that anything in the directory may be written in. Noted before the first of it is
    /// written, so that an older release stops here, before it has touched a file.
    #[serde(default = "first_version")]
    records: u32,
    storage: Uuid,
}

fn first_version() -> u32 {
    1
}

/// An open data directory. While it lives, no other process can open the same one.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    storage: Uuid,
    /// Unlocked when it closes, also when the process dies.
    _lock: File,
}

impl DataDir {
    /// Opens the directory at `path`, or makes it with a fresh identity if there is none.
    ///
    /// From here on the process creates files for its owner only: the libraries below us take the default mode.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a process has it open; [`StoreError::Directory`] if it is not ours;
    /// [`StoreError::Newer`] if it, or what lies in it, is of a newer format; [`StoreError::Io`].
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        create_dir(&path).map_err(|error| StoreError::io("creating the data directory", &path, error))?;
        let lock = acquire_lock(&path)?;
        let storage = match read_identity(&path)? {
            Some(storage) => storage,
            None => write_identity(&path, Uuid::new_v4())?,
        };
        Ok(Self { path, storage, _lock: lock })
    }

    /// The identity drawn when the directory was made. A wiped disk has another one.
    pub fn storage(&self) -> Uuid {
        self.storage
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the Raft log is.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the base is.
    pub fn base(&self) -> PathBuf {
        self.path.join("base")
    }

    /// Where snapshots are.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Bytes this process could still write to the file system of the directory.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file system does not say.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        free_bytes(&self.path)
    }
}

/// Whether a node has run in the directory at `path`. Changes nothing.
pub fn holds_data(path: &Path) -> bool {
    path.join(IDENTITY_FILE).exists()
}

fn acquire_lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = path.join(LOCK_FILE);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(FILE_MODE)
        .open(&lock_path)
        .map_err(|error| StoreError::io("opening", &lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(StoreError::io("locking", &lock_path, error)),
    }
}

fn read_identity(path: &Path) -> Result<Option<Uuid>, StoreError> {
    let file_path = path.join(IDENTITY_FILE);
    let file = match File::open(&file_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse_foreign(path).map(|()| None),
        Err(error) => return Err(StoreError::io("opening", &file_path, error)),
    };
    let mut text = String::new();
    file.take(IDENTITY_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| StoreError::io("reading", &file_path, error))?;
    let identity: Identity = serde_json::from_str(&text).map_err(|error| StoreError::Directory {
        path: file_path.clone(),
        reason: format!("not a storage identity: {error}"),
    })?;
    let newer =
        |what, found, supported| Err(StoreError::Newer { path: file_path.clone(), what, found, supported });
    let records = u32::from(format::VERSION);
    if identity.format > DIRECTORY_FORMAT {
        return newer("is of a data directory", identity.format, DIRECTORY_FORMAT);
    }
    if identity.records > records {
        return newer("says that the data directory holds records", identity.records, records);
    }
    if identity.records < records {
        write_identity(path, identity.storage)?;
    }
    Ok(Some(identity.storage))
}

/// A directory without identity must be new: drawing one for a directory that holds a log would let a voter come
/// back under another name, or hide that its identity was lost.
fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let entries = fs::read_dir(path).map_err(|error| StoreError::io("listing", path, error))?;
    for entry in entries {
        let name = entry.map_err(|error| StoreError::io("listing", path, error))?.file_name();
        let ours = [LOCK_FILE, &format!("{IDENTITY_FILE}.tmp"), "lost+found"];
        if !ours.iter().any(|known| name == **known) {
            let reason = format!("has no {IDENTITY_FILE} but is not empty (it holds {})", name.display());
            return Err(StoreError::Directory { path: path.to_owned(), reason });
        }
    }
    Ok(())
}

fn write_identity(path: &Path, storage: Uuid) -> Result<Uuid, StoreError> {
    let identity = Identity { format: DIRECTORY_FORMAT, records: format::VERSION.into(), storage };
    let text = serde_json::to_vec_pretty(&identity).expect("plain fields always serialise");
    let file_path = path.join(IDENTITY_FILE);
    write_durably(&file_path, &text).map_err(|error| StoreError::io("writing", &file_path, error))?;
    Ok(identity.storage)
}

/// Makes a directory, and those above it, for the owner only, durably: without the sync of the parent a power loss
/// could take the whole directory with every fsynced file in it.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        // It may have been made by a package or by hand: keep others out of it.
        return fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE));
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        if !parent.is_dir() {
            create_dir(parent)?;
        }
        DirBuilder::new().mode(DIRECTORY_MODE).create(path)?;
        return sync_dir(parent);
    }
    DirBuilder::new().mode(DIRECTORY_MODE).create(path)?;
    sync_dir(Path::new("."))
}

/// Bytes this process could still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|error| StoreError::io("asking for free space of", path, error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes creations, renames and removals in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a file for the owner only; an old one of the same name is emptied.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(true).write(true).read(true).mode(FILE_MODE).open(path)
}

/// Replaces a small file in one step: after a crash at any point it holds the old or the new content, whole.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = create_file(Path::new(&temporary))?;
    file.write_all(content)?;
    // Before the rename, or a power loss could leave the new name on an empty file.
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories from before records were noted hold the first version of them.
    #[test]
    fn an_identity_without_the_version_of_records_is_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let storage = Uuid::new_v4();
        let text = format!("{{\"format\": 1, \"storage\": \"{storage}\"}}");
        fs::write(root.path().join(IDENTITY_FILE), text).unwrap();
        assert_eq!(DataDir::open_or_create(root.path()).unwrap().storage(), storage);
    }

    #[test]
    fn a_directory_keeps_its_identity_and_a_wiped_one_gets_another() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/data");
        let first = DataDir::open_or_create(&path).unwrap().storage();
        assert_eq!(DataDir::open_or_create(&path).unwrap().storage(), first);
        fs::remove_dir_all(&path).unwrap();
        assert_ne!(DataDir::open_or_create(&path).unwrap().storage(), first);
    }

    #[test]
    fn only_the_owner_may_enter() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let _data = DataDir::open_or_create(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(IDENTITY_FILE)), 0o600);
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let _open = DataDir::open_or_create(root.path()).unwrap();
        assert!(matches!(DataDir::open_or_create(root.path()), Err(StoreError::Locked(_))));
    }

    #[test]
    fn a_newer_format_and_a_lost_identity_are_refused() {
        let root = tempfile::tempdir().unwrap();
        drop(DataDir::open_or_create(root.path()).unwrap());
        let identity = root.path().join(IDENTITY_FILE);
        let text = fs::read_to_string(&identity).unwrap();
        for (field, what) in [("format", "a data directory"), ("records", "records")] {
            let newer = text.replace(&format!("\"{field}\": 1"), &format!("\"{field}\": 2"));
            assert_ne!(newer, text);
            fs::write(&identity, newer).unwrap();
            let error = DataDir::open_or_create(root.path()).unwrap_err().to_string();
            assert!(
                error.contains(what) && error.contains("of format 2") && error.contains("up to format 1"),
                "{error}"
            );
        }

        fs::remove_file(&identity).unwrap();
        fs::create_dir(root.path().join("log")).unwrap();
        let error = DataDir::open_or_create(root.path()).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }
}
