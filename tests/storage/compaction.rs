//! The base is written anew while the state is written and read.

use std::time::Duration;

use strongroom::escrow::records::KeyRecord;
use strongroom::escrow::state::Rows;
use strongroom::raft::storage::StorageOptions;
use strongroom::store::compaction::CompactionLimits;
use strongroom::store::machine::MachineOptions;

use super::sample;
use super::support::{Node, assert_same, small, undrained, wait_until};

/// One after the other, whatever there is, in slices of a few rows.
fn all_the_while() -> StorageOptions {
    let compaction_limits = CompactionLimits {
        check_every: Duration::from_millis(1),
        floor_bytes: 0,
        times_rows: 0,
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
    let machine = node.storage.machine.clone();
    let first = current(dir.path());
    for round in 0..20 {
        node.escrow(10 * round, 10 * round + 10).await;
        node.assert_state();
        if round == 10 {
            machine.snapshot().await.unwrap();
        }
        // Goes on reading the base that is in use now.
        let (view, number) = (machine.view().unwrap(), current(dir.path()));
        wait_until(|| current(dir.path()) > number).await;
        for escrowed in 0..10 * round + 10 {
            let key = view.row::<KeyRecord>(&sample::key_id(escrowed).row_key()).unwrap();
            assert!(key.is_some(), "key {escrowed} in round {round}");
        }
        drop(view);
        node.assert_state();
    }
    assert!(current(dir.path()) >= first + 20);
    machine.scrub().await.unwrap();
    let expected = node.expected.clone();
    // As after a kill: nothing is closed in order.
    drop(machine);
    drop(node);
    let node = Node::open(dir.path(), all_the_while()).await.unwrap();
    assert_same(&node.storage, &expected);
    node.storage.machine.scrub().await.unwrap();
}
