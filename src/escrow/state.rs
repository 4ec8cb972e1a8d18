//! The replicated state as apply and the lookups see it: typed rows in tables of ordered keys.
//!
//! The store implements [`State`] over its overlay and base; tests use an ordered map in memory.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A failure of the storage below, never a fault of the command: a replica that meets one must stop applying.
#[derive(Debug, thiserror::Error)]
#[error("reading the state: {0}")]
pub struct StateError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// A table of the state. The number is its prefix on disk and never changes meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
// So that the test of stored bytes knows of every table.
#[cfg_attr(test, derive(serde::Deserialize))]
#[repr(u8)]
pub enum Table {
    /// One row: the cluster.
    Cluster = 1,
    /// One row: the last applied stamp, the head of the audit chain and of the ring of requests.
    Heads = 2,
    /// One row: the sealed keyring.
    Keyring = 3,
    /// Node id (8 bytes, big endian).
    Node = 4,
    /// Machine id.
    Machine = 5,
    /// Key id (16 bytes).
    Key = 6,
    /// Machine id, zero byte, key id: the keys of a machine.
    MachineKey = 7,
    /// Folded user name, zero byte, machine id: the machines of a user.
    UserMachine = 8,
    /// Sequence (8 bytes, big endian).
    Audit = 9,
    /// Request id (16 bytes): what was answered to commands that are not idempotent by nature.
    Request = 10,
    /// Slot (8 bytes, big endian) of the ring that bounds [`Table::Request`].
    RequestSlot = 11,
    /// Node id (8 bytes, big endian): nodes that left.
    DepartedNode = 12,
    /// One row: the feature level.
    FeatureLevel = 13,
    /// One row: the policy of reveals.
    Policy = 14,
    /// Person, or nothing for all: how often keys were revealed of late.
    RevealTally = 15,
    /// Key id (16 bytes), person: reveals that a second person must approve.
    Approval = 16,
    /// Journal (16 bytes), sequence (8 bytes, big endian), hash (32 bytes): entries of journals that are on record.
    Reconciled = 17,
    /// One row: how far sealing anew has come.
    Reseal = 20,
    /// Key id (16 bytes): what became of a key.
    KeyHistory = 18,
    /// Person: how often they were denied of late.
    DenialTally = 19,
    /// Approval (16 bytes): approvals that were used.
    UsedApproval = 25,
    /// Machine id: the newest that is known of its compliance.
    Compliance = 21,
    /// Machine id, zero byte, device time (8 bytes, big endian), rank of the state (8 bytes, big endian): changes of it.
    ComplianceChange = 22,
    /// Machine id: its exemption.
    Exemption = 23,
    /// One row: the policy of compliance.
    CompliancePolicy = 24,
    /// Machine id: when it was last heard of.
    LastContact = 26,
    /// Machine id: which changes of its compliance are kept.
    HistoryIndex = 27,
    /// Machine id: what imports say it is.
    Inventory = 28,
    /// Person: how often they asked for an exemption of late.
    ExemptionTally = 29,
}

/// A type of row.
pub trait Row: Serialize + DeserializeOwned {
    /// The table it lives in.
    const TABLE: Table;
    /// Its key within the table.
    fn key(&self) -> Vec<u8>;
}

/// Read access to the state at one applied index.
pub trait Rows {
    /// The row under `key`, if there is one.
    ///
    /// # Errors
    /// [`StateError`] if the storage fails or the row does not decode.
    fn row<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StateError>;

    /// The row under `key`, which another row says is there.
    ///
    /// # Errors
    /// As [`Rows::row`], and if it is not there.
    fn required<R: Row>(&self, key: &[u8]) -> Result<R, StateError> {
        self.row(key)?.ok_or_else(|| {
            let key = data_encoding::HEXLOWER.encode(key);
            StateError(format!("table {:?} has no row {key}, which another row refers to", R::TABLE).into())
        })
    }

    /// At most `limit` rows whose key begins with `prefix`, in the order of keys, beginning after `after` if given.
    ///
    /// # Errors
    /// As [`Rows::row`].
    fn rows<R: Row>(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<R>, StateError>;
}

/// The state while one entry is applied: its writes are seen by its own reads and take effect together.
pub trait State: Rows {
    /// Writes a row, replacing the one with its key.
    fn put<R: Row>(&mut self, row: &R);
    /// Writes a row whose key is not taken, as other rows say; so that nobody has to look. Were it taken, the digest would be
    /// wrong from then on: builds with debug assertions look all the same.
    fn put_new<R: Row>(&mut self, row: &R) {
        self.put(row);
    }
    /// Removes the row under `key`, if there is one.
    fn delete<R: Row>(&mut self, key: &[u8]);
}
