//! BitLocker recovery passwords: 48 digits in 8 groups of 6.
//!
//! Each group is a 16-bit number times eleven (`IsNumericalPasswordValid` of Microsoft's `Win32_EncryptableVolume`:
//! divisible by 11 and less than 720,896). That the sixth digit is `(x1 - x2 + x3 - x4 + x5) mod 11` follows from
//! the divisibility, because ten is minus one modulo eleven; that page prints the formula with the wrong sign.

use zeroize::Zeroizing;

use super::groups::Shape;
use crate::escrow::ids::Invalid;
use crate::secret::Secret;

/// Longest binary key package, in bytes. The packages of real volumes are some hundreds of bytes.
pub const PACKAGE_MAX_BYTES: usize = 65_536;

/// Digits of a password.
pub const PASSWORD_DIGITS: usize = 48;

const DIVISOR: u32 = 11;
const QUOTIENTS: u32 = 65_536;

const SHAPE: Shape = Shape {
    groups: 8,
    group_length: 6,
    characters: "digits (0-9)",
    character: |c| c.is_ascii_digit().then_some(c),
};

/// The password as `dddddd-dddddd-…`.
pub(super) fn canonical_password(text: &str) -> Result<Secret, Invalid> {
    let digits = SHAPE.parse(text)?;
    for (index, group) in digits.chunks(SHAPE.group_length).enumerate() {
        let value = group.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
        if value % DIVISOR != 0 {
            return Err(
                SHAPE.invalid(&format!("group {} has a wrong digit (it is not divisible by 11)", index + 1))
            );
        }
        if value / DIVISOR >= QUOTIENTS {
            let limit = QUOTIENTS * DIVISOR;
            return Err(
                SHAPE.invalid(&format!("group {} is too large (it must be below {limit})", index + 1))
            );
        }
    }
    Ok(SHAPE.join(&digits))
}

/// The recovery password that stands for `halves`, 128 random bits.
pub fn from_halves(halves: [u16; 8]) -> Secret {
    let halves = Zeroizing::new(halves);
    let mut digits = Zeroizing::new(Vec::with_capacity(SHAPE.groups * SHAPE.group_length));
    for half in halves.iter() {
        let mut value = u32::from(*half) * DIVISOR;
        let mut group = Zeroizing::new([b'0'; 6]);
        for digit in group.iter_mut().rev() {
            // A digit is below 10.
            *digit += (value % 10) as u8;
            value /= 10;
        }
        digits.extend_from_slice(group.as_slice());
    }
    SHAPE.join(&digits)
}
