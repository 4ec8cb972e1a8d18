//! systemd's recovery keys for LUKS2: 256 bits as 64 modhex characters in 8 groups of 8, as
//! `systemd-cryptenroll --recovery-key` prints them.

use zeroize::Zeroizing;

use super::groups::Shape;
use crate::escrow::ids::Invalid;
use crate::secret::Secret;

/// Yubico's modhex alphabet: sixteen letters that stand in the same place on most keyboard layouts.
const MODHEX: &[u8; 16] = b"cbdefghijklnrtuv";

const SHAPE: Shape = Shape {
    groups: 8,
    group_length: 8,
    characters: "modhex letters (cbdefghijklnrtuv)",
    character: |c| {
        let c = c.to_ascii_lowercase();
        MODHEX.contains(&c).then_some(c)
    },
};

/// The key in lower case with hyphens.
pub(super) fn canonical(text: &str) -> Result<Secret, Invalid> {
    Ok(SHAPE.join(&SHAPE.parse(text)?))
}

/// The recovery key that stands for `bytes`, 256 random bits.
pub fn from_bytes(bytes: [u8; 32]) -> Secret {
    let bytes = Zeroizing::new(bytes);
    let mut plain = Zeroizing::new(Vec::with_capacity(2 * bytes.len()));
    for byte in bytes.iter() {
        plain.push(MODHEX[usize::from(byte >> 4)]);
        plain.push(MODHEX[usize::from(byte & 15)]);
    }
    SHAPE.join(&plain)
}
