//! What a node keeps of what others tell it.

use uuid::Uuid;

use super::*;
use crate::escrow::ids::{KeyId, Timestamp};
use crate::escrow::journal::{DegradedReveal, JournalPlace, Knowledge};
use crate::escrow::records::LogPosition;
use crate::raft::membership::in_process::{Fixture, until};

fn decided_by(node: NodeId, sequence: u64, reason: &str) -> JournalEntry {
    let place = JournalPlace { journal: Uuid::from_u128(0xb), sequence };
    let reveal = DegradedReveal {
        request: RequestId(Uuid::from_u64_pair(1, sequence)),
        at: Timestamp(1),
        by: "spiffe://test/helpdesk-advanced/desk1".parse().unwrap(),
        source: Source { node, address: String::new() },
        key_id: KeyId(Uuid::from_u128(0xa1)),
        machine: None,
        user: None,
        reason: reason.to_owned(),
        denied: None,
        approval: None,
        knowledge: Knowledge {
            position: LogPosition { term: 1, index: 1 },
            quorum_age_ms: None,
            policy_version: 0,
        },
    };
    JournalEntry { place, previous: [0; 32], what: Noted::Reveal(reveal) }
}

fn told(entries: &[&JournalEntry]) -> KeepJournalRequest {
    KeepJournalRequest { entries: entries.iter().map(|entry| format::encode(*entry).into()).collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_come_on_record_is_not_kept_nor_what_a_stranger_tells_or_decided() {
    let fixture = Fixture::new(1);
    fixture.initialize(1).await;
    let running = fixture.serve(1).await;
    let node = &running.node;
    until("it leads", || node.leader() == Some(1)).await;
    let (good, blank) = (decided_by(1, 1, "lost PIN"), decided_by(1, 2, " "));
    node.keep_journal(1, &told(&[&blank, &good])).await.unwrap();
    let kept = node.inner.journal.told();
    assert!(!kept.contains(&blank), "it would wait for ever");
    let on_record = lookup::reconciled(&node.view().unwrap(), &good).unwrap();
    assert!(kept.contains(&good) || on_record.is_some());

    let strange = decided_by(9, 3, "lost PIN");
    for (teller, entry) in [(1, &strange), (9, &good)] {
        let refused = node.keep_journal(teller, &told(&[entry])).await.unwrap_err();
        assert!(matches!(refused, NodeError::Invalid(_)), "{refused}");
    }
    assert!(!node.inner.journal.told().contains(&strange));
    running.stop().await;
}
