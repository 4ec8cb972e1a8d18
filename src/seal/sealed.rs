//! Sealing one secret, bound to where it belongs.
//!
//! # Construction
//!
//! ```text
//! binding    = every field, each preceded by its length (4 bytes, big endian):
//!              "strongroom/sealed/v1", realm (16), machine, volume, key id (16),
//!              kind (1), part (1), data key version (4, big endian)
//! record key = HKDF-SHA-256(salt = "strongroom/record-key/v1", secret = data key, info = binding), 32 bytes
//! nonce      = 12 random bytes
//! ciphertext = AES-256-GCM(record key, nonce, plaintext, associated data = binding), tag (16) at the end
//! ```
//!
//! - The lengths make the binding injective: two different places never have the same one.
//! - A record key is used for one place only, so for one secret and its retries. Random nonces would have to
//!   collide among those few, not among all records of a cluster, which leaves GCM's bound on the number of
//!   messages under a key (2³² with random nonces, NIST SP 800-38D §8.3) far away.
//! - The realm stands for the cluster. It is a part of the keyring and not the cluster id, because a cluster
//!   rebuilt after permanent loss of quorum gets a new id while its sealed records must stay readable.
//! - The ciphertext is as long as the secret, and that shows nothing: recovery secrets of one kind have one
//!   length, and the kind is stored in the clear. Only generic secrets and packages differ in length.
//! - Another construction, should one be needed, is introduced by a keyring format that names it per data key;
//!   records say which data key sealed them, so old ones keep being opened by this one.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::SealError;
use super::keyring::{KEY_BYTES, Key, Keyring};
use crate::escrow::ids::{KeyId, MachineId, VolumeId};
use crate::escrow::records::Sealed;
use crate::escrow::secrets::SecretKind;
use crate::secret::Secret;

const BINDING_LABEL: &[u8] = b"strongroom/sealed/v1";
const RECORD_KEY_LABEL: &[u8] = b"strongroom/record-key/v1";

/// Where a sealed secret belongs. It opens there and nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct SealContext<'a> {
    /// The machine.
    pub machine: &'a MachineId,
    /// The volume of that machine.
    pub volume: &'a VolumeId,
    /// The key's id.
    pub key_id: KeyId,
    /// The key's kind.
    pub kind: SecretKind,
    /// Which of the key's secrets.
    pub part: Part,
}

/// Which secret of a recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The BitLocker key package that goes with it.
    Package,
    /// The recovery secret itself.
    Secret,
}

impl SealContext<'_> {
    /// What the record is bound to: see the module's documentation.
    fn binding(&self, realm: Uuid, key_version: u32) -> Vec<u8> {
        let fields: [&[u8]; 8] = [
            BINDING_LABEL,
            realm.as_bytes(),
            self.machine.as_str().as_bytes(),
            self.volume.as_str().as_bytes(),
            self.key_id.0.as_bytes(),
            &[kind_code(self.kind)],
            &[part_code(self.part)],
            &key_version.to_be_bytes(),
        ];
        let mut binding = Vec::with_capacity(fields.iter().map(|field| 4 + field.len()).sum());
        for field in fields {
            let length = u32::try_from(field.len()).expect("ids are at most 128 bytes long");
            binding.extend_from_slice(&length.to_be_bytes());
            binding.extend_from_slice(field);
        }
        binding
    }
}

/// Never to be renumbered: stored records are bound to it.
fn kind_code(kind: SecretKind) -> u8 {
    match kind {
        SecretKind::BitlockerPassword => 1,
        SecretKind::BitlockerPackage => 2,
        SecretKind::TpmOwner => 3,
        SecretKind::LuksRecovery => 4,
        SecretKind::FilevaultRecovery => 5,
        SecretKind::Generic => 6,
    }
}

/// Never to be renumbered: stored records are bound to it.
fn part_code(part: Part) -> u8 {
    match part {
        Part::Secret => 1,
        Part::Package => 2,
    }
}

impl Keyring {
    /// Seals `secret` with the current data key, so that it opens in `context` only.
    ///
    /// What comes out is opened again before it is let go: once it is kept, nobody has the plaintext to compare with any
    /// more, and a fault of the memory at this moment would be replicated faithfully.
    ///
    /// # Errors
    /// [`SealError::Crypto`] if the random source or the cryptographic library fails; [`SealError::Tampered`] if what came
    /// out is not what went in.
    pub fn seal(&self, context: &SealContext<'_>, secret: &Secret) -> Result<Sealed, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(SealError::Crypto)?;
        let sealed = self.seal_with_nonce(context, secret, nonce)?;
        if self.open_sealed(context, &sealed)?.expose() != secret.expose() {
            return Err(SealError::Tampered { key_id: context.key_id });
        }
        Ok(sealed)
    }

    /// [`Keyring::seal`] with a nonce of the caller's: only for it and for test vectors.
    pub(super) fn seal_with_nonce(
        &self,
        context: &SealContext<'_>,
        secret: &Secret,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Sealed, SealError> {
        let (key_version, data_key) = self.current();
        let binding = context.binding(self.realm, key_version);
        // Room for the tag from the start: a buffer that had to move would leave an unwiped copy of the secret.
        let mut buffer = Zeroizing::new(Vec::with_capacity(secret.expose().len() + AES_256_GCM.tag_len()));
        buffer.extend_from_slice(secret.expose());
        record_key(data_key, &binding)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&binding), &mut *buffer)
            .map_err(SealError::Crypto)?;
        Ok(Sealed { key_version, nonce, ciphertext: std::mem::take(&mut *buffer) })
    }

    /// Opens what [`Keyring::seal`] sealed in the same `context`.
    ///
    /// # Errors
    /// [`SealError::UnknownKeyVersion`] if this keyring lacks the data key, [`SealError::Tampered`] if the record
    /// was changed or belongs to another context, [`SealError::Crypto`] if the cryptographic library fails.
    pub fn open_sealed(&self, context: &SealContext<'_>, sealed: &Sealed) -> Result<Secret, SealError> {
        let data_key = self.data_key(sealed.key_version)?;
        let binding = context.binding(self.realm, sealed.key_version);
        let mut buffer = Zeroizing::new(sealed.ciphertext.clone());
        let length = record_key(data_key, &binding)?
            .open_in_place(Nonce::assume_unique_for_key(sealed.nonce), Aad::from(&binding), &mut buffer)
            .map_err(|_| SealError::Tampered { key_id: context.key_id })?
            .len();
        buffer.truncate(length);
        Ok(Secret::new(std::mem::take(&mut *buffer)))
    }
}

/// The key of the one record that is bound to `binding`.
fn record_key(data_key: &Key, binding: &[u8]) -> Result<LessSafeKey, SealError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    Salt::new(HKDF_SHA256, RECORD_KEY_LABEL)
        .extract(data_key.bytes())
        .expand(&[binding], HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut bytes[..]))
        .map_err(SealError::Crypto)?;
    UnboundKey::new(&AES_256_GCM, &bytes[..]).map(LessSafeKey::new).map_err(SealError::Crypto)
}
