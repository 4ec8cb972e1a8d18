//! The note of a recovery of the cluster that was begun on this data and is not complete.
//!
//! A recovery makes two steps that cannot be one: the log gets a membership of this node alone, and then the command
//! that begins the new history. Between the two the data says that this node is a quorum of the *old* cluster, which
//! it must never act as. So the note is on the disk before the first step and goes after the last: while it is there,
//! the node does not serve, and whoever continues uses the same new identity.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::directory::{DataDir, sync_dir, unless_gone, write_durably};
use crate::escrow::ids::{ClusterId, NodeId};
use crate::escrow::records::LogPosition;

const NOTE_FILE: &str = "recovery.json";

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryNote {
    /// The identity of the history that ends.
    pub previous: ClusterId,
    /// The identity of the new one.
    pub cluster: ClusterId,
    /// Where in the log the membership of this node alone stands, or will: if the log does not hold it, nothing was
    /// begun.
    pub position: LogPosition,
    /// The members that are left behind.
    pub lost: Vec<NodeId>,
}

impl DataDir {
    /// The note, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Directory`] if it is no such note.
    pub fn recovery_note(&self) -> Result<Option<RecoveryNote>, StoreError> {
        let path = self.note_path();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| StoreError::Directory {
                path,
                reason: format!("not the note of a recovery: {error}"),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("reading", &path, error)),
        }
    }

    /// Puts a note there, in the place of an earlier one. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_recovery_note(&self, note: &RecoveryNote) -> Result<(), StoreError> {
        let path = self.note_path();
        let text = serde_json::to_vec_pretty(note).expect("plain fields always serialise");
        write_durably(&path, &text).map_err(|error| StoreError::io("writing", &path, error))
    }

    /// Removes the note, if there is one. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_recovery_note(&self) -> Result<(), StoreError> {
        let path = self.note_path();
        fs::remove_file(&path)
            .and_then(|()| sync_dir(self.path()))
            .or_else(unless_gone)
            .map_err(|error| StoreError::io("removing", &path, error))
    }

    fn note_path(&self) -> PathBuf {
        self.path().join(NOTE_FILE)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_note_stays_until_it_is_removed_and_a_damaged_one_is_not_taken_for_none() {
        let root = tempfile::tempdir().unwrap();
        let data = DataDir::open_or_create(root.path()).unwrap();
        assert_eq!(data.recovery_note().unwrap(), None);
        let (previous, cluster) = (ClusterId(Uuid::new_v4()), ClusterId(Uuid::new_v4()));
        let position = LogPosition { term: 3, index: 9 };
        let note = RecoveryNote { previous, cluster, position, lost: vec![2, 3] };
        data.write_recovery_note(&note).unwrap();
        drop(data);
        let data = DataDir::open_or_create(root.path()).unwrap();
        assert_eq!(data.recovery_note().unwrap(), Some(note));
        fs::write(root.path().join(NOTE_FILE), b"{").unwrap();
        assert!(data.recovery_note().is_err());
        data.remove_recovery_note().unwrap();
        data.remove_recovery_note().unwrap();
        assert_eq!(data.recovery_note().unwrap(), None);
    }
}
