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
    // One that cannot be made smaller goes at once: others wait for that, but it must not stay.
    if let Err(error) = shrink(path) {
        tracing::debug!(%error, path = %path.display(), "removed all at once");
    }
    fs::remove_file(path)
}

fn shrink(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let mut left = file.metadata()?.len();
    while left > STEP_BYTES {
        left -= STEP_BYTES;
        file.set_len(left)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Does it on a thread of its own, or not now if there is none to be had.
pub(super) fn in_background(remove: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("strongroom-removal".to_owned());
    if let Err(error) = thread.spawn(remove) {
        tracing::warn!(%error, "what is not needed any more goes at the next start");
    }
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

        // What a link points to is somebody else's.
        let (kept, link) = (root.path().join("kept"), root.path().join("link"));
        fs::write(&kept, "a").unwrap();
        OpenOptions::new().write(true).open(&kept).unwrap().set_len(2 * STEP_BYTES).unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        remove_file(&link).unwrap();
        assert_eq!((fs::metadata(&kept).unwrap().len(), link.exists()), (2 * STEP_BYTES, false));
    }
}
