//! What lies on the disk of a stopped node, and who can open it.

use std::fs;
use std::path::PathBuf;

use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::escrow::records::{KeyRecord, KeyringRecord, Sealed};
use strongroom::escrow::state::Row;
use strongroom::seal::{Keyring, NodeKey, Part, SealContext, SealError};
use strongroom::secret::Secret;
use strongroom::store::format;

use crate::common::*;

pub fn data(test: &TestCluster, node: NodeId) -> PathBuf {
    test.cluster.layout().node(node).expect("a node").data_path()
}

/// Every row of a type in the base of a node that was stopped in order.
fn rows<R: Row>(test: &TestCluster, node: NodeId) -> Vec<R> {
    let base = data(test, node).join("base");
    let current = fs::read_to_string(base.join("current")).expect("a base is in use");
    let rows = StoppedBase::open(&base.join(current.trim())).rows();
    let rows = rows.into_iter().filter(|(key, _)| key[0] == R::TABLE as u8);
    rows.map(|(_, value)| format::decode(&value).expect("a row")).collect()
}

/// What a stopped node holds, and what it can open with.
pub struct Stored {
    pub keys: Vec<KeyRecord>,
    pub record: KeyringRecord,
    pub keyring: Keyring,
}

pub fn stored(test: &TestCluster, node: NodeId) -> Stored {
    let [record]: [KeyringRecord; 1] = rows(test, node).try_into().expect("one keyring");
    let key = NodeKey::load(&data(test, node).join("node.key")).expect("its private identity");
    let keyring = Keyring::open(&record.age_file, &key).expect("its own keyring");
    Stored { keys: rows(test, node), record, keyring }
}

impl Stored {
    pub fn key(&self, id: KeyId) -> &KeyRecord {
        self.keys.iter().find(|key| key.id == id).expect("a key that was acknowledged")
    }
}

/// Opens the secret of `key` with `keyring`.
pub fn open(keyring: &Keyring, key: &KeyRecord, sealed: &Sealed, part: Part) -> Result<Secret, SealError> {
    let KeyRecord { machine, volume, id, kind, .. } = key;
    keyring.open_sealed(&SealContext { machine, volume, key_id: *id, kind: *kind, part }, sealed)
}
