//! What rests on disk.

pub mod directory;
pub mod format;
pub mod log;

use std::io;
use std::path::{Path, PathBuf};

/// A failure of this node's storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The data directory is not one this release may open.
    #[error("data directory {}: {reason}", path.display())]
    Directory {
        /// Which path.
        path: PathBuf,
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
    /// Another process has the data directory open.
    #[error("data directory {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The Raft log cannot be opened or written.
    #[error("raft log: {0}")]
    Log(#[source] io::Error),
}

impl StoreError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
