//! The power is cut: what is left is what was synced. In the process of the test, so that nothing but the one write that is
//! looked at goes to the disk; of whole clusters it is in `tests/nemesis`.

use std::fs;
use std::path::{Path, PathBuf};

use strongroom::escrow::ids::{KeyId, RequestId, Timestamp};
use strongroom::escrow::journal::{DegradedReveal, Knowledge, Noted};
use strongroom::escrow::records::{LogPosition, Source};
use strongroom::raft::storage::StorageOptions;
use strongroom::store::journal::{Appended, Decided, Journal, JournalError};
use strongroom::store::log::{Log, LogOptions, Vote};
use uuid::Uuid;

use super::disks::Disk;
use super::support::{Node, assert_same, small, undrained};

/// A disk whose power can be cut, and a directory on it. `None` if this process may not mount one.
fn disk() -> Option<(tempfile::TempDir, Disk, PathBuf)> {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::in_dir(dir.path()) else {
        eprintln!("SKIPPED: what a power cut takes (this process may not mount a file system)");
        return None;
    };
    let root = disk.root().join("node");
    fs::create_dir(&root).unwrap();
    // Who made the directory synced it: whatever is in it then is up to who writes there.
    fs::File::open(disk.root()).unwrap().sync_all().unwrap();
    Some((dir, disk, root))
}

async fn append(log: &Log, index: u64) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let entry = (LogPosition { term: 1, index }, format!("entry {index}").into_bytes());
    log.append(vec![entry], move |result| drop(tell.send(result))).await.unwrap();
    told.await.unwrap().unwrap();
}

/// etcd #14370, hiqlite.
#[tokio::test]
async fn an_entry_that_the_log_says_is_on_the_disk_is_there_after_a_power_cut() {
    let Some((_dir, disk, root)) = disk() else { return };
    let log = Log::open(&root, &LogOptions::default()).unwrap();
    for index in 1..=40 {
        append(&log, index).await;
    }
    disk.copy();
    drop(log);
    disk.put_copy_in_place();
    let log = Log::open(&root, &LogOptions::default()).unwrap();
    let entries = log.read(0, u64::MAX, usize::MAX).await.unwrap();
    let indexes: Vec<u64> = entries.iter().map(|(position, _)| position.index).collect();
    assert_eq!(indexes, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_vote_that_was_given_is_there_after_a_power_cut() {
    let Some((_dir, disk, root)) = disk() else { return };
    let log = Log::open(&root, &LogOptions::default()).unwrap();
    let vote = Vote { term: 3, committed: false, node: 2 };
    log.save_vote(vote).await.unwrap();
    disk.copy();
    drop(log);
    disk.put_copy_in_place();
    assert_eq!(Log::open(&root, &LogOptions::default()).unwrap().vote().unwrap(), Some(vote));
}

#[test]
fn what_is_in_the_journal_of_reveals_is_there_after_a_power_cut() {
    let Some((_dir, disk, root)) = disk() else { return };
    let journal = Journal::open(&root).unwrap();
    let appended =
        journal.append::<(), JournalError>(|_| Ok(Decided::Entry(Box::new(Noted::Reveal(reveal())))));
    let Ok(Appended::Entry(entry)) = appended else { panic!("it was decided: {appended:?}") };
    disk.copy();
    disk.put_copy_in_place();
    assert_eq!(Journal::open(&root).unwrap().own(), [*entry]);
}

fn reveal() -> DegradedReveal {
    DegradedReveal {
        request: RequestId(Uuid::from_u128(1)),
        at: Timestamp(1),
        by: "spiffe://acme/helpdesk-advanced/desk1".parse().unwrap(),
        source: Source { node: 1, address: "192.0.2.7:4000".to_owned() },
        key_id: KeyId(Uuid::from_u128(2)),
        machine: Some("PC-0001".parse().unwrap()),
        user: None,
        reason: "locked out".to_owned(),
        denied: None,
        approval: None,
        knowledge: Knowledge { position: LogPosition::default(), quorum_age_ms: None, policy_version: 0 },
    }
}

/// The log is purged on the strength of the snapshot alone: the base was never synced.
#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_that_a_log_was_purged_for_is_there_after_a_power_cut() {
    let Some((_dir, disk, root)) = disk() else { return };
    let options = || StorageOptions { machine: undrained(), ..small() };
    let mut node = Node::begin(&root, options()).await;
    node.escrow(0, 60).await;
    let snapshot = node.storage.machine.snapshot().await.unwrap();
    node.storage.log.purge(snapshot.position().unwrap()).await.unwrap();
    node.escrow(60, 80).await;
    node.storage.log.sync().await.unwrap();
    disk.copy();
    let expected = node.expected.clone();
    drop((node, snapshot));
    disk.put_copy_in_place();
    forget_boot(&root);
    let node = Node::open(&root, options()).await.unwrap();
    assert_same(&node.storage, &expected);
    node.storage.machine.scrub().await.unwrap();
}

/// After a power loss the machine boots anew, so nobody vouches for the base.
fn forget_boot(root: &Path) {
    if let Err(error) = fs::remove_file(root.join("base/witness")) {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    }
}
