//! The keyring, opened once for each generation of it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::escrow::records::KeyringRecord;
use crate::seal::{Keyring, NodeKey, SealError};

/// Opens keyring records with this node's private key and remembers the last one opened.
pub struct KeyringCache {
    key: NodeKey,
    opened: Mutex<Option<(u64, Arc<Keyring>)>>,
}

impl KeyringCache {
    /// A cache that opens with `key`.
    pub fn new(key: NodeKey) -> Self {
        Self { key, opened: Mutex::default() }
    }

    /// The public half of this node's key.
    pub fn recipient(&self) -> String {
        self.key.recipient()
    }

    /// Forgets what was opened: it may have come from a state that was wrong.
    pub fn forget(&self) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The keyring in `record`.
    ///
    /// # Errors
    /// [`SealError`] if it is not sealed to this node or not a keyring.
    pub fn open(&self, record: &KeyringRecord) -> Result<Arc<Keyring>, SealError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match &*opened {
            Some((generation, keyring)) if *generation == record.generation => Ok(keyring.clone()),
            _ => {
                let keyring = Arc::new(Keyring::open(&record.age_file, &self.key)?);
                *opened = Some((record.generation, keyring.clone()));
                Ok(keyring)
            }
        }
    }
}
