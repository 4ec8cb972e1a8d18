//! Crashes, power loss and damage.

use std::fs;
use std::time::Duration;

use strongroom::escrow::command::Reply;
use strongroom::escrow::records::LogPosition;
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::store::StoreError;
use strongroom::store::directory::DataDir;
use strongroom::store::format::Payload;
use strongroom::store::machine::{Machine, MachineOptions};

use super::base::StoppedBase;
use super::sample;
use super::support::{Node, assert_same, crash_copy, files, payload, small, undrained, wait_until};

fn manual() -> StorageOptions {
    StorageOptions { machine: undrained(), ..small() }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_without_a_drain_the_state_is_replayed_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 50).await;
    let expected = node.expected.clone();
    drop(node);
    assert_same(&Node::open(dir.path(), manual()).await.unwrap().storage, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_cleanly_the_base_stands_where_the_log_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 50).await;
    let digest = node.storage.machine.digest();
    node.storage.close().await.unwrap();
    assert!(matches!(node.storage.machine.view().err(), Some(StoreError::Closed)));
    let expected = node.expected.clone();
    drop(node);
    let witness = fs::read_to_string(dir.path().join("base/witness")).unwrap();
    assert!(witness.contains("\"clean\":true"), "{witness}");
    // Opened without openraft's start, which would apply the log again: the base alone has it all.
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let storage = Storage::open(&data, manual()).await.unwrap();
    assert_eq!(storage.machine.applied().position, storage.log.state().unwrap().last);
    assert_eq!(storage.machine.applied_index(), 50);
    assert_eq!(storage.machine.digest(), digest);
    assert_same(&storage, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_drain_and_snapshot_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 30).await;
    node.storage.machine.drain().await.unwrap();
    node.escrow(30, 60).await;
    node.storage.log.sync().await.unwrap();
    let drained = crash_copy(dir.path());
    node.storage.machine.snapshot().await.unwrap();
    let snapshot = crash_copy(dir.path());
    for copy in [drained, snapshot] {
        let reopened = Node::open(copy.path(), manual()).await.unwrap();
        assert_same(&reopened.storage, &node.expected);
        assert_eq!(reopened.storage.machine.digest(), node.storage.machine.digest());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_is_moved_aside_and_rebuilt_from_snapshot_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 200).await;
    let snapshot = node.storage.machine.snapshot().await.unwrap();
    node.storage.log.purge(snapshot.position().unwrap()).await.unwrap();
    node.escrow(200, 250).await;
    node.storage.close().await.unwrap();
    let expected = node.expected.clone();
    drop(node);
    let before = fs::read_to_string(dir.path().join("base/current")).unwrap();
    // A database cut short may come up as it was earlier, which is no damage: then it is used or replaced.
    let damages: [(Damage, bool, &str); 3] = [
        (overwrite_database, true, "overwritten"),
        (cut_database, false, "cut"),
        (remove_database, true, "removed"),
    ];
    for (damage, is_found, name) in damages {
        let copy = crash_copy(dir.path());
        // As after a power loss: nobody vouches for the base.
        fs::remove_file(copy.path().join("base/witness")).unwrap();
        damage(&copy.path().join("base"));
        let reopened = Node::open(copy.path(), manual()).await.unwrap();
        assert_same(&reopened.storage, &expected);
        reopened.storage.machine.scrub().await.unwrap();
        drop(reopened);
        if is_found {
            assert_eq!(set_aside(&copy.path().join("base")), 1, "{name}");
            let after = fs::read_to_string(copy.path().join("base/current")).unwrap();
            assert_ne!(after, before, "{name}: another database is in use");
        }
    }
}

type Damage = fn(&std::path::Path);

/// How many databases were moved aside.
fn set_aside(base: &std::path::Path) -> usize {
    fs::read_dir(base)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("damaged-"))
        .count()
}

fn databases(base: &std::path::Path) -> Vec<std::path::PathBuf> {
    let found = files(base, |name| name == "db");
    assert!(!found.is_empty());
    found
}

fn overwrite_database(base: &std::path::Path) {
    for file in databases(base) {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[..middle].fill(0x5a);
        fs::write(&file, bytes).unwrap();
    }
}

fn cut_database(base: &std::path::Path) {
    for file in databases(base) {
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
    }
}

fn remove_database(base: &std::path::Path) {
    for file in files(base, |name| name != "current") {
        fs::remove_file(file).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_ahead_of_the_log_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    let before = node.expected.clone();
    // A quorum has the next entries, so they are applied and drained; this node's own log never got them.
    let last = node.next;
    for index in last..last + 5 {
        let bytes = strongroom::store::format::encode(&sample::escrow(index, index));
        let machine = node.storage.machine.clone();
        let position = LogPosition { term: 1, index };
        tokio::task::spawn_blocking(move || {
            machine.apply(position, Payload::Commands(vec![&bytes])).unwrap()
        })
        .await
        .unwrap();
    }
    node.storage.machine.drain().await.unwrap();
    node.storage.close().await.unwrap();
    drop(node);
    let node = Node::open(dir.path(), manual()).await.unwrap();
    assert_eq!(node.storage.log.state().unwrap().last, Some(LogPosition { term: 1, index: last - 1 }));
    assert_same(&node.storage, &before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_base_and_snapshot_a_purged_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    let snapshot = node.storage.machine.snapshot().await.unwrap();
    node.storage.log.purge(snapshot.position().unwrap()).await.unwrap();
    node.storage.close().await.unwrap();
    drop(node);
    fs::remove_file(snapshot.path()).unwrap();
    fs::remove_dir_all(dir.path().join("base")).unwrap();
    let error = Node::open(dir.path(), manual()).await.err().unwrap();
    assert!(matches!(error, StoreError::Unrecoverable { purged: Some(20), snapshot: None }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_nothing_could_replace_is_not_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    let snapshot = node.storage.machine.snapshot().await.unwrap();
    node.storage.log.purge(snapshot.position().unwrap()).await.unwrap();
    node.storage.close().await.unwrap();
    drop(node);
    fs::remove_file(snapshot.path()).unwrap();
    let base = dir.path().join("base");
    fs::remove_file(base.join("witness")).unwrap();
    overwrite_database(&base);
    let error = Node::open(dir.path(), manual()).await.err().unwrap();
    assert!(matches!(error, StoreError::Unrecoverable { .. }), "{error}");
    assert_eq!(set_aside(&base), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_only_out_of_reach_stays_and_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    node.storage.close().await.unwrap();
    let expected = node.expected.clone();
    drop(node);
    let base = dir.path().join("base");
    let database = databases(&base).remove(0);
    let hidden = database.with_extension("hidden");
    fs::rename(&database, &hidden).unwrap();
    // What sled meets is neither a missing nor a damaged file: opening a folder to write is an error of its own.
    fs::create_dir(&database).unwrap();
    let error = Node::open(dir.path(), manual()).await.err().unwrap();
    assert!(matches!(error, StoreError::Base(_)), "{error}");
    assert_eq!(set_aside(&base), 0);
    fs::remove_dir(&database).unwrap();
    fs::rename(&hidden, &database).unwrap();
    assert_same(&Node::open(dir.path(), manual()).await.unwrap().storage, &expected);
    assert_eq!(set_aside(&base), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_does_not_follow_the_last_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 5).await;
    let (machine, next) = (node.storage.machine.clone(), node.next);
    for (term, index) in [(1, next + 1), (1, next - 1), (0, next), (2, next - 1)] {
        let machine = machine.clone();
        let apply = move || machine.apply(LogPosition { term, index }, Payload::Blank);
        let error = tokio::task::spawn_blocking(apply).await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Entry { .. }), "{error}");
    }
    node.assert_state();
    node.escrow(5, 6).await;
    node.assert_state();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_changed_behind_our_back_are_found_by_a_scrub_and_healed_by_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    node.storage.machine.scrub().await.unwrap();
    node.storage.close().await.unwrap();
    let expected = node.expected.clone();
    drop(node);
    {
        let database = databases(&dir.path().join("base"))[0].parent().unwrap().to_owned();
        let base = StoppedBase::open(&database);
        let (last, _) = base.rows().pop_last().unwrap();
        base.change(|rows| {
            if let Some(value) = rows.get_mut(&last) {
                *value.last_mut().unwrap() ^= 1;
            }
        });
    }
    let node = Node::open(dir.path(), manual()).await.unwrap();
    assert!(matches!(node.storage.machine.scrub().await.err(), Some(StoreError::Damaged(_))));
    // Nothing is built on it any more, and no snapshot spreads it.
    assert!(node.storage.machine.snapshot().await.is_err());
    let machine = node.storage.machine.clone();
    let applied = tokio::task::spawn_blocking(move || {
        machine.apply(LogPosition { term: 1, index: 1_000 }, Payload::Blank).err()
    });
    assert!(matches!(applied.await.unwrap(), Some(StoreError::Stopped(_))));
    // Nor does an orderly stop vouch for it.
    assert!(matches!(node.storage.close().await, Err(StoreError::Stopped(_))));
    drop(node);
    let node = Node::open(dir.path(), manual()).await.unwrap();
    assert_same(&node.storage, &expected);
    node.storage.machine.scrub().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_applying_cannot_read_is_healed_by_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    node.escrow(0, 20).await;
    node.storage.close().await.unwrap();
    let (expected, next) = (node.expected.clone(), node.next);
    drop(node);
    {
        let database = databases(&dir.path().join("base"))[0].parent().unwrap().to_owned();
        StoppedBase::open(&database)
            .change(|rows| rows.values_mut().for_each(|value| *value = b"\xff".to_vec()));
    }
    let node = Node::open(dir.path(), manual()).await.unwrap();
    let apply = |machine: Machine| {
        let bytes = strongroom::store::format::encode(&sample::escrow(next, next));
        let position = LogPosition { term: 1, index: next };
        tokio::task::spawn_blocking(move || machine.apply(position, Payload::Commands(vec![&bytes])).err())
    };
    let error = apply(node.storage.machine.clone()).await.unwrap();
    assert!(matches!(error, Some(StoreError::State(_))), "{error:?}");
    let error = apply(node.storage.machine.clone()).await.unwrap();
    assert!(matches!(error, Some(StoreError::Stopped(_))), "{error:?}");
    assert!(matches!(node.storage.close().await, Err(StoreError::Stopped(_))));
    drop(node);
    assert_same(&Node::open(dir.path(), manual()).await.unwrap().storage, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_waits_while_the_overlay_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let machine =
        MachineOptions { overlay_max_bytes: 64 * 1024, generation_max_bytes: 8 * 1024, ..undrained() };
    let mut node = Node::begin(dir.path(), StorageOptions { machine, ..small() }).await;
    // A reader that holds on to an old state keeps the base from being written, so the overlay fills.
    let reader = node.storage.machine.view().unwrap();
    let storage = node.storage.clone();
    let writer = tokio::spawn(async move {
        node.escrow(0, 300).await;
        node
    });
    let full = || storage.machine.stats().unwrap().overlay_bytes >= 64 * 1024;
    wait_until(full).await;
    let bound = 64 * 1024 + 16 * 1024;
    assert!(storage.machine.stats().unwrap().overlay_bytes < bound);
    let stuck_at = storage.machine.applied_index();
    assert!(stuck_at < 300);
    drop(reader);
    let node = tokio::time::timeout(Duration::from_secs(60), writer).await.unwrap().unwrap();
    assert!(storage.machine.stats().unwrap().overlay_bytes < bound);
    node.assert_state();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_takes_effect_as_a_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), manual()).await;
    let (first, second) = (sample::escrow(1, 1), sample::reveal(2, 1));
    // The reveal finds the key of the same entry, and is answered to its retry with the one record that it left.
    let replies = node.apply_group(&[&first, &second, &first, &second]).await;
    assert!(matches!(&replies[0], Reply::Escrowed(escrowed) if !escrowed.already_escrowed), "{replies:?}");
    assert!(matches!(&replies[2], Reply::Escrowed(escrowed) if escrowed.already_escrowed), "{replies:?}");
    assert!(matches!(&replies[1], Reply::Revealed(_)), "{replies:?}");
    assert_eq!(replies[1], replies[3]);
    node.assert_state();

    let entry = [strongroom::store::format::encode(&sample::escrow(3, 3)), b"\x01\xff newer".to_vec()];
    let (machine, position) = (node.storage.machine.clone(), LogPosition { term: 1, index: node.next });
    let applied = tokio::task::spawn_blocking(move || machine.apply(position, payload(&entry)));
    let error = applied.await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Entry { .. }), "{error}");
    node.assert_state();
    let expected = node.expected.clone();
    node.storage.log.sync().await.unwrap();
    let copy = crash_copy(dir.path());
    assert_same(&Node::open(copy.path(), manual()).await.unwrap().storage, &expected);
}
