//! Why this node has put itself aside, in a file of the data directory: a node whose state is known to differ must not
//! forget that by being restarted.
//!
//! The file is there before anything else is done about it, and goes only after the state was replaced and found to
//! agree. So a crash at any step leaves a node that is still quarantined, with the old state or with the new one.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::StoreError;
use super::directory::{sync_dir, unless_gone, write_durably};

/// What gave it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// A committed entry cannot be applied to its state: a row is missing that another refers to.
    Apply,
    /// A majority of the voters has another digest at the same index.
    Differs,
    /// The rows on this disk do not add up to the digest this node kept of them.
    Scrub,
    /// The note itself cannot be read: what it said is not known, only that there was one.
    Unreadable,
}

/// How far the repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The state is the one that was found wrong, or may be.
    Waiting,
    /// The state was replaced by a peer's, and has not been found to agree yet.
    Replaced,
}

/// A node's being aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// What gave it away.
    pub cause: Cause,
    /// The index of the state that was found wrong; of the one it was replaced by, once it was.
    pub index: u64,
    /// When, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// How far the repair is.
    pub stage: Stage,
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Apply => f.write_str("an entry could not be applied to its state"),
            Cause::Differs => f.write_str("its state differs from that of the others"),
            Cause::Scrub => f.write_str("scrub: its rows do not match their digest"),
            Cause::Unreadable => f.write_str("a note of an earlier quarantine cannot be read"),
        }?;
        match self.stage {
            Stage::Waiting => write!(f, " (at index {}; to be replaced by a peer's)", self.index),
            Stage::Replaced => write!(f, " (replaced by a peer's at index {}; being compared)", self.index),
        }
    }
}

/// The note, on disk and in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct QuarantineNote(Arc<Note>);

#[derive(Debug)]
struct Note {
    current: watch::Sender<Option<Quarantine>>,
    path: PathBuf,
}

impl QuarantineNote {
    /// Reads the note at `path`, if there is one. One that cannot be understood counts: it was written for a reason.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let found = match fs::read(path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or(Quarantine {
                cause: Cause::Unreadable,
                index: 0,
                since_ms: 0,
                stage: Stage::Waiting,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::io("reading", path, error)),
        };
        if let Some(quarantine) = &found {
            tracing::error!(%quarantine, "this node was quarantined when it stopped, and still is");
        }
        Ok(Self(Arc::new(Note { current: watch::Sender::new(found), path: path.to_owned() })))
    }

    /// What it says; `None` for a node that is well.
    pub fn current(&self) -> Option<Quarantine> {
        *self.0.current.borrow()
    }

    /// Puts the node aside, or notes how far the repair is. In force when this returns, also if it fails: then it would
    /// not outlive this process.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn set(&self, quarantine: Quarantine) -> Result<(), StoreError> {
        self.0.current.send_replace(Some(quarantine));
        let path = &self.0.path;
        let text = serde_json::to_vec_pretty(&quarantine).expect("four plain fields always serialise");
        write_durably(path, &text).map_err(|error| StoreError::io("writing", path, error))
    }

    /// The node is well again.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be removed: then the node stays aside.
    pub fn lift(&self) -> Result<(), StoreError> {
        let path = &self.0.path;
        let remove = || {
            fs::remove_file(path).or_else(unless_gone)?;
            // Else a power loss brings it back: no harm, but a repair for nothing.
            path.parent().map_or(Ok(()), sync_dir)
        };
        remove().map_err(|error| StoreError::io("removing", path, error))?;
        self.0.current.send_replace(None);
        Ok(())
    }

    /// Resolves when the node is well.
    pub async fn lifted(&self) {
        let mut current = self.0.current.subscribe();
        // The sender lives as long as this handle.
        drop(current.wait_for(Option::is_none).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFFERS: Quarantine =
        Quarantine { cause: Cause::Differs, index: 2_048, since_ms: 1, stage: Stage::Waiting };

    #[test]
    fn a_quarantine_outlives_the_process_until_it_is_lifted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quarantine.json");
        let note = QuarantineNote::open(&path).unwrap();
        assert_eq!(note.current(), None);
        note.set(DIFFERS).unwrap();
        let reopened = QuarantineNote::open(&path).unwrap();
        assert_eq!(reopened.current(), Some(DIFFERS));
        reopened.lift().unwrap();
        reopened.lift().unwrap();
        assert_eq!(reopened.current(), None);
        assert_eq!(QuarantineNote::open(&path).unwrap().current(), None);
    }

    #[test]
    fn a_note_that_cannot_be_understood_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quarantine.json");
        fs::write(&path, "{").unwrap();
        let found = QuarantineNote::open(&path).unwrap().current().unwrap();
        assert_eq!((found.cause, found.stage), (Cause::Unreadable, Stage::Waiting));
    }

    #[test]
    fn a_quarantine_that_cannot_be_written_is_in_force_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let note = QuarantineNote::open(&dir.path().join("gone/quarantine.json")).unwrap();
        assert!(matches!(note.set(DIFFERS), Err(StoreError::Io { .. })));
        assert_eq!(note.current(), Some(DIFFERS));
    }
}
