//! Kept keys: whether one opens, and sealing it under the current data key.

use super::error::SealError;
use super::keyring::Keyring;
use super::sealed::{Part, SealContext};
use crate::escrow::records::{KeyRecord, Sealed};
use crate::secret::Secret;

/// A kept key, sealed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resealed {
    /// The secret.
    pub sealed: Sealed,
    /// Its package, if it has one.
    pub sealed_package: Option<Sealed>,
}

/// Where a part of a kept key belongs.
pub fn context_of(key: &KeyRecord, part: Part) -> SealContext<'_> {
    SealContext { machine: &key.machine, volume: &key.volume, key_id: key.id, kind: key.kind, part }
}

impl Keyring {
    /// Opens a part of `key`; a secret must be what the fingerprint in the record was made from.
    fn open_kept(&self, key: &KeyRecord, part: Part, sealed: &Sealed) -> Result<Secret, SealError> {
        let secret = self.open_sealed(&context_of(key, part), sealed)?;
        if part == Part::Secret && self.fingerprint(&secret) != key.fingerprint {
            return Err(SealError::Tampered { key_id: key.id });
        }
        Ok(secret)
    }

    /// Whether every part of `key` opens and is what was escrowed.
    ///
    /// # Errors
    /// As [`Keyring::open_sealed`]; [`SealError::Tampered`] also if the secret is not the one of the fingerprint.
    pub fn check_kept(&self, key: &KeyRecord) -> Result<(), SealError> {
        self.open_kept(key, Part::Secret, &key.sealed)?;
        key.sealed_package
            .iter()
            .try_for_each(|package| self.open_kept(key, Part::Package, package).map(drop))
    }

    /// Opens `key` and seals it under the current data key, to take the place of what is kept.
    ///
    /// # Errors
    /// As [`Keyring::check_kept`] and [`Keyring::seal`].
    pub fn seal_again(&self, key: &KeyRecord) -> Result<Resealed, SealError> {
        let again = |part, old: &Sealed| {
            let secret = self.open_kept(key, part, old)?;
            self.seal(&context_of(key, part), &secret)
        };
        let sealed = again(Part::Secret, &key.sealed)?;
        let package = key.sealed_package.as_ref();
        let sealed_package = package.map(|package| again(Part::Package, package)).transpose()?;
        Ok(Resealed { sealed, sealed_package })
    }
}
