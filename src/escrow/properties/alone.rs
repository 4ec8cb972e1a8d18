//! Nodes that are left without a quorum, each with a replica that is behind, asked and told in any order: an approval is
//! another person's, for the same words, in time, and used once; and each entry comes on record once.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use crate::escrow::apply::apply;
use crate::escrow::audit::{ChainHead, verify};
use crate::escrow::command::{
    Action, Command, DecideApproval, Escrow, RaiseFeatureLevel, Reconcile, Reply, Reveal, SetPolicy,
};
use crate::escrow::disclosure::Asked;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, RequestId, Role, Timestamp};
use crate::escrow::journal::alone::{Circumstances, Verdict, Waiting, decide, decide_approval};
use crate::escrow::journal::{DegradedAsk, DegradedReveal, JournalEntry, JournalPlace, Noted};
use crate::escrow::lookup;
use crate::escrow::memory::Memory;
use crate::escrow::records::{AuditEvent, AuditRecord, Fingerprint, LogPosition, Sealed, Source};
use crate::escrow::secrets::SecretKind;

/// Nodes that were cut off.
const NODES: usize = 2;
const KEY: KeyId = KeyId(Uuid::from_u128(0xa1));
/// Every reveal needs a second person, with a quorum or without.
const POLICY: &str =
    r#"{"approval": {"machines": ["*"], "expires_minutes": 60}, "without_quorum": "approve"}"#;
const REASONS: [&str; 2] = ["lost PIN", "new board"];

/// What happens next. People are numbers, and so is what was asked for, in the order in which it was.
#[derive(Debug, Clone)]
enum Event {
    /// Somebody asks a node for the key.
    Recover { node: usize, person: u8, reason: usize },
    /// Somebody decides at a node.
    Decide { node: usize, person: u8, asked: usize, granted: bool },
    /// The last call to a node is made again.
    Retry { node: usize },
    /// Somebody asks the quorum, which knows of no grant.
    RecoverWithQuorum { person: u8, reason: usize },
    /// An entry is put on record, by whoever was told of it.
    Reconcile { node: usize, entry: usize },
    /// A node hears what is on record.
    CatchUp { node: usize },
    /// Time passes, or a clock is set back.
    Wait { minutes: i64 },
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 0..NODES;
    prop_oneof![
        8 => (node(), 1..4_u8, 0..REASONS.len()).prop_map(|(node, person, reason)| Event::Recover { node, person, reason }),
        8 => (node(), 1..4_u8, 0..8_usize, proptest::bool::weighted(0.8))
            .prop_map(|(node, person, asked, granted)| Event::Decide { node, person, asked, granted }),
        1 => node().prop_map(|node| Event::Retry { node }),
        1 => (1..4_u8, 0..REASONS.len()).prop_map(|(person, reason)| Event::RecoverWithQuorum { person, reason }),
        2 => (node(), any::<usize>()).prop_map(|(node, entry)| Event::Reconcile { node, entry }),
        1 => node().prop_map(|node| Event::CatchUp { node }),
        2 => (-20..50_i64).prop_map(|minutes| Event::Wait { minutes }),
    ]
}

/// A call that can be made again.
#[derive(Debug, Clone)]
struct Call {
    request: RequestId,
    drawn: RequestId,
    by: Identity,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Recover(usize),
    Decide(DecideApproval),
}

struct Node {
    replica: Memory,
    /// What waits in its journal.
    journal: Vec<JournalEntry>,
    /// Everything it ever put there.
    ever: Vec<JournalEntry>,
    last: Option<Call>,
}

struct Simulation {
    cluster: Memory,
    index: u64,
    drawn: u128,
    minutes: u64,
    nodes: Vec<Node>,
}

fn identity(role: Role, name: &str) -> Identity {
    Identity::new("acme".parse().unwrap(), role, name).unwrap()
}

fn desk(person: u8) -> Identity {
    identity(Role::HelpdeskAdvanced, &format!("desk{person}"))
}

impl Simulation {
    fn begin() -> Self {
        let (cluster, nodes) = (Memory::new(), Vec::new());
        let mut sim = Self { cluster, index: 0, drawn: 0, minutes: 1_000, nodes };
        let node = || identity(Role::Node, "1");
        let level = FeatureLevel::DESK;
        let policy = SetPolicy { policy: POLICY.to_owned(), replaces: 0 };
        let escrow = Escrow {
            key_id: KEY,
            key_id_given: true,
            machine: "PC-1".parse().unwrap(),
            volume: "C:".parse().unwrap(),
            kind: SecretKind::BitlockerPassword,
            sealed: Sealed { key_version: 1, nonce: [7; 12], ciphertext: vec![7; 20] },
            sealed_package: None,
            fingerprint: Fingerprint([9; 32]),
            user: None,
        };
        sim.commit(node(), super::commands::initialize(1));
        sim.commit(node(), Action::RaiseFeatureLevel(RaiseFeatureLevel { level }));
        sim.commit(identity(Role::Officer, "olga"), Action::SetPolicy(policy));
        sim.commit(identity(Role::Importer, "imp"), Action::Escrow(escrow));
        let new = |_| Node { replica: sim.cluster.clone(), journal: vec![], ever: vec![], last: None };
        sim.nodes = (0..NODES).map(new).collect();
        sim
    }

    fn draw(&mut self) -> RequestId {
        self.drawn += 1;
        RequestId(Uuid::from_u128(self.drawn))
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.minutes * 60_000)
    }

    fn commit(&mut self, by: Identity, action: Action) -> Reply {
        self.index += 1;
        let source = Source { node: 9, address: String::new() };
        let command = Command { request: self.draw(), at: self.now(), by, source, action };
        apply(&mut self.cluster, LogPosition { term: 1, index: self.index }, &command).unwrap()
    }

    /// All that was ever asked for, in the order in which it was.
    fn asked(&self) -> Vec<DegradedAsk> {
        let asks = self.nodes.iter().flat_map(|node| &node.ever).filter_map(|entry| match &entry.what {
            Noted::ApprovalAsked(ask) => Some(ask.clone()),
            _ => None,
        });
        let mut asks: Vec<_> = asks.collect();
        asks.sort_by_key(|ask| ask.approval.0);
        asks
    }

    fn call(&mut self, at: usize, call: Call) {
        let told: Vec<JournalEntry> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(n, _)| *n != at)
            .flat_map(|(_, n)| n.journal.clone())
            .collect();
        let now = self.now();
        let node = &mut self.nodes[at];
        let source = Source { node: at as u64 + 1, address: String::new() };
        let waiting = Waiting { own: &node.journal, told: &told };
        let circumstances = Circumstances {
            request: call.request,
            drawn: call.drawn,
            source: &source,
            quorum_age_ms: None,
            position: LogPosition { term: 1, index: 4 },
        };
        let by = &call.by;
        let verdict = match &call.what {
            What::Recover(reason) => {
                let asked = Asked { by, key_id: KEY, user: None, reason: REASONS[*reason], at: now };
                decide(&node.replica, &waiting, &circumstances, &asked)
            }
            What::Decide(what) => decide_approval(&node.replica, &waiting, &circumstances, by, now, what),
        };
        if let Verdict::Decided(what) = verdict.unwrap() {
            let place =
                JournalPlace { journal: Uuid::from_u128(at as u128), sequence: node.ever.len() as u64 + 1 };
            let entry = JournalEntry { place, previous: [0; 32], what: *what };
            node.journal.push(entry.clone());
            node.ever.push(entry);
        }
        node.last = Some(call);
    }

    fn reconcile(&mut self, entry: JournalEntry) {
        let reply = self.commit(identity(Role::Node, "2"), Action::Reconcile(Reconcile { entry }));
        assert!(matches!(reply, Reply::Reconciled { .. }), "{reply:?}");
    }

    fn catch_up(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.replica = self.cluster.clone();
        let on_record = |entry: &&JournalEntry| lookup::reconciled(&node.replica, entry).unwrap().is_some();
        let done = node.journal.iter().take_while(on_record).count();
        node.journal.drain(..done);
    }

    fn step(&mut self, event: &Event) {
        let (request, drawn) = (self.draw(), self.draw());
        match *event {
            Event::Recover { node, person, reason } => {
                self.call(node, Call { request, drawn, by: desk(person), what: What::Recover(reason) });
            }
            Event::Decide { node, person, asked, granted } => {
                // The latest ones most.
                let asks = self.asked();
                let Some(ask) = asks.iter().rev().nth(asked) else { return };
                let what = What::Decide(DecideApproval { approval: ask.approval, granted });
                self.call(node, Call { request, drawn, by: desk(person), what });
            }
            Event::Retry { node } => {
                if let Some(call) = self.nodes[node].last.clone() {
                    let before = self.nodes[node].ever.clone();
                    let waits = self.nodes[node].journal.iter().any(|e| e.what.request() == call.request);
                    // The node draws one for each attempt (`raft::journal`).
                    self.call(node, Call { drawn, ..call });
                    assert!(!waits || self.nodes[node].ever == before, "decided twice");
                }
            }
            Event::RecoverWithQuorum { person, reason } => {
                let reveal = Reveal { key_id: KEY, user: None, reason: REASONS[reason].to_owned() };
                let reply = self.commit(desk(person), Action::Reveal(reveal));
                assert!(matches!(reply, Reply::ApprovalAsked(_)), "nobody has granted that: {reply:?}");
            }
            Event::Reconcile { node, entry } => {
                let ever = &self.nodes[node].ever;
                if !ever.is_empty() {
                    self.reconcile(ever[entry % ever.len()].clone());
                }
            }
            Event::CatchUp { node } => self.catch_up(node),
            Event::Wait { minutes } => self.minutes = self.minutes.saturating_add_signed(minutes),
        }
    }

    /// Every reveal that was shown, and what stood before it in its journal.
    fn shown(&self) -> Vec<(DegradedReveal, Vec<Noted>)> {
        let mut shown = Vec::new();
        for node in &self.nodes {
            for (place, entry) in node.ever.iter().enumerate() {
                if let Noted::Reveal(reveal) = &entry.what
                    && reveal.was_shown()
                {
                    let before = node.ever[..place].iter().map(|entry| entry.what.clone()).collect();
                    shown.push((reveal.clone(), before));
                }
            }
        }
        shown
    }
}

/// What must stand before a reveal that was shown.
fn check_approved(reveal: &DegradedReveal, before: &[Noted]) {
    let id = reveal.approval.expect("every reveal must be approved");
    let asked =
        before.iter().position(|what| matches!(what, Noted::ApprovalAsked(ask) if ask.approval == id));
    let asked = asked.expect("asked for in the same journal");
    let Noted::ApprovalAsked(ask) = &before[asked] else { unreachable!() };
    assert_eq!(
        (&ask.by, ask.key_id, &ask.user, &ask.reason),
        (&reveal.by, reveal.key_id, &reveal.user, &reveal.reason)
    );
    assert!(reveal.at < ask.expires_at && reveal.at >= ask.at);
    let mut granted = false;
    for what in &before[asked..] {
        match what {
            Noted::ApprovalDecided(decision) if decision.approval == id && decision.denied.is_none() => {
                assert_ne!(decision.by.person(), ask.by.person(), "never by oneself");
                assert!(decision.at < ask.expires_at);
                granted = decision.granted;
            }
            Noted::ApprovalAsked(later) => {
                assert!(
                    later == ask || later.by != ask.by,
                    "another request of the person has ended this one"
                );
            }
            _ => {}
        }
    }
    assert!(granted, "granted last, and not rejected after that");
}

proptest! {
    #[test]
    fn without_a_quorum_an_approval_is_anothers_and_is_used_once(events in proptest::collection::vec(event(), 0..60)) {
        let mut sim = Simulation::begin();
        for event in &events {
            sim.step(event);
        }
        let shown = sim.shown();
        let mut used = BTreeMap::new();
        for (reveal, before) in &shown {
            check_approved(reveal, before);
            *used.entry(reveal.approval).or_insert(0) += 1;
        }
        prop_assert!(used.values().all(|times| *times == 1), "{:?}", used);

        // Whoever proposes it, in whatever order, and twice.
        let entries: Vec<JournalEntry> = sim.nodes.iter().flat_map(|node| node.ever.clone()).collect();
        for entry in entries.iter().rev().chain(&entries) {
            sim.reconcile(entry.clone());
        }
        let records: Vec<AuditRecord> = sim.cluster.all().unwrap();
        let head = lookup::heads(&sim.cluster).unwrap().audit;
        prop_assert_eq!(verify(&records, ChainHead::default(), head), Ok(()));
        let mut on_record: BTreeMap<JournalPlace, usize> = BTreeMap::new();
        for record in &records {
            if let AuditEvent::RevealReconciled { place, .. }
            | AuditEvent::ApprovalAskReconciled { place, .. }
            | AuditEvent::ApprovalDecisionReconciled { place, .. }
            | AuditEvent::RevealRepeated { place, .. } = &record.event
            {
                *on_record.entry(*place).or_default() += 1;
            }
        }
        let expected: BTreeMap<_, _> = entries.iter().map(|entry| (entry.place, 1)).collect();
        prop_assert_eq!(on_record, expected);
        for node in 0..NODES {
            sim.catch_up(node);
            prop_assert!(sim.nodes[node].journal.is_empty());
        }
    }
}

/// The property must not hold for want of anything that is shown.
#[test]
fn what_is_asked_for_and_granted_is_shown() {
    let mut sim = Simulation::begin();
    for event in [
        Event::Recover { node: 0, person: 1, reason: 0 },
        Event::Decide { node: 0, person: 1, asked: 0, granted: true },
        Event::Decide { node: 1, person: 2, asked: 0, granted: true },
        Event::Recover { node: 0, person: 1, reason: 0 },
        Event::Decide { node: 0, person: 2, asked: 0, granted: true },
        Event::Recover { node: 0, person: 1, reason: 0 },
    ] {
        sim.step(&event);
    }
    assert_eq!(sim.shown().len(), 1);
}
