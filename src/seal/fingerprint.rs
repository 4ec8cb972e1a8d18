//! What can be said about a secret without showing it: its fingerprint, and proof of holding it.
//!
//! Both are HMAC-SHA-256 under the keyring's fingerprint key, over input that begins with a label of its own,
//! ended by a zero byte, so that no fingerprint is ever a proof nor the other way round. The key makes them useless for
//! guessing: without the keyring nobody can compute one for a guess.
//!
//! ```text
//! fingerprint = HMAC("strongroom/fingerprint/v1\0" secret)
//! proof       = HMAC("strongroom/custody/v1\0" nonce length (8) nonce node (8) key id (16) secret)
//! ```

use aws_lc_rs::hmac::{self, HMAC_SHA256};

use super::keyring::Keyring;
use crate::escrow::ids::{KeyId, NodeId};
use crate::escrow::records::Fingerprint;
use crate::secret::Secret;

const FINGERPRINT_LABEL: &[u8] = b"strongroom/fingerprint/v1\0";
const CUSTODY_LABEL: &[u8] = b"strongroom/custody/v1\0";

impl Keyring {
    /// The keyed hash of `secret`: equal for equal secrets, whichever data key is current.
    pub fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        Fingerprint(self.keyed_hash(&[FINGERPRINT_LABEL, secret.expose()]))
    }

    /// Proof, to one who holds the same secret and keyring, that `node` could open the secret of `key_id` after it
    /// learned `nonce`. A challenge that must not be answered from an old answer needs a fresh random nonce.
    pub fn prove_custody(&self, nonce: &[u8], node: NodeId, key_id: KeyId, secret: &Secret) -> [u8; 32] {
        self.keyed_hash(&[
            CUSTODY_LABEL,
            &(nonce.len() as u64).to_be_bytes(),
            nonce,
            &node.to_be_bytes(),
            key_id.0.as_bytes(),
            secret.expose(),
        ])
    }

    /// Whether `proof` is the one [`Keyring::prove_custody`] makes of the same; takes equally long wherever they
    /// differ.
    pub fn verify_custody(
        &self,
        proof: &[u8],
        nonce: &[u8],
        node: NodeId,
        key_id: KeyId,
        secret: &Secret,
    ) -> bool {
        let expected = self.prove_custody(nonce, node, key_id, secret);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected, proof).is_ok()
    }

    fn keyed_hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, self.fingerprint_key.bytes()));
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
    }
}
