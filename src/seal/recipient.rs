//! Recipients: the public keys a keyring is sealed to.

use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use data_encoding::{Encoding, Specification};

use super::error::SealError;

/// What a recipient begins with.
const PREFIX: &str = "age1";
/// Bech32's digits, in the order of their values (BIP 173).
const BECH32_DIGITS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// Bech32's checksum, at the end (BIP 173).
const BECH32_CHECKSUM_DIGITS: usize = 6;

/// Parses an age X25519 recipient.
///
/// Refuses the few points of small order: a file sealed to one of them would be open to everybody, and age panics
/// rather than write it. A node names its own recipient when it asks to be admitted, so they can be met.
///
/// # Errors
/// [`SealError::Recipient`] if it is none, [`SealError::Crypto`] if the random source fails.
pub(super) fn parse(text: &str) -> Result<age::x25519::Recipient, SealError> {
    let refused = |reason| SealError::Recipient { recipient: text.to_owned(), reason };
    let recipient: age::x25519::Recipient = text.parse().map_err(refused)?;
    let point = point(&recipient).ok_or_else(|| refused("not 32 bytes"))?;
    let ours = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(SealError::Crypto)?;
    // The agreement itself says whether the point is one of them: the shared secret would be all zeros.
    agree_ephemeral(ours, UnparsedPublicKey::new(&X25519, point), refused("a point of small order"), |_| {
        Ok(())
    })?;
    Ok(recipient)
}

/// Whether `text` is a recipient that a keyring can be sealed to.
pub fn is_recipient(text: &str) -> bool {
    parse(text).is_ok()
}

/// The point itself, which age's type does not give away: read back from its canonical text.
fn point(recipient: &age::x25519::Recipient) -> Option<Vec<u8>> {
    let text = recipient.to_string();
    let digits = text.strip_prefix(PREFIX)?;
    let digits = digits.get(..digits.len().checked_sub(BECH32_CHECKSUM_DIGITS)?)?;
    bech32_digits().decode(digits.as_bytes()).ok().filter(|point| point.len() == 32)
}

fn bech32_digits() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str(BECH32_DIGITS);
    specification.encoding().expect("32 distinct digits make an encoding")
}
