//! Sealing: what keeps a stolen disk, log or backup from being a stolen key.
//!
//! Plaintext enters this room as a [`Secret`](crate::secret::Secret) at the node that received it, and leaves as a
//! [`Sealed`](crate::escrow::records::Sealed) record, a [`Fingerprint`](crate::escrow::records::Fingerprint) or a
//! custody proof. Only those are forwarded, replicated and stored.
//!
//! Three layers of keys:
//!
//! 1. every node has a private [`NodeKey`] (an age X25519 identity), which never leaves it; the organisation keeps
//!    an offline one of the same kind ([`offline_identity`]);
//! 2. the [`Keyring`] holds the cluster's data keys. It is replicated as an age file sealed to the recipients of
//!    all members and to the offline one, so that any single one of them opens it, and nobody else;
//! 3. every record is sealed under a key of its own, derived from a data key and from where the record belongs
//!    ([`SealContext`]), so that a record moved to another place does not open.
//!
//! What this does not do: an age file says who can read it, not who wrote it. That the keyring in the replicated
//! state is the cluster's own rests on who may propose to the log, which is the guard's and TLS's to see to.

pub mod checkpoint;
mod error;
mod fingerprint;
mod keyring;
mod keyring_format;
mod node_key;
pub mod receipt;
mod recipient;
mod resealed;
mod sealed;
mod signed;

pub use error::SealError;
pub use keyring::{DATA_KEYS_MAX, Keyring};
pub use keyring_format::KEYRING_FORMAT_VERSION;
pub use node_key::{NodeKey, offline_identity};
pub use recipient::is_recipient;
pub use resealed::{Resealed, context_of};
pub use sealed::{Part, SealContext};

#[cfg(test)]
mod tests;
