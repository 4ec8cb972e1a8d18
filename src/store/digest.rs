//! The incremental digest of the state: a sum of hashes, so that a changed row costs two hashes, whatever the size of
//! the state, and so that the order of changes does not matter. Replicas that applied the same entries have the same
//! digest (P7). It finds faults, not forgers: who can write a replica's disk can make any sum.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// A digest is kept at every index that is a multiple of this, so that replicas compare at the same index.
pub const MILESTONE_EVERY: u64 = 1_024;
/// How many of those are kept.
pub const MILESTONES_MAX: usize = 16;

/// The digest after each of this many last entries is kept in memory, so that replicas that are close to each other have
/// an index in common although no milestone was reached since.
pub const RECENT_MAX: usize = 1_024;

/// The sum, modulo 2^64 in each of four lanes, of SHA-256 over each row's key and value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DigestValue(pub [u64; 4]);

impl DigestValue {
    /// Takes a row in.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        for (lane, hash) in self.0.iter_mut().zip(row_hash(key, value)) {
            *lane = lane.wrapping_add(hash);
        }
    }

    /// Takes a row out that was taken in before.
    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        for (lane, hash) in self.0.iter_mut().zip(row_hash(key, value)) {
            *lane = lane.wrapping_sub(hash);
        }
    }
}

impl DigestValue {
    /// The lanes, little endian, one after the other.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        bytes
    }

    /// The value that [`DigestValue::to_bytes`] made `bytes` from.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut lanes = [0; 4];
        for (lane, chunk) in lanes.iter_mut().zip(bytes.chunks_exact(8)) {
            *lane = u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes"));
        }
        Self(lanes)
    }
}

impl fmt::Display for DigestValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|lane| write!(f, "{lane:016x}"))
    }
}

/// The digest of the state after the entry at `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The last entry taken in; 0 before the first.
    pub index: u64,
    /// The sum.
    pub value: DigestValue,
}

/// SHA-256 over the length of the key, the key and the value: no two rows run into each other.
fn row_hash(key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut context = Context::new(&SHA256);
    context.update(&(key.len() as u64).to_le_bytes());
    context.update(key);
    context.update(value);
    DigestValue::from_bytes(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_content_does() {
        let mut one = DigestValue::default();
        one.add(b"a", b"1");
        one.add(b"b", b"2");
        let mut other = DigestValue::default();
        other.add(b"b", b"2");
        other.add(b"a", b"old");
        other.remove(b"a", b"old");
        assert_ne!(one, other);
        other.add(b"a", b"1");
        assert_eq!(one, other);
        let mut shifted = DigestValue::default();
        shifted.add(b"a1", b"");
        shifted.add(b"b", b"2");
        assert_ne!(one, shifted);
    }

    /// The value is compared between releases: it must not change.
    #[test]
    fn the_digest_of_a_known_row_is_known() {
        let mut digest = DigestValue::default();
        digest.add(b"key", b"value");
        assert_eq!(digest.to_string(), KNOWN);
        assert_eq!(DigestValue::from_bytes(digest.to_bytes()), digest);
    }

    /// `sha256(u64le(3) + "key" + "value")`, read as four little-endian numbers; computed with another program.
    const KNOWN: &str = "4bd721e60ceb13559642243dfd7e03eaf14268fa45530492af6420f5091a3517";
}
