//! Commands to fill a state with.

#[path = "../../benches/shared/cluster.rs"]
mod cluster;

use strongroom::escrow::command::{Action, Command, Escrow, Reveal};
use strongroom::escrow::ids::{Identity, KeyId, RequestId, Role, Timestamp};
use strongroom::escrow::records::{Fingerprint, Sealed, Source};
use strongroom::escrow::secrets::SecretKind;
use uuid::Uuid;

pub fn command(request: u64, role: Role, name: &str, action: Action) -> Command {
    Command {
        request: RequestId(Uuid::from_u128(request.into())),
        at: Timestamp(1_700_000_000_000 + request),
        by: Identity::new("acme".parse().unwrap(), role, name).unwrap(),
        source: Source { node: 1, address: "192.0.2.7".to_owned() },
        action,
    }
}

/// The first entry of a cluster.
pub fn initialize() -> Command {
    command(0, Role::Node, "1", cluster::initialize())
}

/// The id of key `number`.
pub fn key_id(number: u64) -> KeyId {
    KeyId(Uuid::from_u128(u128::from(number) + 1))
}

/// Escrows key `number`, of one of a hundred machines, with a user of that machine. Many users, so that rows are
/// deleted too: of a machine's users only the newest are kept.
pub fn escrow(request: u64, number: u64) -> Command {
    let machine = format!("PC-{:04}", number % 100);
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&number.to_be_bytes());
    let escrow = Escrow {
        key_id: key_id(number),
        key_id_given: true,
        machine: machine.parse().unwrap(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::Generic,
        sealed: Sealed { key_version: 1, nonce: [3; 12], ciphertext: vec![4; 80] },
        sealed_package: None,
        fingerprint: Fingerprint(fingerprint),
        user: Some(format!(r"CORP\user{}", request % 7_000).parse().unwrap()),
    };
    command(request, Role::Importer, "importer", Action::Escrow(escrow))
}

/// Reveals key `number`: more than one reveal of a key leaves more than one audit record.
pub fn reveal(request: u64, number: u64) -> Command {
    let reveal = Reveal { key_id: key_id(number), user: None, reason: "lost PIN".to_owned() };
    command(request, Role::HelpdeskAdvanced, "desk1", Action::Reveal(reveal))
}
