//! Random commands.

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::compliance;
use crate::escrow::apply::{apply, sealed_digest};
use crate::escrow::command::{
    Action, AdmitNode, BatchedEscrow, Command, ConfirmKey, Contact, DecideApproval, DecideExemption,
    DropDataKeys, Escrow, Initialize, NoteContact, RaiseFeatureLevel, Reconcile, RecoverCluster, Refusal,
    RemoveNode, ReportCompliance, RequestExemption, Reseal, ResealedKey, Reveal, RotateKeyring,
    SetCompliancePolicy, SetPolicy,
};
use crate::escrow::compliance::{Exemption, ExemptionDecision};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, Identity, KeyId, RequestId, Role, Timestamp};
use crate::escrow::inventory::{Description, ImportedMachine};
use crate::escrow::journal::{
    DegradedAsk, DegradedDecision, DegradedReveal, JournalEntry, JournalPlace, Knowledge, Noted,
};
use crate::escrow::lookup;
use crate::escrow::memory::Memory;
use crate::escrow::records::{Fingerprint, KeyringRecord, LogPosition, NodeRecord, Sealed, Source};
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

fn sealed(byte: u8, key_version: u32) -> Sealed {
    Sealed { key_version, nonce: [byte; 12], ciphertext: vec![byte; 40] }
}

fn escrow() -> impl Strategy<Value = Action> {
    let ids = (0..6_u128, any::<bool>(), 1..4_u8, 0..2_u8);
    let contents = (0..2_usize, any::<u8>(), proptest::option::of(any::<u8>()), 0..4_u8);
    (ids, contents, proptest::option::of(0..3_u8), 1..4_u32).prop_map(
        |((key, key_id_given, machine, volume), (kind, byte, package, fingerprint), user, version)| {
            Action::Escrow(Escrow {
                key_id: KeyId(Uuid::from_u128(key)),
                key_id_given,
                machine: name("PC-", machine).parse().unwrap(),
                volume: name("disk", volume).parse().unwrap(),
                kind: SecretKind::ALL[kind],
                sealed: sealed(byte, version),
                sealed_package: package.map(|byte| sealed(byte, version)),
                fingerprint: Fingerprint([fingerprint; 32]),
                user: user.map(|user| name(r"CORP\user", user).parse().unwrap()),
            })
        },
    )
}

/// Few, of which some are the same or contradict each other.
pub(super) fn batch() -> impl Strategy<Value = Vec<BatchedEscrow>> {
    vec((0..100_u128, escrow()), 1..8).prop_map(|drawn| {
        let batched = drawn.into_iter().filter_map(|(request, action)| match action {
            Action::Escrow(escrow) => {
                Some(BatchedEscrow { request: RequestId(Uuid::from_u128(request)), escrow })
            }
            _ => None,
        });
        batched.collect()
    })
}

/// The same as a node makes it: sealed with one keyring, and an id that was not given is nobody else's.
pub(super) fn batch_of_one_keyring() -> impl Strategy<Value = Vec<BatchedEscrow>> {
    (batch(), 1..4_u32, any::<u64>()).prop_map(|(mut batch, version, drawn)| {
        for (number, BatchedEscrow { escrow, .. }) in (1_u64..).zip(&mut batch) {
            if !escrow.key_id_given {
                escrow.key_id = KeyId(Uuid::from_u64_pair(drawn, number));
            }
            escrow.sealed.key_version = version;
            if let Some(package) = &mut escrow.sealed_package {
                package.key_version = version;
            }
        }
        batch
    })
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
    (1..5_u32).prop_map(|level| Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(level) }))
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

fn report_compliance() -> impl Strategy<Value = Action> {
    let report = (1..4_u8, 0..1_000_u64, 0..4_u8, 0..3_u8);
    vec(report, 1..4).prop_map(|drawn| {
        let report = |(machine, at, state, beside)| compliance::report(machine, at, state, beside);
        let reports = drawn.into_iter().map(report).collect();
        Action::ReportCompliance(ReportCompliance { reports })
    })
}

fn import_machines() -> impl Strategy<Value = Action> {
    let machine = (1..4_u8, "[a-c]{0,2}", "[a-c]{0,2}", vec(1..4_u8, 0..4));
    vec(machine, 1..4).prop_map(|drawn| {
        let imported = |(machine, domain, model, users): (u8, String, String, Vec<u8>)| ImportedMachine {
            machine: name("PC-", machine).parse().unwrap(),
            description: Description { domain, model, ..Description::default() },
            users: users.iter().map(|user| format!(r"CORP\{}", name("u", *user)).parse().unwrap()).collect(),
        };
        Action::ImportMachines(drawn.into_iter().map(imported).collect())
    })
}

/// In vain, unless it is of a machine that says the same still, see [`as_proposed`].
fn note_contact() -> impl Strategy<Value = Action> {
    (1..4_u8, 0..1_000_u64).prop_map(|(machine, at)| {
        let machine = name("PC-", machine).parse().unwrap();
        let contact = Contact { machine, at: Timestamp(at), digest: [0; 32] };
        Action::NoteContact(NoteContact { contacts: vec![contact] })
    })
}

fn request_exemption() -> impl Strategy<Value = Action> {
    (1..4_u8, "[a-c]{0,3}", proptest::option::of(0..2_000_u64)).prop_map(|(machine, reason, until)| {
        let machine = name("PC-", machine).parse().unwrap();
        Action::RequestExemption(RequestExemption { machine, reason, until: until.map(Timestamp) })
    })
}

/// In vain, unless it is of what waits or is in force, see [`as_proposed`].
fn decide_exemption() -> impl Strategy<Value = Action> {
    let decision = prop_oneof![
        proptest::option::of(0..2_000_u64)
            .prop_map(|until| ExemptionDecision::Grant { until: until.map(Timestamp) }),
        Just(ExemptionDecision::Reject),
        Just(ExemptionDecision::Revoke),
    ];
    (1..4_u8, decision).prop_map(|(machine, decision)| {
        let (machine, exemption) = (name("PC-", machine).parse().unwrap(), RequestId(Uuid::nil()));
        Action::DecideExemption(DecideExemption { machine, exemption, decision })
    })
}

fn set_compliance_policy() -> impl Strategy<Value = Action> {
    (0..6_u32, 0..3_u64).prop_map(|(days, replaces)| {
        let policy = format!(r#"{{"stale_days": {days}}}"#);
        Action::SetCompliancePolicy(SetCompliancePolicy { policy, replaces })
    })
}

fn decide() -> impl Strategy<Value = Action> {
    (0..100_u128, any::<bool>()).prop_map(|(approval, granted)| {
        Action::DecideApproval(DecideApproval { approval: RequestId(Uuid::from_u128(approval)), granted })
    })
}

/// Of few requests, which meet those of committed reveals.
fn reconcile() -> impl Strategy<Value = Action> {
    let place = (1..3_u128, 1..5_u64);
    let asked = (0..100_u128, 0..1_000_u64, identity(), 0..7_u128, "[a-c]{1,3}");
    (place, asked, any::<bool>(), proptest::option::of(0..100_u128), 0..4_u8).prop_map(
        |((journal, sequence), (request, at, by, key, reason), denied, approval, kind)| {
            let reveal = DegradedReveal {
                request: RequestId(Uuid::from_u128(request)),
                at: Timestamp(at),
                by,
                source: Source { node: 3, address: String::new() },
                key_id: KeyId(Uuid::from_u128(key)),
                machine: None,
                user: None,
                reason,
                denied: denied.then(|| Refusal::Denied("no".to_owned())),
                approval: approval.map(|approval| RequestId(Uuid::from_u128(approval))),
                knowledge: Knowledge {
                    position: LogPosition::default(),
                    quorum_age_ms: None,
                    policy_version: 0,
                },
            };
            let what = match kind {
                0 => Noted::ApprovalAsked(ask_of(reveal)),
                1 => Noted::ApprovalDecided(decision_of(reveal)),
                _ => Noted::Reveal(reveal),
            };
            let place = JournalPlace { journal: Uuid::from_u128(journal), sequence };
            Action::Reconcile(Reconcile { entry: JournalEntry { place, previous: [0; 32], what } })
        },
    )
}

fn ask_of(reveal: DegradedReveal) -> DegradedAsk {
    let DegradedReveal { request, at, by, source, key_id, user, reason, knowledge, .. } = reveal;
    DegradedAsk {
        request,
        at,
        by,
        source,
        approval: request,
        key_id,
        machine: "PC-1".parse().unwrap(),
        user,
        reason,
        expires_at: Timestamp(at.0 + 100),
        knowledge,
    }
}

fn decision_of(reveal: DegradedReveal) -> DegradedDecision {
    let DegradedReveal { request, at, by, source, key_id, denied, knowledge, .. } = reveal;
    let (approval, asked_by) = (request, by.clone());
    DegradedDecision { request, at, by, source, approval, key_id, asked_by, granted: true, denied, knowledge }
}

fn rotate() -> impl Strategy<Value = Action> {
    (1..6_u64, 1..5_u32).prop_map(|(generation, version)| {
        let keyring = KeyringRecord { current_key_version: version, ..keyring(generation) };
        Action::RotateKeyring(RotateKeyring { keyring })
    })
}

/// One in vain: what a leader would propose rests on the state, see [`as_proposed`].
fn reseal() -> impl Strategy<Value = Action> {
    (1..5_u32, proptest::option::of(0..6_u128), 0..6_u32, 0..6_u128).prop_map(
        |(version, after, rows, key)| {
            let anew = ResealedKey {
                key_id: KeyId(Uuid::from_u128(key)),
                was: [0; 32],
                sealed: sealed(9, version),
                sealed_package: None,
            };
            let after = after.map(|after| KeyId(Uuid::from_u128(after)));
            Action::Reseal(Reseal { key_version: version, after, to_do: 6, rows, keys: vec![anew] })
        },
    )
}

/// What a leader that has `state` would propose in the place of `action`, if it rests on the state.
fn as_proposed(state: &Memory, action: Action) -> Action {
    let Some(stored) = lookup::keyring(state).unwrap() else { return action };
    let (generation, current) = (stored.generation + 1, stored.current_key_version);
    let follows = |version| KeyringRecord { current_key_version: version, ..keyring(generation) };
    match action {
        Action::Reseal(drawn) if drawn.rows > 0 => Action::Reseal(leaders_step(state, current, &drawn)),
        Action::RotateKeyring(_) => Action::RotateKeyring(RotateKeyring { keyring: follows(current + 1) }),
        Action::DropDataKeys(_) => Action::DropDataKeys(DropDataKeys { keyring: follows(current) }),
        Action::NoteContact(mut note) => {
            for contact in &mut note.contacts {
                let kept = lookup::compliance(state, &contact.machine).unwrap();
                contact.digest = kept.map_or(contact.digest, |kept| kept.report.digest());
            }
            Action::NoteContact(note)
        }
        Action::DecideExemption(decide) => {
            let Exemption { request, grant, .. } = lookup::exemption(state, &decide.machine)
                .unwrap()
                .unwrap_or_else(|| Exemption::none(decide.machine.clone()));
            let about = match decide.decision {
                ExemptionDecision::Revoke => grant.map(|grant| grant.request),
                _ => request,
            };
            let exemption = about.map_or(decide.exemption, |request| request.id);
            Action::DecideExemption(DecideExemption { exemption, ..decide })
        }
        other => other,
    }
}

/// The next step of a leader, which seals anew what it finds but for the key that `drawn` names.
fn leaders_step(state: &Memory, key_version: u32, drawn: &Reseal) -> Reseal {
    let pass = lookup::resealing(state).unwrap().filter(|pass| pass.key_version == key_version && !pass.done);
    let after = pass.and_then(|pass| pass.after);
    let keys = lookup::keys_after(state, after, drawn.rows as usize).unwrap().into_iter();
    let keys = keys.filter(|key| !key.is_sealed_under(key_version) && key.id != drawn.keys[0].key_id);
    let anew =
        |old: &Sealed| Sealed { key_version, nonce: [9; 12], ciphertext: vec![9; old.ciphertext.len()] };
    let keys = keys.map(|key| ResealedKey {
        key_id: key.id,
        was: sealed_digest(&key),
        sealed: anew(&key.sealed),
        sealed_package: key.sealed_package.as_ref().map(anew),
    });
    Reseal { key_version, after, to_do: 6, rows: drawn.rows, keys: keys.collect() }
}

fn drop_data_keys() -> impl Strategy<Value = Action> {
    (1..6_u64, 1..5_u32).prop_map(|(generation, version)| {
        let keyring = KeyringRecord { current_key_version: version, ..keyring(generation) };
        Action::DropDataKeys(DropDataKeys { keyring })
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
        3 => rotate(),
        8 => reseal(),
        3 => drop_data_keys(),
        1 => recover_cluster(),
        3 => set_policy(),
        3 => decide(),
        4 => reconcile(),
        4 => pending(),
        6 => confirm(),
        6 => report_compliance(),
        3 => note_contact(),
        4 => import_machines(),
        3 => request_exemption(),
        4 => decide_exemption(),
        2 => set_compliance_policy(),
        5 => batch_of_one_keyring().prop_map(Action::EscrowMany),
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
        Action::AdmitNode(_) | Action::Initialize(_) | Action::RemoveNode(_) | Action::RotateKeyring(_) => {
            Role::Operator
        }
        Action::RaiseFeatureLevel(_)
        | Action::RecoverCluster(_)
        | Action::Reconcile(_)
        | Action::Reseal(_)
        | Action::DropDataKeys(_) => Role::Node,
        Action::Escrow(_) | Action::EscrowMany(_) | Action::EscrowPending(_) | Action::ConfirmKey(_) => {
            Role::Importer
        }
        Action::Reveal(_) if drawn < Role::Importer => Role::Helpdesk,
        Action::Reveal(_) => Role::HelpdeskAdvanced,
        Action::SetPolicy(_)
        | Action::DecideApproval(_)
        | Action::DecideExemption(_)
        | Action::SetCompliancePolicy(_) => Role::Officer,
        Action::ReportCompliance(_) | Action::NoteContact(_) | Action::ImportMachines(_) => Role::Importer,
        Action::RequestExemption(_) => Role::Helpdesk,
    }
}

/// Any commands after the one that initialises the cluster. Most of those that rest on the state fit it.
pub(super) fn commands() -> impl Strategy<Value = Vec<Command>> {
    vec((command(), proptest::bool::weighted(0.9)), 0..60).prop_map(|drawn| {
        let first = Command {
            request: RequestId(Uuid::from_u128(u128::MAX)),
            at: Timestamp(5),
            by: Identity::new("acme".parse().unwrap(), Role::Node, "1").unwrap(),
            source: Source { node: 1, address: String::new() },
            action: initialize(1),
        };
        let (mut state, mut commands) = (Memory::new(), Vec::new());
        for (mut command, fits) in std::iter::once((first, false)).chain(drawn) {
            if fits {
                command.action = as_proposed(&state, command.action);
            }
            let position = LogPosition { term: 1, index: 1 + commands.len() as u64 };
            apply(&mut state, position, &command).unwrap();
            commands.push(command);
        }
        commands
    })
}
