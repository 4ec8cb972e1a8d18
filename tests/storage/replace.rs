//! Replacing a state that is wrong.

use std::fs;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use strongroom::raft::storage::StorageOptions;
use strongroom::store::StoreError;
use strongroom::store::format::Payload;
use strongroom::store::quarantine::{Cause, Quarantine, Stage};
use strongroom::store::snapshot::SnapshotFile;

use super::sample;
use super::support::{Node, assert_same, crash_copy, small, undrained};

fn manual() -> StorageOptions {
    StorageOptions { machine: undrained(), ..small() }
}

/// A node with `keys` keys and a peer's snapshot from after the first 60 of them, received and not put to use.
async fn node_and_file(keys: u64) -> (tempfile::TempDir, Node, SnapshotFile) {
    let (own, peers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut peer = Node::begin(peers.path(), manual()).await;
    peer.escrow(0, 60).await;
    let theirs = peer.storage.machine.snapshot().await.unwrap();
    let mut node = Node::begin(own.path(), manual()).await;
    node.escrow(0, keys).await;
    let mut receiver =
        node.storage.machine.snapshots().receive(theirs.bytes(), theirs.sha256()).await.unwrap();
    let all = theirs.chunk(0, usize::try_from(theirs.bytes()).unwrap()).await.unwrap();
    receiver.write(&all).await.unwrap();
    (own, node, receiver.finish().await.unwrap())
}

async fn replace(node: &Node, file: SnapshotFile) -> Result<(), StoreError> {
    let (machine, log) = (node.storage.machine.clone(), node.storage.log.clone());
    tokio::task::spawn_blocking(move || machine.replace(file, &log)).await.unwrap().map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_state_stands_where_the_old_one_stood_and_goes_on_from_there() {
    let (dir, mut node, file) = node_and_file(100).await;
    // An own snapshot of the wrong state, newer than the peer's: it must not be taken again.
    let own = node.storage.machine.snapshot().await.unwrap();
    let (before, old) = (node.storage.machine.applied(), own.path().to_owned());
    let sha256 = file.sha256();
    replace(&node, file).await.unwrap();
    assert_eq!(node.storage.machine.applied(), before, "position, membership, digest and milestones");
    assert_eq!(node.storage.machine.snapshots().newest().unwrap().sha256(), sha256);
    assert!(!old.exists());
    node.storage.log.sync().await.unwrap();
    let crashed = crash_copy(dir.path());
    node.escrow(100, 120).await;
    node.assert_state();
    node.storage.machine.scrub().await.unwrap();
    let reopened = Node::open(crashed.path(), manual()).await.unwrap();
    assert_eq!(reopened.storage.machine.applied(), before, "after a crash the log is applied over it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_damaged_leaves_the_old_state() {
    let (_dir, mut node, file) = node_and_file(100).await;
    let before = node.storage.machine.applied();
    let mut bytes = fs::read(file.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file.path(), bytes).unwrap();
    assert!(matches!(replace(&node, file).await, Err(StoreError::Snapshot { .. })));
    assert_eq!(node.storage.machine.applied(), before);
    assert!(node.storage.machine.snapshots().newest().is_none());
    node.escrow(100, 101).await;
    node.assert_state();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_ahead_of_the_state_or_behind_the_log_is_refused() {
    let (_dir, node, ahead) = node_and_file(40).await;
    let expected = node.expected.clone();
    assert!(matches!(replace(&node, ahead).await, Err(StoreError::Snapshot { .. })));
    assert_same(&node.storage, &expected);

    let (_dir, node, behind) = node_and_file(100).await;
    let own = node.storage.machine.snapshot().await.unwrap();
    node.storage.log.purge(own.position().unwrap()).await.unwrap();
    assert!(matches!(replace(&node, behind).await, Err(StoreError::Snapshot { .. })));
    let expected = node.expected.clone();
    assert_same(&node.storage, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_state_is_replaced_nothing_is_applied_out_of_turn() {
    let (_dir, mut node, file) = node_and_file(100).await;
    let next = node.next;
    let command = sample::escrow(next, 100);
    let bytes = strongroom::store::format::encode(&command);
    let position = strongroom::escrow::records::LogPosition { term: 1, index: next };
    let record = Payload::Commands(vec![&bytes]).encode();
    node.storage.log.append(vec![(position, record)], drop).await.unwrap();
    let applying = {
        let (machine, bytes) = (node.storage.machine.clone(), bytes.clone());
        tokio::task::spawn_blocking(move || machine.apply(position, Payload::Commands(vec![&bytes])))
    };
    replace(&node, file).await.unwrap();
    applying.await.unwrap().unwrap();
    strongroom::escrow::apply::apply(&mut node.expected, position, &command).unwrap();
    node.assert_state();
}

/// A node that differs again and again would else never cut its log.
#[tokio::test(flavor = "multi_thread")]
async fn in_quarantine_only_a_peers_snapshot_stands_in_for_one_of_the_own_rows() {
    let (_dir, node, file) = node_and_file(100).await;
    let quarantine = Quarantine { cause: Cause::Differs, index: 100, since_ms: 1, stage: Stage::Waiting };
    node.storage.quarantine.set(quarantine).unwrap();
    let mut machine = node.storage.state_machine();
    let mut builder = machine.get_snapshot_builder().await;
    let building = tokio::spawn(async move { builder.build_snapshot().await });
    let (position, sha256) = (file.position(), file.sha256());
    replace(&node, file).await.unwrap();
    let built = building.await.unwrap().unwrap();
    assert_eq!((built.snapshot.position(), built.snapshot.sha256()), (position, sha256));

    // It was told once; the next is one of the own rows, when the node is well again.
    let mut builder = machine.get_snapshot_builder().await;
    let building = tokio::spawn(async move { builder.build_snapshot().await });
    node.storage.machine.drain().await.unwrap();
    assert!(
        !building.is_finished() && node.storage.machine.snapshots().newest().unwrap().position() == position
    );
    node.storage.quarantine.lift().unwrap();
    let built = building.await.unwrap().unwrap();
    assert_eq!(built.snapshot.position(), node.storage.machine.applied().position);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_node_in_quarantine_is_weighed_and_bounded() {
    let (_dir, mut node, file) = node_and_file(100).await;
    assert_eq!(node.storage.held_log().unwrap(), None, "a node that is well cuts its log");
    let quarantine = Quarantine { cause: Cause::Scrub, index: 100, since_ms: 1, stage: Stage::Waiting };
    node.storage.quarantine.set(quarantine).unwrap();
    let held = node.storage.held_log().unwrap().unwrap();
    assert!(held.bytes > 0 && !held.is_too_much());
    for more in 1.. {
        node.escrow(100 * more, 100 * (more + 1)).await;
        let now = node.storage.held_log().unwrap().unwrap();
        assert_eq!(now.max_bytes, held.max_bytes, "the bound does not grow with what is held");
        if now.is_too_much() {
            break;
        }
    }
    // The peer's snapshot takes the place of what came before it.
    let before = node.storage.held_log().unwrap().unwrap();
    replace(&node, file).await.unwrap();
    assert!(node.storage.held_log().unwrap().unwrap().bytes < before.bytes);
}
