//! A node's private identity: what opens the keyring.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use zeroize::Zeroizing;

use super::error::SealError;
use crate::private_file::Reader;
use crate::secret::Secret;

/// Largest identity file that is read, in bytes: one key and some comments.
const IDENTITY_FILE_MAX_BYTES: u64 = 4 * 1_024;

/// An age X25519 identity: a node's, in a file that only its node can read, or the organisation's offline one.
///
/// The file is what `age-keygen` writes: one `AGE-SECRET-KEY-1…` line, empty lines and `#` comments.
#[derive(Clone)]
pub struct NodeKey(Identity);

impl NodeKey {
    /// Draws a new identity.
    pub fn generate() -> Self {
        Self(Identity::generate())
    }

    /// Reads the identity at `path`, or draws one and writes it there, readable by its owner only. The directory
    /// must exist.
    ///
    /// # Errors
    /// As [`NodeKey::load`]; [`SealError::Io`] if the file cannot be written.
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        match Self::load(path) {
            Err(SealError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let key = Self::generate();
        match write_new(path, &key.to_text()) {
            // Another process was faster: the key that lies there is the node's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(source) => Err(SealError::Io { path: path.to_owned(), source }),
            Ok(()) => Ok(key),
        }
    }

    /// Reads the identity at `path`.
    ///
    /// # Errors
    /// [`SealError::Io`] if it cannot be read, [`SealError::NodeKeyExposed`] if others may read it,
    /// [`SealError::NodeKeyMalformedFile`] if it is no identity.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        Self::load_as(path, &Reader::this_process())
    }

    /// [`NodeKey::load`] as another reader.
    pub(super) fn load_as(path: &Path, reader: &Reader) -> Result<Self, SealError> {
        let io = |source| SealError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // Of the open file, not of its name: the name may mean another file a moment later.
        if let Some(mode) = reader.exposed(path, &file.metadata().map_err(io)?) {
            return Err(SealError::NodeKeyExposed { path: path.to_owned(), mode });
        }
        let malformed = |reason| SealError::NodeKeyMalformedFile { path: path.to_owned(), reason };
        let mut text = Zeroizing::new(Vec::with_capacity(IDENTITY_FILE_MAX_BYTES as usize + 1));
        file.take(IDENTITY_FILE_MAX_BYTES + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > IDENTITY_FILE_MAX_BYTES {
            return Err(malformed("it is larger than any identity file"));
        }
        parse(&text).map_err(malformed)
    }

    /// Reads an identity from the text of an identity file.
    ///
    /// # Errors
    /// [`SealError::NodeKeyMalformed`] if it is no identity.
    pub fn parse(text: &Secret) -> Result<Self, SealError> {
        parse(text.expose()).map_err(SealError::NodeKeyMalformed)
    }

    /// The public key that belongs to it: `age1…`.
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }

    /// The text of its identity file.
    pub fn to_text(&self) -> Secret {
        let recipient = self.recipient();
        let identity = self.0.to_string();
        let parts = ["# public key: ", &recipient, "\n", identity.expose_secret(), "\n"];
        // The exact size, so that the buffer never moves and leaves no unwiped copy behind.
        let mut text = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            text.extend_from_slice(part.as_bytes());
        }
        Secret::new(text)
    }

    pub(super) fn age(&self) -> &Identity {
        &self.0
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.recipient())
    }
}

/// Draws the organisation's offline recovery identity: the text of its identity file, to be printed once and kept
/// away from every node, and its recipient. Whoever has the text opens the keyring of any backup.
pub fn offline_identity() -> (Secret, String) {
    let key = NodeKey::generate();
    (key.to_text(), key.recipient())
}

fn parse(text: &[u8]) -> Result<NodeKey, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().ok_or("there is no AGE-SECRET-KEY-1… line in it")?;
    if lines.next().is_some() {
        return Err("there is more in it than one AGE-SECRET-KEY-1… line");
    }
    line.parse().map(NodeKey).map_err(|_| "expected one AGE-SECRET-KEY-1… line")
}

/// Writes a private file that did not exist before, whole or not at all.
fn write_new(path: &Path, text: &Secret) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".node-key-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    file.write_all(text.expose())?;
    // Without this, power loss after the keyring was sealed to this identity could leave an empty file under the
    // final name: the node could then never again open what it holds.
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    // Without this, power loss could take the name away, with the same result.
    File::open(directory)?.sync_all()
}
