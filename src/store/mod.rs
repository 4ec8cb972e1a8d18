//! What rests on disk: the only room that names sled and raft-log.
//!
//! # How a write comes to rest
//!
//! 1. [`log`]: the entry is appended to the Raft log and fsynced, many entries to one fsync. The log is the truth. An
//!    acknowledgement rests on the logs of a majority and on nothing else.
//! 2. [`machine`]: once committed, the entry is applied. Its rows, where the state stands and the digest take effect
//!    together, in memory: in the *overlay*.
//! 3. Behind that, the *keeper* thread brings whole runs of entries from the overlay to the *base*, which is sled: each
//!    run in one batch, with where the state stands in the same batch. The base is never fsynced for an
//!    acknowledgement; it is a cache of what snapshot and log say, so that a restart need not replay everything.
//! 4. [`snapshot`]: now and then ([`policy`]) the keeper makes a pass over the base, as it is at one index, and writes it
//!    to a file, fsynced; between the slices of the pass it drains on. Only on that file rests the purging of the log.
//!
//! # How a read goes
//!
//! A [`view::View`] holds the overlay as it was at one index (a persistent map: sharing it costs a pointer) over the
//! base. The base may not run ahead of it: a run of entries is drained only when no view from before its end is left.
//! So views are for requests. A report drains the overlay to an index and takes what it needs of the base as it is then in
//! one pass ([`export`]) into temporary files ([`spool`]); whoever reads it, however slowly, reads those.
//!
//! The only row of a table stays in the overlay: nearly every entry and request asks for one, and has it without the disk.
//!
//! # What a crash can leave, and what is made of it
//!
//! | what happened | what is done when the node opens |
//! |---|---|
//! | killed | the base stands at some earlier entry: the log is applied from there |
//! | power lost | the base may be anything: it is read through; a wrong digest moves it aside, see below |
//! | base damaged, or of an earlier snapshot, or ahead of the log | moved aside; rebuilt from the newest snapshot; the log from there |
//! | log, base or snapshot cannot be read just now | an error that names the file; nothing is moved aside or begun anew |
//! | the base could not be synced when it was closed | read through, as after a power loss |
//! | no snapshot, log purged | [`StoreError::Unrecoverable`]: the raft room fetches a snapshot from the peers first |
//! | rows changed on the disk while it is in use | a scrub finds it; the raft room replaces the state by a peer's |
//! | killed while the state was replaced | the old base is in use, or the new one; [`quarantine`] says that it is not over |
//! | while a snapshot was written or received | the temporary file is removed |
//! | killed while the base was written anew | the old one is in use, or the new one; the other is removed |
//! | while a report was made | its temporary files have no names, so nothing is left; whoever waits asks again |
//! | while one was installed | either the old state, or the new snapshot is there and the base is rebuilt from it |
//! | the log's last record is torn | it was never acknowledged: cut off |
//! | anything is of a newer format | [`StoreError::Newer`]: nothing is touched; the newer release has to come back |
//! | a build before the first release wrote the directory | [`StoreError::Unreleased`]: nothing is touched; the node is set up anew |
//! | the log is damaged elsewhere | [`StoreError::Log`]: such a node may have forgotten what it acknowledged; replace it |
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`directory`] | the data directory, its identity and lock; durable file operations |
//! | [`mod@format`] | bytes with a version; the only file that names bincode |
//! | [`log`] | the Raft log, over raft-log |
//! | [`machine`] | the state: apply, view, snapshot, install |
//! | `shared`, `overlay`, `base`, `base_dir`, `keeper`, [`pass`], `scrub` | its parts |
//! | `removal` | removing large files a little at a time |
//! | [`compaction`] | writing the base anew when its files have grown far beyond its rows |
//! | [`block`] | how the rows of the base are packed into sled's values |
//! | [`view`] | reading at one index, and the transaction of one entry |
//! | [`applied`], [`digest`] | where the state stands, and its sum |
//! | [`snapshot`] | snapshot files: write, read, receive |
//! | [`export`] | whole tables of the state at one index, handed out in one pass |
//! | [`spool`] | temporary files of reports, sorting in them, and what is known of each machine from them |
//! | [`policy`] | when to take one |
//! | [`quarantine`] | that this node has put itself aside, durably |
//! | [`journal`] | reveals that were decided without a quorum, until they are on record |
//! | [`recovery`] | the note of a new history that was begun on this node's data |

pub mod applied;
mod base;
mod base_dir;
pub mod block;
pub mod compaction;
pub mod digest;
pub mod directory;
pub mod export;
pub mod format;
pub mod journal;
mod keeper;
pub mod log;
pub mod machine;
mod overlay;
pub mod pass;
pub mod policy;
pub mod quarantine;
pub mod recovery;
mod removal;
mod scrub;
mod shared;
pub mod snapshot;
pub mod spool;
pub mod view;

use std::io;
use std::path::{Path, PathBuf};

use crate::escrow::state::StateError;

/// A failure of this node's storage. None is a caller's fault; each is the disk's, or ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// sled failed. The base is rebuilt when the node is opened again, if need be.
    #[error("base: {0}")]
    Base(#[from] sled::Error),
    /// So much is written that a longer look at the base would hold it up.
    #[error(
        "so much is written here just now that a report would hold it up; try again, or use another node"
    )]
    Crowded,
    /// A reader held on to an old state for too long.
    #[error("a reader holds on to an old state; the base cannot be written")]
    Busy,
    /// Whoever asked for it has gone away.
    #[error("nobody waits for it any more")]
    Abandoned,
    /// It was closed.
    #[error("the state is closed")]
    Closed,
    /// The base is not what was written to it. It is rebuilt when the node is opened again.
    #[error("base: {0}")]
    Damaged(String),
    /// The data directory is not one this release may open.
    #[error("data directory {}: {reason}", path.display())]
    Directory {
        /// Which path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A committed entry cannot be applied by this release.
    #[error("entry {index}: {reason}")]
    Entry {
        /// Its index.
        index: u64,
        /// Why.
        reason: String,
    },
    /// The file system failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// There is not enough room on the disk for what can wait.
    #[error("it takes {needed} bytes of free disk, and there are {free}")]
    NoRoom {
        /// How much it takes.
        needed: u64,
        /// How much there is.
        free: u64,
    },
    /// The temporary files of a report would take more of the disk than they may.
    #[error("the temporary files of a report: {0}")]
    SpoolFull(String),
    /// Another process has the data directory open.
    #[error("data directory {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The Raft log cannot be opened or written.
    #[error("raft log: {0}")]
    Log(#[source] io::Error),
    /// A snapshot file is damaged or not what was announced.
    #[error("snapshot {}: {reason}", path.display())]
    Snapshot {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Something on the disk was written by a newer release. It is left as it is.
    #[error(
        "{} {what} of format {found}, and this release opens up to format {supported}: it was written by a newer \
         release, which has to be installed again; nothing was changed",
        path.display()
    )]
    Newer {
        /// Which file or directory.
        path: PathBuf,
        /// What of it: "is", or "holds entries".
        what: &'static str,
        /// Its format.
        found: u32,
        /// The newest format that this release reads.
        supported: u32,
    },
    /// A row could not be read while an entry was applied.
    #[error(transparent)]
    State(#[from] StateError),
    /// It failed earlier, and applies nothing since.
    #[error("stopped after an earlier failure: {0}")]
    Stopped(String),
    /// The data directory was written by a build before the first release. It is left as it is.
    #[error(
        "data directory {} is of format {found}, and this release opens format {oldest} and newer: it was written by a \
         build before the first release, and such data is not kept readable; set the node up anew with an empty data \
         directory, as one that replaces this one, and it is filled from the others; nothing was changed",
        path.display()
    )]
    Unreleased {
        /// Which directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The oldest format that is opened.
        oldest: u32,
    },
    /// Neither base nor snapshot reaches up to where the log begins.
    #[error(
        "the state cannot be rebuilt: the log was purged up to index {}, the newest snapshot stands at {}; \
         remove this node from the cluster and add it again with an empty data directory",
        index_text(purged),
        index_text(snapshot)
    )]
    Unrecoverable {
        /// Up to where the log was purged.
        purged: Option<u64>,
        /// Where the newest snapshot stands.
        snapshot: Option<u64>,
    },
}

fn index_text(index: &Option<u64>) -> String {
    index.map_or_else(|| "none".to_owned(), |index| index.to_string())
}

/// Whether an error of a file is the disk's, or its file system's, as opposed to one of what is on it or who may use it.
pub fn is_of_the_disk(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // The standard library has no names for them. That a file system cannot be written is not among them: a unit may have
    // made it so.
    [Errno::IO, Errno::UCLEAN, Errno::BADMSG].iter().any(|of| error.raw_os_error() == Some(of.raw_os_error()))
}

impl StoreError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Of bytes by [`format`](self::format) that a newer release wrote.
    fn newer(path: &Path, what: &'static str, found: u8) -> Self {
        Self::Newer { path: path.to_owned(), what, found: found.into(), supported: format::VERSION.into() }
    }

    /// Whether the disk failed, as opposed to what is on it or who may use it: that may pass.
    pub fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_of_the_disk(source))
    }

    /// Whether the base cannot be relied on any more.
    fn is_of_the_base(&self) -> bool {
        matches!(self, Self::Base(_) | Self::Damaged(_))
    }

    /// Whether the files of the base, or a snapshot, are not what was written to them, as opposed to being out of reach for now.
    fn is_damage(&self) -> bool {
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match self {
            Self::Base(sled::Error::Io(error)) => {
                matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
            }
            Self::Io { source, .. } => matches!(source.kind(), InvalidData | UnexpectedEof),
            Self::Base(_) | Self::Damaged(_) | Self::Snapshot { .. } => true,
            _ => false,
        }
    }

    /// An error of a base that is being filled from the snapshot at `path`: it says nothing of the one in use.
    fn of_a_fresh_base(self, path: &Path) -> Self {
        match self {
            Self::Base(sled::Error::Io(error)) => Self::io("loading", path, error),
            Self::Base(_) | Self::Damaged(_) => {
                Self::Snapshot { path: path.to_owned(), reason: format!("it cannot be loaded: {self}") }
            }
            other => other,
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Log(error) => error,
            StoreError::Io { ref source, .. } => Self::new(source.kind(), error),
            error => Self::other(error),
        }
    }
}
