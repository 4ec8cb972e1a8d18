//! The plaintext of a keyring, byte by byte. All numbers are big endian.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 1 | format version: 1 |
//! | 1 | 16 | realm, a random UUID |
//! | 17 | 32 | fingerprint key |
//! | 49 | 4 | number of data keys, *n*: 1 to [`DATA_KEYS_MAX`] |
//! | 53 | 36 × *n* | per data key, in ascending order of version: version (4, from 1), key (32) |
//!
//! Nothing follows. The layout is fixed by hand rather than by a serialisation library, so that the keys of an old
//! backup can be had with the offline identity, an age tool and this table, whatever became of the libraries.

use std::collections::BTreeMap;

use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::SealError;
use super::keyring::{DATA_KEYS_MAX, KEY_BYTES, Key, Keyring};

/// The version of the keyring's plaintext that is written.
pub const KEYRING_FORMAT_VERSION: u8 = 1;

const HEADER_BYTES: usize = 1 + 16 + KEY_BYTES + 4;
const DATA_KEY_BYTES: usize = 4 + KEY_BYTES;

impl Keyring {
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // The exact size, so that the buffer never moves and leaves no unwiped copy behind.
        let size = HEADER_BYTES + DATA_KEY_BYTES * self.data_keys.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        bytes.push(KEYRING_FORMAT_VERSION);
        bytes.extend_from_slice(self.realm.as_bytes());
        bytes.extend_from_slice(self.fingerprint_key.bytes());
        let count = u32::try_from(self.data_keys.len()).expect("bounded by DATA_KEYS_MAX");
        bytes.extend_from_slice(&count.to_be_bytes());
        for (version, key) in &self.data_keys {
            bytes.extend_from_slice(&version.to_be_bytes());
            bytes.extend_from_slice(key.bytes());
        }
        debug_assert_eq!(bytes.len(), size);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SealError> {
        let mut rest = bytes;
        let [format] = *take(&mut rest)?;
        if format != KEYRING_FORMAT_VERSION {
            return Err(SealError::KeyringUnknownFormat(format));
        }
        let realm = Uuid::from_bytes(*take(&mut rest)?);
        let fingerprint_key = Key::copied_from(take(&mut rest)?);
        let count = u32::from_be_bytes(*take(&mut rest)?);
        if count == 0 || count as usize > DATA_KEYS_MAX {
            return Err(SealError::KeyringMalformed("the number of data keys is out of range"));
        }
        let mut data_keys = BTreeMap::new();
        let mut last = 0;
        for _ in 0..count {
            let version = u32::from_be_bytes(*take(&mut rest)?);
            if version <= last {
                return Err(SealError::KeyringMalformed("the data keys are not in ascending order"));
            }
            data_keys.insert(version, Key::copied_from(take(&mut rest)?));
            last = version;
        }
        if !rest.is_empty() {
            return Err(SealError::KeyringMalformed("bytes follow the last data key"));
        }
        Ok(Self { realm, fingerprint_key, data_keys })
    }
}

/// Takes the next `N` bytes off `rest`.
fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], SealError> {
    let (head, tail) = rest.split_first_chunk().ok_or(SealError::KeyringMalformed("it is cut short"))?;
    *rest = tail;
    Ok(head)
}
