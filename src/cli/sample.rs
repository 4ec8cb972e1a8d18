//! Recovery secrets drawn at random, as devices draw them: for the demo and for load.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;

use crate::escrow::secrets::{SecretKind, bitlocker, filevault, luks};
use crate::secret::Secret;

/// A new secret of `kind`; of kinds without a format of their own, random text.
///
/// # Errors
/// [`Unspecified`] if the system gives no randomness.
pub(super) fn secret(kind: SecretKind) -> Result<Secret, Unspecified> {
    match kind {
        SecretKind::BitlockerPassword => {
            let mut bytes = [[0; 2]; 8];
            rand::fill(bytes.as_flattened_mut())?;
            Ok(bitlocker::from_halves(bytes.map(u16::from_le_bytes)))
        }
        SecretKind::LuksRecovery => {
            let mut bytes = [0; 32];
            rand::fill(&mut bytes)?;
            Ok(luks::from_bytes(bytes))
        }
        SecretKind::FilevaultRecovery => {
            let mut bytes = [0; 24];
            rand::fill(&mut bytes)?;
            Ok(filevault::from_bytes(bytes))
        }
        SecretKind::BitlockerPackage | SecretKind::Generic | SecretKind::TpmOwner => {
            let mut bytes = [0; 30];
            rand::fill(&mut bytes)?;
            Ok(Secret::from(data_encoding::BASE64.encode(&bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::secrets::canonical;

    #[test]
    fn every_kind_has_samples_that_are_valid_and_differ() {
        for kind in SecretKind::ALL {
            let (one, other) = (secret(kind).unwrap(), secret(kind).unwrap());
            assert_eq!(canonical(kind, &one).unwrap().expose(), one.expose(), "{kind}");
            assert_ne!(one.expose(), other.expose(), "{kind}");
        }
    }
}
