//! The bounds, and what happens when the state below is not whole. The rest is in the scripts and properties.

use uuid::Uuid;

use super::*;
use crate::escrow::command::{
    Contact, DecideApproval, Escrow, ImportOutcome, Initialize, NoteContact, RaiseFeatureLevel,
    ReportCompliance, RequestExemption, Reveal, SetPolicy, UploadOutcome,
};
use crate::escrow::compliance::MachineReport;
use crate::escrow::compliance::facts::TEXT_MAX_BYTES;
use crate::escrow::compliance::history::CHANGES_MAX;
use crate::escrow::disclosure::DENIALS_PER_HOUR_MAX;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, KeyId, MachineId, RequestId, Role};
use crate::escrow::inventory::{Description, ImportedMachine};
use crate::escrow::lookup::{self, FIND_BRIEFLY_ROWS_MAX, FIND_LIMIT_MAX, FIND_ROWS_MAX, Query};
use crate::escrow::memory::Memory;
use crate::escrow::records::{
    Approval, Fingerprint, KEYS_PER_MACHINE_MAX, KeyRecord, KeyState, KeyringRecord, MachineRecord,
    NodeRecord, Sealed, Source, USERS_PER_MACHINE_MAX,
};
use crate::escrow::rows::{MachineKey, REQUESTS_MAX};
use crate::escrow::secrets::SecretKind;
use crate::escrow::state::Table;

/// A state and the entries applied to it.
struct History {
    state: Memory,
    index: u64,
}

impl History {
    fn begin() -> Self {
        let mut history = Self { state: Memory::new(), index: 0 };
        let reply = history.apply(Role::Node, Action::Initialize(initialize()));
        assert_eq!(reply, Reply::Initialized);
        history
    }

    /// Applies an action as a new request.
    fn apply(&mut self, role: Role, action: Action) -> Reply {
        self.index += 1;
        let command = command(self.index.into(), role, action);
        self.again(&command)
    }

    fn again(&mut self, command: &Command) -> Reply {
        apply(&mut self.state, LogPosition { term: 1, index: self.index }, command).unwrap()
    }
}

fn command(request: u128, role: Role, action: Action) -> Command {
    Command {
        request: RequestId(Uuid::from_u128(request)),
        at: Timestamp(1),
        by: Identity::new("acme".parse().unwrap(), role, "1").unwrap(),
        source: Source { node: 1, address: "192.0.2.7".to_owned() },
        action,
    }
}

/// The first command of a cluster.
pub(super) fn initialize() -> Initialize {
    Initialize {
        cluster: ClusterId(Uuid::nil()),
        name: "acme".parse().unwrap(),
        offline_recipient: "age1offline".to_owned(),
        node: NodeRecord {
            id: 1,
            peer_address: "node1:7421".to_owned(),
            api_address: "node1:7420".to_owned(),
            zone: String::new(),
            storage: Uuid::nil(),
            recipient: "age1node".to_owned(),
            admitted_at: Timestamp(0),
        },
        keyring: KeyringRecord { generation: 1, current_key_version: 1, age_file: vec![1] },
    }
}

fn sealed() -> Sealed {
    Sealed { key_version: 1, nonce: [0; 12], ciphertext: vec![1; 20] }
}

/// Key `number`, with a secret of its own.
fn escrow(number: u32, user: Option<String>) -> Action {
    let mut fingerprint = [0; 32];
    fingerprint[..4].copy_from_slice(&number.to_be_bytes());
    Action::Escrow(Escrow {
        key_id: KeyId(Uuid::from_u128(number.into())),
        key_id_given: true,
        machine: machine(),
        volume: "C:".parse().unwrap(),
        kind: SecretKind::Generic,
        sealed: sealed(),
        sealed_package: None,
        fingerprint: Fingerprint(fingerprint),
        user: user.map(|user| user.parse().unwrap()),
    })
}

fn reveal() -> Action {
    Action::Reveal(Reveal { key_id: KeyId(Uuid::from_u128(1)), user: None, reason: "lost PIN".to_owned() })
}

fn machine() -> MachineId {
    "PC-0001".parse().unwrap()
}

#[test]
fn of_too_many_users_the_one_seen_longest_ago_is_forgotten() {
    let mut history = History::begin();
    let user = |number: usize| format!(r"CORP\user{number}");
    let mut saw = |user: String| {
        history.index += 1;
        let command = command(history.index.into(), Role::Importer, escrow(1, Some(user)));
        history.again(&Command { at: Timestamp(history.index), ..command });
    };
    for number in 0..USERS_PER_MACHINE_MAX {
        saw(user(number));
    }
    // The first is seen again, so the second is now the one seen longest ago.
    saw(user(0).to_lowercase());
    saw(user(USERS_PER_MACHINE_MAX));

    let users = lookup::machine(&history.state, &machine()).unwrap().unwrap().users;
    let last_two: Vec<String> = users[USERS_PER_MACHINE_MAX - 2..].iter().map(ToString::to_string).collect();
    assert_eq!(last_two, [user(0).to_lowercase(), user(USERS_PER_MACHINE_MAX)]);
    assert_eq!(history.state.count(Table::UserMachine), USERS_PER_MACHINE_MAX);
    let found = |number| {
        let query = Query { user: Some(user(number).parse().unwrap()), ..Query::default() };
        lookup::find(&history.state, &query).unwrap().keys.len()
    };
    assert_eq!((found(0), found(1), found(2)), (1, 0, 1));
}

#[test]
fn a_machine_with_the_most_keys_gets_no_other_but_keeps_answering_for_those_it_has() {
    let mut history = History::begin();
    let most = u32::try_from(KEYS_PER_MACHINE_MAX).unwrap();
    history.apply(Role::Importer, escrow(1, None));
    let key = lookup::key(&history.state, KeyId(Uuid::from_u128(1))).unwrap().unwrap();
    for number in 2..most {
        let id = KeyId(Uuid::from_u128(number.into()));
        history.state.put(&KeyRecord { id, ..key.clone() });
        history.state.put(&MachineKey { machine: machine(), key_id: id, fingerprint: key.fingerprint });
    }
    let last = history.apply(Role::Importer, escrow(most, None));
    assert!(matches!(last, Reply::Escrowed(kept) if kept.keys_left == Some(0)), "said before it is refused");
    let before = history.state.clone();
    let reply = history.apply(Role::Importer, escrow(most + 1, None));
    assert!(matches!(reply, Reply::Refused(Refusal::Conflict(why)) if why.contains("1024 keys")));
    assert_eq!(history.state, before);
    assert!(
        matches!(history.apply(Role::Importer, escrow(most, None)), Reply::Escrowed(kept) if kept.already_escrowed)
    );

    // As many as one answer holds; the rest is said to be there.
    let query = Query { machine: Some(machine()), limit: FIND_LIMIT_MAX, ..Query::default() };
    let found = lookup::find(&history.state, &query).unwrap();
    assert_eq!((found.keys.len(), found.truncated), (FIND_LIMIT_MAX, true));
    assert_eq!(lookup::find_briefly(&history.state, &query).unwrap(), None);
}

#[test]
fn a_brief_search_finds_what_a_search_finds_or_says_that_it_would_take_longer() {
    let mut history = History::begin();
    for number in 1..=FIND_BRIEFLY_ROWS_MAX as u32 + 1 {
        history.apply(Role::Importer, escrow(number, None));
        for limit in [0, 1] {
            let query = Query { machine: Some(machine()), limit, ..Query::default() };
            let brief = lookup::find_briefly(&history.state, &query).unwrap();
            let found = lookup::find(&history.state, &query).unwrap();
            let is_brief = number as usize <= FIND_BRIEFLY_ROWS_MAX;
            assert_eq!(brief, is_brief.then_some(found), "{number} keys, at most {limit}");
        }
    }
}

#[test]
fn the_oldest_remembered_request_is_forgotten_and_the_others_are_not() {
    let mut history = History::begin();
    history.apply(Role::Importer, escrow(1, None));
    let [first, second] = [1, 2].map(|n| command(u128::MAX - n, Role::HelpdeskAdvanced, reveal()));
    let first_reply = history.again(&first);
    let second_reply = history.again(&second);
    for _ in 2..REQUESTS_MAX {
        history.apply(Role::HelpdeskAdvanced, reveal());
    }
    assert_eq!(history.again(&first), first_reply);

    history.apply(Role::HelpdeskAdvanced, reveal());
    assert_eq!(history.state.count(Table::Request) as u64, REQUESTS_MAX);
    assert_eq!(history.state.count(Table::RequestSlot) as u64, REQUESTS_MAX);
    assert_eq!(history.again(&second), second_reply);
    assert_ne!(history.again(&first), first_reply);
}

#[test]
fn a_search_that_matches_nothing_ends_and_says_that_it_did_not_look_at_everything() {
    let mut history = History::begin();
    history.apply(Role::Importer, escrow(0, None));
    let key: KeyRecord = lookup::key(&history.state, KeyId(Uuid::nil())).unwrap().unwrap();
    for number in 1..=FIND_ROWS_MAX as u128 {
        history.state.put(&KeyRecord { id: KeyId(Uuid::from_u128(number)), ..key.clone() });
    }
    let query = Query {
        key_id_prefix: Some("00000000".parse().unwrap()),
        machine: Some("PC-0002".parse().unwrap()),
        ..Query::default()
    };
    let found = lookup::find(&history.state, &query).unwrap();
    assert_eq!((found.keys.len(), found.truncated), (0, true));
}

#[test]
fn a_retired_or_pending_key_stays_so_when_it_is_revealed() {
    for state in [KeyState::Retired, KeyState::Pending] {
        let mut history = History::begin();
        history.apply(Role::Importer, escrow(1, None));
        let id = KeyId(Uuid::from_u128(1));
        let key = lookup::key(&history.state, id).unwrap().unwrap();
        history.state.put(&KeyRecord { state, ..key });
        assert!(matches!(history.apply(Role::HelpdeskAdvanced, reveal()), Reply::Revealed(_)));
        assert_eq!(lookup::key(&history.state, id).unwrap().unwrap().state, state);
    }
}

#[test]
fn a_replica_that_lost_a_row_stops_instead_of_answering() {
    let mut history = History::begin();
    history.apply(Role::Importer, escrow(1, None));
    history.state.delete::<MachineRecord>(&machine().row_key());
    let before = history.state.clone();
    let position = LogPosition { term: 1, index: 9 };
    for action in [reveal(), escrow(1, None)] {
        let role = if matches!(action, Action::Reveal(_)) { Role::HelpdeskAdvanced } else { Role::Importer };
        let error = apply(&mut history.state, position, &command(9, role, action)).unwrap_err();
        assert!(error.to_string().contains("table Machine has no row 50432d30303031"), "{error}");
        assert_eq!(history.state, before);
    }
}

#[test]
fn a_source_address_is_bounded() {
    let mut history = History::begin();
    let mut long = command(7, Role::Importer, escrow(1, None));
    long.source.address = "x".repeat(SOURCE_ADDRESS_MAX_BYTES + 1);
    assert!(
        matches!(history.again(&long), Reply::Refused(Refusal::Invalid(invalid)) if invalid.field == "source")
    );
}

#[test]
fn a_reason_is_bounded_and_kept_without_white_space_around_it() {
    assert_eq!(check_reason("\t lost PIN \n"), Ok("lost PIN"));
    assert!(check_reason(&"x".repeat(REASON_MAX_BYTES)).is_ok());
    assert_eq!(check_reason(&"x".repeat(REASON_MAX_BYTES + 1)).unwrap_err().field, "reason");
}

fn compliance(history: &mut History, reports: Vec<MachineReport>) -> Reply {
    history.apply(Role::Importer, Action::ReportCompliance(ReportCompliance { reports }))
}

fn with_compliance() -> History {
    let mut history = History::begin();
    let raise = RaiseFeatureLevel { level: FeatureLevel::COMPLIANCE };
    history.apply(Role::Node, Action::RaiseFeatureLevel(raise));
    history
}

fn report(at: u64, error: u32) -> MachineReport {
    let document = format!(
        r#"{{"machine": "PC-0001", "at": "@{at}ms", "policy": {{"enforcement": "enforced"}},
            "error": {{"code": {error}}}, "volumes": []}}"#
    );
    MachineReport::from_json(&document).unwrap()
}

#[test]
fn a_batch_of_uploads_is_bounded() {
    let mut history = with_compliance();
    let contact = Contact { machine: machine(), at: Timestamp(1), digest: [0; 32] };
    for count in [0, COMPLIANCE_BATCH_MAX + 1] {
        let before = history.state.clone();
        let reply = compliance(&mut history, vec![report(1, 1); count]);
        assert!(matches!(reply, Reply::Refused(Refusal::Invalid(invalid)) if invalid.field == "reports"));
        let note = NoteContact { contacts: vec![contact.clone(); count] };
        let reply = history.apply(Role::Importer, Action::NoteContact(note));
        assert!(matches!(reply, Reply::Refused(Refusal::Invalid(invalid)) if invalid.field == "contacts"));
        assert_eq!(history.state, before);
    }
    let reply = compliance(&mut history, vec![report(1, 1); COMPLIANCE_BATCH_MAX]);
    assert!(matches!(reply, Reply::ComplianceNoted(outcomes) if outcomes.len() == COMPLIANCE_BATCH_MAX));
}

#[test]
fn the_history_of_a_machine_is_bounded_and_no_row_of_it_stays_behind() {
    let mut history = with_compliance();
    for at in 0..CHANGES_MAX as u64 + 9 {
        compliance(&mut history, vec![report(at, (at % 2) as u32)]);
    }
    assert_eq!(history.state.count(Table::ComplianceChange), CHANGES_MAX);
    let changes = lookup::compliance_changes(&history.state, &machine()).unwrap();
    assert_eq!(changes[0].at, Timestamp(9));
    let contact = lookup::last_contact(&history.state, &machine()).unwrap().unwrap();
    assert_eq!(contact.said.and_then(|said| said.dropped), Some(Timestamp(8)));
}

#[test]
fn what_a_node_let_through_is_checked_again() {
    let mut history = with_compliance();
    let long = MachineReport { model: "x".repeat(TEXT_MAX_BYTES + 1), ..report(1, 1) };
    let before = history.state.clone();
    let Reply::ComplianceNoted(outcomes) = compliance(&mut history, vec![long]) else { panic!("noted") };
    assert!(
        matches!(&outcomes[..], [UploadOutcome::Refused(Refusal::Invalid(invalid))] if invalid.field == "model")
    );
    assert_eq!(history.state, before);
}

/// A cluster that has a desk, in which somebody asks for what they may not see until no more is looked at.
fn denied_too_often() -> History {
    let mut history = History::begin();
    history.apply(Role::Node, Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::DESK }));
    history.apply(Role::Importer, escrow(1, None));
    for _ in 0..DENIALS_PER_HOUR_MAX {
        assert!(matches!(history.apply(Role::Helpdesk, reveal()), Reply::Refused(Refusal::Denied(_))));
    }
    history
}

#[test]
fn who_is_denied_over_and_over_fills_neither_the_trail_nor_what_is_remembered() {
    let mut history = denied_too_often();
    let before = lookup::heads(&history.state).unwrap();
    for _ in 0..1_000 {
        history.apply(Role::Helpdesk, reveal());
    }
    let after = lookup::heads(&history.state).unwrap();
    assert_eq!(after.requests, before.requests);
    let records = lookup::audit(&history.state, before.audit.sequence, 9).unwrap();
    let counts: Vec<u64> = records
        .iter()
        .map(|record| match record.event {
            AuditEvent::DenialsUnrecorded { count, .. } => count,
            ref other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [1, 10, 100, 1_000], "how much of it there was");
}

#[test]
fn who_was_denied_too_often_is_not_told_whether_the_next_guess_is_right_until_there_is_room_again() {
    let mut history = denied_too_often();
    let asks = |history: &mut History, at: u64, role, name: &str| {
        history.index += 1;
        let by = Identity::new("acme".parse().unwrap(), role, name).unwrap();
        let asked = Command { at: Timestamp(at), by, ..command(history.index.into(), role, reveal()) };
        history.again(&asked)
    };
    let refused = |reply| match reply {
        Reply::Refused(Refusal::Denied(why)) => why,
        other => panic!("{other:?}"),
    };
    let guess = refused(asks(&mut history, 2, Role::Helpdesk, "1"));
    assert!(
        guess.contains("this one was not looked at; the next one is at 1970-01-01T01:10:00.000Z"),
        "{guess}"
    );
    assert_eq!(
        refused(asks(&mut history, 2, Role::HelpdeskAdvanced, "1")),
        guess,
        "a right one is told the same"
    );
    let decide = Action::DecideApproval(DecideApproval { approval: RequestId(Uuid::nil()), granted: true });
    assert_eq!(refused(history.apply(Role::Officer, decide)), guess, "and so is who decides");

    assert!(
        matches!(asks(&mut history, 2, Role::HelpdeskAdvanced, "2"), Reply::Revealed(_)),
        "others are not held up"
    );
    let room = 70 * 60 * 1_000;
    refused(asks(&mut history, room - 1, Role::HelpdeskAdvanced, "1"));
    assert!(matches!(asks(&mut history, room, Role::HelpdeskAdvanced, "1"), Reply::Revealed(_)));
    let why = refused(asks(&mut history, room, Role::Helpdesk, "1"));
    assert!(why.contains("named as DOMAIN"), "{why}");
    let tally = lookup::denials(&history.state, "1").unwrap();
    assert_eq!(
        (tally.slots.0, tally.unrecorded),
        (vec![(0, DENIALS_PER_HOUR_MAX), (7, 1)], 0),
        "counted anew"
    );
}

#[test]
fn below_the_level_of_the_desk_every_denial_is_on_record_as_older_releases_have_it() {
    let mut history = History::begin();
    history.apply(Role::Importer, escrow(1, None));
    let before = lookup::heads(&history.state).unwrap().audit.sequence;
    let denials = u64::from(DENIALS_PER_HOUR_MAX) + 20;
    for _ in 0..denials {
        history.apply(Role::Helpdesk, reveal());
    }
    assert_eq!(lookup::heads(&history.state).unwrap().audit.sequence, before + denials);
    assert_eq!(history.state.count(Table::DenialTally), 0);
}

#[test]
fn whoever_may_not_escrow_over_a_key_is_told_so_for_ever_and_on_record_so_often() {
    let mut history = denied_too_often();
    let before = lookup::heads(&history.state).unwrap();
    let Action::Escrow(other) = escrow(1, None) else { panic!("an escrow") };
    let other = Escrow { fingerprint: Fingerprint([9; 32]), ..other };
    for _ in 0..20 {
        let reply = history.apply(Role::Importer, Action::Escrow(other.clone()));
        assert!(matches!(reply, Reply::Refused(Refusal::Conflict(_))), "{reply:?}");
    }
    let after = lookup::heads(&history.state).unwrap();
    assert_eq!((after.audit.sequence - before.audit.sequence, after.requests), (2, before.requests));
    assert!(
        matches!(history.apply(Role::Importer, escrow(1, None)), Reply::Escrowed(_)),
        "what is right is kept"
    );
}

#[test]
fn a_reveal_for_which_too_many_wait_already_is_on_record_as_denied() {
    let mut history = History::begin();
    history.apply(Role::Node, Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::DESK }));
    let policy = r#"{"approval": {"machines": ["*"]}}"#.to_owned();
    history.apply(Role::Officer, Action::SetPolicy(SetPolicy { policy, replaces: 0 }));
    history.apply(Role::Importer, escrow(1, None));
    history.apply(Role::HelpdeskAdvanced, reveal());
    let waiting = lookup::approvals(&history.state, Timestamp(1)).unwrap().remove(0);
    for number in 1..APPROVALS_MAX as u128 {
        history.state.put(&Approval { key_id: KeyId(Uuid::from_u128(number << 64)), ..waiting.clone() });
    }
    history.state.delete::<Approval>(&waiting.key());
    history.state.put(&Approval { key_id: KeyId(Uuid::from_u128(7 << 96)), ..waiting.clone() });
    let reply = history.apply(Role::HelpdeskAdvanced, reveal());
    assert!(
        matches!(&reply, Reply::Refused(Refusal::Conflict(why)) if why.contains("wait for a second person")),
        "{reply:?}"
    );
    let newest = lookup::heads(&history.state).unwrap().audit.sequence;
    let record = lookup::audit(&history.state, newest - 1, 1).unwrap().remove(0);
    assert!(matches!(record.event, AuditEvent::Reveal { denied: Some(_), .. }), "{:?}", record.event);
}

#[test]
fn who_waits_may_ask_as_often_as_they_like_and_how_often_is_on_record() {
    let mut history = History::begin();
    history.apply(Role::Node, Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::DESK }));
    let policy = r#"{"approval": {"machines": ["*"]}}"#.to_owned();
    history.apply(Role::Officer, Action::SetPolicy(SetPolicy { policy, replaces: 0 }));
    history.apply(Role::Importer, escrow(1, None));
    let Reply::ApprovalAsked(waits) = history.apply(Role::HelpdeskAdvanced, reveal()) else {
        panic!("it waits")
    };
    let before = lookup::heads(&history.state).unwrap();
    for _ in 0..500 {
        assert_eq!(history.apply(Role::HelpdeskAdvanced, reveal()), Reply::ApprovalAsked(waits.clone()));
    }
    let after = lookup::heads(&history.state).unwrap();
    assert_eq!((after.audit.sequence - before.audit.sequence, after.requests), (3, before.requests));
    // Other words are another request, of which each is on record: there is a bound to those.
    let mut asked = 0;
    for number in 0..2 * DENIALS_PER_HOUR_MAX {
        let reason = format!("reason {number}");
        let other = Action::Reveal(Reveal { key_id: KeyId(Uuid::from_u128(1)), user: None, reason });
        asked += u32::from(matches!(history.apply(Role::HelpdeskAdvanced, other), Reply::ApprovalAsked(_)));
    }
    assert_eq!(asked, DENIALS_PER_HOUR_MAX - 1);
}

#[test]
fn a_person_puts_so_many_requests_for_exemptions_on_record_and_another_one_still_may() {
    let mut history = History::begin();
    history.apply(Role::Node, Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(4) }));
    history.apply(Role::Importer, escrow(1, None));
    let request = |machine| RequestExemption { machine, reason: "lab".to_owned(), until: None };
    let ask = || Action::RequestExemption(request(machine()));
    // What leaves no record does not count.
    let unknown = "PC-9".parse().unwrap();
    let reply = history.apply(Role::Helpdesk, Action::RequestExemption(request(unknown)));
    assert!(matches!(reply, Reply::Refused(Refusal::NotFound(_))), "{reply:?}");
    let first = command(7_000, Role::Helpdesk, ask());
    for _ in 0..3 {
        assert!(matches!(history.again(&first), Reply::ExemptionRequested { .. }));
    }
    for number in 1..EXEMPTION_REQUESTS_PER_HOUR_MAX {
        let reply = history.apply(Role::Helpdesk, ask());
        assert!(matches!(reply, Reply::ExemptionRequested { .. }), "{number}: {reply:?}");
    }
    let before = lookup::heads(&history.state).unwrap();
    // The same person in another role as well.
    for role in [Role::Helpdesk, Role::Operator] {
        let reply = history.apply(role, ask());
        let Reply::Refused(Refusal::Denied(why)) = reply else { panic!("{reply:?}") };
        assert!(why.contains("within an hour; the next one can be at 1970-01-01T01:10:00.000Z"), "{why}");
    }
    assert_eq!(lookup::heads(&history.state).unwrap(), before);
    assert!(matches!(history.again(&first), Reply::ExemptionRequested { .. }), "a retry is answered");
    let mut other = command(8_000, Role::Helpdesk, ask());
    other.by.name = "2".to_owned();
    assert!(matches!(history.again(&other), Reply::ExemptionRequested { .. }));
    // It holds up no reveal.
    let shown = Command { at: Timestamp(2), ..command(9_000, Role::HelpdeskAdvanced, reveal()) };
    assert!(matches!(history.again(&shown), Reply::Revealed(_)));
    let mut later = command(10_000, Role::Helpdesk, ask());
    later.at = Timestamp(70 * 60 * 1_000);
    assert!(matches!(history.again(&later), Reply::ExemptionRequested { .. }));
}

#[test]
fn an_import_forgets_no_user_that_a_device_named() {
    let mut history = History::begin();
    history.apply(Role::Node, Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(4) }));
    let user = |number: usize| format!(r"CORP\user{number}");
    for number in 2..USERS_PER_MACHINE_MAX {
        history.apply(Role::Importer, escrow(1, Some(user(number))));
    }
    let named = |users: &[&str]| ImportedMachine {
        machine: machine(),
        description: Description::default(),
        users: users.iter().map(|user| user.parse().unwrap()).collect(),
    };
    let known = user(5);
    let import = vec![named(&[r"CORP\x", r"CORP\y", &known, r"CORP\z"])];
    let reply = history.apply(Role::Importer, Action::ImportMachines(import.clone()));
    assert_eq!(reply, Reply::MachinesImported(vec![ImportOutcome::Noted]));
    let users = lookup::machine(&history.state, &machine()).unwrap().unwrap().users;
    assert_eq!((users.len(), history.state.count(Table::UserMachine)), (64, 64));
    let first: Vec<String> = users[..3].iter().map(ToString::to_string).collect();
    // All of the others were seen at one time, and then their names decide.
    assert_eq!(first, [r"CORP\y".to_owned(), r"CORP\z".to_owned(), user(10)], "the last of them, in front");
    let reply = history.apply(Role::Importer, Action::ImportMachines(import));
    assert_eq!(reply, Reply::MachinesImported(vec![ImportOutcome::KnownBefore]));
    for count in [0, MACHINES_PER_ENTRY_MAX + 1] {
        let reply = history.apply(Role::Importer, Action::ImportMachines(vec![named(&[]); count]));
        assert!(matches!(reply, Reply::Refused(Refusal::Invalid(_))), "{count}");
    }
}
