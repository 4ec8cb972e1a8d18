//! Putting a peer's snapshot in the place of those of a state that is wrong.

use super::{SnapshotFile, Snapshots, file_name, sync_dir};
use crate::escrow::records::LogPosition;
use crate::store::StoreError;

impl Snapshots {
    /// As [`Snapshots::adopt`], but in the place of whatever there is: those are of a state that is wrong.
    ///
    /// After a power loss the one that sorts last counts, whatever became of the removal of others. So one that would
    /// sort behind `file` (a repair asks for no older one than its own, but two of one index sort by their hash) is
    /// gone for good before `file` gets its name. Older ones go after that: until then there is always one.
    ///
    /// # Errors
    /// [`StoreError::Io`], also if one of the others cannot be removed: it would be taken if the new one is damaged.
    pub(in crate::store) fn replace(&self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        let mut newest = self.0.lock();
        let path = self.0.path.join(file_name(&file));
        if self.remove(|other| *other > *path)? > 0 {
            newest.take_if(|newest| newest.path() > path.as_path());
            self.sync()?;
        }
        let file = self.publish(&mut newest, file, path)?;
        if self.remove(|other| other != file.path())? > 0 {
            self.sync()?;
        }
        self.0.replacement.send_replace(file.position());
        Ok(file)
    }

    /// Resolves with a snapshot that took the place of wrong ones, as soon as there is one; with each of them once. The
    /// log may be purged on its strength, whatever is wrong with the state: it is a peer's.
    pub async fn replacement(&self) -> SnapshotFile {
        let mut replacement = self.0.replacement.subscribe();
        loop {
            // The sender lives as long as this handle.
            drop(replacement.wait_for(Option::is_some).await);
            let position: Option<LogPosition> = self.0.replacement.send_replace(None);
            if let Some(file) = self.newest().filter(|newest| newest.position() == position) {
                return file;
            }
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        sync_dir(&self.0.path).map_err(|error| StoreError::io("syncing", &self.0.path, error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::store::applied::Applied;

    fn applied(index: u64) -> Applied {
        Applied { position: Some(LogPosition { term: 1, index }), ..Applied::default() }
    }

    /// An own snapshot at `own`, and one at `theirs` that waits under a temporary name.
    fn folder(dir: &Path, own: u64, theirs: u64) -> (Snapshots, SnapshotFile, SnapshotFile) {
        let snapshots = Snapshots::open(dir).unwrap();
        let (elsewhere, other) = (tempfile::tempdir().unwrap(), applied(theirs));
        let theirs = Snapshots::open(elsewhere.path()).unwrap().write(&other, std::iter::empty()).unwrap();
        let path = snapshots.temporary();
        fs::copy(theirs.path(), &path.0).unwrap();
        let theirs = SnapshotFile::open_temporary(path).unwrap();
        let own = snapshots.write(&applied(own), std::iter::empty()).unwrap();
        (snapshots, own, theirs)
    }

    fn complete(dir: &Path) -> Vec<PathBuf> {
        super::super::sweep_paths(dir, super::super::EXTENSION).unwrap()
    }

    #[tokio::test]
    async fn whatever_a_power_loss_takes_back_of_the_removal_the_peers_snapshot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, own, theirs) = folder(dir.path(), 50, 60);
        let kept = fs::read(own.path()).unwrap();
        let theirs = snapshots.replace(theirs).unwrap();
        assert_eq!(complete(dir.path()), [theirs.path().to_owned()]);
        assert_eq!(snapshots.replacement().await.path(), theirs.path());
        fs::write(own.path(), kept).unwrap();
        let newest = Snapshots::open(dir.path()).unwrap().newest().unwrap();
        assert_eq!(newest.position(), theirs.position());
    }

    #[test]
    fn one_that_would_be_taken_before_it_is_gone_before_the_peers_gets_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, own, theirs) = folder(dir.path(), 50, 60);
        // It cannot be removed: not a file.
        let obstacle = dir.path().join("00000000000000000060-99999999999999999999-0.snapshot");
        fs::create_dir(&obstacle).unwrap();
        assert!(matches!(snapshots.replace(theirs), Err(StoreError::Io { .. })));
        assert_eq!(complete(dir.path()).len(), 2, "its own is there, and the peer's is not");
        assert_eq!(snapshots.newest().unwrap().path(), own.path());
    }

    #[test]
    fn an_own_one_that_stands_further_is_removed_first_and_not_named_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, own, theirs) = folder(dir.path(), 70, 60);
        // The new one cannot be named: what comes last fails.
        fs::remove_file(theirs.path()).unwrap();
        assert!(matches!(snapshots.replace(theirs), Err(StoreError::Io { .. })));
        assert!(!own.path().exists() && snapshots.newest().is_none());
    }

    #[test]
    fn an_older_wrong_one_that_cannot_be_removed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, _, theirs) = folder(dir.path(), 50, 60);
        fs::create_dir(dir.path().join("00000000000000000001-00000000000000000001-0.snapshot")).unwrap();
        assert!(matches!(snapshots.replace(theirs), Err(StoreError::Io { .. })));
        assert_eq!(snapshots.newest().unwrap().position(), applied(60).position, "it counts all the same");
    }
}
