//! Credentials on disk: bounded reads, and writes that are private from the start and whole after a power cut.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::TlsError;
use crate::private_file::Reader;

/// Most bytes read from one file: room for a revocation list of some hundred thousand entries.
pub(super) const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// For certificates and lists, which anybody may read.
pub(super) const PUBLIC_MODE: u32 = 0o644;
/// For private keys.
pub(super) const PRIVATE_MODE: u32 = 0o600;
/// For the directory of a CA.
const PRIVATE_DIRECTORY_MODE: u32 = 0o700;

/// Attaches the path to an I/O error.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::AlreadyExists => TlsError::Exists { path },
        _ => TlsError::File { path, source },
    }
}

/// The content of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut content = Vec::new();
    read_bounded(&mut file, &mut content).map_err(at(path))?;
    Ok(content)
}

/// The content of a file that may not be there.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match read(path) {
        Err(TlsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        content => content.map(Some),
    }
}

/// The content of a private key file, which must be private as [`private_file`](crate::private_file) has it. The open
/// file is checked, not the path, so what is checked is what is read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let mut file = File::open(path).map_err(at(path))?;
    let metadata = file.metadata().map_err(at(path))?;
    if let Some(mode) = Reader::this_process().exposed(path, &metadata) {
        return Err(TlsError::KeyExposed { path: path.to_owned(), mode });
    }
    // Room for it all at once: a vector that grows leaves copies behind that nobody wipes.
    let room = usize::try_from(metadata.len().min(FILE_MAX_BYTES)).unwrap_or(0) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    read_bounded(&mut file, &mut content).map_err(at(path))?;
    Ok(content)
}

fn read_bounded(file: &mut File, content: &mut Vec<u8>) -> io::Result<()> {
    let read = file.take(FILE_MAX_BYTES + 1).read_to_end(content)?;
    if read as u64 > FILE_MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than the {FILE_MAX_BYTES} bytes accepted"),
        ));
    }
    Ok(())
}

/// Makes a directory for private files, and those above it, where missing.
pub(super) fn create_directory(path: &Path) -> Result<(), TlsError> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(PRIVATE_DIRECTORY_MODE).create(path).map_err(at(path))
}

/// Writes a file that must not exist yet, with its mode from the first moment on.
pub(super) fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    write_new(path, content, mode).and_then(|()| sync_directory_of(path)).map_err(at(path))
}

/// Puts new content in the place of a file: a reader, or a power cut, sees the old or the new, never a part.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    let temporary = temporary_beside(path);
    let written = write_new(&temporary, content, mode)
        .and_then(|()| std::fs::rename(&temporary, path))
        // Without this the rename may be lost: a revoked certificate would be trusted again after a power cut.
        .and_then(|()| sync_directory_of(path));
    written.map_err(|error| {
        // Already failing: the temporary file is only litter.
        let _ = std::fs::remove_file(&temporary);
        at(path)(error)
    })
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    // Without this the name may outlive a power cut without its content.
    file.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

/// The directory a file is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4().simple()))
}
