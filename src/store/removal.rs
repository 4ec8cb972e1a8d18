//! Removing what is large a little at a time.
//!
//! A file system that is given hundreds of megabytes back at once is busy with them, and with telling the disk (`discard`),
//! in the same journal that every fsync waits for: an escrow waits for a tenth of a second and more for a snapshot that
//! nobody needs. In steps that are far apart nobody notices.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Bytes that are given back at once.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Between two steps: some 600 MiB go in a second.
const PAUSE: Duration = Duration::from_millis(6);

/// Removes a file that nobody reads any more. Blocks.
///
/// # Errors
/// It is not there, or not to be removed.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut left = file.metadata()?.len();
    while left > STEP_BYTES {
        left -= STEP_BYTES;
        file.set_len(left)?;
        std::thread::sleep(PAUSE);
    }
    fs::remove_file(path)
}

/// Removes a folder with all that is in it, which nobody reads any more. Blocks.
///
/// # Errors
/// As [`remove_file`].
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dir(&entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_files_go_with_their_folder() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("base");
        fs::create_dir_all(path.join("blobs")).unwrap();
        fs::write(path.join("small"), "a").unwrap();
        fs::write(path.join("blobs/empty"), "").unwrap();
        let large = OpenOptions::new().write(true).create_new(true).open(path.join("large")).unwrap();
        large.set_len(3 * STEP_BYTES + 1).unwrap();
        remove_dir(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(large.metadata().unwrap().len(), 1, "the last step is the removal");
        assert!(remove_file(&path).is_err());
    }
}
