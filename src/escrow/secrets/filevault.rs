//! FileVault personal recovery keys: 6 groups of 4 of A-Z and 0-9, as `fdesetup` prints them.

use zeroize::Zeroizing;

use super::groups::Shape;
use crate::escrow::ids::Invalid;
use crate::secret::Secret;

const ALPHABET: &[u8; 36] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

const SHAPE: Shape = Shape {
    groups: 6,
    group_length: 4,
    characters: "letters or digits (A-Z, 0-9)",
    character: |c| c.is_ascii_alphanumeric().then(|| c.to_ascii_uppercase()),
};

/// The key in upper case with hyphens.
pub(super) fn canonical(text: &str) -> Result<Secret, Invalid> {
    Ok(SHAPE.join(&SHAPE.parse(text)?))
}

/// A well-formed recovery key out of random bytes, one a character. For demonstrations and load tests: eight bits
/// do not divide into 36 characters, so the first four are a little more likely than the others.
pub fn from_bytes(bytes: [u8; 24]) -> Secret {
    let bytes = Zeroizing::new(bytes);
    let mut plain = Zeroizing::new(Vec::with_capacity(bytes.len()));
    plain.extend(bytes.iter().map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    SHAPE.join(&plain)
}
