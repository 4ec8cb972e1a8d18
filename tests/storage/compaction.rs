//! The base is written anew while the state is written and read.

use std::time::Duration;

use strongroom::escrow::records::KeyRecord;
use strongroom::escrow::state::Rows;
use strongroom::raft::storage::StorageOptions;
use strongroom::store::compaction::CompactionLimits;
use strongroom::store::machine::MachineOptions;

use super::base::StoppedBase;
use super::sample;
use super::support::{Node, small, undrained, wait_until};

/// One after the other, whatever there is, in slices of a few rows.
fn all_the_while() -> StorageOptions {
    let compaction_limits = CompactionLimits {
        check_every: Duration::from_millis(1),
        floor_bytes: 0,
        times_rows: 0,
        quiet_max_bytes: 0,
        times_rows_busy: 0,
        reserve_bytes: 0,
        slice_max_bytes: 1_000,
    };
    StorageOptions {
        machine: MachineOptions { compaction_limits, generation_max_bytes: 1, ..undrained() },
        ..small()
    }
}

/// Which database is in use.
fn current(dir: &std::path::Path) -> u64 {
    std::fs::read_to_string(dir.join("base/current")).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_written_anew_under_writes_snapshots_and_readers_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), all_the_while()).await;
    for round in 0..8 {
        let number = current(dir.path());
        node.escrow(20 * round, 20 * round + 10).await;
        // Goes on reading the base that is in use now.
        let view = node.storage.machine.view().unwrap();
        wait_until(|| current(dir.path()) > number).await;
        for escrowed in 0..20 * round + 10 {
            let key = view.row::<KeyRecord>(&sample::key_id(escrowed).row_key()).unwrap();
            assert!(key.is_some(), "key {escrowed} in round {round}");
        }
        drop(view);
        node.escrow(20 * round + 10, 20 * round + 20).await;
        node.assert_state();
        if round % 2 == 1 {
            node.storage.machine.snapshot().await.unwrap();
        }
        node.storage.machine.scrub().await.unwrap();
        // As after a kill: nothing is closed in order.
        let (expected, next) = (node.expected.clone(), node.next);
        drop(node);
        node = Node::open(dir.path(), all_the_while()).await.unwrap();
        (node.expected, node.next) = (expected, next);
        node.assert_state();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_damaged_is_not_copied_and_the_node_goes_on_as_it_does_after_a_scrub() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), StorageOptions { machine: undrained(), ..small() }).await;
    node.escrow(0, 40).await;
    node.storage.close().await.unwrap();
    drop(node);
    let number = current(dir.path());
    StoppedBase::open(&dir.path().join(format!("base/{number}"))).damage();
    let node = Node::open(dir.path(), all_the_while()).await.unwrap();
    wait_until(|| node.storage.machine.suspicion().is_some()).await;
    let databases = || {
        let entries = std::fs::read_dir(dir.path().join("base")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    };
    wait_until(|| databases() == 1).await;
    assert_eq!(current(dir.path()), number);
    assert!(node.storage.machine.view().is_ok());
}
