//! Whether the audit trail says what happened: all of it, once, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use strongroom::escrow::audit::{self, ChainHead};
use strongroom::escrow::ids::{Identity, KeyId, NodeId};
use strongroom::escrow::records::{AuditEvent, AuditRecord};
use strongroom::proto::FindRequest;

use crate::asked::{Asked, Attempt, Outcome};
use crate::common::trail::{audit_after, named};
use crate::common::*;

/// A record of a reveal.
#[derive(Debug)]
struct Record {
    sequence: u64,
    key: KeyId,
    by: Identity,
    /// The node that was asked.
    at: NodeId,
    was_shown: bool,
}

/// Checks what was asked since `head` against the audit trail of every node, the keys and their debts; answers where the
/// trail stands now.
pub async fn check(test: &TestCluster, head: ChainHead, asked: &Asked) -> ChainHead {
    let trails = [
        audit_after(test, 1, head).await,
        audit_after(test, 2, head).await,
        audit_after(test, 3, head).await,
    ];
    assert!(trails.iter().all(|trail| *trail == trails[0]), "every node has the same trail");
    let [records, ..] = trails;
    compare(&records, asked);
    let shown: BTreeSet<KeyId> = of_reveals(&records)
        .into_values()
        .flatten()
        .filter(|record| record.was_shown)
        .map(|record| record.key)
        .collect();
    for node in ALL {
        assert_all_held(test, node, &asked.kept).await;
        owed(test, node, asked, &shown).await;
    }
    audit::follow(&records, head).expect("the chain is whole")
}

/// Checks reveals against their records.
pub fn compare(records: &[AuditRecord], asked: &Asked) {
    let named = named(records);
    assert!(named.values().all(|times| *times == 1), "an entry of a journal has two records: {named:?}");
    let records = of_reveals(records);
    for (reason, records) in &records {
        let attempt = asked.reveals.get(reason);
        let attempt = attempt.unwrap_or_else(|| panic!("nobody asked for this: {reason}: {records:?}"));
        for record in records {
            let asked_so = record.key == attempt.key
                && record.by.name == attempt.by
                && attempt.at.is_none_or(|node| node == record.at);
            assert!(asked_so, "{reason}: asked as {attempt:?}, on record as {record:?}");
        }
    }
    for (reason, attempt) in &asked.reveals {
        let none = Vec::new();
        let records = records.get(reason).unwrap_or(&none);
        assert!(is_on_record(attempt, records), "{reason}: asked as {attempt:?}, on record are {records:?}");
        if let Outcome::ShownAlone { entry } = &attempt.outcome {
            assert!(named.contains_key(entry), "{reason}: shown by entry {entry}, which no record names");
        }
    }
}

/// Whether these are the records that a reveal should have left.
fn is_on_record(attempt: &Attempt, records: &[Record]) -> bool {
    let (shown, denied): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.was_shown);
    // A node that did not have the key yet may have denied, once, what another one then showed.
    let asked_nodes = if attempt.at.is_some() { 1 } else { ALL.len() };
    if shown.len() > 1 || denied.len() > asked_nodes {
        return false;
    }
    match (&attempt.outcome, shown.first()) {
        (Outcome::NotLookedAt, shown) => shown.is_none(),
        (Outcome::Unknown, _) | (Outcome::ShownAlone { .. }, Some(_)) => true,
        (Outcome::Refused, _) => !records.is_empty(),
        (Outcome::Shown { sequence }, Some(record)) => record.sequence == *sequence,
        (Outcome::Shown { .. } | Outcome::ShownAlone { .. }, None) => false,
    }
}

/// Records of reveals, by their reason.
fn of_reveals(records: &[AuditRecord]) -> BTreeMap<String, Vec<Record>> {
    let mut reveals = BTreeMap::<_, Vec<_>>::new();
    for AuditRecord { sequence, by, source, event, .. } in records {
        let sequence = *sequence;
        let (reason, record) = match event {
            AuditEvent::Reveal { key_id: key, reason, denied, .. } => {
                let was_shown = denied.is_none();
                let (key, by, at) = (*key, by.clone(), source.node);
                (reason, Record { sequence, key, by, at, was_shown })
            }
            AuditEvent::RevealReconciled { reveal, .. } => {
                let (key, by, at) = (reveal.key_id, reveal.by.clone(), reveal.source.node);
                let was_shown = reveal.was_shown();
                (&reveal.reason, Record { sequence, key, by, at, was_shown })
            }
            AuditEvent::EscrowConflict { .. } => panic!("nothing was escrowed in two ways: {event:?}"),
            _ => continue,
        };
        reveals.entry(reason.clone()).or_default().push(record);
    }
    reveals
}

/// Checks at `node` that the keys that were shown owe a rotation, and no others.
async fn owed(test: &TestCluster, node: NodeId, asked: &Asked, shown: &BTreeSet<KeyId>) {
    let client = test.client("auditor", &[node]);
    for (_, receipt) in &asked.kept {
        let request = FindRequest { key_id_prefix: receipt.key_id.to_string(), ..FindRequest::default() };
        let key = client.find(&request).await.expect("a local read").keys.remove(0);
        let was_shown = shown.contains(&receipt.key_id);
        let owes = (key.owes_since_ms.is_some(), key.rotation_owed_since_ms.is_some());
        let expected = if was_shown { "disclosed" } else { "active" };
        assert_eq!((owes, &*key.state), ((was_shown, was_shown), expected), "{} at node {node}", key.key_id);
    }
}
