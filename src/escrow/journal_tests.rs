use super::alone::*;
use super::*;
use crate::escrow::apply::apply;
use crate::escrow::command::{
    Action, Command, DecideApproval, Escrow, Initialize, RaiseFeatureLevel, Reply, Reveal, SetPolicy,
};
use crate::escrow::disclosure::{Asked, DENIALS_PER_HOUR_MAX};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, Role};
use crate::escrow::memory::Memory;
use crate::escrow::records::{Fingerprint, KeyringRecord, NodeRecord, Sealed};
use crate::escrow::secrets::SecretKind;

const KEY: KeyId = KeyId(Uuid::from_u128(0xa1));

struct Alone {
    rows: Memory,
    index: u64,
    journal: Vec<JournalEntry>,
}

fn source() -> Source {
    Source { node: 1, address: "192.0.2.7".to_owned() }
}

fn identity(role: Role, name: &str) -> Identity {
    Identity::new("acme".parse().unwrap(), role, name).unwrap()
}

impl Alone {
    /// A replica with one key of machine SRV-1, under `policy`.
    fn under(policy: &str) -> Self {
        let mut alone = Self { rows: Memory::new(), index: 0, journal: Vec::new() };
        let node = NodeRecord {
            id: 1,
            peer_address: "node1:7421".to_owned(),
            api_address: "node1:7420".to_owned(),
            zone: String::new(),
            storage: Uuid::from_u128(1),
            recipient: "age1node".to_owned(),
            admitted_at: Timestamp(0),
        };
        let first = Initialize {
            cluster: ClusterId(Uuid::from_u128(1)),
            name: "acme".parse().unwrap(),
            offline_recipient: "age1offline".to_owned(),
            node,
            keyring: KeyringRecord { generation: 1, current_key_version: 1, age_file: vec![1] },
        };
        alone.apply(Role::Node, "1", Action::Initialize(first));
        alone.apply(
            Role::Node,
            "1",
            Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::DESK }),
        );
        alone.apply(
            Role::Officer,
            "olga",
            Action::SetPolicy(SetPolicy { policy: policy.to_owned(), replaces: 0 }),
        );
        alone.apply(
            Role::Importer,
            "imp",
            Action::Escrow(Escrow {
                key_id: KEY,
                key_id_given: true,
                machine: "SRV-1".parse().unwrap(),
                volume: "C:".parse().unwrap(),
                kind: SecretKind::BitlockerPassword,
                sealed: Sealed { key_version: 1, nonce: [7; 12], ciphertext: vec![7; 20] },
                sealed_package: None,
                fingerprint: Fingerprint([9; 32]),
                user: None,
            }),
        );
        alone
    }

    fn apply(&mut self, role: Role, name: &str, action: Action) -> Reply {
        self.index += 1;
        let command = Command {
            request: RequestId(Uuid::from_u64_pair(9, self.index)),
            at: Timestamp(self.index * 1_000),
            by: identity(role, name),
            source: source(),
            action,
        };
        let reply = apply(&mut self.rows, LogPosition { term: 1, index: self.index }, &command).unwrap();
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        reply
    }

    /// Asks for the key as desk2, and puts what is decided in the journal.
    fn ask(&mut self, request: u128, reason: &str, at: u64) -> Verdict {
        let by = identity(Role::HelpdeskAdvanced, "desk2");
        let asked = Asked { by: &by, key_id: KEY, user: None, reason, at: Timestamp(at) };
        let source = source();
        let circumstances = Circumstances {
            request: RequestId(Uuid::from_u128(request)),
            drawn: RequestId(Uuid::from_u128(request << 64)),
            source: &source,
            quorum_age_ms: Some(5),
            position: LogPosition { term: 1, index: 4 },
        };
        let waiting = Waiting { own: &self.journal, told: &[] };
        let verdict = decide(&self.rows, &waiting, &circumstances, &asked).unwrap();
        if let Verdict::Decided(what) = &verdict {
            let place = JournalPlace { journal: Uuid::nil(), sequence: self.journal.len() as u64 + 1 };
            self.journal.push(JournalEntry { place, previous: [0; 32], what: (**what).clone() });
        }
        verdict
    }

    /// The reveal that was noted last.
    fn last(&self) -> &DegradedReveal {
        self.journal.last().and_then(|entry| entry.what.reveal()).expect("a reveal")
    }

    /// Why the key is not shown; nothing if it is.
    fn denial(&mut self, request: u128, reason: &str, at: u64) -> String {
        match self.ask(request, reason, at) {
            Verdict::Decided(what) => match *what {
                Noted::Reveal(reveal) => reveal.denied.map(|why| why.to_string()).unwrap_or_default(),
                Noted::ApprovalAsked(_) => "asked".to_owned(),
                other => panic!("{other:?}"),
            },
            Verdict::Waits(_) => "waits".to_owned(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_waits_in_journals_counts_towards_the_limits_and_a_denial_does_not() {
    let mut alone = Alone::under(r#"{"limits": {"person_per_hour": 2}}"#);
    alone.apply(
        Role::HelpdeskAdvanced,
        "desk2",
        Action::Reveal(Reveal { key_id: KEY, user: None, reason: "x".to_owned() }),
    );
    assert_eq!(alone.denial(1, "x", 60_000), "");
    assert!(alone.denial(2, "x", 61_000).contains("the limit is reached"));
    assert!(alone.denial(3, "x", 62_000).contains("the limit is reached"));
    assert_eq!(alone.last().machine, Some("SRV-1".parse().unwrap()));
    // A clock that is set back by a day gives nothing back.
    assert!(alone.denial(4, "x", 0).contains("the limit is reached"));
    assert!(alone.last().at >= Timestamp(62_000));
    // An hour, and the slot, later.
    assert_eq!(alone.denial(5, "x", 2 * 60 * 60 * 1_000), "");
}

#[test]
fn a_retry_is_decided_once_and_its_id_is_good_for_nothing_else() {
    let mut alone = Alone::under("{}");
    assert!(matches!(alone.ask(1, "x", 60_000), Verdict::Decided(_)));
    let again = alone.ask(1, "x", 70_000);
    assert_eq!(again, Verdict::Again(Box::new(alone.journal[0].clone())));
    assert!(matches!(alone.ask(1, "y", 70_000), Verdict::Refused(Refusal::Conflict(_))));
    assert_eq!(alone.journal.len(), 1);
}

#[test]
fn the_policy_may_close_it_and_reasons_are_those_of_any_day() {
    let mut closed = Alone::under(r#"{"without_quorum": "deny"}"#);
    assert_eq!(closed.ask(1, "x", 60_000), Verdict::Closed);
    let mut alone = Alone::under(r#"{"reasons": {"min_chars": 5}}"#);
    assert!(matches!(alone.ask(1, "x", 60_000), Verdict::Refused(Refusal::Invalid(_))));
    assert_eq!(alone.denial(2, "locked out", 60_000), "");
    assert_eq!(alone.last().knowledge.policy_version, 1);
}

/// Marked machines need an approval under `allow`, and all do under `approve`: one that is on record is good once.
#[test]
fn an_approval_that_was_given_under_a_quorum_is_good_once_without_one() {
    let marked = r#""approval": {"machines": ["SRV-*"]}"#;
    for policy in [format!("{{{marked}}}"), format!(r#"{{{marked}, "without_quorum": "approve"}}"#)] {
        let mut alone = Alone::under(&policy);
        let asked = Action::Reveal(Reveal { key_id: KEY, user: None, reason: "x".to_owned() });
        let Reply::ApprovalAsked(waits) = alone.apply(Role::HelpdeskAdvanced, "desk2", asked) else {
            panic!("it must be approved");
        };
        let decide = DecideApproval { approval: waits.approval, granted: true };
        alone.apply(Role::Officer, "olga", Action::DecideApproval(decide));
        assert_eq!(alone.denial(3, "another reason", 62_000), "asked");
        assert_eq!(alone.denial(4, "x", 63_000), "");
        assert_eq!(alone.last().approval, Some(waits.approval));
        assert_eq!(alone.denial(5, "x", 64_000), "asked", "it was used");
        assert_eq!(alone.denial(6, "x", 65_000), "waits");
        assert_eq!(
            alone.denial(7, "x", waits.expires_at.0 + 65_000),
            "asked",
            "what was asked for has expired"
        );
    }
    let mut unmarked = Alone::under(r#"{"without_quorum": "approve"}"#);
    assert_eq!(unmarked.denial(1, "x", 60_000), "asked");
}

#[test]
fn whoever_asks_over_and_over_leaves_room_for_others() {
    let mut alone = Alone::under(r#"{"without_quorum": "approve"}"#);
    for n in 1..=ASKED_BY_ONE_MAX as u128 {
        assert_eq!(alone.denial(n, &format!("reason {n}"), 60_000), "asked");
    }
    let refused = alone.ask(99, "one more", 60_000);
    assert!(matches!(refused, Verdict::Refused(Refusal::Conflict(_))), "{refused:?}");
    assert_eq!(alone.journal.len(), ASKED_BY_ONE_MAX);
}

#[test]
fn whoever_is_denied_over_and_over_is_not_looked_at_and_fills_no_journal() {
    let mut alone = Alone::under(r#"{"limits": {"person_per_hour": 1}}"#);
    assert_eq!(alone.denial(1, "x", 60_000), "");
    let most = u128::from(DENIALS_PER_HOUR_MAX);
    for n in 2..=most + 1 {
        assert!(alone.denial(n, "x", 60_000).contains("the limit is reached"), "{n}");
    }
    let refused = alone.ask(9_999, "x", 60_000);
    assert!(
        matches!(&refused, Verdict::Refused(Refusal::Denied(why)) if why.contains("not looked at")),
        "{refused:?}"
    );
    assert_eq!(alone.journal.len() as u128, most + 1);
    assert_eq!(alone.denial(10_000, "x", 2 * 60 * 60 * 1_000), "", "there is room again");
}

#[test]
fn the_hash_of_an_entry_never_changes() {
    let mut alone = Alone::under("{}");
    alone.denial(1, "x", 60_000);
    let hash = data_encoding::HEXLOWER.encode(&alone.journal[0].hash()[..8]);
    assert_eq!(hash, "264651f3996b7bc5");
}

#[test]
fn another_node_s_clock_moves_nothing_here() {
    let day = 24 * 60 * 60 * 1_000;
    let mut alone = Alone::under(r#"{"limits": {"person_per_hour": 2}}"#);
    assert_eq!(alone.denial(1, "x", 60_000), "");
    // Told by a node whose clock runs a day ahead.
    let mut told = alone.journal[0].clone();
    told.place.journal = Uuid::max();
    let Noted::Reveal(reveal) = &mut told.what else { panic!("a reveal") };
    reveal.request = RequestId(Uuid::from_u128(2));
    (reveal.at, reveal.source.node) = (Timestamp(day), 2);
    alone.journal.push(told);
    assert!(alone.denial(3, "x", 61_000).contains("the limit is reached"), "it counts, and as given now");
    assert_eq!(alone.journal[2].what.at(), Timestamp(61_000));
}
