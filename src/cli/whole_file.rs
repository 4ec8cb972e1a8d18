//! A file for what a command hands out: whole or not there, for its owner alone, and there is room for it before anything
//! is done that cannot be taken back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Exit, Failure};

/// What may be where the file is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing: what is there is not written over.
    New,
    /// Nothing, or a file that is replaced.
    NewOrOld,
}

/// A file that something will be written to.
pub(super) struct WholeFile {
    path: PathBuf,
    dir: PathBuf,
    file: NamedTempFile,
    place: Place,
}

impl WholeFile {
    /// Makes sure that there can be a file at `path`, named by the argument `field`, before there is anything to write.
    ///
    /// # Errors
    /// [`Exit::Conflict`] if there is something that is not to be replaced, [`Exit::Invalid`] if there cannot be a file.
    pub(super) fn prepare(field: &str, path: &Path, place: Place) -> Result<Self, Failure> {
        let failure = |exit, what: String| Failure::new(exit, format!("{field}: {}: {what}", path.display()));
        let invalid = |error: io::Error| failure(Exit::Invalid, error.to_string());
        match fs::symlink_metadata(path) {
            Ok(_) if place == Place::New => {
                let what = "it exists already, and is not written over".to_owned();
                return Err(failure(Exit::Conflict, what).with_hint("name a new file"));
            }
            Ok(_) if path.is_dir() => return Err(failure(Exit::Invalid, "it is a directory".to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(invalid(error)),
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::metadata(dir).map_err(invalid)?;
        // Made for its owner alone (0600). The kind of the error: the name of the temporary file would only confuse.
        let file = NamedTempFile::new_in(dir).map_err(|error| invalid(io::Error::from(error.kind())))?;
        Ok(Self { path: path.to_owned(), dir: dir.to_owned(), file, place })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`io::Error`] of the file system; also if something has appeared in its place since that is not to be replaced.
    /// Nothing is left then.
    pub(super) fn write(mut self, content: &[u8]) -> io::Result<()> {
        self.file.write_all(content)?;
        // Without the syncs a power cut leaves an empty file, or none, of what was put on record as handed out, or of what
        // a device encrypts its disk on the strength of.
        self.file.as_file().sync_all()?;
        match self.place {
            Place::New => self.file.persist_noclobber(&self.path),
            Place::NewOrOld => self.file.persist(&self.path),
        }
        .map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const CONTENT: [u8; 4] = [0, 159, 146, 150];

    fn new(path: &Path) -> Result<WholeFile, Failure> {
        WholeFile::prepare("package_out", path, Place::New)
    }

    #[test]
    fn it_is_written_whole_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("package");
        new(&path).unwrap().write(&CONTENT).unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        WholeFile::prepare("receipt_out", &path, Place::NewOrOld).unwrap().write(b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer", "what may be replaced is");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn nothing_is_written_over_that_is_not_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("package");
        let late = new(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        let failure = new(&path).err().unwrap();
        assert_eq!(failure.exit, Exit::Conflict);
        late.write(&CONTENT).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let dangling = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert_eq!(new(&dangling).err().unwrap().exit, Exit::Conflict);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_place_where_no_file_can_be_is_found_out_before() {
        let dir = tempfile::tempdir().unwrap();
        let failure = new(&dir.path().join("missing").join("package")).err().unwrap();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.starts_with("package_out: "), "{failure}");
        let failure = WholeFile::prepare("receipt_out", dir.path(), Place::NewOrOld).err().unwrap();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.contains("it is a directory"), "{failure}");
    }
}
