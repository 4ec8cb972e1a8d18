//! P1: power is cut under load, and everything that was acknowledged is there (design §10; etcd #14370, hiqlite).

use std::fs::{self, File};
use std::io::Write as _;
use std::time::Duration;

use strongroom::escrow::ids::NodeId;

use crate::common::*;
use crate::disks::Disk;
use crate::trial::Trial;

/// How many clients escrow at once.
const CLIENTS: usize = 6;
/// Longest they wait for nodes that are gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How many keys are acknowledged before the power fails, at least.
const KEYS: usize = 150;

/// A power cut that took nothing would prove nothing.
#[test]
fn a_power_cut_takes_what_was_not_synced_and_leaves_the_rest() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let Some(disk) = Disk::in_dir(dir.path()) else {
        eprintln!("SKIPPED: what a power cut takes (this process may not mount a file system)");
        return;
    };
    let file = |name: &str| disk.root().join(name);
    let mut synced = File::create(file("synced")).expect("created");
    synced.write_all(b"kept").expect("written");
    synced.sync_all().expect("synced");
    // Behind what is synced, in the same file and in another: both are only in memory.
    synced.write_all(b" for now").expect("written");
    fs::write(file("unsynced"), b"for now").expect("written");
    drop(synced);
    disk.copy();
    assert_eq!(fs::read(file("synced")).expect("read"), b"kept for now");
    disk.put_copy_in_place();
    assert_eq!(fs::read(file("synced")).expect("read"), b"kept");
    assert!(!file("unsynced").exists() || fs::read(file("unsynced")).expect("read").is_empty());
}

/// The power of all nodes fails at once, over and over. What was acknowledged is on the disks of a majority, so any two of
/// them have all of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_key_survives_a_power_cut_of_all_nodes() {
    let mut trial = Trial::begin(3).await;
    let mut kept: Vec<Kept> = Vec::new();
    for absent in ALL {
        let client = |turn| trial.test.cluster.client_within("importer", &rotated(turn), CALL_TIMEOUT);
        let clients = (0..CLIENTS).map(|turn| client(turn).expect("a client"));
        let load = Load::of(clients, Duration::ZERO).numbered_from(absent * 100_000);
        load.progress(KEYS as u64).await;
        trial.cut_power(&ALL).await;
        // Nobody answers any more: whatever comes now was acknowledged before.
        let (acknowledged, _) = load.finish().await;
        assert!(acknowledged.len() >= KEYS);
        kept.extend(acknowledged);
        let two = others(absent);
        for node in &two {
            trial.test.cluster.start(*node).await.expect("comes back");
        }
        let led = trial.test.cluster.wait_for("a leader", SOON, &two, |status| status.leader.is_some());
        led.await.expect("two are a quorum");
        trial.test.client("importer", &two).escrow(&deposit(absent)).await.expect("they go on");
        for node in &two {
            let applied = trial.test.client("importer", &[*node]).escrow(&deposit(absent)).await;
            let index = applied.expect("kept").index;
            assert_held_once_applied(&trial.test, *node, &kept, index).await;
        }
        trial.test.cluster.start(absent).await.expect("comes back");
        trial.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
        assert_all_held(&trial.test, absent, &kept).await;
    }
    assert_all_readable(&trial.test, 1, &kept[kept.len() - 3..]).await;
}

fn rotated(turn: usize) -> [NodeId; 3] {
    let mut nodes = ALL;
    nodes.rotate_left(turn % ALL.len());
    nodes
}

/// As [`assert_all_held`], once the node has applied entry `index`.
async fn assert_held_once_applied(test: &TestCluster, node: NodeId, kept: &[Kept], index: u64) {
    let asked = [node];
    let has_it = test.cluster.wait_for("what was committed", SOON, &asked, |status| {
        status.nodes.iter().any(|status| status.id == node && status.applied >= index)
    });
    has_it.await.expect("applied");
    assert_all_held(test, node, kept).await;
}
