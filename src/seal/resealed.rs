//! Sealing a kept key under the current data key.

use super::error::SealError;
use super::keyring::Keyring;
use super::sealed::{Part, SealContext};
use crate::escrow::records::{KeyRecord, Sealed};

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
    /// Opens `key` and seals it under the current data key.
    ///
    /// It will take the place of what is kept, so what comes out is opened again before it is let go, and must be what
    /// went in; and what went in must be what the fingerprint in the record was made from.
    ///
    /// # Errors
    /// As [`Keyring::open_sealed`]; [`SealError::Tampered`] also if the secret is not the one of the fingerprint.
    pub fn seal_again(&self, key: &KeyRecord) -> Result<Resealed, SealError> {
        let again = |part, old: &Sealed| {
            let context = context_of(key, part);
            let secret = self.open_sealed(&context, old)?;
            let is_other = part == Part::Secret && self.fingerprint(&secret) != key.fingerprint;
            let sealed = self.seal(&context, &secret)?;
            if is_other || self.open_sealed(&context, &sealed)?.expose() != secret.expose() {
                return Err(SealError::Tampered { key_id: key.id });
            }
            Ok(sealed)
        };
        let sealed = again(Part::Secret, &key.sealed)?;
        let package = key.sealed_package.as_ref();
        let sealed_package = package.map(|package| again(Part::Package, package)).transpose()?;
        Ok(Resealed { sealed, sealed_package })
    }
}
