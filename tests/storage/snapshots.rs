//! Taking, sending and installing snapshots.

use std::fs;
use std::path::Path;
use std::time::Duration;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use strongroom::escrow::lookup;
use strongroom::escrow::records::{LogPosition, USERS_PER_MACHINE_MAX};
use strongroom::escrow::rows::UserMachine;
use strongroom::escrow::state::Rows as _;
use strongroom::raft::state_machine::snapshot_of;
use strongroom::raft::storage::StorageOptions;
use strongroom::store::StoreError;
use strongroom::store::format::{self, Payload};
use strongroom::store::machine::MachineOptions;
use strongroom::store::pass::PassLimits;
use strongroom::store::snapshot::{SnapshotFile, Snapshots};

use super::sample;
use super::support::{Node, assert_same, crash_copy, files, small, undrained, wait_until};

fn manual() -> StorageOptions {
    StorageOptions { machine: undrained(), ..small() }
}

async fn node_with(dir: &Path, keys: u64) -> Node {
    let mut node = Node::begin(dir, manual()).await;
    node.escrow(0, keys).await;
    node
}

/// Sends a snapshot as peers do: in chunks, with length and hash announced.
async fn transfer(file: &SnapshotFile, to: &Snapshots) -> Result<SnapshotFile, StoreError> {
    let mut receiver = to.receive(file.bytes(), file.sha256()).await?;
    loop {
        let chunk = file.chunk(receiver.received(), 1_000).await.unwrap();
        if chunk.is_empty() {
            return receiver.finish().await;
        }
        receiver.write(&chunk).await?;
    }
}

async fn install(node: &Node, file: SnapshotFile) -> std::io::Result<()> {
    let snapshot = snapshot_of(file)?;
    node.storage.state_machine().install_snapshot(&snapshot.meta, snapshot.snapshot).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_snapshot_gives_the_digest_of_the_replayed_state() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 150).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    let learner = Node::open(dirs.1.path(), manual()).await.unwrap();
    let received = transfer(&file, learner.storage.machine.snapshots()).await.unwrap();
    install(&learner, received).await.unwrap();
    assert_eq!(learner.storage.machine.digest(), leader.storage.machine.digest());
    assert_same(&learner.storage, &leader.expected);
    assert_eq!(learner.storage.machine.snapshots().newest().unwrap().sha256(), file.sha256());
    learner.storage.machine.scrub().await.unwrap();
    drop(learner);
    // It opens from there, although its log never held anything.
    let learner = Node::open(dirs.1.path(), manual()).await.unwrap();
    assert_same(&learner.storage, &leader.expected);
    assert_eq!(learner.storage.log.state().unwrap().last, file.position());
}

#[tokio::test(flavor = "multi_thread")]
async fn installing_replaces_the_state_and_merges_nothing() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 150).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    // The other one holds rows that the leader's history never had, in base and overlay.
    let mut other = Node::begin(dirs.1.path(), manual()).await;
    other.escrow(9_000, 9_020).await;
    other.storage.machine.drain().await.unwrap();
    other.escrow(9_020, 9_040).await;
    let old = other.storage.machine.view().unwrap();
    let received = transfer(&file, other.storage.machine.snapshots()).await.unwrap();
    install(&other, received).await.unwrap();
    assert_same(&other.storage, &leader.expected);
    let view = other.storage.machine.view().unwrap();
    assert_eq!(lookup::key(&view, sample::key_id(9_030)).unwrap(), None);
    assert_eq!(view.position(), file.position());
    // Who was reading meanwhile reads the old state to the end.
    assert!(lookup::key(&old, sample::key_id(9_010)).unwrap().is_some());
}

/// openraft's store on sled, as it was, merged a snapshot into what there was: a row that the leader had deleted
/// meanwhile came back at the node that lagged.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_deleted_at_the_leader_is_gone_where_its_snapshot_is_installed() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut leader, lagging) = (node_with(dirs.0.path(), 1).await, node_with(dirs.1.path(), 1).await);
    // In its base: only an installation that begins anew takes it out.
    lagging.storage.machine.drain().await.unwrap();
    let users = |node: &Node| {
        let view = node.storage.machine.view().unwrap();
        view.rows::<UserMachine>(&[], None, usize::MAX).unwrap()
    };
    let [first] = &users(&lagging)[..] else { panic!("the user of one key") };

    // Users of the same machine, of which only the newest are kept.
    for number in 1..=USERS_PER_MACHINE_MAX as u64 {
        leader.apply(&sample::escrow(leader.next, number * 100)).await;
    }
    assert_eq!(users(&leader).len(), USERS_PER_MACHINE_MAX);
    let file = leader.storage.machine.snapshot().await.unwrap();
    install(&lagging, transfer(&file, lagging.storage.machine.snapshots()).await.unwrap()).await.unwrap();
    assert!(!users(&lagging).contains(first), "deleted at the leader");
    assert_same(&lagging.storage, &leader.expected);
    drop(lagging);
    assert_same(&Node::open(dirs.1.path(), manual()).await.unwrap().storage, &leader.expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_snapshot_does_not_take_the_state_back() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 20).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    let mut ahead = node_with(dirs.1.path(), 30).await;
    let received = transfer(&file, ahead.storage.machine.snapshots()).await.unwrap();
    install(&ahead, received).await.unwrap();
    ahead.assert_state();
    // It is kept as a snapshot, since the log may now be purged up to it.
    assert_eq!(ahead.storage.machine.snapshots().newest().unwrap().position(), file.position());
    ahead.storage.log.purge(file.position().unwrap()).await.unwrap();
    ahead.storage.log.sync().await.unwrap();
    let copy = crash_copy(dirs.1.path());
    fs::remove_dir_all(copy.path().join("base")).unwrap();
    assert_same(&Node::open(copy.path(), manual()).await.unwrap().storage, &ahead.expected);
    // An older one than the newest is not.
    let newest = ahead.storage.machine.snapshot().await.unwrap();
    let received = transfer(&file, ahead.storage.machine.snapshots()).await.unwrap();
    install(&ahead, received).await.unwrap();
    assert_eq!(ahead.storage.machine.snapshots().newest().unwrap().sha256(), newest.sha256());
    ahead.escrow(30, 35).await;
    ahead.assert_state();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_damaged_anywhere_is_refused_and_the_old_state_stays() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 10).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    let bytes = file.chunk(0, usize::MAX).await.unwrap();
    let other = node_with(dirs.1.path(), 5).await;
    let snapshots = other.storage.machine.snapshots();
    // Every byte takes too long to install; every byte is tried against the hash, and some positions all the way.
    for position in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[position] ^= 1 << (position % 8);
        let mut receiver = snapshots.receive(file.bytes(), file.sha256()).await.unwrap();
        receiver.write(&damaged).await.unwrap();
        assert!(matches!(receiver.finish().await, Err(StoreError::Snapshot { .. })), "byte {position}");
    }
    for length in [0, 1, 11, 12, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut receiver = snapshots.receive(file.bytes(), file.sha256()).await.unwrap();
        receiver.write(&bytes[..length]).await.unwrap();
        assert!(matches!(receiver.finish().await, Err(StoreError::Snapshot { .. })), "{length} bytes");
    }
    let mut receiver = snapshots.receive(file.bytes(), file.sha256()).await.unwrap();
    receiver.write(&bytes).await.unwrap();
    assert!(matches!(receiver.write(&[0]).await, Err(StoreError::Snapshot { .. })));
    drop(receiver);
    other.assert_state();
    assert!(files(&dirs.1.path().join("snapshots"), |_| true).is_empty(), "nothing is left of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_damaged_after_it_was_received_is_refused_and_the_old_state_stays() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 30).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    let mut other = node_with(dirs.1.path(), 5).await;
    for position in [20, 200, 2_000, file.bytes() as usize / 2, file.bytes() as usize - 40] {
        let received = transfer(&file, other.storage.machine.snapshots()).await.unwrap();
        let mut bytes = fs::read(received.path()).unwrap();
        bytes[position] ^= 4;
        fs::write(received.path(), bytes).unwrap();
        let error = other.storage.machine.install(received).await.err();
        assert!(
            matches!(error, Some(StoreError::Snapshot { .. } | StoreError::Io { .. })),
            "{position}: {error:?}"
        );
        other.assert_state();
        other.escrow(other.next, other.next + 1).await;
        other.assert_state();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_a_snapshot_is_taken_and_are_not_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let machine = MachineOptions { view_patience: Duration::from_secs(60), ..undrained() };
    let mut node = Node::begin(dir.path(), StorageOptions { machine, ..small() }).await;
    node.escrow(0, 300).await;
    let before = node.storage.machine.applied().position;
    // A reader holds the snapshot back for as long as it takes to write.
    let reader = node.storage.machine.view().unwrap();
    let machine = node.storage.machine.clone();
    let snapshot = tokio::spawn(async move { machine.snapshot().await.unwrap() });
    wait_until(|| node.storage.machine.stats().unwrap().overlay_generations > 0).await;
    node.escrow(300, 400).await;
    assert!(!snapshot.is_finished());
    drop(reader);
    let file = snapshot.await.unwrap();
    assert_eq!(file.position(), before);
    node.assert_state();
    let other = tempfile::tempdir().unwrap();
    let replica = Node::open(other.path(), manual()).await.unwrap();
    let received = transfer(&file, replica.storage.machine.snapshots()).await.unwrap();
    install(&replica, received).await.unwrap();
    let index = file.position().unwrap().index;
    let mut replayed = Node::begin(&other.path().join("replayed"), manual()).await;
    replayed.escrow(0, index).await;
    assert_same(&replica.storage, &replayed.expected);
    assert_eq!(replica.storage.machine.digest(), replayed.storage.machine.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_holds_a_snapshot_back_delays_it_and_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let machine = MachineOptions { view_patience: Duration::from_millis(10), ..undrained() };
    let mut node = Node::begin(dir.path(), StorageOptions { machine, ..small() }).await;
    node.escrow(0, 20).await;
    let reader = node.storage.machine.view().unwrap();
    let mut state_machine = node.storage.state_machine();
    let mut builder = state_machine.get_snapshot_builder().await;
    // The builder asks first, so it was refused when the second is.
    let (built, ()) = tokio::join!(builder.build_snapshot(), async {
        let second = node.storage.machine.snapshot().await;
        assert!(matches!(second.err(), Some(StoreError::Busy)));
        drop(reader);
    });
    assert_eq!(built.unwrap().snapshot.position(), node.storage.machine.applied().position);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_snapshot_can_be_written_the_one_before_stays_and_entries_are_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node_with(dir.path(), 20).await;
    let first = node.storage.machine.snapshot().await.unwrap();
    node.escrow(20, 40).await;
    let (folder, away) = (dir.path().join("snapshots"), dir.path().join("away"));
    fs::rename(&folder, &away).unwrap();
    let mut state_machine = node.storage.state_machine();
    let mut builder = state_machine.get_snapshot_builder().await;
    assert_eq!(builder.build_snapshot().await.unwrap().snapshot.position(), first.position());
    node.escrow(40, 50).await;
    node.assert_state();
    fs::rename(&away, &folder).unwrap();
    let second = builder.build_snapshot().await.unwrap().snapshot;
    assert_eq!(second.position(), node.storage.machine.applied().position);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_refused_where_its_base_would_not_fit_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    let half = snapshots.free_bytes().unwrap() / 2;
    assert!(matches!(snapshots.receive(half, [0; 32]).await.err(), Some(StoreError::Snapshot { .. })));
    assert!(snapshots.receive(1_000, [0; 32]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_newest_snapshot_is_kept_and_one_that_is_open_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node_with(dir.path(), 20).await;
    let first = node.storage.machine.snapshot().await.unwrap();
    let again = node.storage.machine.snapshot().await.unwrap();
    assert_eq!(first.path(), again.path(), "nothing was applied since: there is nothing to write");
    node.escrow(20, 40).await;
    let second = node.storage.machine.snapshot().await.unwrap();
    let left = files(&dir.path().join("snapshots"), |_| true);
    assert_eq!(left, [second.path().to_owned()]);
    assert_eq!(first.chunk(0, usize::MAX).await.unwrap().len() as u64, first.bytes());
    // One that nobody has open goes a little at a time, under another name.
    drop(second);
    node.escrow(40, 60).await;
    let second = node.storage.machine.snapshot().await.unwrap();
    let folder = dir.path().join("snapshots");
    assert_eq!(files(&folder, |name| !name.ends_with(".old")), [second.path().to_owned()]);
    wait_until(|| files(&folder, |_| true) == [second.path().to_owned()]).await;
    // What a crash left half written, or half removed, is gone at the next start, and a damaged one is not taken.
    let copy = crash_copy(dir.path());
    let folder = copy.path().join("snapshots");
    fs::write(folder.join("half.tmp"), b"STRG").unwrap();
    fs::write(folder.join("half.old"), b"STRG").unwrap();
    fs::write(folder.join(format!("{:020}-{:020}-00.snapshot", 999, 1)), b"STRGSNAP").unwrap();
    let snapshots = Snapshots::open(&folder).unwrap();
    assert_eq!(snapshots.newest().unwrap().position(), second.position());
    assert_eq!(files(&folder, |name| name.ends_with(".tmp") || name.ends_with(".old")).len(), 0);
    assert_eq!(files(&folder, |name| name.ends_with(".damaged")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_of_an_installation_leaves_the_old_or_the_new_state() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 60).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    let lagging = node_with(dirs.1.path(), 10).await;
    lagging.storage.log.sync().await.unwrap();
    let before = crash_copy(dirs.1.path());

    // Killed while the rows were loaded: an unfinished database beside the one in use.
    let loading = crash_copy(before.path());
    let current = fs::read_to_string(before.path().join("base/current")).unwrap();
    let next = (current.trim().parse::<u64>().unwrap() + 1).to_string();
    fs::create_dir(loading.path().join("base").join(&next)).unwrap();
    fs::write(loading.path().join("base").join(&next).join("db"), b"half").unwrap();
    assert_same(&Node::open(loading.path(), manual()).await.unwrap().storage, &lagging.expected);
    assert!(!loading.path().join("base").join(&next).exists());

    // Killed after the file got its name, before the new base came into use, or before the log was purged.
    let named = crash_copy(before.path());
    fs::copy(file.path(), named.path().join("snapshots").join(file.path().file_name().unwrap())).unwrap();
    assert_same(&Node::open(named.path(), manual()).await.unwrap().storage, &leader.expected);

    install(&lagging, transfer(&file, lagging.storage.machine.snapshots()).await.unwrap()).await.unwrap();
    let installed = crash_copy(dirs.1.path());
    let reopened = Node::open(installed.path(), manual()).await.unwrap();
    assert_same(&reopened.storage, &leader.expected);
    assert_eq!(reopened.storage.log.state().unwrap().last, file.position());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncommitted_tail_of_another_term_yields_to_an_installed_snapshot() {
    let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let leader = node_with(dirs.0.path(), 60).await;
    let file = leader.storage.machine.snapshot().await.unwrap();
    for tail in [20, 61, 90] {
        let dir = dirs.1.path().join(tail.to_string());
        let lagging = node_with(&dir, 10).await;
        let entries = (lagging.next..=tail)
            .map(|index| (LogPosition { term: 9, index }, Payload::Blank.encode()))
            .collect::<Vec<_>>();
        lagging.storage.log.append(entries, drop).await.unwrap();
        lagging.storage.log.sync().await.unwrap();
        // Crashed after the installation, before openraft purged the log.
        install(&lagging, transfer(&file, lagging.storage.machine.snapshots()).await.unwrap()).await.unwrap();
        let copy = crash_copy(&dir);
        let reopened = Node::open(copy.path(), manual()).await.unwrap();
        assert_eq!(reopened.storage.log.state().unwrap().last, file.position(), "tail up to {tail}");
        assert_same(&reopened.storage, &leader.expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_snapshot_the_log_is_kept_by_entries_and_by_bytes_and_is_cut_a_chunk_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with(dir.path(), 300).await;
    let storage = &node.storage;
    assert_eq!(storage.next_cut(0).unwrap(), None, "there is no snapshot");
    let snapshot = storage.machine.snapshot().await.unwrap().position().unwrap();
    let since = |index| storage.log.bytes_since(index).unwrap();
    let floor = storage.policy.floor_bytes;
    assert!(since(None) > 3 * floor, "{} bytes of log", since(None));
    let cut = async |keep_entries| {
        let mut cuts = Vec::new();
        while let Some(index) = storage.next_cut(keep_entries).unwrap() {
            storage.log.purge(LogPosition { term: 1, index }).await.unwrap();
            cuts.push(index);
        }
        cuts
    };
    // More entries than there are: bytes bound it.
    let by_bytes = cut(1_000_000).await;
    let kept = since(by_bytes.last().copied()) - since(Some(snapshot.index));
    assert!(by_bytes.len() > 3 && kept < floor && kept > floor / 4, "{by_bytes:?}, {kept} bytes are kept");
    assert_eq!(cut(3).await.last(), Some(&(snapshot.index - 3)));
    assert_eq!(cut(3).await, [0; 0]);
    assert_eq!(storage.log.state().unwrap().last, Some(snapshot));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_few_writes_and_many_restarts_the_log_is_still_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = {
        let node = Node::begin(dir.path(), manual()).await;
        node.expected.clone()
    };
    let mut most = 0;
    let mut snapshots = 0;
    for restart in 0..120 {
        let mut node = Node::open(dir.path(), manual()).await.unwrap();
        node.expected = expected;
        node.escrow(restart * 3, restart * 3 + 3).await;
        if node.storage.snapshot_is_due().unwrap() {
            let file = node.storage.machine.snapshot().await.unwrap();
            node.storage.log.purge(file.position().unwrap()).await.unwrap();
            node.storage.log.sync().await.unwrap();
            snapshots += 1;
            assert!(!node.storage.snapshot_is_due().unwrap());
        }
        most = most.max(node.storage.log.bytes_on_disk().unwrap());
        node.assert_state();
        expected = node.expected.clone();
    }
    assert!(snapshots >= 2, "{snapshots} snapshots");
    // Half of the state (some hundred KiB), the floor, and two chunks.
    assert!(most < 160 * 1024, "{most} bytes of log");
}

/// Entries are applied as fast as it goes, each a generation of its own, while snapshots are made: each of them is of one
/// index, whatever is sealed while it drains the overlay and reads the base. One that is not would stop the node, as over
/// a damaged base.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_all_the_while_is_in_no_snapshot_by_halves() {
    let dir = tempfile::tempdir().unwrap();
    let pass_limits = PassLimits { slice_max_rows: 7, rest_max: Duration::ZERO, ..PassLimits::default() };
    let machine = MachineOptions { generation_max_bytes: 1, pass_limits, ..MachineOptions::default() };
    let node = Node::begin(dir.path(), StorageOptions { machine, ..small() }).await;
    let machine = node.storage.machine.clone();
    let (first, done) = (node.next, std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let writer = std::thread::spawn({
        let (machine, done) = (machine.clone(), done.clone());
        move || {
            let mut next = first;
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                let command = format::encode(&sample::escrow(next, next));
                let position = LogPosition { term: 1, index: next };
                machine.apply(position, Payload::Commands(vec![&command])).unwrap();
                next += 1;
            }
        }
    });
    for _ in 0..30 {
        let file = machine.snapshot().await.unwrap();
        let received = transfer(&file, &Snapshots::open(&dir.path().join("checked")).unwrap()).await.unwrap();
        assert_eq!(received.position(), file.position());
    }
    done.store(true, std::sync::atomic::Ordering::Release);
    writer.join().unwrap();
    machine.scrub().await.unwrap();
}
