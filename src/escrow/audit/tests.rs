use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::escrow::command::Refusal;
use crate::escrow::compliance::ExemptionDecision;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, RequestId, Role, Timestamp};
use crate::escrow::journal::{DegradedAsk, DegradedDecision, DegradedReveal, JournalPlace, Knowledge};
use crate::escrow::records::{LogPosition, Source};

fn officer() -> Identity {
    Identity::new("acme".parse().unwrap(), Role::Officer, "olga").unwrap()
}

fn event(choice: u8, text: &str) -> AuditEvent {
    let key_id = KeyId(Uuid::from_u128(u128::from(choice)));
    match choice % 4 + 4 * (choice / 128) {
        4.. if choice >= 224 => AuditEvent::RevealReconciled {
            place: JournalPlace { journal: Uuid::from_u128(7), sequence: u64::from(choice) },
            reveal: Box::new(DegradedReveal {
                request: RequestId(key_id.0),
                at: Timestamp(7),
                by: officer(),
                source: Source { node: 3, address: "192.0.2.9:4000".to_owned() },
                key_id,
                machine: (choice & 4 > 0).then(|| "PC-0001".parse().unwrap()),
                user: (choice & 8 > 0).then(|| r"CORP\user1".parse().unwrap()),
                reason: text.to_owned(),
                denied: (choice & 16 > 0).then(|| Refusal::Denied(text.to_owned())),
                approval: None,
                knowledge: Knowledge {
                    position: LogPosition { term: 2, index: 9 },
                    quorum_age_ms: (choice & 1 > 0).then_some(5),
                    policy_version: 1,
                },
            }),
        },
        0 => AuditEvent::ClusterInitialized,
        1 => AuditEvent::EscrowConflict { key_id, machine: "PC-0001".parse().unwrap() },
        2 if choice & 8 > 0 => AuditEvent::KeyConfirmed {
            key_id,
            machine: "PC-0001".parse().unwrap(),
            replaced: vec![key_id; usize::from(choice / 16)],
            rotation_owed_since: (choice & 16 > 0).then_some(Timestamp(3)),
        },
        2 if choice & 16 > 0 => AuditEvent::ApprovalRefused {
            approval: RequestId(key_id.0),
            key_id: (choice & 32 > 0).then_some(key_id),
            machine: (choice & 32 > 0).then(|| "PC-0001".parse().unwrap()),
            user: None,
            asked_by: (choice & 32 > 0).then(officer),
            granted: choice & 64 > 0,
            denied: text.to_owned(),
        },
        2 if choice & 64 > 0 => {
            AuditEvent::DenialsUnrecorded { count: u64::from(choice), until: Timestamp(9) }
        }
        2 => AuditEvent::NodeAdmitted { node: u64::from(choice) },
        5 if choice & 64 > 0 => {
            let ask = DegradedAsk { reason: text.to_owned(), ..ask() };
            AuditEvent::ApprovalAskReconciled { place: place(u64::from(choice)), ask: Box::new(ask) }
        }
        6 if choice & 64 > 0 => {
            let denied = (choice & 16 > 0).then(|| Refusal::Denied(text.to_owned()));
            let decision = Box::new(decision(denied));
            AuditEvent::ApprovalDecisionReconciled { place: place(u64::from(choice)), decision }
        }
        4 if choice & 8 > 0 => {
            AuditEvent::CompliancePolicySet { version: u64::from(choice), policy: text.to_owned() }
        }
        7 if choice & 64 > 0 => AuditEvent::RevealRepeated {
            place: place(u64::from(choice)),
            key_id,
            node: 3,
            at: Timestamp(7),
            audit_sequence: 2,
        },
        4 => AuditEvent::PolicySet { version: u64::from(choice), policy: text.to_owned() },
        5 => AuditEvent::ApprovalAsked {
            approval: RequestId(key_id.0),
            key_id,
            machine: "PC-0001".parse().unwrap(),
            user: (choice & 8 > 0).then(|| r"CORP\user1".parse().unwrap()),
            reason: text.to_owned(),
            expires_at: Timestamp(7),
        },
        6 => AuditEvent::ApprovalDecided {
            approval: RequestId(key_id.0),
            key_id,
            machine: "PC-0001".parse().unwrap(),
            user: (choice & 16 > 0).then(|| r"CORP\user1".parse().unwrap()),
            asked_by: officer(),
            granted: choice & 8 > 0,
        },
        3 if choice & 32 > 0 => AuditEvent::ExemptionDecided {
            exemption: RequestId(key_id.0),
            machine: "PC-0001".parse().unwrap(),
            asked_by: officer(),
            decision: match choice & 24 {
                0 => ExemptionDecision::Reject,
                8 => ExemptionDecision::Revoke,
                _ => ExemptionDecision::Grant { until: (choice & 8 > 0).then_some(Timestamp(3)) },
            },
        },
        3 if choice & 64 > 0 => AuditEvent::ExemptionRequested {
            exemption: RequestId(key_id.0),
            machine: "PC-0001".parse().unwrap(),
            reason: text.to_owned(),
            until: (choice & 8 > 0).then_some(Timestamp(3)),
        },
        7 => AuditEvent::ApprovalUsed {
            approval: RequestId(key_id.0),
            key_id,
            machine: "PC-0001".parse().unwrap(),
            user: (choice & 16 > 0).then(|| r"CORP\user1".parse().unwrap()),
            asked_by: officer(),
            granted_by: officer(),
        },
        _ => AuditEvent::Reveal {
            key_id,
            machine: (choice & 4 > 0).then(|| "PC-0001".parse().unwrap()),
            user: (choice & 8 > 0).then(|| r"CORP\user1".parse().unwrap()),
            reason: text.to_owned(),
            denied: (choice & 16 > 0).then(|| text.to_owned()),
        },
    }
}

pub(super) fn chain(events: &[(u8, String)]) -> Vec<AuditRecord> {
    let mut head = ChainHead::default();
    let mut records = Vec::new();
    for (choice, text) in events {
        let at = Timestamp(u64::from(*choice));
        records.push(AuditRecord { at, ..record_of(&mut head, event(*choice, text)) });
        head = records.last().map(ChainHead::of).unwrap();
    }
    records
}

/// A record of `event` that follows `head`, which moves on to it.
pub(super) fn record_of(head: &mut ChainHead, event: AuditEvent) -> AuditRecord {
    let record = AuditRecord {
        sequence: head.sequence + 1,
        previous: head.hash,
        at: Timestamp(1_700_000_000_000 + head.sequence),
        by: Identity::new("acme".parse().unwrap(), Role::Helpdesk, "desk1").unwrap(),
        source: Source { node: 1, address: "192.0.2.7:4000".to_owned() },
        position: LogPosition { term: 1, index: head.sequence + 2 },
        event,
    };
    *head = ChainHead::of(&record);
    record
}

fn place(sequence: u64) -> JournalPlace {
    JournalPlace { journal: Uuid::from_u128(3), sequence }
}

fn ask() -> DegradedAsk {
    DegradedAsk {
        request: RequestId(Uuid::from_u128(7)),
        at: Timestamp(5),
        by: Identity::new("acme".parse().unwrap(), Role::Helpdesk, "desk1").unwrap(),
        source: Source { node: 3, address: "192.0.2.7:4000".to_owned() },
        approval: RequestId(Uuid::from_u128(8)),
        key_id: KeyId(Uuid::from_u128(7)),
        machine: "PC-0001".parse().unwrap(),
        user: Some("CORP\\user1".parse().unwrap()),
        reason: "lost PIN".to_owned(),
        expires_at: Timestamp(9),
        knowledge: Knowledge {
            position: LogPosition { term: 1, index: 2 },
            quorum_age_ms: None,
            policy_version: 1,
        },
    }
}

fn decision(denied: Option<Refusal>) -> DegradedDecision {
    let DegradedAsk { at, by, source, approval, key_id, knowledge, .. } = ask();
    DegradedDecision {
        request: RequestId(Uuid::from_u128(9)),
        at,
        by: officer(),
        source,
        approval,
        key_id,
        asked_by: by,
        granted: true,
        denied,
        knowledge,
    }
}

/// One of every event, with and without what may be absent.
pub(super) fn every_event() -> Vec<AuditEvent> {
    let (key_id, machine) = (KeyId(Uuid::from_u128(7)), || "PC-0001".parse().unwrap());
    let reveal = |user: Option<&str>, denied: Option<&str>| AuditEvent::Reveal {
        key_id,
        machine: user.map(|_| machine()),
        user: user.map(|user| user.parse().unwrap()),
        reason: "lost \"PIN\" \u{e9}".to_owned(),
        denied: denied.map(str::to_owned),
    };
    vec![
        AuditEvent::ClusterInitialized,
        AuditEvent::EscrowConflict { key_id, machine: machine() },
        AuditEvent::NodeAdmitted { node: 2 },
        reveal(Some("CORP\\user1"), None),
        reveal(None, Some("no such key")),
        AuditEvent::ClusterRecovered {
            survivor: 1,
            lost: vec![2, 3],
            previous: crate::escrow::ids::ClusterId(Uuid::from_u128(9)),
        },
        AuditEvent::FeatureLevelRaised { level: FeatureLevel(2) },
        AuditEvent::NodeRemoved { node: 3 },
        AuditEvent::PolicySet { version: 4, policy: "{\"groups\":{}}".to_owned() },
        AuditEvent::ApprovalAsked {
            approval: RequestId(key_id.0),
            key_id,
            machine: machine(),
            user: Some("CORP\\user1".parse().unwrap()),
            reason: "lost PIN".to_owned(),
            expires_at: Timestamp(9),
        },
        AuditEvent::ApprovalDecided {
            approval: RequestId(key_id.0),
            key_id,
            machine: machine(),
            user: Some("CORP\\user1".parse().unwrap()),
            asked_by: officer(),
            granted: true,
        },
        AuditEvent::ApprovalUsed {
            approval: RequestId(key_id.0),
            key_id,
            machine: machine(),
            user: Some("CORP\\user1".parse().unwrap()),
            asked_by: officer(),
            granted_by: officer(),
        },
        AuditEvent::RevealReconciled {
            place: place(4),
            reveal: Box::new(DegradedReveal {
                request: RequestId(key_id.0),
                at: Timestamp(5),
                by: officer(),
                source: Source { node: 3, address: "192.0.2.7:4000".to_owned() },
                key_id,
                machine: Some(machine()),
                user: None,
                reason: "lost PIN".to_owned(),
                denied: None,
                approval: None,
                knowledge: Knowledge {
                    position: LogPosition { term: 1, index: 2 },
                    quorum_age_ms: Some(7),
                    policy_version: 1,
                },
            }),
        },
        AuditEvent::KeyringRotated { key_version: 2 },
        AuditEvent::DataKeysDropped { key_version: 2 },
        AuditEvent::KeyConfirmed {
            key_id,
            machine: machine(),
            replaced: vec![KeyId(Uuid::from_u128(6))],
            rotation_owed_since: Some(Timestamp(8)),
        },
        AuditEvent::ApprovalRefused {
            approval: RequestId(key_id.0),
            key_id: Some(key_id),
            machine: Some(machine()),
            user: Some("CORP\\user1".parse().unwrap()),
            asked_by: Some(officer()),
            granted: true,
            denied: "nobody approves what they asked for themselves".to_owned(),
        },
        AuditEvent::ApprovalRefused {
            approval: RequestId(key_id.0),
            key_id: None,
            machine: None,
            user: None,
            asked_by: None,
            granted: false,
            denied: "no such reveal".to_owned(),
        },
        AuditEvent::ApprovalAskReconciled { place: place(5), ask: Box::new(ask()) },
        AuditEvent::ApprovalDecisionReconciled { place: place(6), decision: Box::new(decision(None)) },
        AuditEvent::ApprovalDecisionReconciled {
            place: place(7),
            decision: Box::new(decision(Some(Refusal::Denied("no".to_owned())))),
        },
        AuditEvent::ExemptionRequested {
            exemption: RequestId(key_id.0),
            machine: machine(),
            reason: "lab bench".to_owned(),
            until: Some(Timestamp(9)),
        },
        AuditEvent::ExemptionDecided {
            exemption: RequestId(key_id.0),
            machine: machine(),
            asked_by: officer(),
            decision: ExemptionDecision::Grant { until: Some(Timestamp(9)) },
        },
        AuditEvent::ExemptionDecided {
            exemption: RequestId(key_id.0),
            machine: machine(),
            asked_by: officer(),
            decision: ExemptionDecision::Reject,
        },
        AuditEvent::CompliancePolicySet { version: 2, policy: "{\"grace_days\":7}".to_owned() },
        AuditEvent::DenialsUnrecorded { count: 10, until: Timestamp(9) },
        AuditEvent::ApprovalAskedAgain {
            approval: RequestId(key_id.0),
            key_id,
            machine: machine(),
            user: Some("CORP\\user1".parse().unwrap()),
            times: 10,
        },
        AuditEvent::ApprovalUsedAgain {
            approval: RequestId(key_id.0),
            key_id,
            machine: Some(machine()),
            user: Some("CORP\\user1".parse().unwrap()),
            used_by: officer(),
            first_use: 12,
        },
        AuditEvent::RevealRepeated { place: place(8), key_id, node: 3, at: Timestamp(5), audit_sequence: 12 },
    ]
}

/// The head of records nobody tampered with.
pub(super) fn head(records: &[AuditRecord]) -> ChainHead {
    records.last().map_or(ChainHead::default(), ChainHead::of)
}

pub(super) fn events() -> impl Strategy<Value = Vec<(u8, String)>> {
    proptest::collection::vec((any::<u8>(), "[a-z]{0,6}"), 2..20)
}

/// One change of one field of a record.
pub(super) fn altered(record: &AuditRecord, field: u8) -> AuditRecord {
    let mut record = record.clone();
    match field % 9 {
        0 => record.at.0 += 1,
        1 => record.by.name.push('x'),
        2 => record.by.role = Role::Operator,
        3 => record.source.node += 1,
        4 => record.source.address.push('1'),
        5 => record.position.term += 1,
        6 => record.position.index += 1,
        7 => record.previous[31] ^= 1,
        _ => {
            record.event = match record.event {
                AuditEvent::NodeAdmitted { node } => AuditEvent::NodeAdmitted { node: node + 1 },
                AuditEvent::Reveal { key_id, machine, user, reason, denied: Some(_) } => {
                    AuditEvent::Reveal { key_id, machine, user, reason, denied: None }
                }
                AuditEvent::Reveal { key_id, machine, user: Some(_), reason, denied } => {
                    AuditEvent::Reveal { key_id, machine, user: None, reason, denied }
                }
                AuditEvent::Reveal { key_id, machine, user, reason, denied } => {
                    AuditEvent::Reveal { key_id, machine, user, reason: reason + "!", denied }
                }
                AuditEvent::ClusterInitialized => AuditEvent::NodeAdmitted { node: 1 },
                AuditEvent::EscrowConflict { .. } => AuditEvent::ClusterInitialized,
                AuditEvent::ClusterRecovered { survivor, mut lost, previous } => {
                    lost.push(9);
                    AuditEvent::ClusterRecovered { survivor, lost, previous }
                }
                AuditEvent::FeatureLevelRaised { level } => {
                    AuditEvent::FeatureLevelRaised { level: FeatureLevel(level.0 + 1) }
                }
                AuditEvent::NodeRemoved { node } => AuditEvent::NodeRemoved { node: node + 1 },
                AuditEvent::PolicySet { version, policy } => {
                    AuditEvent::PolicySet { version, policy: policy + " " }
                }
                AuditEvent::ApprovalAsked { approval, key_id, machine, user, reason, expires_at } => {
                    let expires_at = Timestamp(expires_at.0 + 1);
                    AuditEvent::ApprovalAsked { approval, key_id, machine, user, reason, expires_at }
                }
                AuditEvent::ApprovalDecided { approval, key_id, machine, user, asked_by, granted } => {
                    let granted = !granted;
                    AuditEvent::ApprovalDecided { approval, key_id, machine, user, asked_by, granted }
                }
                AuditEvent::RevealReconciled { place, mut reveal } => {
                    reveal.denied = match reveal.denied {
                        None => Some(Refusal::Denied(String::new())),
                        Some(_) => None,
                    };
                    AuditEvent::RevealReconciled { place, reveal }
                }
                AuditEvent::ApprovalAskReconciled { place, mut ask } => {
                    ask.expires_at.0 += 1;
                    AuditEvent::ApprovalAskReconciled { place, ask }
                }
                AuditEvent::ApprovalDecisionReconciled { place, mut decision } => {
                    decision.granted = !decision.granted;
                    AuditEvent::ApprovalDecisionReconciled { place, decision }
                }
                AuditEvent::KeyConfirmed { key_id, machine, replaced, rotation_owed_since } => {
                    AuditEvent::KeyConfirmed {
                        key_id,
                        machine,
                        replaced,
                        rotation_owed_since: match rotation_owed_since {
                            Some(_) => None,
                            None => Some(Timestamp(0)),
                        },
                    }
                }
                AuditEvent::RevealRepeated { place, key_id, node, at, audit_sequence } => {
                    AuditEvent::RevealRepeated { place, key_id, node, at, audit_sequence: audit_sequence + 1 }
                }
                AuditEvent::ApprovalRefused { approval, key_id, user, asked_by, granted, denied, .. } => {
                    let machine = Some("PC-0002".parse().unwrap());
                    AuditEvent::ApprovalRefused { approval, key_id, machine, user, asked_by, granted, denied }
                }
                AuditEvent::ApprovalUsed { approval, key_id, machine, user, asked_by, mut granted_by } => {
                    granted_by.role = Role::HelpdeskAdvanced;
                    AuditEvent::ApprovalUsed { approval, key_id, machine, user, asked_by, granted_by }
                }
                AuditEvent::ApprovalUsedAgain { approval, key_id, machine, user, used_by, first_use } => {
                    let first_use = first_use + 1;
                    AuditEvent::ApprovalUsedAgain { approval, key_id, machine, user, used_by, first_use }
                }
                AuditEvent::ApprovalAskedAgain { approval, key_id, machine, user, times } => {
                    let times = times + 1;
                    AuditEvent::ApprovalAskedAgain { approval, key_id, machine, user, times }
                }
                AuditEvent::DenialsUnrecorded { count, until } => {
                    AuditEvent::DenialsUnrecorded { count: count + 1, until }
                }
                AuditEvent::ExemptionRequested { exemption, machine, reason, until } => {
                    let until = if until.is_some() { None } else { Some(Timestamp(0)) };
                    AuditEvent::ExemptionRequested { exemption, machine, reason, until }
                }
                AuditEvent::ExemptionDecided { exemption, machine, asked_by, decision } => {
                    let decision = match decision {
                        ExemptionDecision::Grant { until: Some(_) } => {
                            ExemptionDecision::Grant { until: None }
                        }
                        ExemptionDecision::Grant { until: None } => ExemptionDecision::Revoke,
                        ExemptionDecision::Revoke => ExemptionDecision::Reject,
                        ExemptionDecision::Reject => ExemptionDecision::Grant { until: Some(Timestamp(0)) },
                    };
                    AuditEvent::ExemptionDecided { exemption, machine, asked_by, decision }
                }
                AuditEvent::CompliancePolicySet { version, policy } => {
                    AuditEvent::PolicySet { version, policy }
                }
                AuditEvent::KeyringRotated { key_version } => AuditEvent::DataKeysDropped { key_version },
                AuditEvent::DataKeysDropped { key_version } => AuditEvent::KeyringRotated { key_version },
            }
        }
    }
    record
}

#[test]
fn the_hash_of_a_record_never_changes() {
    let records = chain(&[(31, "lost PIN".to_owned())]);
    assert_eq!(
        data_encoding::HEXLOWER.encode(&record_hash(&records[0])),
        "543b204945e6ef6ab501d935b94d30701d978324b8a0a9da33ee8d9d42b1d3f8"
    );
}

#[test]
fn the_hashes_of_later_events_never_change() {
    let hashes: Vec<String> = [128_u8, 129, 130, 131, 255, 50, 193, 194]
        .map(|choice| chain(&[(choice, "lost PIN".to_owned())]).remove(0))
        .iter()
        .map(|record| data_encoding::HEXLOWER.encode(&record_hash(record)[..8]))
        .collect();
    assert_eq!(
        hashes,
        [
            "1999834509cb625b",
            "2d12c3c0219258a6",
            "b5ef24c33fe6e095",
            "9b12a80b661755bc",
            "87eaab5051a71fd1",
            "e5530f1729ecda35",
            "5b4fccc174afca7c",
            "8d0142ced5a1df4e"
        ]
    );
}

#[test]
fn an_absent_text_is_not_an_empty_one() {
    let mut record = chain(&[(3, String::new())]).remove(0);
    let AuditEvent::Reveal { denied, .. } = &mut record.event else { panic!("a reveal") };
    *denied = None;
    let shown = record_hash(&record);
    let AuditEvent::Reveal { denied, .. } = &mut record.event else { panic!("a reveal") };
    *denied = Some(String::new());
    assert_ne!(record_hash(&record), shown);
}

#[test]
fn a_chain_that_ends_early_or_late_is_broken_there() {
    let records = chain(&[(0, String::new()), (2, String::new()), (6, String::new())]);
    let why = |error: BrokenChain| error.to_string();
    let from = ChainHead::default();
    assert_eq!(verify(&records, from, head(&records)), Ok(()));
    assert_eq!(
        why(verify(&records[..2], from, head(&records)).unwrap_err()),
        "the audit chain is broken at record 3: the records end here, the chain ends at 3"
    );
    assert_eq!(
        why(verify(&records, from, head(&records[..2])).unwrap_err()),
        "the audit chain is broken at record 3: the records go on to 3, the chain ends before"
    );
}

proptest! {
    #[test]
    fn an_untouched_chain_verifies_whole_and_in_parts(events in events(), cut in any::<prop::sample::Index>()) {
        let records = chain(&events);
        let cut = cut.index(records.len());
        let middle = follow(&records[..cut], ChainHead::default()).unwrap();
        prop_assert_eq!(verify(&records[cut..], middle, head(&records)), Ok(()));
    }

    #[test]
    fn an_altered_record_is_found(events in events(), at in any::<prop::sample::Index>(), field: u8) {
        let records = chain(&events);
        let mut forged = records.clone();
        let at = at.index(forged.len());
        forged[at] = altered(&forged[at], field);
        let broken = verify(&forged, ChainHead::default(), head(&records)).unwrap_err();
        // The record itself, or the one that follows it.
        prop_assert!((at as u64 + 1..=at as u64 + 2).contains(&broken.sequence));
    }

    #[test]
    fn a_removed_record_is_found(events in events(), at in any::<prop::sample::Index>()) {
        let records = chain(&events);
        let mut forged = records.clone();
        let at = at.index(forged.len());
        forged.remove(at);
        let broken = verify(&forged, ChainHead::default(), head(&records)).unwrap_err();
        prop_assert_eq!(broken.sequence, at as u64 + 1);
    }

    #[test]
    fn a_removed_record_is_found_even_if_the_rest_is_renumbered(events in events(), at in any::<prop::sample::Index>()) {
        let records = chain(&events);
        let mut forged = records.clone();
        let at = at.index(forged.len());
        forged.remove(at);
        for record in &mut forged[at..] {
            record.sequence -= 1;
        }
        prop_assert!(verify(&forged, ChainHead::default(), head(&records)).is_err());
    }

    #[test]
    fn swapped_records_are_found(events in events(), at in any::<prop::sample::Index>()) {
        let records = chain(&events);
        let mut forged = records.clone();
        let at = at.index(forged.len() - 1);
        forged.swap(at, at + 1);
        let broken = verify(&forged, ChainHead::default(), head(&records)).unwrap_err();
        prop_assert_eq!(broken.sequence, at as u64 + 1);
    }

    #[test]
    fn an_inserted_record_is_found(events in events(), at in any::<prop::sample::Index>(), choice: u8) {
        let records = chain(&events);
        let at = at.index(records.len() + 1);
        // The best a forger can do who cannot change the head kept elsewhere: a record that follows well.
        let before = head(&records[..at]);
        let mut forged = records.clone();
        forged.insert(at, AuditRecord {
            sequence: before.sequence + 1,
            previous: before.hash,
            event: event(choice, "forged"),
            ..records[0].clone()
        });
        prop_assert!(verify(&forged, ChainHead::default(), head(&records)).is_err());
    }
}
