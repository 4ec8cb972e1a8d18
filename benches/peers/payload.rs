//! What is written: to us an escrow, to the others a key and a value that are as many bytes together.

use prost::Message as _;
use strongroom::client::Deposit;
use strongroom::proto::EscrowRequest;
use uuid::Uuid;

use crate::common;
use crate::keys::key;

/// The recovery key of machine number `n`, under an id that is spread over all ids.
pub fn deposit(n: u64) -> Deposit {
    Deposit { key_id: Some(key(n, 0)), ..common::deposit(n) }
}

/// Number `n` of what the others are given: the same id as text, and bytes.
pub fn key_and_value(n: u64) -> (String, Vec<u8>) {
    let key = key(n, 0).to_string();
    let filler = bytes() - key.len();
    (key, n.to_be_bytes().into_iter().cycle().take(filler).collect())
}

/// Bytes of an escrow as it is sent to a node.
pub fn bytes() -> usize {
    let Deposit { machine, volume, kind, key_id, secret, user, .. } = deposit(1);
    let request = EscrowRequest {
        request_id: Uuid::nil().to_string(),
        machine: machine.to_string(),
        volume: volume.to_string(),
        kind: kind.to_string(),
        key_id: key_id.map(|id| id.to_string()).unwrap_or_default(),
        secret: secret.expose().to_vec(),
        user: user.map(|user| user.to_string()).unwrap_or_default(),
        ..EscrowRequest::default()
    };
    request.encoded_len()
}

/// In words.
pub fn description() -> String {
    format!("a write is {} bytes, which is the message of an escrow, or a key and a value", bytes())
}
