//! The keyring: the data keys of one cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};

use age::x25519::Recipient;
use aws_lc_rs::rand;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::SealError;
use super::node_key::NodeKey;
use super::recipient;

/// Bytes of every key in the keyring: AES-256, HMAC-SHA-256.
pub(super) const KEY_BYTES: usize = 32;
/// Most data keys a keyring holds. One is added by every rotation, so one by every removal of a node.
pub const DATA_KEYS_MAX: usize = 1_024;
/// Largest sealed keyring that is opened, in bytes: the largest plaintext (37 KiB) and far more recipients than a
/// cluster has members.
const SEALED_KEYRING_MAX_BYTES: usize = 256 * 1_024;

/// A key in memory: drawn and kept in one place on the heap, wiped when dropped, never printed.
pub(super) struct Key(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl Key {
    fn generate() -> Result<Self, SealError> {
        let mut key = Self(Box::default());
        rand::fill(&mut key.0[..]).map_err(SealError::Crypto)?;
        Ok(key)
    }

    pub(super) fn copied_from(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut key = Self(Box::default());
        key.0.copy_from_slice(bytes);
        key
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// The data keys that seal a cluster's secrets, and what stays the same however often they are rotated.
///
/// Invariants: there is at least one data key; versions start at 1 and ascend; the highest is current.
pub struct Keyring {
    /// Drawn once, when the keyring is generated. It stands for the cluster in what sealed records are bound to:
    /// a cluster rebuilt after loss of quorum gets a new cluster id, and its sealed records must still open.
    pub(super) realm: Uuid,
    /// Stays the same for ever, so that equal secrets have equal fingerprints across rotations.
    pub(super) fingerprint_key: Key,
    pub(super) data_keys: BTreeMap<u32, Key>,
}

impl Keyring {
    /// Draws a new keyring, with one data key.
    ///
    /// # Errors
    /// [`SealError::Crypto`] if the system's random source fails.
    pub fn generate() -> Result<Self, SealError> {
        let mut realm = [0; 16];
        rand::fill(&mut realm).map_err(SealError::Crypto)?;
        Ok(Self {
            realm: uuid::Builder::from_random_bytes(realm).into_uuid(),
            fingerprint_key: Key::generate()?,
            data_keys: BTreeMap::from([(1, Key::generate()?)]),
        })
    }

    /// Opens a sealed keyring with the private identity of one of those it was sealed to.
    ///
    /// # Errors
    /// [`SealError::NotARecipient`] if it is not sealed to `identity`; [`SealError::KeyringDamaged`],
    /// [`SealError::KeyringMalformed`] or [`SealError::KeyringUnknownFormat`] if it is not what
    /// [`Keyring::seal_to`] wrote.
    pub fn open(age_file: &[u8], identity: &NodeKey) -> Result<Self, SealError> {
        if age_file.len() > SEALED_KEYRING_MAX_BYTES {
            return Err(SealError::KeyringMalformed("it is larger than any keyring"));
        }
        let damaged = |error| match error {
            age::DecryptError::NoMatchingKeys => SealError::NotARecipient,
            error => SealError::KeyringDamaged(error),
        };
        let decryptor = age::Decryptor::new_buffered(age_file).map_err(damaged)?;
        let identity: &dyn age::Identity = identity.age();
        let mut reader = decryptor.decrypt(std::iter::once(identity)).map_err(damaged)?;
        // The plaintext is shorter than the file: with this capacity the buffer never moves, and so leaves no
        // unwiped copy of the keys behind.
        let mut plaintext = Zeroizing::new(Vec::with_capacity(age_file.len()));
        reader.read_to_end(&mut plaintext).map_err(|error| damaged(error.into()))?;
        Self::decode(&plaintext)
    }

    /// Seals the keyring to every one of `recipients` (age X25519 public keys): the members' and the offline one.
    /// A recipient given twice counts once. The result is a binary age file.
    ///
    /// # Errors
    /// [`SealError::NoRecipients`] if there are none, [`SealError::Recipient`] naming the first that does not
    /// parse, [`SealError::Encrypt`] if age refuses.
    pub fn seal_to(&self, recipients: &[String]) -> Result<Vec<u8>, SealError> {
        let mut distinct: Vec<Recipient> = Vec::with_capacity(recipients.len());
        for text in recipients {
            let recipient = recipient::parse(text)?;
            if !distinct.contains(&recipient) {
                distinct.push(recipient);
            }
        }
        if distinct.is_empty() {
            return Err(SealError::NoRecipients);
        }
        let encryptor = age::Encryptor::with_recipients(
            distinct.iter().map(|recipient| recipient as &dyn age::Recipient),
        )
        .map_err(SealError::Encrypt)?;
        let io = |error| SealError::Encrypt(age::EncryptError::Io(error));
        let mut age_file = Vec::new();
        let mut writer = encryptor.wrap_output(&mut age_file).map_err(io)?;
        writer.write_all(&self.encode()).map_err(io)?;
        writer.finish().map_err(io)?;
        Ok(age_file)
    }

    /// The version of the data key that new secrets are sealed with.
    pub fn current_version(&self) -> u32 {
        self.current().0
    }

    /// The same keyring with one more data key, which is current. Secrets sealed before stay readable.
    ///
    /// # Errors
    /// [`SealError::TooManyDataKeys`] past [`DATA_KEYS_MAX`], [`SealError::Crypto`] if the system's random source
    /// fails.
    pub fn rotated(&self) -> Result<Self, SealError> {
        if self.data_keys.len() >= DATA_KEYS_MAX {
            return Err(SealError::TooManyDataKeys);
        }
        let next = self.current_version().checked_add(1).ok_or(SealError::TooManyDataKeys)?;
        let mut data_keys: BTreeMap<u32, Key> =
            self.data_keys.iter().map(|(version, key)| (*version, Key::copied_from(key.bytes()))).collect();
        data_keys.insert(next, Key::generate()?);
        let fingerprint_key = Key::copied_from(self.fingerprint_key.bytes());
        Ok(Self { realm: self.realm, fingerprint_key, data_keys })
    }

    /// The same keyring with the current data key alone. What is sealed under the others does not open with it.
    pub fn without_old_data_keys(&self) -> Self {
        let (version, key) = self.current();
        let data_keys = BTreeMap::from([(version, Key::copied_from(key.bytes()))]);
        let fingerprint_key = Key::copied_from(self.fingerprint_key.bytes());
        Self { realm: self.realm, fingerprint_key, data_keys }
    }

    /// Whether it holds other data keys than the current one.
    pub fn has_old_data_keys(&self) -> bool {
        self.data_keys.len() > 1
    }

    pub(super) fn current(&self) -> (u32, &Key) {
        let (version, key) =
            self.data_keys.last_key_value().expect("every constructor puts at least one data key in");
        (*version, key)
    }

    pub(super) fn data_key(&self, version: u32) -> Result<&Key, SealError> {
        self.data_keys
            .get(&version)
            .ok_or_else(|| SealError::UnknownKeyVersion { version, current: self.current_version() })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring(realm {}, key version {})", self.realm, self.current_version())
    }
}
