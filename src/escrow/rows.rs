//! Where each record lives: its table and its key within it, and the small rows that serve only as indices.
//!
//! Keys are made so that the order of bytes is the order that lookups want and no key is the beginning of another
//! one's parts: ids and numbers have a fixed width, names end in a zero byte, which no name contains.

use serde::{Deserialize, Serialize};

use super::audit::ChainHead;
use super::command::Reply;
use super::compliance::{
    ComplianceChange, CompliancePolicyRecord, ComplianceRecord, Exemption, HistoryIndex, LastContact, Moment,
};
use super::ids::{KeyId, MachineId, NodeId, RequestId, Timestamp, UserName};
use super::inventory::InventoryRecord;
use super::journal::JournalPlace;
use super::records::{
    Approval, AuditRecord, ClusterRecord, DenialTally, DepartedNode, ExemptionTally, FeatureLevelRecord,
    Fingerprint, KeyHistory, KeyRecord, KeyringRecord, MachineRecord, NodeRecord, PolicyRecord,
    ReconciledEntry, ResealRecord, RevealTally, UsedApproval,
};
use super::state::{Row, Table};

/// The key of a table's only row.
pub const ONLY_ROW: &[u8] = &[];

/// What moves with every entry: one row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The stamp of the last applied command; no later command is applied with an earlier one.
    pub last_stamp: Timestamp,
    /// The newest audit record.
    pub audit: ChainHead,
    /// How many requests were ever remembered; the next goes to the slot of this number modulo
    /// [`REQUESTS_MAX`].
    pub requests: u64,
}

/// Index row: a key of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineKey {
    /// The machine.
    pub machine: MachineId,
    /// Its key.
    pub key_id: KeyId,
    /// The key's fingerprint, so that an equal secret is found without reading every key.
    pub fingerprint: Fingerprint,
}

/// Index row: a machine of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserMachine {
    /// The user.
    pub user: UserName,
    /// A machine the user was seen on.
    pub machine: MachineId,
}

/// Most requests remembered. A retry that comes after this many other requests counts as a new one: at a hundred
/// reveals a minute that is after more than two hours, when no client retries any more.
pub const REQUESTS_MAX: u64 = 16_384;

/// What was answered to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// The request.
    pub request: RequestId,
    /// Who asked for what, hashed: another request under the same id is refused.
    pub digest: [u8; 32],
    /// The answer.
    pub reply: Reply,
}

/// Which request holds a slot of the ring that bounds what is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSlot {
    /// The slot, below [`REQUESTS_MAX`].
    pub slot: u64,
    /// The request it holds.
    pub request: RequestId,
}

impl KeyId {
    /// Its row key.
    pub fn row_key(&self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }
}

impl RequestId {
    /// Its row key.
    pub fn row_key(&self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }
}

impl MachineId {
    /// Its row key.
    pub fn row_key(&self) -> Vec<u8> {
        self.as_str().as_bytes().to_vec()
    }
}

/// The row key of a row that is found by a number: a node, an audit record, a slot.
pub fn number_key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

impl MachineKey {
    /// What the row keys of all keys of `machine` begin with.
    pub fn prefix(machine: &MachineId) -> Vec<u8> {
        terminated(machine.as_str())
    }
}

impl UserMachine {
    /// What the row keys of all machines of `user` begin with.
    pub fn prefix(user: &UserName) -> Vec<u8> {
        terminated(&user.folded())
    }

    /// The row key for `user` and `machine`.
    pub fn row_key(user: &UserName, machine: &MachineId) -> Vec<u8> {
        let mut key = Self::prefix(user);
        key.extend_from_slice(machine.as_str().as_bytes());
        key
    }
}

fn terminated(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 17);
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key
}

/// Declares where a type of row lives.
macro_rules! row {
    ($row:ty, $table:ident, $key:expr) => {
        impl Row for $row {
            const TABLE: Table = Table::$table;
            fn key(&self) -> Vec<u8> {
                let key: fn(&Self) -> Vec<u8> = $key;
                key(self)
            }
        }
    };
}

row!(ClusterRecord, Cluster, |_| ONLY_ROW.to_vec());
row!(Heads, Heads, |_| ONLY_ROW.to_vec());
row!(KeyringRecord, Keyring, |_| ONLY_ROW.to_vec());
row!(NodeRecord, Node, |node| number_key(node.id));
row!(MachineRecord, Machine, |machine| machine.id.row_key());
row!(KeyRecord, Key, |key| key.id.row_key());
row!(MachineKey, MachineKey, |row| {
    let mut key = Self::prefix(&row.machine);
    key.extend_from_slice(row.key_id.0.as_bytes());
    key
});
row!(UserMachine, UserMachine, |row| Self::row_key(&row.user, &row.machine));
row!(AuditRecord, Audit, |record| number_key(record.sequence));
row!(RequestRow, Request, |row| row.request.row_key());
row!(RequestSlot, RequestSlot, |row| number_key(row.slot));
row!(DepartedNode, DepartedNode, |node| number_key(node.id));
row!(FeatureLevelRecord, FeatureLevel, |_| ONLY_ROW.to_vec());
row!(PolicyRecord, Policy, |_| ONLY_ROW.to_vec());
row!(RevealTally, RevealTally, |tally| RevealTally::row_key(tally.person.as_deref()));
row!(UsedApproval, UsedApproval, |used| used.approval.row_key());
row!(DenialTally, DenialTally, |tally| DenialTally::row_key(&tally.person));
row!(ReconciledEntry, Reconciled, |entry| Self::row_key(&entry.place, &entry.hash));
row!(KeyHistory, KeyHistory, |history| history.key_id.row_key());
row!(Approval, Approval, |approval| Approval::row_key(approval.key_id, &approval.asked_by.person()));

impl RevealTally {
    /// The row key for `person`, or for all.
    pub fn row_key(person: Option<&str>) -> Vec<u8> {
        person.unwrap_or_default().as_bytes().to_vec()
    }
}

impl DenialTally {
    /// The row key for `person`.
    pub fn row_key(person: &str) -> Vec<u8> {
        person.as_bytes().to_vec()
    }
}

impl ReconciledEntry {
    /// The row key of the entry with this hash in this place: where a journal forked, there are more in one place.
    pub fn row_key(place: &JournalPlace, hash: &[u8; 32]) -> Vec<u8> {
        let mut key = place.row_key();
        key.extend_from_slice(hash);
        key
    }
}

impl Approval {
    /// The row key of what `person` asked for: one request a key at a time.
    pub fn row_key(key_id: KeyId, person: &str) -> Vec<u8> {
        let mut key = key_id.row_key();
        key.extend_from_slice(person.as_bytes());
        key
    }
}
row!(ResealRecord, Reseal, |_| ONLY_ROW.to_vec());
row!(ComplianceRecord, Compliance, |record| record.report.machine.row_key());
row!(ComplianceChange, ComplianceChange, |change| Self::row_key(&change.machine, change.moment()));
row!(HistoryIndex, HistoryIndex, |index| index.machine.row_key());
row!(LastContact, LastContact, |contact| contact.machine.row_key());
row!(Exemption, Exemption, |exemption| exemption.machine.row_key());
row!(CompliancePolicyRecord, CompliancePolicy, |_| ONLY_ROW.to_vec());
row!(ExemptionTally, ExemptionTally, |tally| DenialTally::row_key(&tally.person));
row!(InventoryRecord, Inventory, |record| record.machine.row_key());

impl ComplianceChange {
    /// What the row keys of all changes of `machine` begin with; behind it they stand in the order of time.
    pub fn prefix(machine: &MachineId) -> Vec<u8> {
        terminated(machine.as_str())
    }

    /// What a row key says: of which machine it is, as its prefix, and since when.
    pub fn parts(key: &[u8]) -> Option<(&[u8], Timestamp)> {
        let (rest, _rank) = key.split_last_chunk::<8>()?;
        let (prefix, at) = rest.split_last_chunk::<8>()?;
        Some((prefix, Timestamp(u64::from_be_bytes(*at))))
    }

    /// The row key of the change that was told first at `first`.
    pub fn row_key(machine: &MachineId, first: Moment) -> Vec<u8> {
        let mut key = Self::prefix(machine);
        key.extend_from_slice(&first.at.0.to_be_bytes());
        key.extend_from_slice(&first.rank.to_be_bytes());
        key
    }
}

/// The row key of a node.
pub fn node_key(node: NodeId) -> Vec<u8> {
    number_key(node)
}
