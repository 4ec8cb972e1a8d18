//! Handing out tables at one index, and what reports make of them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use strongroom::escrow::command::{Action, RaiseFeatureLevel, ReportCompliance};
use strongroom::escrow::compliance::{MachineReport, history};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{KeyId, Role, Timestamp};
use strongroom::escrow::records::{KeyRecord, LogPosition, MachineRecord};
use strongroom::escrow::reports::Bundle;
use strongroom::escrow::state::{Rows, Table};
use strongroom::raft::storage::StorageOptions;
use strongroom::store::StoreError;
use strongroom::store::export::RowSink;
use strongroom::store::format::{self, Payload};
use strongroom::store::machine::{Machine, MachineOptions};
use strongroom::store::pass::PassLimits;
use strongroom::store::spool::machines::{MachineSink, TABLES, TABLES_WITH_CHANGES};
use strongroom::store::spool::{SpoolLimits, Spools};

use super::sample;
use super::support::{Node, small, undrained, wait_until};

const KEYS_AND_AUDIT: &[Table] = &[Table::Key, Table::Audit];
/// Longest a test waits for something that should happen at once.
const PATIENCE: Duration = Duration::from_secs(30);

fn manual() -> StorageOptions {
    StorageOptions { machine: undrained(), ..small() }
}

/// Counts rows, and waits at the first of them until it is told to go on.
struct Gate {
    keys: Vec<KeyRecord>,
    others: usize,
    begun: Option<Sender<()>>,
    go_on: Receiver<()>,
}

impl Gate {
    /// The sink, what tells that it has begun, and what lets it go on.
    fn new() -> (Self, Receiver<()>, Sender<()>) {
        let (begun, has_begun) = channel();
        let (release, go_on) = channel();
        (Self { keys: Vec::new(), others: 0, begun: Some(begun), go_on }, has_begun, release)
    }
}

impl RowSink for Gate {
    fn take(&mut self, table: Table, _: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if let Some(begun) = self.begun.take() {
            begun.send(()).unwrap();
            self.go_on.recv_timeout(PATIENCE).unwrap();
        }
        match table {
            Table::Key => self.keys.push(format::decode(value).unwrap()),
            _ => self.others += 1,
        }
        Ok(())
    }
}

/// An export that stands at its first row.
async fn begun(machine: &Machine) -> (tokio::task::JoinHandle<Exported>, Sender<()>) {
    let (gate, has_begun, release) = Gate::new();
    let machine = machine.clone();
    let export = tokio::spawn(async move {
        machine.export(KEYS_AND_AUDIT, gate).await.map(|(gate, upto)| (gate, upto.index()))
    });
    tokio::task::spawn_blocking(move || has_begun.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    (export, release)
}

type Exported = Result<(Gate, u64), StoreError>;

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_of_one_index_and_writes_go_on_during_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 50).await;
    let next = node.next;
    node.apply(&sample::reveal(next, 7)).await;
    let machine = node.storage.machine.clone();
    let at = machine.applied_index();
    let (export, release) = begun(&machine).await;
    // Applied, read and answered while the export stands still.
    node.escrow(50, 90).await;
    node.assert_state();
    assert!(!export.is_finished());
    release.send(()).unwrap();
    let (gate, upto) = export.await.unwrap().unwrap();
    assert_eq!(upto, at);
    let ids: Vec<_> = gate.keys.iter().map(|key| key.id).collect();
    assert_eq!(
        ids,
        (0..50).map(sample::key_id).collect::<Vec<_>>(),
        "in the order of keys, and no later one"
    );
    assert!(gate.others > 0, "the second table follows the first");
    machine.drain().await.unwrap();
    node.assert_state();
    machine.scrub().await.unwrap();
}

struct Failing(usize);

impl RowSink for Failing {
    fn take(&mut self, _: Table, _: &[u8], _: &[u8]) -> Result<(), StoreError> {
        self.0 -= 1;
        if self.0 == 0 { Err(StoreError::SpoolFull("the disk is full".to_owned())) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_ends_its_export_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    let machine = node.storage.machine.clone();
    let failed = machine.export(KEYS_AND_AUDIT, Failing(5)).await.err().unwrap();
    assert!(matches!(failed, StoreError::SpoolFull(_)), "{failed}");
    node.escrow(20, 30).await;
    node.assert_state();
    machine.snapshot().await.unwrap();
    assert!(machine.export(KEYS_AND_AUDIT, Failing(10_000)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_ends_when_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    let machine = node.storage.machine.clone();
    let (export, release) = begun(&machine).await;
    export.abort();
    assert!(export.await.err().unwrap().is_cancelled());
    release.send(()).unwrap();
    // The keeper is free again, and did not do it all first.
    machine.drain().await.unwrap();
    node.escrow(20, 25).await;
    node.assert_state();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_closes_does_not_wait_for_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    let machine = node.storage.machine.clone();
    let (export, release) = begun(&machine).await;
    let closing = tokio::spawn({
        let machine = machine.clone();
        async move { machine.close().await }
    });
    wait_until(|| machine.is_closing()).await;
    release.send(()).unwrap();
    assert!(matches!(export.await.unwrap(), Err(StoreError::Closed)));
    closing.await.unwrap().unwrap();
    assert!(matches!(machine.export(KEYS_AND_AUDIT, Failing(9)).await, Err(StoreError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_do_not_wait_for_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let options = MachineOptions { overlay_max_bytes: 100_000, ..undrained() };
    let mut node = Node::begin(dir.path(), StorageOptions { machine: options, ..small() }).await;
    node.escrow(0, 20).await;
    let machine = node.storage.machine.clone();
    let (export, release) = begun(&machine).await;
    let mut number = 20;
    while machine.stats().unwrap().overlay_bytes <= 80_000 {
        node.escrow(number, number + 1).await;
        number += 1;
    }
    release.send(()).unwrap();
    assert!(matches!(export.await.unwrap(), Err(StoreError::Crowded)), "it gives way");
    // Nothing else drains it here.
    machine.drain().await.unwrap();
    node.escrow(number, number + 10).await;
    node.assert_state();
}

/// Applies an entry at every row it takes, from within the pass: there is no other time between two rows.
struct Writing {
    machine: Machine,
    next: u64,
    keys: Vec<KeyId>,
    generations: usize,
}

impl RowSink for Writing {
    fn take(&mut self, table: Table, _: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if table == Table::Key {
            self.keys.push(format::decode::<KeyRecord>(value).unwrap().id);
        }
        // Before, between and after the rows there are.
        let number = self.next * 37 % 1_000;
        let command = format::encode(&sample::escrow(self.next, number));
        let position = LogPosition { term: 1, index: self.next };
        self.machine.apply(position, Payload::Commands(vec![&command]))?;
        self.next += 1;
        self.generations = self.machine.stats()?.overlay_generations;
        Ok(())
    }
}

/// With little memory for rows as they were, and with enough.
#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_written_on_during_an_export_which_does_not_see_it() {
    for undo_max_bytes in [1, 4_000, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let pass_limits = PassLimits { slice_max_rows: 5, undo_max_bytes, ..PassLimits::default() };
        let options = MachineOptions { generation_max_bytes: 1, pass_limits, ..undrained() };
        let mut node = Node::begin(dir.path(), StorageOptions { machine: options, ..small() }).await;
        for number in (0..1_000).step_by(10) {
            node.escrow(number, number + 1).await;
        }
        let machine = node.storage.machine.clone();
        let sink = Writing { machine: machine.clone(), next: node.next, keys: Vec::new(), generations: 0 };
        let (sink, upto) = machine.export(&[Table::Key], sink).await.unwrap();
        assert_eq!(upto.index(), node.next - 1);
        let expected: Vec<_> = (0..1_000).step_by(10).map(sample::key_id).collect();
        assert_eq!(sink.keys, expected, "{undo_max_bytes}");
        let written = (sink.next - node.next) as usize;
        assert_eq!(written, expected.len());
        if undo_max_bytes == usize::MAX {
            assert!(sink.generations <= 2 * 5, "{} of {written} wait for the base", sink.generations);
        }
        machine.drain().await.unwrap();
        machine.scrub().await.unwrap();
    }
}

fn report(machine: u64, at: u64, conversion: &str) -> MachineReport {
    let key = sample::key_id(machine);
    let document = format!(
        r#"{{"machine": "PC-{machine:04}", "at": "{}", "policy": {{"enforcement": "enforced"}}, "volumes": [
            {{"volume": "C:", "kind": "os", "protection": "on", "conversion": "{conversion}", "recovery_keys": ["{key}"]}}]}}"#,
        Timestamp(at)
    );
    MachineReport::from_json(&document).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spooled_of_each_machine_is_what_is_kept_of_it_but_for_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    let raise = Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::SUPPORTED });
    let next = node.next;
    node.apply(&sample::command(next, Role::Node, "1", raise)).await;
    // Keys of a hundred machines, several each, so that their order is not that of the machines.
    node.escrow(0, 350).await;
    for (turn, conversion) in ["encrypting", "encrypted", "decrypting"].into_iter().enumerate() {
        let at = 1_700_000_000_000 + 1_000 * turn as u64;
        let reports = (0..100).step_by(3).map(|machine| report(machine, at, conversion)).collect();
        let action = Action::ReportCompliance(ReportCompliance { reports });
        let next = node.next;
        node.apply(&sample::command(next, Role::Importer, "importer", action)).await;
    }
    let next = node.next;
    node.apply(&sample::reveal(next, 42)).await;
    let machine = node.storage.machine.clone();

    let folder = tempfile::tempdir().unwrap();
    // So little that keys are sorted on the disk.
    let limits = SpoolLimits { sort_memory_bytes: 4_096, ..SpoolLimits::default() };
    let spools = Spools::open(folder.path(), limits).unwrap();
    let view = machine.view().unwrap();
    let machines: Vec<MachineRecord> = view.rows(&[], None, usize::MAX).unwrap();
    let kept: Vec<Bundle> = machines.into_iter().map(|known| Bundle::read(&view, known).unwrap()).collect();
    assert_eq!(kept[0].changes.len(), 3);
    // The base is not written past a view.
    drop(view);
    let mut spooled = Vec::new();
    // Before the first of three reports, when the second and when the last counted.
    for (at, taken) in [(1_699_999_999_999, 2), (1_700_000_001_500, 2), (1_700_000_002_000, 1)] {
        let as_of = Timestamp(at);
        let sink = MachineSink::new(spools.begin(), Some(as_of)).unwrap();
        let (sink, upto) = machine.export(TABLES_WITH_CHANGES, sink).await.unwrap();
        assert_eq!(upto.index(), machine.applied_index());
        spooled = sink.bundles().unwrap().map(Result::unwrap).collect();
        let around = |bundle: &Bundle| {
            let changes = history::around(&bundle.changes, as_of).to_vec();
            Bundle { changes, ..bundle.clone() }
        };
        assert_eq!(spooled, kept.iter().map(around).collect::<Vec<_>>());
        assert_eq!(spooled[0].changes.len(), taken, "the one that counts, the next, and no other");
    }
    assert_eq!(spooled.iter().map(|bundle| bundle.keys.len()).sum::<usize>(), 350);
    let keys = spooled.iter().flat_map(|bundle| &bundle.keys);
    assert!(
        keys.clone()
            .all(|known| known.key.sealed.ciphertext.is_empty() && known.key.fingerprint.0 == [0; 32])
    );
    assert_eq!(keys.filter(|known| known.history.disclosed_at.is_some()).count(), 1);

    let sink = MachineSink::new(spools.begin(), None).unwrap();
    let (sink, _) = machine.export(TABLES, sink).await.unwrap();
    assert!(
        sink.bundles().unwrap().all(|bundle| bundle.unwrap().changes.is_empty()),
        "no past unless asked for"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_past_its_bytes_ends_the_report_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 50).await;
    let folder = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { max_bytes: 1_000, ..SpoolLimits::default() };
    let spools = Spools::open(folder.path(), limits).unwrap();
    let sink = MachineSink::new(spools.begin(), None).unwrap();
    let failed = node.storage.machine.export(TABLES, sink).await.err().unwrap();
    assert!(matches!(failed, StoreError::SpoolFull(_)), "{failed}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    node.escrow(50, 60).await;
    node.assert_state();
}
