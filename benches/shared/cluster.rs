//! The beginning of a cluster, for a state without a network.

use strongroom::escrow::command::{Action, Initialize};
use strongroom::escrow::ids::{ClusterId, Timestamp};
use strongroom::escrow::records::{KeyringRecord, NodeRecord};
use uuid::Uuid;

/// What its first entry does.
pub fn initialize() -> Action {
    let node = NodeRecord {
        id: 1,
        peer_address: "node1:7421".to_owned(),
        api_address: "node1:7420".to_owned(),
        zone: String::new(),
        storage: Uuid::nil(),
        recipient: "age1node".to_owned(),
        admitted_at: Timestamp(0),
    };
    Action::Initialize(Initialize {
        cluster: ClusterId(Uuid::nil()),
        name: "acme".parse().expect("a name"),
        offline_recipient: "age1offline".to_owned(),
        node,
        keyring: KeyringRecord { generation: 1, current_key_version: 1, age_file: vec![1] },
    })
}
