//! The ids of the recovery keys of many machines.

use strongroom::escrow::ids::KeyId;
use uuid::Builder;

/// The id of the recovery key of a volume of machine number `n`: 0 and 1 are its volumes, 2 was never in escrow. Spread
/// over all ids, as those of protectors are.
pub fn key(n: u64, volume: u64) -> KeyId {
    let number = u128::from(n * 3 + volume + 1);
    // Odd, so that no two are the same.
    let spread = number.wrapping_mul(0x0b4f_6c1d_93a7_e825_d16b_38f9_24c7_5ea3);
    KeyId(Builder::from_random_bytes(spread.to_be_bytes()).into_uuid())
}
