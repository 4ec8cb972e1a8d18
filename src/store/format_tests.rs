//! Golden vectors: what was once written must keep decoding, and what must be refused stays refused for its reason.

use std::fmt::Debug;

use uuid::Uuid;

use super::*;
use crate::escrow::audit::ChainHead;
use crate::escrow::command::{
    Action, AdmitNode, BatchedEscrow, Command, DropDataKeys, Escrow, Escrowed, Initialize, RaiseFeatureLevel,
    RecoverCluster, Refusal, RemoveNode, Reply, Reseal, ResealedKey, Reveal, Revealed, RotateKeyring,
};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, KeyId, RequestId, Timestamp};
use crate::escrow::journal::{DegradedReveal, JournalEntry, JournalPlace, Knowledge};
use crate::escrow::records::*;
use crate::escrow::rows::{Heads, MachineKey, RequestRow, RequestSlot, UserMachine};
use crate::escrow::secrets::SecretKind;
use crate::store::applied::Applied;
use crate::store::digest::{Digest, DigestValue};

/// `name: hex`, one a line.
const GOLDEN: &str = include_str!("testdata/golden.txt");
/// `expected failure: hex`, one a line; each is refused as a command.
const REFUSED: &str = include_str!("testdata/refused.txt");

fn lines(text: &'static str) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, hex) = line.split_once(": ").unwrap();
        (name, data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap())
    })
}

fn golden(name: &str) -> Vec<u8> {
    let found = lines(GOLDEN).find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("testdata/golden.txt has no {name}")).1
}

/// The stored bytes decode to the value, and the value is still written as these bytes.
#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let bytes = golden(name);
    assert_eq!(decode::<T>(&bytes).unwrap(), *value, "{name}");
    assert_eq!(
        data_encoding::HEXLOWER.encode(&encode(value)),
        data_encoding::HEXLOWER.encode(&bytes),
        "{name}"
    );
}

fn position() -> LogPosition {
    LogPosition { term: 3, index: 1_000 }
}

fn sealed() -> Sealed {
    Sealed { key_version: 2, nonce: [7; 12], ciphertext: vec![0xc0, 0xff, 0xee] }
}

fn command(action: Action) -> Command {
    Command {
        request: RequestId(Uuid::from_u128(0x11)),
        at: Timestamp(1_700_000_000_000),
        by: "spiffe://acme/helpdesk/d01".parse().unwrap(),
        source: Source { node: 2, address: "192.0.2.7".to_owned() },
        action,
    }
}

fn escrow() -> Escrow {
    Escrow {
        key_id: KeyId(Uuid::from_u128(0x22)),
        key_id_given: true,
        machine: "PC-0001".parse().unwrap(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::BitlockerPassword,
        sealed: sealed(),
        sealed_package: Some(sealed()),
        fingerprint: Fingerprint([9; 32]),
        user: Some(r"CORP\d01".parse().unwrap()),
    }
}

fn node() -> NodeRecord {
    NodeRecord {
        id: 2,
        peer_address: "node2:7421".to_owned(),
        api_address: "node2:7420".to_owned(),
        zone: "b".to_owned(),
        storage: Uuid::from_u128(0x33),
        recipient: "age1node".to_owned(),
        admitted_at: Timestamp(5),
    }
}

fn keyring() -> KeyringRecord {
    KeyringRecord { generation: 4, current_key_version: 2, age_file: vec![1, 2, 3] }
}

fn cluster() -> ClusterRecord {
    ClusterRecord {
        id: ClusterId(Uuid::from_u128(0x44)),
        name: "acme".parse().unwrap(),
        created_at: Timestamp(6),
        offline_recipient: "age1offline".to_owned(),
    }
}

#[test]
fn commands_keep_decoding() {
    let ClusterRecord { id: cluster, name, offline_recipient, .. } = cluster();
    let initialize = Initialize { cluster, name, offline_recipient, node: node(), keyring: keyring() };
    let reveal = Reveal {
        key_id: KeyId(Uuid::from_u128(0x22)),
        user: Some(r"CORP\d01".parse().unwrap()),
        reason: "lost PIN".to_owned(),
    };
    check("command initialize", &command(Action::Initialize(initialize)));
    check("command escrow", &command(Action::Escrow(escrow())));
    check("command reveal", &command(Action::Reveal(reveal)));
    let recover =
        RecoverCluster { cluster: ClusterId(Uuid::from_u128(0x55)), survivor: 2, keyring: keyring() };
    check("command recover-cluster", &command(Action::RecoverCluster(recover)));
    let raise = RaiseFeatureLevel { level: FeatureLevel(2) };
    check("command raise-feature-level", &command(Action::RaiseFeatureLevel(raise)));
    let remove = RemoveNode { node: 2, keyring: keyring() };
    check("command remove-node", &command(Action::RemoveNode(remove)));
    let rotate = RotateKeyring { keyring: keyring() };
    check("command rotate-keyring", &command(Action::RotateKeyring(rotate)));
    let Escrow { key_id, sealed, sealed_package, .. } = escrow();
    let resealed = ResealedKey { key_id, was: [7; 32], sealed, sealed_package };
    let reseal =
        Reseal { key_version: 2, after: Some(key_id), to_do: 70_000, rows: 64, keys: vec![resealed] };
    check("command reseal", &command(Action::Reseal(reseal)));
    let batched = BatchedEscrow { request: RequestId(Uuid::from_u128(0x12)), escrow: escrow() };
    check("command escrow-many", &command(Action::EscrowMany(vec![batched])));
    let drop = DropDataKeys { keyring: keyring() };
    check("command drop-data-keys", &command(Action::DropDataKeys(drop)));
    check("command admit-node", &command(Action::AdmitNode(AdmitNode { node: node(), keyring: keyring() })));
}

#[test]
fn rows_keep_decoding() {
    let Escrow { key_id, machine, volume, kind, sealed, sealed_package, fingerprint, user, .. } = escrow();
    let user = user.unwrap();
    check("row cluster", &cluster());
    let audit = ChainHead { sequence: 12, hash: [5; 32] };
    check("row heads", &Heads { last_stamp: Timestamp(8), audit, requests: 70_000 });
    check("row keyring", &keyring());
    check("row node", &node());
    let record = MachineRecord {
        id: machine.clone(),
        users: vec![user.clone()],
        first_seen: Timestamp(1),
        last_contact: Timestamp(2),
        rotation_owed_since: Some(Timestamp(3)),
    };
    check("row machine", &record);
    let key = KeyRecord {
        id: key_id,
        machine: machine.clone(),
        volume: volume.clone(),
        kind,
        sealed,
        sealed_package,
        fingerprint,
        state: KeyState::Disclosed,
        escrowed_at: Timestamp(4),
        escrowed_by: "spiffe://acme/agent/PC-0001".parse().unwrap(),
        position: position(),
    };
    check("row key", &key);
    check("row machine-key", &MachineKey { machine: machine.clone(), key_id, fingerprint });
    check("row user-machine", &UserMachine { user: user.clone(), machine: machine.clone() });
    let slot = RequestSlot { slot: 16_383, request: RequestId(Uuid::from_u128(0x11)) };
    check("row request-slot", &slot);
    check("row departed-node", &DepartedNode { id: 2, at: Timestamp(7) });
    let reseal = ResealRecord {
        key_version: 2,
        after: Some(key_id),
        to_do: 70_000,
        resealed: 300,
        left: 1,
        done: true,
        dropped: false,
    };
    check("row reseal", &reseal);
    check("row feature-level", &FeatureLevelRecord { level: FeatureLevel(2), raised_at: Timestamp(7) });
}

#[test]
fn audit_records_keep_decoding() {
    let (key_id, machine) = (KeyId(Uuid::from_u128(0x22)), "PC-0001".parse().unwrap());
    let audit = |event| AuditRecord {
        sequence: 13,
        previous: [5; 32],
        at: Timestamp(9),
        by: "spiffe://acme/operator/ops".parse().unwrap(),
        source: Source { node: 1, address: String::new() },
        position: position(),
        event,
    };
    check("row audit initialized", &audit(AuditEvent::ClusterInitialized));
    check("row audit conflict", &audit(AuditEvent::EscrowConflict { key_id, machine }));
    check("row audit node", &audit(AuditEvent::NodeAdmitted { node: 2 }));
    let reveal = AuditEvent::Reveal {
        key_id,
        machine: Some("PC-0001".parse().unwrap()),
        user: None,
        reason: "lost PIN".to_owned(),
        denied: Some("not a user of this machine".to_owned()),
    };
    check("row audit reveal", &audit(reveal));
    let previous = ClusterId(Uuid::from_u128(0x44));
    let recovered = AuditEvent::ClusterRecovered { survivor: 2, lost: vec![1, 3], previous };
    check("row audit recovered", &audit(recovered));
    check("row audit feature-level", &audit(AuditEvent::FeatureLevelRaised { level: FeatureLevel(2) }));
    check("row audit rotated", &audit(AuditEvent::KeyringRotated { key_version: 2 }));
    check("row audit data-keys-dropped", &audit(AuditEvent::DataKeysDropped { key_version: 2 }));
    check("row audit removed", &audit(AuditEvent::NodeRemoved { node: 2 }));
}

#[test]
fn entries_of_journals_keep_decoding() {
    let reveal = DegradedReveal {
        request: RequestId(Uuid::from_u128(0x11)),
        at: Timestamp(1_700_000_000_000),
        by: "spiffe://acme/helpdesk/d01".parse().unwrap(),
        source: Source { node: 2, address: "192.0.2.7".to_owned() },
        key_id: KeyId(Uuid::from_u128(0x22)),
        machine: Some("PC-0001".parse().unwrap()),
        user: Some(r"CORP\d01".parse().unwrap()),
        reason: "lost PIN".to_owned(),
        denied: Some(Refusal::Denied("no".to_owned())),
        approval: Some(RequestId(Uuid::from_u128(0x12))),
        knowledge: Knowledge { position: position(), quorum_age_ms: Some(9), policy_version: 3 },
    };
    let place = JournalPlace { journal: Uuid::from_u128(0x33), sequence: 4 };
    check("journal entry", &JournalEntry { place, previous: [5; 32], reveal });
    let on_record = ReconciledEntry { place, hash: [6; 32], audit_sequence: Some(13) };
    check("row reconciled", &on_record);
}

#[test]
fn remembered_replies_keep_decoding() {
    let request = |reply| RequestRow { request: RequestId(Uuid::from_u128(0x11)), digest: [6; 32], reply };
    let Escrow { key_id, machine, volume, fingerprint, .. } = escrow();
    let escrowed = Escrowed {
        key_id,
        machine,
        volume,
        fingerprint,
        at: Timestamp(4),
        position: position(),
        already_escrowed: true,
    };
    check("row request escrowed", &request(Reply::Escrowed(escrowed)));
    let revealed = Revealed { key_id, audit_sequence: 13, at: Timestamp(9), position: position() };
    check("row request revealed", &request(Reply::Revealed(revealed)));
    check("row request refused", &request(Reply::Refused(Refusal::Denied("no".to_owned()))));
    check("row request rotated", &request(Reply::KeyringRotated { key_version: 2 }));
    check("row request removed", &request(Reply::NodeRemoved));
}

#[test]
fn the_header_of_a_snapshot_and_the_state_of_the_base_keep_decoding() {
    let applied = Applied {
        position: Some(position()),
        membership: Some((LogPosition { term: 1, index: 2 }, vec![1, 2, 3])),
        digest: DigestValue([1, u64::MAX, 3, 4]),
        milestones: vec![Digest { index: 1_024, value: DigestValue([5, 6, 7, 8]) }],
        rows: 9,
        bytes: 10_000,
    };
    check("applied", &applied);
    check("applied nothing", &Applied::default());
}

#[test]
fn log_records_keep_decoding_without_touching_what_they_carry() {
    let body = [0xaa, 0xbb];
    let payloads = [
        ("blank", Payload::Blank),
        ("command", Payload::Command(&body)),
        ("membership", Payload::Membership(&body)),
    ];
    for (name, payload) in payloads {
        let bytes = golden(&format!("log {name}"));
        assert_eq!(Payload::decode(&bytes).unwrap(), payload);
        assert_eq!(payload.encode(), bytes);
    }
    assert!(matches!(Payload::decode(&[VERSION + 1, 0]), Err(FormatError::Newer { found: 2 })));
    assert!(matches!(Payload::decode(&[VERSION]), Err(FormatError::Truncated)));
    assert!(matches!(Payload::decode(&[VERSION, PAYLOAD_BLANK, 7]), Err(FormatError::Trailing(1))));
    assert!(matches!(Payload::decode(&[VERSION, 9]), Err(FormatError::Malformed(_))));
}

#[test]
fn what_must_be_refused_is_refused_for_its_reason() {
    let mut seen = 0;
    for (expected, bytes) in lines(REFUSED) {
        let kind = match decode::<Command>(&bytes).unwrap_err() {
            FormatError::Malformed(_) => "malformed",
            FormatError::Newer { .. } => "newer",
            FormatError::Oversize => "oversize",
            FormatError::Trailing(_) => "trailing",
            FormatError::Truncated => "truncated",
            FormatError::Unknown { .. } => "unknown",
        };
        assert_eq!(kind, expected, "{}", data_encoding::HEXLOWER.encode(&bytes));
        seen += 1;
    }
    assert!(seen >= 6);
}

#[test]
fn every_prefix_of_a_command_is_refused() {
    let bytes = encode(&command(Action::Escrow(escrow())));
    for length in 0..bytes.len() {
        assert!(decode::<Command>(&bytes[..length]).is_err(), "{length} bytes");
    }
}
