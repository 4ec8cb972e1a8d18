//! A new file for something secret: nobody else may read it, nothing is overwritten, and it is whole or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Exit, Failure};
use crate::secret::Secret;

/// A file that a key package will be written to.
pub(super) struct SecretFile {
    path: PathBuf,
    dir: PathBuf,
    file: NamedTempFile,
}

impl SecretFile {
    /// Makes sure that there can be a new file at `path`, before there is anything to write.
    ///
    /// # Errors
    /// [`Exit::Conflict`] if there is something already, [`Exit::Invalid`] if there cannot be a file.
    pub(super) fn prepare(path: PathBuf) -> Result<Self, Failure> {
        let failure =
            |exit, what: String| Failure::new(exit, format!("package_out: {}: {what}", path.display()));
        match fs::symlink_metadata(&path) {
            Ok(_) => {
                let what = "it exists already, and no key package is written over anything".to_owned();
                return Err(failure(Exit::Conflict, what).with_hint("name a new file"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failure(Exit::Invalid, error.to_string())),
        }
        let dir =
            path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        fs::metadata(&dir).map_err(|error| failure(Exit::Invalid, error.to_string()))?;
        // Made for its owner alone (0600). The kind of the error: the name of the temporary file would only confuse.
        let file = NamedTempFile::new_in(&dir)
            .map_err(|error| failure(Exit::Invalid, io::Error::from(error.kind()).to_string()))?;
        Ok(Self { path, dir, file })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`io::Error`] of the file system; also if something has appeared in its place since. Nothing is left then.
    pub(super) fn write(mut self, secret: &Secret) -> io::Result<()> {
        self.file.write_all(secret.expose())?;
        // Without the syncs a power cut leaves an empty file, or none, of what was put on record as handed out.
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(&self.path).map_err(|error| error.error)?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn package() -> Secret {
        Secret::new(vec![0, 159, 146, 150])
    }

    #[test]
    fn it_is_written_whole_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("package");
        SecretFile::prepare(path.clone()).unwrap().write(&package()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), package().expose());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("package");
        let late = SecretFile::prepare(path.clone()).unwrap();
        fs::write(&path, "precious").unwrap();
        let failure = SecretFile::prepare(path.clone()).err().unwrap();
        assert_eq!(failure.exit, Exit::Conflict);
        late.write(&package()).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let dangling = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert_eq!(SecretFile::prepare(dangling).err().unwrap().exit, Exit::Conflict);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_place_where_no_file_can_be_is_found_out_before() {
        let dir = tempfile::tempdir().unwrap();
        let failure = SecretFile::prepare(dir.path().join("missing").join("package")).err().unwrap();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.starts_with("package_out: "), "{failure}");
    }
}
