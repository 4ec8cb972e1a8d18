//! Random commands.

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::escrow::command::{
    Action, AdmitNode, Command, ConfirmKey, DecideApproval, Escrow, Initialize, RaiseFeatureLevel,
    RecoverCluster, RemoveNode, Reveal, SetPolicy,
};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, Identity, KeyId, RequestId, Role, Timestamp};
use crate::escrow::records::{Fingerprint, KeyringRecord, NodeRecord, Sealed, Source};
use crate::escrow::secrets::SecretKind;

/// Few names, so that commands meet each other often.
fn name(prefix: &str, number: u8) -> String {
    format!("{prefix}{number}")
}

fn identity() -> impl Strategy<Value = Identity> {
    (0..Role::ALL.len(), 1..4_u8).prop_map(|(role, number)| {
        let role = Role::ALL[role];
        Identity::new("acme".parse().unwrap(), role, &name_for(role, number)).unwrap()
    })
}

fn name_for(role: Role, number: u8) -> String {
    match role {
        Role::Node => number.to_string(),
        Role::SelfService => name("CORP/user", number),
        _ => name("PC-", number),
    }
}

fn sealed(byte: u8) -> Sealed {
    Sealed { key_version: 1, nonce: [byte; 12], ciphertext: vec![byte; 40] }
}

fn escrow() -> impl Strategy<Value = Action> {
    let ids = (0..6_u128, any::<bool>(), 1..4_u8, 0..2_u8);
    let contents = (0..2_usize, any::<u8>(), proptest::option::of(any::<u8>()), 0..4_u8);
    (ids, contents, proptest::option::of(0..3_u8)).prop_map(
        |((key, key_id_given, machine, volume), (kind, byte, package, fingerprint), user)| {
            Action::Escrow(Escrow {
                key_id: KeyId(Uuid::from_u128(key)),
                key_id_given,
                machine: name("PC-", machine).parse().unwrap(),
                volume: name("disk", volume).parse().unwrap(),
                kind: SecretKind::ALL[kind],
                sealed: sealed(byte),
                sealed_package: package.map(sealed),
                fingerprint: Fingerprint([fingerprint; 32]),
                user: user.map(|user| name(r"CORP\user", user).parse().unwrap()),
            })
        },
    )
}

fn reveal() -> impl Strategy<Value = Action> {
    (0..7_u128, proptest::option::of(0..4_u8), "[a-c]{0,3}").prop_map(|(key, user, reason)| {
        Action::Reveal(Reveal {
            key_id: KeyId(Uuid::from_u128(key)),
            user: user.map(|user| name(r"corp\USER", user).parse().unwrap()),
            reason,
        })
    })
}

fn node(id: u64, storage: u128) -> NodeRecord {
    NodeRecord {
        id,
        peer_address: format!("node{id}:7421"),
        api_address: format!("node{id}:7420"),
        zone: String::new(),
        storage: Uuid::from_u128(storage),
        recipient: "age1node".to_owned(),
        admitted_at: Timestamp(0),
    }
}

fn keyring(generation: u64) -> KeyringRecord {
    KeyringRecord { generation, current_key_version: 1, age_file: vec![1] }
}

fn admit() -> impl Strategy<Value = Action> {
    (1..4_u64, 1..4_u128, 1..6_u64).prop_map(|(id, storage, generation)| {
        Action::AdmitNode(AdmitNode { node: node(id, storage), keyring: keyring(generation) })
    })
}

fn remove() -> impl Strategy<Value = Action> {
    (1..4_u64, 1..6_u64, 1..5_u32).prop_map(|(node, generation, version)| {
        let keyring = KeyringRecord { current_key_version: version, ..keyring(generation) };
        Action::RemoveNode(RemoveNode { node, keyring })
    })
}

fn recover_cluster() -> impl Strategy<Value = Action> {
    (2..4_u128, 1..4_u64, 1..6_u64, 1..5_u32).prop_map(|(cluster, survivor, generation, version)| {
        let keyring = KeyringRecord { current_key_version: version, ..keyring(generation) };
        let cluster = ClusterId(Uuid::from_u128(cluster));
        Action::RecoverCluster(RecoverCluster { cluster, survivor, keyring })
    })
}

fn raise() -> impl Strategy<Value = Action> {
    (1..4_u32).prop_map(|level| Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(level) }))
}

fn set_policy() -> impl Strategy<Value = Action> {
    let settings = (proptest::option::of(1..4_u32), 1..4_u8, any::<bool>());
    (settings, 0..4_u64).prop_map(|((limit, machine, listed), replaces)| {
        let policy = serde_json::json!({
            "limits": { "person_per_hour": limit },
            "approval": { "machines": [name("PC-", machine)] },
            "reasons": { "listed": if listed { vec!["a", "b"] } else { vec![] }, "free_text": !listed },
        });
        Action::SetPolicy(SetPolicy { policy: policy.to_string(), replaces })
    })
}

fn decide() -> impl Strategy<Value = Action> {
    (0..7_u128, 1..4_u8, 0..100_u128, any::<bool>()).prop_map(|(key, person, approval, granted)| {
        Action::DecideApproval(DecideApproval {
            key_id: KeyId(Uuid::from_u128(key)),
            person: name("pc-", person),
            approval: RequestId(Uuid::from_u128(approval)),
            granted,
        })
    })
}

fn pending() -> impl Strategy<Value = Action> {
    escrow().prop_map(|action| match action {
        Action::Escrow(escrow) => Action::EscrowPending(escrow),
        other => other,
    })
}

fn confirm() -> impl Strategy<Value = Action> {
    (0..7_u128, 1..4_u8).prop_map(|(key, machine)| {
        let machine = name("PC-", machine).parse().unwrap();
        Action::ConfirmKey(ConfirmKey { machine, key_id: KeyId(Uuid::from_u128(key)) })
    })
}

pub(super) fn initialize(cluster: u128) -> Action {
    Action::Initialize(Initialize {
        cluster: ClusterId(Uuid::from_u128(cluster)),
        name: "acme".parse().unwrap(),
        offline_recipient: "age1offline".to_owned(),
        node: node(1, 1),
        keyring: keyring(1),
    })
}

fn command() -> impl Strategy<Value = Command> {
    let action = prop_oneof![
        10 => escrow(),
        10 => reveal(),
        3 => admit(),
        2 => raise(),
        2 => remove(),
        1 => recover_cluster(),
        3 => set_policy(),
        3 => decide(),
        4 => pending(),
        6 => confirm(),
        1 => (1..3_u128).prop_map(initialize),
    ];
    let entitled = proptest::bool::weighted(0.75);
    (0..100_u128, 0..1_000_u64, identity(), entitled, action).prop_map(
        |(request, at, mut by, entitled, action)| {
            if entitled {
                by.role = entitled_role(&action, by.role);
                by.name = name_for(by.role, 1 + (request % 3) as u8);
            }
            Command {
                request: RequestId(Uuid::from_u128(request)),
                at: Timestamp(at),
                by,
                source: Source { node: 1, address: String::new() },
                action,
            }
        },
    )
}

/// A role that may do it: with roles at random, nearly everything would be refused.
fn entitled_role(action: &Action, drawn: Role) -> Role {
    match action {
        Action::AdmitNode(_) | Action::Initialize(_) | Action::RemoveNode(_) => Role::Operator,
        Action::RaiseFeatureLevel(_) | Action::RecoverCluster(_) => Role::Node,
        Action::Escrow(_) | Action::EscrowPending(_) | Action::ConfirmKey(_) => Role::Importer,
        Action::Reveal(_) if drawn < Role::Importer => Role::Helpdesk,
        Action::Reveal(_) => Role::HelpdeskAdvanced,
        Action::SetPolicy(_) | Action::DecideApproval(_) => Role::Officer,
    }
}

/// Any commands after the one that initialises the cluster.
pub(super) fn commands() -> impl Strategy<Value = Vec<Command>> {
    vec(command(), 0..60).prop_map(|mut commands| {
        let first = Command {
            request: RequestId(Uuid::from_u128(u128::MAX)),
            at: Timestamp(5),
            by: Identity::new("acme".parse().unwrap(), Role::Node, "1").unwrap(),
            source: Source { node: 1, address: String::new() },
            action: initialize(1),
        };
        commands.insert(0, first);
        commands
    })
}
