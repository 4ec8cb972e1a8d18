//! Recovery secrets and their formats.
//!
//! [`canonical`] is the only way in: it validates the text of a secret and writes it in the one form its kind has,
//! so that equal secrets have equal fingerprints however they were typed. Its errors say where a secret is wrong
//! and never show any of it.

pub mod bitlocker;
pub mod filevault;
pub mod generic;
mod groups;
pub mod luks;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::Invalid;
use crate::secret::Secret;

/// Longest secret in its canonical form, in bytes: the base64 text of a BitLocker key package of
/// [`bitlocker::PACKAGE_MAX_BYTES`].
pub const SECRET_MAX_BYTES: usize = bitlocker::PACKAGE_MAX_BYTES.div_ceil(3) * 4;

/// The field that errors about a secret name.
const FIELD: &str = "secret";

/// What kind of secret a recovery key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// 48 digits in 8 groups of 6.
    BitlockerPassword,
    /// A BitLocker key package, base64.
    BitlockerPackage,
    /// A TPM owner authorisation value, base64.
    TpmOwner,
    /// A systemd recovery key: 64 modhex characters in 8 groups of 8.
    LuksRecovery,
    /// A personal recovery key: 6 groups of 4 of A-Z0-9.
    FilevaultRecovery,
    /// Any text.
    Generic,
}

impl SecretKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::BitlockerPassword,
        Self::BitlockerPackage,
        Self::TpmOwner,
        Self::LuksRecovery,
        Self::FilevaultRecovery,
        Self::Generic,
    ];

    /// The name as it stands on the command line and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BitlockerPassword => "bitlocker-password",
            Self::BitlockerPackage => "bitlocker-package",
            Self::TpmOwner => "tpm-owner",
            Self::LuksRecovery => "luks-recovery",
            Self::FilevaultRecovery => "filevault-recovery",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SecretKind {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Invalid::new("kind", format!("one of {names}"))
        })
    }
}

/// Validates `input` as a secret of `kind` and answers its canonical text. Line ends after the last character are
/// not part of a secret: standard input and files usually have one.
///
/// # Errors
/// [`Invalid`] for the field `secret`, naming the group and the character at fault (both counted from 1), never
/// what stands there.
pub fn canonical(kind: SecretKind, input: &Secret) -> Result<Secret, Invalid> {
    let text = input.expose_text().ok_or_else(|| Invalid::new(FIELD, "UTF-8 text"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(Invalid::new(FIELD, "not empty"));
    }
    match kind {
        SecretKind::BitlockerPassword => bitlocker::canonical_password(text),
        SecretKind::BitlockerPackage => generic::canonical_base64(text, bitlocker::PACKAGE_MAX_BYTES),
        SecretKind::TpmOwner => generic::canonical_base64(text, generic::TPM_OWNER_MAX_BYTES),
        SecretKind::LuksRecovery => luks::canonical(text),
        SecretKind::FilevaultRecovery => filevault::canonical(text),
        SecretKind::Generic => generic::canonical(text),
    }
}

/// Checks the size of a binary BitLocker key package, which is kept beside the password it belongs to.
///
/// # Errors
/// [`Invalid`] for the field `package` if it is empty or longer than [`bitlocker::PACKAGE_MAX_BYTES`].
pub fn package(bytes: &[u8]) -> Result<(), Invalid> {
    if (1..=bitlocker::PACKAGE_MAX_BYTES).contains(&bytes.len()) {
        return Ok(());
    }
    let expected = format!("1 to {} bytes, not {}", bitlocker::PACKAGE_MAX_BYTES, bytes.len());
    Err(Invalid::new("package", expected))
}

#[cfg(test)]
mod tests;
