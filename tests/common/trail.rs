//! What the audit trail says of reveals, and whether all of them have reached it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use strongroom::client::Recovered;
use strongroom::escrow::audit::{self, ChainHead, line};
use strongroom::escrow::ids::NodeId;
use strongroom::escrow::journal::JournalPlace;
use strongroom::escrow::lookup::{self, AUDIT_PAGE_MAX};
use strongroom::escrow::records::{AuditEvent, AuditRecord};
use strongroom::proto::{NodeStatus, ReadAuditRequest, StatusResponse};
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::store::directory::DataDir;

use super::TestCluster;

/// Longest a reveal that was told to another node may wait for it to lose its patience, and to be committed.
pub const ON_RECORD: Duration = Duration::from_secs(60);

/// What a shown key says of the state it was shown from: `quorum` or `degraded`.
pub fn consistency(recovered: &Recovered) -> &str {
    &recovered.details.freshness.as_ref().expect("said").consistency
}

/// What a status says of `node`.
pub fn of(status: &StatusResponse, node: NodeId) -> NodeStatus {
    status.nodes.iter().find(|status| status.id == node).expect("a member").clone()
}

/// Where a node keeps everything.
pub fn data(test: &TestCluster, node: NodeId) -> PathBuf {
    test.cluster.layout().node(node).expect("a node").data_path()
}

/// Waits until nothing waits in any journal of `nodes`, under a leader.
pub async fn all_on_record(test: &TestCluster, nodes: &[NodeId]) {
    let empty = test.cluster.wait_for("all on record", ON_RECORD, nodes, |status| {
        status.leader.is_some()
            && nodes.iter().all(|id| {
                let node = of(status, *id);
                node.reachable && node.journal_own + node.journal_told == 0
            })
    });
    empty.await.expect("on record");
}

/// The audit trail of a stopped node; its chain holds.
pub async fn audit_of(test: &TestCluster, node: NodeId) -> Vec<AuditRecord> {
    let data = DataDir::open_or_create(data(test, node)).expect("the node is stopped");
    let storage = Storage::open(&data, StorageOptions::default()).await.expect("its storage opens");
    storage.replay_committed().await.expect("what is committed applies");
    let (mut records, view) = (Vec::<AuditRecord>::new(), storage.machine.view().expect("a view"));
    let heads = lookup::heads(&view).expect("read");
    while let page = lookup::audit(&view, records.len() as u64, AUDIT_PAGE_MAX).expect("the trail")
        && !page.is_empty()
    {
        records.extend(page);
    }
    drop(view);
    audit::verify(&records, ChainHead::default(), heads.audit).expect("the chain is whole");
    storage.close().await.expect("closed");
    records
}

/// What the audit trail of a running node goes on with after `head`; its chain holds.
pub async fn audit_after(test: &TestCluster, node: NodeId, head: ChainHead) -> Vec<AuditRecord> {
    let request = ReadAuditRequest { after: head.sequence, ..ReadAuditRequest::default() };
    let mut trail = test.client("auditor", &[node]).read_audit(&request).await.expect("a local read");
    let mut records = Vec::new();
    while let Some(page) = trail.next().await.expect("it goes on") {
        for read in page.records {
            let stated = line::parse(&read.line).expect("a record");
            assert!(stated.genuine, "record {} at node {node}", read.seq);
            records.push(stated.record);
        }
    }
    let reached = audit::follow(&records, head).expect("the chain is whole");
    assert_eq!(reached.sequence, trail.begin().head, "node {node} gives all it has");
    records
}

/// How often each entry of a journal that showed a key, or denied it, is named by a record.
pub fn named(records: &[AuditRecord]) -> BTreeMap<JournalPlace, usize> {
    let mut named = BTreeMap::new();
    for record in records {
        if let AuditEvent::RevealReconciled { place, .. } | AuditEvent::RevealRepeated { place, .. } =
            &record.event
        {
            *named.entry(*place).or_default() += 1;
        }
    }
    named
}

/// The entry of the journal that an answer without a quorum names.
pub fn entry_of(recovered: &Recovered) -> JournalPlace {
    let (journal, sequence) = (&recovered.details.journal, recovered.details.journal_sequence);
    JournalPlace { journal: journal.parse().expect("the id of a journal"), sequence }
}

/// By its reason, how often a reveal that was shown is on record.
pub fn shown(records: &[AuditRecord]) -> BTreeMap<String, usize> {
    let mut shown = BTreeMap::new();
    for record in records {
        let reason = match &record.event {
            AuditEvent::Reveal { reason, denied: None, .. } => reason,
            AuditEvent::RevealReconciled { reveal, .. } if reveal.was_shown() => &reveal.reason,
            _ => continue,
        };
        *shown.entry(reason.clone()).or_default() += 1;
    }
    shown
}
