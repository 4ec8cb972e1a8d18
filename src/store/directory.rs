//! The data directory: who may open it, what lies where, and the file operations that must survive power loss.
//!
//! ```text
//! <data>/storage.json   the identity of this storage, its format and that of what lies in it
//! <data>/owner.json     the node and the cluster it is for
//! <data>/lock           held by the process that has the directory open
//! <data>/removed        there once the node knows that it was removed from its cluster, and says so
//! <data>/log/           the Raft log (see `log`)
//! <data>/base/          the rebuildable base of the state (see `base`)
//! <data>/snapshots/     the newest snapshot (see `snapshot`)
//! <data>/journal/       reveals that were decided without a quorum (see `journal`)
//! <data>/reports/       temporary files of reports that are being made (see `spool`); empty at every start
//! <data>/members.json   who the members are, for a node that lost its state
//! <data>/quarantine.json  why the node has put itself aside, if it has (see `quarantine`)
//! <data>/recovery.json  a new history was begun here and is not complete (see `recovery`)
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{StoreError, format};
use crate::escrow::ids::{ClusterName, NodeId};
use crate::mutation::Mutation;

/// The layout written, and the newest one that is opened.
///
/// It was raised when rows and records of the log became others before the first release, which no format within told of. From the first release
/// on, layouts are pinned (see [`mod@format`]).
pub const DIRECTORY_FORMAT: u32 = 3;
/// The oldest layout that is opened. What builds before the first release wrote is not kept readable: one of its rows could
/// be taken for something else, or stop the node at some later entry, and every other node with it.
const DIRECTORY_FORMAT_OLDEST: u32 = 3;
/// Only the owner enters: what rests here is sealed, but names and times are nobody else's business either.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Longest `storage.json` that is read; ours has some hundred bytes.
const IDENTITY_MAX_BYTES: u64 = 4_096;

const IDENTITY_FILE: &str = "storage.json";
const LOCK_FILE: &str = "lock";
const OWNER_FILE: &str = "owner.json";
const LOG_DIRECTORY: &str = "log";
const REMOVED_FILE: &str = "removed";

/// What `storage.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    /// The newest [`format::VERSION`] that anything in the directory may be written in. Noted before the first of it is
    /// written, so that an older release stops here, before it has touched a file. The first builds did not note it.
    #[serde(default = "first_version")]
    records: u32,
    storage: Uuid,
}

fn first_version() -> u32 {
    1
}

/// Whose storage a directory is: its disk may be mounted at another node by mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name of its cluster.
    pub cluster: ClusterName,
    /// Its id there.
    pub node: NodeId,
}

/// What a data directory is, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The identity of its storage; `None` if it is new.
    pub storage: Option<Uuid>,
    /// Whose it is, if it says so.
    pub owner: Option<Owner>,
    /// Whether there is a log in it: its node has run.
    pub has_log: bool,
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
    /// [`StoreError::Newer`] if it, or what lies in it, is of a newer format; [`StoreError::Unreleased`] if a build before
    /// the first release wrote it; [`StoreError::Io`].
    pub fn open_or_create(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        create_dir(&path).map_err(|error| StoreError::io("creating the data directory", &path, error))?;
        let lock = acquire_lock(&path)?;
        let storage = match read_identity(&path)? {
            // Before anything of the newer format is written.
            Some(Identity { storage, records, .. }) if records < u32::from(format::VERSION) => {
                write_identity(&path, storage)?
            }
            Some(identity) => identity.storage,
            None => write_identity(&path, Uuid::new_v4())?,
        };
        Ok(Self { path, storage, _lock: lock })
    }

    /// Looks at the directory at `path` without opening or changing anything; `None` if there is none.
    ///
    /// # Errors
    /// As [`DataDir::open_or_create`], but for the lock, which is not looked at.
    pub fn inspect(path: &Path) -> Result<Option<Inspection>, StoreError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("looking at", path, error)),
            Ok(metadata) if !metadata.is_dir() => {
                let error = io::Error::from(io::ErrorKind::NotADirectory);
                return Err(StoreError::io("looking at", path, error));
            }
            Ok(_) => {}
        }
        let storage = read_identity(path)?.map(|identity| identity.storage);
        let owner = read_owner(path)?;
        let has_log = path.join(LOG_DIRECTORY).is_dir();
        Ok(Some(Inspection { storage, owner, has_log }))
    }

    /// Writes down whose directory this is, once; from then on it is nobody else's.
    ///
    /// # Errors
    /// [`StoreError::Directory`] if it is another's; [`StoreError::Io`].
    pub fn claim(&self, owner: &Owner) -> Result<(), StoreError> {
        if let Some(found) = read_owner(&self.path)? {
            return found.check(owner, &self.path);
        }
        let text = serde_json::to_vec_pretty(owner).expect("two plain fields always serialise");
        let path = self.path.join(OWNER_FILE);
        write_durably(&path, &text).map_err(|error| StoreError::io("writing", &path, error))
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
        self.path.join(LOG_DIRECTORY)
    }

    /// Where the base is.
    pub fn base(&self) -> PathBuf {
        self.path.join("base")
    }

    /// Where snapshots are.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Where the journal of reveals is.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Where the temporary files of reports are.
    pub fn reports(&self) -> PathBuf {
        self.path.join("reports")
    }

    /// Where it says who the members are.
    pub fn members(&self) -> PathBuf {
        self.path.join("members.json")
    }

    /// Replaces a small file of the directory by `content`, in one step.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_file<T: Serialize>(path: &Path, content: &T) -> Result<(), StoreError> {
        let io = |error| StoreError::io("writing", path, error);
        write_durably(path, &serde_json::to_vec_pretty(content).map_err(|error| io(error.into()))?)
            .map_err(io)
    }

    /// The content of a small file of the directory, if it is there.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Directory`] if it is not what [`DataDir::write_file`] wrote.
    pub fn read_file<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("reading", path, error)),
        };
        let content = serde_json::from_slice(&bytes);
        content.map(Some).map_err(|error| StoreError::Directory {
            path: path.to_owned(),
            reason: format!("cannot be understood: {error}"),
        })
    }

    /// Where it says why the node has put itself aside.
    pub fn quarantine(&self) -> PathBuf {
        self.path.join("quarantine.json")
    }

    /// Where it is noted that the node was removed from its cluster.
    pub fn removal_mark(&self) -> RemovalMark {
        RemovalMark { path: self.path.join(REMOVED_FILE) }
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

/// The note that the node of a data directory was removed from its cluster, in a sentence for people.
#[derive(Debug, Clone)]
pub struct RemovalMark {
    path: PathBuf,
}

impl RemovalMark {
    /// What it says; `None` if the node was not removed, as far as is known here.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn read(&self) -> Result<Option<String>, StoreError> {
        match fs::read(&self.path) {
            Ok(why) => Ok(Some(String::from_utf8_lossy(&why).trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("reading", &self.path, error)),
        }
    }

    /// Notes it, durably: a removed node that restarts where it reaches nobody must still know.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write(&self, why: &str) -> Result<(), StoreError> {
        write_durably(&self.path, why.as_bytes())
            .map_err(|error| StoreError::io("writing", &self.path, error))
    }
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

impl Owner {
    /// Whether this, which the directory at `path` says of itself, is `wanted`.
    ///
    /// # Errors
    /// [`StoreError::Directory`] if it is not: under another node's id its log would vote a second time.
    pub fn check(&self, wanted: &Self, path: &Path) -> Result<(), StoreError> {
        if self == wanted {
            return Ok(());
        }
        let reason = format!(
            "belongs to node {} of cluster {}, but this is node {} of cluster {}: is the wrong disk mounted, or \
             node_id or cluster wrong?",
            self.node, self.cluster, wanted.node, wanted.cluster
        );
        Err(StoreError::Directory { path: path.to_owned(), reason })
    }
}

/// The content of a small file of ours; `None` if there is none.
fn read_small<T: serde::de::DeserializeOwned>(path: &Path, what: &str) -> Result<Option<T>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("opening", path, error)),
    };
    let mut text = String::new();
    file.take(IDENTITY_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| StoreError::io("reading", path, error))?;
    serde_json::from_str(&text).map(Some).map_err(|error| StoreError::Directory {
        path: path.to_owned(),
        reason: format!("not {what}: {error}"),
    })
}

fn read_owner(path: &Path) -> Result<Option<Owner>, StoreError> {
    read_small(&path.join(OWNER_FILE), "the name of an owner")
}

/// What the directory at `path` says of itself, if this release may open it; `None` if it is new. Changes nothing.
fn read_identity(path: &Path) -> Result<Option<Identity>, StoreError> {
    let file_path = path.join(IDENTITY_FILE);
    let Some(identity) = read_small::<Identity>(&file_path, "a storage identity")? else {
        return refuse_foreign(path).map(|()| None);
    };
    let newer =
        |what, found, supported| Err(StoreError::Newer { path: file_path.clone(), what, found, supported });
    let records = u32::from(format::VERSION);
    if identity.format > DIRECTORY_FORMAT {
        return newer("is of a data directory", identity.format, DIRECTORY_FORMAT);
    }
    if identity.format < DIRECTORY_FORMAT_OLDEST {
        let (found, oldest) = (identity.format, DIRECTORY_FORMAT_OLDEST);
        return Err(StoreError::Unreleased { path: path.to_owned(), found, oldest });
    }
    if identity.records > records {
        return newer("says that the data directory holds records", identity.records, records);
    }
    Ok(Some(identity))
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

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this process could still write.
    pub free: u64,
    /// What it holds in all, used or not.
    pub size: u64,
}

impl Space {
    /// Of the file system of `path`.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it does not say.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| StoreError::io("asking for free space of", path, error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { free: bytes(stat.f_bavail), size: bytes(stat.f_blocks) })
    }
}

/// Bytes this process could still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    Space::of(path).map(|space| space.free)
}

/// Makes creations, renames and removals in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a file for the owner only; an old one of the same name is emptied.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(true).write(true).read(true).mode(FILE_MODE).open(path)
}

/// That something is not there is no reason not to have removed it.
pub(super) fn unless_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Replaces a small file in one step: after a crash at any point it holds the old or the new content, whole.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = create_file(Path::new(&temporary))?;
    file.write_all(content)?;
    if Mutation::ReplaceUnsynced.is_active() {
        return fs::rename(&temporary, path);
    }
    // Before the rename, or a power loss could leave the new name on an empty file.
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first of them did not note the version of records.
    #[test]
    fn a_directory_of_a_build_before_the_first_release_is_refused_and_left_as_it_is() {
        let storage = Uuid::new_v4();
        for records in ["", "\"records\": 1, "] {
            let root = tempfile::tempdir().unwrap();
            let text = format!("{{\"format\": 1, {records}\"storage\": \"{storage}\"}}");
            let identity = root.path().join(IDENTITY_FILE);
            fs::write(&identity, &text).unwrap();
            for refused in
                [DataDir::open_or_create(root.path()).map(|_| ()), DataDir::inspect(root.path()).map(|_| ())]
            {
                let error = refused.unwrap_err().to_string();
                for part in ["of format 1", "before the first release", "an empty data directory"] {
                    assert!(error.contains(part), "{error:?} does not say {part:?}");
                }
            }
            assert_eq!(fs::read_to_string(&identity).unwrap(), text);
        }
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
    fn a_directory_belongs_to_one_node_of_one_cluster_for_good() {
        let root = tempfile::tempdir().unwrap();
        let owner = |cluster: &str, node| Owner { cluster: cluster.parse().unwrap(), node };
        let data = DataDir::open_or_create(root.path()).unwrap();
        data.claim(&owner("acme", 1)).unwrap();
        data.claim(&owner("acme", 1)).unwrap();
        for another in [owner("acme", 2), owner("other", 1)] {
            let error = data.claim(&another).unwrap_err().to_string();
            assert!(error.contains("belongs to node 1 of cluster acme"), "{error}");
        }
        let seen = DataDir::inspect(root.path()).unwrap().unwrap();
        let expected =
            Inspection { storage: Some(data.storage()), owner: Some(owner("acme", 1)), has_log: false };
        assert_eq!(seen, expected);
    }

    #[test]
    fn looking_at_a_directory_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        assert_eq!(DataDir::inspect(&path).unwrap(), None);
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        let new = Inspection { storage: None, owner: None, has_log: false };
        assert_eq!(DataDir::inspect(&path).unwrap(), Some(new));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::write(path.join("notes.txt"), "").unwrap();
        assert!(DataDir::inspect(&path).unwrap_err().to_string().contains("not empty"));
        assert!(DataDir::inspect(&path.join("notes.txt")).is_err());
    }

    #[test]
    fn a_removal_is_remembered_in_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let mark = DataDir::open_or_create(root.path()).unwrap().removal_mark();
        assert_eq!(mark.read().unwrap(), None);
        mark.write("node 4 was removed").unwrap();
        let again = DataDir::open_or_create(root.path()).unwrap().removal_mark();
        assert_eq!(again.read().unwrap().as_deref(), Some("node 4 was removed"));
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
        let records = format::VERSION.into();
        for (field, what, ours) in
            [("format", "a data directory", DIRECTORY_FORMAT), ("records", "records", records)]
        {
            let newer = text.replace(&format!("\"{field}\": {ours}"), &format!("\"{field}\": {}", ours + 1));
            assert_ne!(newer, text);
            fs::write(&identity, newer).unwrap();
            let error = DataDir::open_or_create(root.path()).unwrap_err().to_string();
            let formats = [format!("of format {}", ours + 1), format!("up to format {ours}")];
            assert!(error.contains(what) && formats.iter().all(|part| error.contains(part)), "{error}");
        }

        fs::remove_file(&identity).unwrap();
        fs::create_dir(root.path().join("log")).unwrap();
        let error = DataDir::open_or_create(root.path()).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
    }
}
