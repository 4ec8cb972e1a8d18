//! Bytes that rest on disk or travel between nodes: a version byte, then bincode (standard configuration: little
//! endian, variable length integers). The only file that names bincode, so that another encoding can take its
//! place under the next version.
//!
//! Golden vectors in `testdata/` must keep decoding for as long as a version is read. That begins with the first tagged
//! release: until then layouts may still change under version 1, and the data directories of earlier builds are refused
//! ([`DIRECTORY_FORMAT`](super::directory::DIRECTORY_FORMAT)).

use bincode::config;
use bincode::error::DecodeError;
use bytes::{Buf, BufMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version written, and the newest one that is read.
pub const VERSION: u8 = 1;

/// Most bytes one value may take, and with that the most a forged length can make us allocate. An age file for
/// hundreds of members or a key package is far below it.
pub const VALUE_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes do not describe a value of the type.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Written by a newer release.
    #[error(
        "written in format version {found}; this release reads up to version {VERSION}: upgrade it first"
    )]
    Newer {
        /// The version found.
        found: u8,
    },
    /// A length is past [`VALUE_MAX_BYTES`].
    #[error("larger than the limit of {VALUE_MAX_BYTES} bytes")]
    Oversize,
    /// More bytes than the value takes.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// Fewer bytes than the value takes.
    #[error("cut short")]
    Truncated,
    /// A version that never was.
    #[error("unknown format version {found}")]
    Unknown {
        /// The version found.
        found: u8,
    },
}

/// The bytes of `value`, with the version in front.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, config::standard())
        .expect("a vector takes every write, and every stored type has fields of known length only");
    bytes
}

/// The value that [`encode`] made `bytes` from.
///
/// # Errors
/// [`FormatError`]: of a newer version, cut short, too long, or not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    let body = check_version(bytes)?;
    let limited = config::standard().with_limit::<VALUE_MAX_BYTES>();
    let (value, used) = bincode::serde::decode_from_slice(body, limited).map_err(|error| match error {
        DecodeError::LimitExceeded => FormatError::Oversize,
        DecodeError::UnexpectedEnd { .. } => FormatError::Truncated,
        other => FormatError::Malformed(other.to_string()),
    })?;
    match body.len() - used {
        0 => Ok(value),
        rest => Err(FormatError::Trailing(rest)),
    }
}

/// What follows the version byte, if the version is one we read.
fn check_version(bytes: &[u8]) -> Result<&[u8], FormatError> {
    match bytes.split_first() {
        None => Err(FormatError::Truncated),
        Some((&VERSION, body)) => Ok(body),
        Some((&found, _)) if found > VERSION => Err(FormatError::Newer { found }),
        Some((&found, _)) => Err(FormatError::Unknown { found }),
    }
}

/// What one entry of the Raft log holds. A command or membership stays in the bytes it arrived in: it is encoded
/// once, by the node that proposed it, and copied from there on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Nothing: a new leader's first entry.
    Blank,
    /// Encoded [`Command`](crate::escrow::command::Command)s, applied one after the other and all at once: at least one.
    Commands(Vec<&'a [u8]>),
    /// An encoded membership; its inside is the raft room's.
    Membership(&'a [u8]),
}

/// What precedes a command among several.
const LENGTH_BYTES: usize = 4;
const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMANDS: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

impl<'a> Payload<'a> {
    /// A log record: version byte, kind byte, the bytes as they are; before each command its length, of four bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Blank => vec![VERSION, PAYLOAD_BLANK],
            Self::Commands(commands) => {
                let bytes: usize = commands.iter().map(|command| LENGTH_BYTES + command.len()).sum();
                let mut record = Vec::with_capacity(2 + bytes);
                record.extend_from_slice(&[VERSION, PAYLOAD_COMMANDS]);
                for command in commands {
                    record.put_u32_le(u32::try_from(command.len()).expect("commands are far below 4 GiB"));
                    record.put_slice(command);
                }
                record
            }
            Self::Membership(bytes) => [&[VERSION, PAYLOAD_MEMBERSHIP], *bytes].concat(),
        }
    }

    /// The payload that [`Payload::encode`] made `record` from.
    ///
    /// # Errors
    /// [`FormatError`]: of a newer version, cut short, or of an unknown kind.
    pub fn decode(record: &'a [u8]) -> Result<Self, FormatError> {
        match check_version(record)?.split_first() {
            None => Err(FormatError::Truncated),
            Some((&PAYLOAD_BLANK, [])) => Ok(Self::Blank),
            Some((&PAYLOAD_BLANK, rest)) => Err(FormatError::Trailing(rest.len())),
            Some((&PAYLOAD_COMMANDS, bytes)) => decode_commands(bytes).map(Self::Commands),
            Some((&PAYLOAD_MEMBERSHIP, bytes)) => Ok(Self::Membership(bytes)),
            Some((kind, _)) => Err(FormatError::Malformed(format!("unknown kind of log record: {kind}"))),
        }
    }
}

fn decode_commands(mut rest: &[u8]) -> Result<Vec<&[u8]>, FormatError> {
    let mut commands = Vec::new();
    while commands.is_empty() || !rest.is_empty() {
        let length = rest.try_get_u32_le().map_err(|_| FormatError::Truncated)?;
        let (command, behind) = rest.split_at_checked(length as usize).ok_or(FormatError::Truncated)?;
        commands.push(command);
        rest = behind;
    }
    Ok(commands)
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "format_compliance_tests.rs"]
mod compliance_tests;
