//! Canonical bytes to hash: the same value gives the same bytes in every build, and two different values never do.
//!
//! Not serde: a hash that is kept must not change with a library's format. Every field is written in a fixed
//! order, numbers as 8 bytes big endian, byte strings behind their length, choices behind a number of their own,
//! all after a label that names what is hashed and the version of its layout.

use aws_lc_rs::digest::{SHA256, digest};

/// Collects the fields of one value.
pub(super) struct Canonical(Vec<u8>);

impl Canonical {
    /// Begins a value of the kind and layout version that `label` names.
    pub(super) fn new(label: &str) -> Self {
        Self(Vec::with_capacity(256)).text(label)
    }

    /// A number, or which of several choices follows.
    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// A byte string.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        // A length in memory fits in 64 bits.
        self = self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// A text.
    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// A text that may be absent, which is not the same as empty.
    pub(super) fn optional_text(self, text: Option<&str>) -> Self {
        match text {
            None => self.number(0),
            Some(text) => self.number(1).text(text),
        }
    }

    /// SHA-256 of all of it.
    pub(super) fn sha256(self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &self.0).as_ref());
        hash
    }
}
