//! Golden vectors: what was once written must keep decoding, and what must be refused stays refused for its reason.
//!
//! That holds from the first tagged release on. Until then a layout may still change, and its line with it; whoever changes
//! one raises [`DIRECTORY_FORMAT`](crate::store::directory::DIRECTORY_FORMAT), so that what an earlier build wrote is refused
//! at the door and not misread.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Deserializer;
use serde::de::{Error as _, Visitor};
use uuid::Uuid;

use super::compliance_tests::PINNED;
use super::*;
use crate::escrow::audit::ChainHead;
use crate::escrow::command::{
    Action, AdmitNode, ApprovalAsked, BatchedEscrow, Command, ConfirmKey, DecideApproval, DropDataKeys,
    Escrow, EscrowAnswer, Escrowed, Initialize, KeyConfirmed, RaiseFeatureLevel, Reconcile, RecoverCluster,
    Refusal, RemoveNode, Reply, Reseal, ResealedKey, Reveal, Revealed, RotateKeyring, SetPolicy,
    UploadOutcome,
};
use crate::escrow::compliance::Merged;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, Identity, Invalid, KeyId, MachineId, RequestId, Timestamp};
use crate::escrow::journal::{
    DegradedAsk, DegradedDecision, DegradedReveal, JournalEntry, JournalPlace, Knowledge, Noted,
};
use crate::escrow::records::*;
use crate::escrow::rows::{Heads, MachineKey, RequestRow, RequestSlot, UserMachine};
use crate::escrow::secrets::SecretKind;
use crate::escrow::state::{Row, Table};
use crate::escrow::tally::Slots;
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

fn stored(name: &str) -> Option<Vec<u8>> {
    lines(GOLDEN).find(|(found, _)| *found == name).map(|(_, bytes)| bytes)
}

/// The stored bytes decode to the value, and the value is still written as these bytes.
#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let written = data_encoding::HEXLOWER.encode(&encode(value));
    let bytes = stored(name).unwrap_or_else(|| panic!("testdata/golden.txt has no\n{name}: {written}"));
    assert_eq!(decode::<T>(&bytes).unwrap(), *value, "{name}");
    assert_eq!(written, data_encoding::HEXLOWER.encode(&bytes), "{name}");
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

/// Asks a type which variants it has, and makes nothing of it.
struct Variants(Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for &mut Variants {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("only an enum has variants"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0 = Some(variants);
        Err(Self::Error::custom("known now"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The names of all variants of `T` but for those of compliance, so that none is forgotten here.
fn variants_of<T: DeserializeOwned>() -> BTreeSet<String> {
    let mut asked = Variants(None);
    assert!(T::deserialize(&mut asked).is_err());
    let all = asked.0.expect("an enum").iter();
    all.filter(|name| !PINNED.contains(name)).map(ToString::to_string).collect()
}

/// Of every variant there is a vector, which is named after it and keeps decoding in what it is kept in.
#[track_caller]
fn check_every<T, W>(samples: Vec<(&str, T)>, wrap: impl Fn(T) -> W)
where
    T: Serialize + DeserializeOwned,
    W: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut missing = variants_of::<T>();
    for (name, sample) in samples {
        let variant = match serde_json::to_value(&sample).unwrap() {
            serde_json::Value::Object(variant) => variant.keys().next().unwrap().clone(),
            unit => unit.as_str().unwrap().to_owned(),
        };
        missing.remove(&variant);
        check(name, &wrap(sample));
    }
    assert_eq!(missing, BTreeSet::new(), "variants without a vector");
}

fn key_id() -> KeyId {
    KeyId(Uuid::from_u128(0x22))
}

fn machine() -> MachineId {
    "PC-0001".parse().unwrap()
}

fn asked_by() -> Identity {
    "spiffe://acme/helpdesk/d01".parse().unwrap()
}

fn degraded_reveal() -> DegradedReveal {
    DegradedReveal {
        request: RequestId(Uuid::from_u128(0x11)),
        at: Timestamp(1_700_000_000_000),
        by: asked_by(),
        source: Source { node: 2, address: "192.0.2.7".to_owned() },
        key_id: key_id(),
        machine: Some(machine()),
        user: Some(r"CORP\d01".parse().unwrap()),
        reason: "lost PIN".to_owned(),
        denied: Some(Refusal::Denied("no".to_owned())),
        approval: Some(RequestId(Uuid::from_u128(0x12))),
        knowledge: Knowledge { position: position(), quorum_age_ms: Some(9), policy_version: 3 },
    }
}

fn degraded_ask() -> DegradedAsk {
    let DegradedReveal { request, at, by, source, key_id, user, reason, knowledge, .. } = degraded_reveal();
    DegradedAsk {
        request,
        at,
        by,
        source,
        approval: RequestId(Uuid::from_u128(0x12)),
        key_id,
        machine: machine(),
        user,
        reason,
        expires_at: Timestamp(9),
        knowledge,
    }
}

fn degraded_decision() -> DegradedDecision {
    let DegradedReveal { request, at, source, key_id, denied, knowledge, .. } = degraded_reveal();
    DegradedDecision {
        request,
        at,
        by: "spiffe://acme/officer/olga".parse().unwrap(),
        source,
        approval: RequestId(Uuid::from_u128(0x12)),
        key_id,
        asked_by: asked_by(),
        granted: true,
        denied,
        knowledge,
    }
}

fn place() -> JournalPlace {
    JournalPlace { journal: Uuid::from_u128(0x33), sequence: 4 }
}

fn journal_entry() -> JournalEntry {
    JournalEntry { place: place(), previous: [5; 32], what: Noted::Reveal(degraded_reveal()) }
}

fn reseal_record() -> ResealRecord {
    ResealRecord {
        key_version: 2,
        after: Some(key_id()),
        to_do: 70_000,
        resealed: 300,
        left: 1,
        done: true,
        dropped: false,
    }
}

#[test]
fn commands_keep_decoding() {
    let ClusterRecord { id: cluster, name, offline_recipient, .. } = cluster();
    let Escrow { key_id, sealed, sealed_package, .. } = escrow();
    let resealed = ResealedKey { key_id, was: [7; 32], sealed, sealed_package };
    let approval = RequestId(Uuid::from_u128(0x12));
    let actions = vec![
        Action::Initialize(Initialize { cluster, name, offline_recipient, node: node(), keyring: keyring() }),
        Action::Escrow(escrow()),
        Action::Reveal(Reveal {
            key_id,
            user: Some(r"CORP\d01".parse().unwrap()),
            reason: "lost PIN".to_owned(),
        }),
        Action::AdmitNode(AdmitNode { node: node(), keyring: keyring() }),
        Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(2) }),
        Action::RecoverCluster(RecoverCluster {
            cluster: ClusterId(Uuid::from_u128(0x55)),
            survivor: 2,
            keyring: keyring(),
        }),
        Action::RemoveNode(RemoveNode { node: 2, keyring: keyring() }),
        Action::SetPolicy(SetPolicy { policy: "{}".to_owned(), replaces: 3 }),
        Action::DecideApproval(DecideApproval { approval, granted: true }),
        Action::Reconcile(Reconcile { entry: journal_entry() }),
        Action::RotateKeyring(RotateKeyring { keyring: keyring() }),
        Action::Reseal(Reseal {
            key_version: 2,
            after: Some(key_id),
            to_do: 70_000,
            rows: 64,
            keys: vec![resealed],
        }),
        Action::DropDataKeys(DropDataKeys { keyring: keyring() }),
        Action::EscrowPending(escrow()),
        Action::ConfirmKey(ConfirmKey { machine: machine(), key_id }),
        Action::EscrowMany(vec![BatchedEscrow { request: approval, escrow: escrow() }]),
    ];
    let names: Vec<_> = actions.iter().map(|action| format!("command {}", action.kind())).collect();
    check_every(names.iter().map(String::as_str).zip(actions).collect(), command);
}

/// Checks rows, and notes which tables they are of.
#[derive(Default)]
struct CheckedRows(BTreeSet<String>);

impl CheckedRows {
    #[track_caller]
    fn check<R: Row + PartialEq + Debug>(&mut self, name: &str, row: &R) {
        self.0.insert(format!("{:?}", R::TABLE));
        check(name, row);
    }
}

#[test]
fn rows_of_every_table_keep_decoding() {
    let Escrow { key_id, machine, volume, kind, sealed, sealed_package, fingerprint, user, .. } = escrow();
    let user = user.unwrap();
    let mut rows = CheckedRows::default();
    rows.check("row cluster", &cluster());
    let audit = ChainHead { sequence: 12, hash: [5; 32] };
    rows.check("row heads", &Heads { last_stamp: Timestamp(8), audit, requests: 70_000 });
    rows.check("row keyring", &keyring());
    rows.check("row node", &node());
    let record = MachineRecord {
        id: machine.clone(),
        users: vec![user.clone()],
        users_seen_at: vec![Timestamp(2)],
        first_seen: Timestamp(1),
        rotation_owed_since: Some(Timestamp(3)),
    };
    rows.check("row machine", &record);
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
    rows.check("row key", &key);
    rows.check("row machine-key", &MachineKey { machine: machine.clone(), key_id, fingerprint });
    rows.check("row user-machine", &UserMachine { user: user.clone(), machine: machine.clone() });
    rows.check("row audit initialized", &audit_record(AuditEvent::ClusterInitialized));
    rows.check("row request removed", &request_row(Reply::NodeRemoved));
    let slot = RequestSlot { slot: 16_383, request: RequestId(Uuid::from_u128(0x11)) };
    rows.check("row request-slot", &slot);
    rows.check("row departed-node", &DepartedNode { id: 2, at: Timestamp(7) });
    rows.check("row reseal", &reseal_record());
    let level = FeatureLevelRecord { level: FeatureLevel(2), raised_at: Timestamp(7) };
    rows.check("row feature-level", &level);
    rows.check(
        "row reconciled",
        &ReconciledEntry { place: place(), hash: [6; 32], audit_sequence: Some(13) },
    );
    let olga: Identity = "spiffe://acme/officer/olga".parse().unwrap();
    let policy =
        PolicyRecord { version: 3, policy: "{}".to_owned(), set_at: Timestamp(7), set_by: olga.clone() };
    rows.check("row policy", &policy);
    let tally = RevealTally { person: Some("d01".to_owned()), slots: Slots(vec![(2_945_376, 3)]) };
    rows.check("row reveal-tally", &tally);
    let denied = DenialTally { person: "d01".to_owned(), slots: Slots(vec![(2_945_376, 3)]), unrecorded: 12 };
    rows.check("row denial-tally", &denied);
    let approval = Approval {
        id: RequestId(Uuid::from_u128(0x12)),
        key_id,
        machine,
        asked_by: asked_by(),
        user: Some(user),
        reason: "lost PIN".to_owned(),
        asked_at: Timestamp(7),
        expires_at: Timestamp(9),
        granted_by: Some(olga),
        asked_again: 12,
    };
    rows.check("row approval", &approval);
    let used = UsedApproval { approval: RequestId(Uuid::from_u128(0x12)), audit_sequence: 13 };
    rows.check("row used-approval", &used);
    let history = KeyHistory {
        key_id,
        disclosed_at: Some(Timestamp(5)),
        retired_at: Some(Timestamp(6)),
        replaced_by: Some(KeyId(Uuid::from_u128(0x23))),
    };
    rows.check("row key-history", &history);
    let missing: Vec<_> = variants_of::<Table>().difference(&rows.0).cloned().collect();
    assert!(missing.is_empty(), "tables without a vector: {missing:?}");
}

#[test]
fn the_states_and_kinds_of_keys_keep_their_numbers() {
    let states = vec![
        ("key-state active", KeyState::Active),
        ("key-state disclosed", KeyState::Disclosed),
        ("key-state pending", KeyState::Pending),
        ("key-state retired", KeyState::Retired),
    ];
    check_every(states, |state| state);
    let kinds = SecretKind::ALL.map(|kind| (format!("secret-kind {kind}"), kind));
    check_every(kinds.iter().map(|(name, kind)| (name.as_str(), *kind)).collect(), |kind| kind);
}

fn audit_record(event: AuditEvent) -> AuditRecord {
    AuditRecord {
        sequence: 13,
        previous: [5; 32],
        at: Timestamp(9),
        by: "spiffe://acme/operator/ops".parse().unwrap(),
        source: Source { node: 1, address: String::new() },
        position: position(),
        event,
    }
}

#[test]
fn audit_records_keep_decoding() {
    let key_id = key_id();
    let approval = RequestId(Uuid::from_u128(0x12));
    let user = Some(r"CORP\d01".parse().unwrap());
    let reveal = AuditEvent::Reveal {
        key_id,
        machine: Some(machine()),
        user: None,
        reason: "lost PIN".to_owned(),
        denied: Some("not a user of this machine".to_owned()),
    };
    let recovered = AuditEvent::ClusterRecovered {
        survivor: 2,
        lost: vec![1, 3],
        previous: ClusterId(Uuid::from_u128(0x44)),
    };
    let asked = AuditEvent::ApprovalAsked {
        approval,
        key_id,
        machine: machine(),
        user: user.clone(),
        reason: "lost PIN".to_owned(),
        expires_at: Timestamp(9),
    };
    let decided = AuditEvent::ApprovalDecided {
        approval,
        key_id,
        machine: machine(),
        user: user.clone(),
        asked_by: asked_by(),
        granted: true,
    };
    let used = AuditEvent::ApprovalUsed {
        approval,
        key_id,
        machine: machine(),
        user: user.clone(),
        asked_by: asked_by(),
        granted_by: asked_by(),
    };
    let refused = AuditEvent::ApprovalRefused {
        approval,
        key_id: Some(key_id),
        machine: Some(machine()),
        user,
        asked_by: Some(asked_by()),
        granted: true,
        denied: "no".to_owned(),
    };
    let confirmed = AuditEvent::KeyConfirmed {
        key_id,
        machine: machine(),
        replaced: vec![KeyId(Uuid::from_u128(0x23))],
        rotation_owed_since: Some(Timestamp(8)),
    };
    let reconciled = AuditEvent::RevealReconciled { place: place(), reveal: Box::new(degraded_reveal()) };
    let asked_alone = AuditEvent::ApprovalAskReconciled { place: place(), ask: Box::new(degraded_ask()) };
    let decision = Box::new(degraded_decision());
    let repeated =
        AuditEvent::RevealRepeated { place: place(), key_id, node: 3, at: Timestamp(8), audit_sequence: 12 };
    let decided_alone = AuditEvent::ApprovalDecisionReconciled { place: place(), decision };
    let again = AuditEvent::ApprovalAskedAgain {
        approval,
        key_id,
        machine: machine(),
        user: Some(r"CORP\d01".parse().unwrap()),
        times: 10,
    };
    let used_again = AuditEvent::ApprovalUsedAgain {
        approval,
        key_id,
        machine: Some(machine()),
        user: Some(r"CORP\d01".parse().unwrap()),
        used_by: asked_by(),
        first_use: 12,
    };
    let events = vec![
        ("row audit initialized", AuditEvent::ClusterInitialized),
        ("row audit conflict", AuditEvent::EscrowConflict { key_id, machine: machine() }),
        ("row audit node", AuditEvent::NodeAdmitted { node: 2 }),
        ("row audit reveal", reveal),
        ("row audit recovered", recovered),
        ("row audit feature-level", AuditEvent::FeatureLevelRaised { level: FeatureLevel(2) }),
        ("row audit removed", AuditEvent::NodeRemoved { node: 2 }),
        ("row audit policy", AuditEvent::PolicySet { version: 3, policy: "{}".to_owned() }),
        ("row audit approval-asked", asked),
        ("row audit approval-decided", decided),
        ("row audit approval-used", used),
        ("row audit reveal-reconciled", reconciled),
        ("row audit rotated", AuditEvent::KeyringRotated { key_version: 2 }),
        ("row audit data-keys-dropped", AuditEvent::DataKeysDropped { key_version: 2 }),
        ("row audit key-confirmed", confirmed),
        ("row audit approval-refused", refused),
        ("row audit approval-ask-reconciled", asked_alone),
        ("row audit approval-decision-reconciled", decided_alone),
        ("row audit approval-asked-again", again),
        ("row audit approval-used-again", used_again),
        ("row audit denials-unrecorded", AuditEvent::DenialsUnrecorded { count: 10, until: Timestamp(9) }),
        ("row audit reveal-repeated", repeated),
    ];
    check_every(events, audit_record);
}

#[test]
fn entries_of_journals_keep_decoding() {
    let entries = vec![
        ("journal entry", Noted::Reveal(degraded_reveal())),
        ("journal entry approval-asked", Noted::ApprovalAsked(degraded_ask())),
        ("journal entry approval-decided", Noted::ApprovalDecided(degraded_decision())),
    ];
    check_every(entries, |what| JournalEntry { what, ..journal_entry() });
}

fn request_row(reply: Reply) -> RequestRow {
    RequestRow { request: RequestId(Uuid::from_u128(0x11)), digest: [6; 32], reply }
}

#[test]
fn remembered_replies_keep_decoding() {
    let Escrow { key_id, machine, volume, fingerprint, .. } = escrow();
    let escrowed = Escrowed {
        key_id,
        machine,
        volume,
        fingerprint,
        at: Timestamp(4),
        position: position(),
        already_escrowed: true,
        keys_left: None,
    };
    let revealed = Revealed { key_id, audit_sequence: 13, at: Timestamp(9), position: position() };
    let asked = ApprovalAsked { approval: RequestId(Uuid::from_u128(0x12)), expires_at: Timestamp(9) };
    let confirmed = KeyConfirmed {
        key_id,
        state: KeyState::Active,
        replaced: vec![KeyId(Uuid::from_u128(0x23))],
        rotation_owed_since: Some(Timestamp(8)),
    };
    let many = vec![
        EscrowAnswer::Escrowed(escrowed.clone()),
        EscrowAnswer::OldDataKey { current: 2 },
        EscrowAnswer::Refused(Refusal::Denied("no".to_owned())),
    ];
    let uploads = vec![
        UploadOutcome::Taken { merged: Merged::Repeated, rotation_owed_since: Some(Timestamp(8)) },
        UploadOutcome::Refused(Refusal::Denied("no".to_owned())),
    ];
    let replies = vec![
        ("row request escrowed", Reply::Escrowed(escrowed)),
        ("row request admitted", Reply::NodeAdmitted),
        ("row request initialized", Reply::Initialized),
        ("row request refused", Reply::Refused(Refusal::Denied("no".to_owned()))),
        ("row request revealed", Reply::Revealed(revealed)),
        ("row request recovered", Reply::ClusterRecovered),
        ("row request feature-level", Reply::FeatureLevel(FeatureLevel(2))),
        ("row request removed", Reply::NodeRemoved),
        ("row request policy", Reply::PolicySet { version: 3 }),
        ("row request approval-asked", Reply::ApprovalAsked(asked)),
        ("row request approval-decided", Reply::ApprovalDecided),
        ("row request reconciled", Reply::Reconciled { audit_sequence: Some(13) }),
        ("row request old-data-key", Reply::OldDataKey { current: 2 }),
        ("row request rotated", Reply::KeyringRotated { key_version: 2 }),
        ("row request resealed", Reply::Resealed(reseal_record())),
        ("row request data-keys-dropped", Reply::DataKeysDropped),
        ("row request key-confirmed", Reply::KeyConfirmed(confirmed)),
        ("reply escrowed-many", Reply::EscrowedMany(many)),
        ("reply compliance-noted", Reply::ComplianceNoted(uploads)),
    ];
    check_every(replies, request_row);
    let refusals = vec![
        ("row request refused", Refusal::Denied("no".to_owned())),
        ("row request conflict", Refusal::Conflict("no".to_owned())),
        ("row request invalid", Refusal::Invalid(Invalid::new("reason", "one"))),
        ("row request not-found", Refusal::NotFound("no".to_owned())),
    ];
    check_every(refusals, |refusal| request_row(Reply::Refused(refusal)));
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
        ("commands", Payload::Commands(vec![&body, &[], &[0xcc]])),
        ("membership", Payload::Membership(&body)),
    ];
    for (name, payload) in payloads {
        let bytes = stored(&format!("log {name}")).unwrap();
        assert_eq!(Payload::decode(&bytes).unwrap(), payload);
        assert_eq!(payload.encode(), bytes);
    }
    assert!(matches!(Payload::decode(&[VERSION + 1, 0]), Err(FormatError::Newer { found: 2 })));
    assert!(matches!(Payload::decode(&[VERSION]), Err(FormatError::Truncated)));
    assert!(matches!(Payload::decode(&[VERSION, PAYLOAD_BLANK, 7]), Err(FormatError::Trailing(1))));
    assert!(matches!(Payload::decode(&[VERSION, 9]), Err(FormatError::Malformed(_))));
    let whole = stored("log commands").unwrap();
    for length in [2, 4, 7, 10, whole.len() - 1] {
        assert!(matches!(Payload::decode(&whole[..length]), Err(FormatError::Truncated)), "{length} bytes");
    }
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
