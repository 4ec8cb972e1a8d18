//! What can go wrong while sealing and opening.

use std::io;
use std::path::PathBuf;

use crate::escrow::ids::KeyId;

/// An error of this room. No variant holds or prints a secret.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The cryptographic library or the system's random source failed. Ours to look into; nothing was sealed.
    #[error("the cryptographic library failed")]
    Crypto(#[source] aws_lc_rs::error::Unspecified),
    /// The keyring could not be sealed.
    #[error("sealing the keyring failed")]
    Encrypt(#[source] age::EncryptError),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The sealed keyring was changed or cut short since it was sealed, or is no age file.
    #[error("the keyring is damaged")]
    KeyringDamaged(#[source] age::DecryptError),
    /// The keyring opened, but its content is not a keyring.
    #[error("the keyring is malformed: {0}")]
    KeyringMalformed(&'static str),
    /// The keyring opened, but was written by a newer version of this program.
    #[error("the keyring has format {0}, which this version does not know: upgrade this node")]
    KeyringUnknownFormat(u8),
    /// There is nobody to seal the keyring to.
    #[error("a keyring needs at least one recipient")]
    NoRecipients,
    /// Others may read a private key.
    #[error("{} has mode {mode:04o}, which lets others at this private key: run chmod 600 {}", path.display(), path.display())]
    NodeKeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A private key is not well formed.
    #[error("not a node key: {0}")]
    NodeKeyMalformed(&'static str),
    /// As [`SealError::NodeKeyMalformed`], for a file.
    #[error("{}: not a node key: {reason}", path.display())]
    NodeKeyMalformedFile {
        /// The file.
        path: PathBuf,
        /// What was expected.
        reason: &'static str,
    },
    /// The keyring is not sealed to this identity: the node is no member, or was removed.
    #[error("the keyring is not sealed to this identity")]
    NotARecipient,
    /// A recipient is not an age X25519 public key.
    #[error("recipient {recipient:?}: not an age X25519 public key (age1…): {reason}")]
    Recipient {
        /// As it was given.
        recipient: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A sealed record does not authenticate: it was changed, cut short, or belongs to another key.
    #[error("the sealed record of key {key_id} was changed or belongs to another key")]
    Tampered {
        /// The key it was read for.
        key_id: KeyId,
    },
    /// The keyring is full of retired data keys.
    #[error("the keyring already holds {max} data keys", max = super::DATA_KEYS_MAX)]
    TooManyDataKeys,
    /// A record was sealed with a data key that this keyring does not hold.
    #[error("sealed with data key {version}, and the keyring at hand holds data keys up to {current}")]
    UnknownKeyVersion {
        /// The data key asked for.
        version: u32,
        /// The newest one at hand.
        current: u32,
    },
}
