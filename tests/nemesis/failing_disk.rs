//! Disks that fail while there is room: an fsync or a read that ends in an error of input and output, once or until it is
//! mended.
//!
//! After a failed fsync nobody knows what is on the disk: the kernel may have dropped what it could not write, and tells of it
//! once (fsyncgate, PostgreSQL 2018). So nothing that was written before may count as synced by a later fsync that succeeds.
//! And what cannot be read is not absent: whoever asks is told of an error, or by another node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom::cli::local_cluster::LocalClusterError;
use strongroom::client::{BulkAnswer, ClientError, Deposit};
use strongroom::escrow::audit::ChainHead;
use strongroom::escrow::ids::NodeId;
use strongroom::escrow::records::AuditRecord;
use strongroom::proto::{Consistency, FindRequest};
use strongroom::secret::Secret;
use tokio::time::timeout;

use crate::common::trail::{all_on_record, audit_after, consistency, shown};
use crate::common::*;
use crate::shim::{Fails, Times};
use crate::trial::Trial;

/// Longest it takes until a node whose disk has failed has ended.
const NOTICED: Duration = Duration::from_secs(30);
/// Longest a caller waits for nodes that are gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// What such a disk says.
const CAUSE: &str = "Input/output error";
/// Keys with packages so large that a snapshot is due after them.
const HEAVY: u64 = 60;
/// More keys than are opened, and so kept in memory, before they are looked up.
const MANY: u64 = 4_000;
const PACKAGE_BYTES: usize = 60_000;
const PURGED: &str = "strongroom_raft_purged_index";
const SNAPSHOT: &str = "strongroom_raft_snapshot_index";
/// Longest that the only node asked is asked again.
const ALONE_TIMEOUT: Duration = Duration::from_millis(500);

/// A log whose fsync failed, of the leader or of another, or that could not be written: the node ends and says why, though the
/// next call would succeed. The others go on; started again it has everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_sync_its_log_ends_and_catches_up_when_it_is_started_again() {
    let mut trial = Trial::without_disks("").await;
    let load = Load::start(&trial.test, 4).with_readers(&trial.test, &ALL);
    load.progress(20).await;
    let leader = trial.test.leader().await;
    let [other, last] = others(leader).try_into().expect("two followers");
    for (node, fails) in [(leader, Fails::Syncs), (other, Fails::Syncs), (last, Fails::Writes)] {
        trial.shims[&node].fail(fails, &trial.data(node).join("log"), Times::Once);
        // The next one would succeed.
        let said = ends(&mut trial, node).await;
        assert!(said.contains("Write Log") && said.contains(CAUSE), "{said}");
        assert_eq!(trial.shims[&node].struck(), 1);
        load.progress(20).await;
        trial.test.cluster.start(node).await.expect("comes back");
        load.progress(20).await;
    }
    let (kept, _) = load.finish().await;
    all_have(&trial, &kept).await;
}

/// P1, with a disk of which one fsync failed, and of which the power is cut then: what its node has told others that it has
/// is on it, so any two nodes have every key that was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_rests_on_a_log_that_could_not_be_synced() {
    let mut trial = Trial::begin(3).await;
    if trial.disks.is_empty() {
        return;
    }
    let leader = trial.test.leader().await;
    let [absent, fails] = others(leader).try_into().expect("two followers");
    trial.test.cluster.kill(absent).await.expect("killed");
    let clients = (0..6).map(|_| {
        trial.test.cluster.client_within("importer", &[leader, fails], CALL_TIMEOUT).expect("a client")
    });
    let load = Load::of(clients, Duration::ZERO);
    load.progress(50).await;
    trial.shims[&fails].fail(Fails::Syncs, &trial.data(fails).join("log"), Times::Always);
    ends(&mut trial, fails).await;
    trial.cut_power(&[fails]).await;
    let (kept, _) = load.finish().await;
    trial.test.cluster.kill(leader).await.expect("killed");
    trial.shims[&fails].mend();

    let two = [absent, fails];
    for node in two {
        trial.test.cluster.start(node).await.expect("comes back");
    }
    let led = trial.test.cluster.wait_for("a leader", SOON, &two, |status| status.leader.is_some());
    led.await.expect("two are a quorum");
    trial.test.client("importer", &two).escrow(&deposit(900_000)).await.expect("they go on");
    trial.test.cluster.wait_settled(&two).await.expect("settled, with equal digests");
    for node in two {
        assert_all_held(&trial.test, node, &kept).await;
    }
    trial.test.cluster.start(leader).await.expect("comes back");
    all_have(&trial, &kept).await;
}

/// A base that cannot be synced: nothing goes on over it, and nobody vouches for it at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_cannot_be_synced_is_never_vouched_for() {
    let mut trial = Trial::without_disks("").await;
    let kept = escrow_some(&trial, 1..20).await;
    let node = others(trial.test.leader().await)[0];
    let witness = trial.data(node).join("base/witness");

    trial.shims[&node].fail(Fails::Syncs, &trial.data(node).join("base"), Times::Once);
    let load = Load::start(&trial.test, 4);
    let said = ends(&mut trial, node).await;
    assert!(said.contains("base: ") && said.contains(CAUSE), "{said}");
    assert!(!witness.exists(), "it is read through before it is used again");
    load.progress(20).await;
    trial.test.cluster.start(node).await.expect("comes back");
    let (more, _) = load.finish().await;
    assert!(witness.exists());

    // At its end as well, when each of its files is synced: this one by nobody else.
    let untouched = database(&trial, node).join("conf");
    trial.shims[&node].fail(Fails::Syncs, &untouched, Times::Once);
    trial.test.cluster.stop(node).await.expect("stopped");
    assert_eq!(trial.shims[&node].struck(), 1);
    assert!(!witness.exists(), "it is read through before it is used again");
    trial.test.cluster.start(node).await.expect("comes back");
    all_have(&trial, &[kept, more].concat()).await;
}

/// A snapshot that cannot be synced is none: the log is not purged for it, and its node ends, until one can be.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_not_purged_for_a_snapshot_that_cannot_be_synced() {
    let mut trial = Trial::without_disks("keep_entries = 16\n").await;
    let node = others(trial.test.leader().await)[0];
    let snapshots = trial.data(node).join("snapshots");
    trial.shims[&node].fail(Fails::Syncs, &snapshots, Times::Always);
    let mut kept = escrow_heavy(&trial, 1..=HEAVY).await;
    let said = ends(&mut trial, node).await;
    assert!(said.contains("/snapshots/") && said.contains(CAUSE), "{said}");
    let other = others(node)[0];
    trial.test.wait_for_page(other, "/metrics", |_, page| index(page, PURGED) > 0).await;
    assert_eq!(complete(&snapshots), 0);

    trial.shims[&node].mend();
    trial.test.cluster.start(node).await.expect("comes back");
    assert_eq!(index(&trial.test.page(node, "/metrics").await.1, PURGED), 0, "it has its log");
    kept.extend(escrow_heavy(&trial, HEAVY + 1..=2 * HEAVY).await);
    trial.test.wait_for_page(node, "/metrics", |_, page| index(page, PURGED) > 0).await;
    assert_eq!(complete(&snapshots), 1);
    trial.test.cluster.kill(node).await.expect("killed");
    trial.test.cluster.start(node).await.expect("comes back");
    all_have(&trial, &kept).await;
}

/// P5: a reveal that cannot be written down for good is not shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_synced_means_no_reveal() {
    let mut trial = Trial::without_disks("").await;
    let kept = escrow_some(&trial, 1..3).await;
    trial.test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in [2, 3] {
        trial.test.cluster.kill(node).await.expect("killed");
    }
    trial.shims[&1].fail(Fails::Syncs, &trial.data(1).join("journal"), Times::Always);
    let id = key(1).to_string();
    let arguments = ["recover", id.as_str(), "--reason", "the disk fails"];
    let output = trial.test.strongroom("helpdesk-advanced", &[1], &arguments);
    let (code, error) = failure(&output);
    assert_eq!((code, output.stdout.len()), (75, 0), "{error}");
    let message = error["message"].as_str().expect("words");
    assert!(message.contains("journal of reveals cannot be written") && message.contains(CAUSE), "{error}");
    assert!(trial.shims[&1].struck() > 0);

    trial.shims[&1].mend();
    let desk = trial.test.client("helpdesk-advanced", &[1]);
    let revealed = desk.recover(key(1), "the disk is mended", None).await.expect("shown");
    assert_eq!((consistency(&revealed), revealed.details.journal_sequence), ("degraded", 1));
    for node in [2, 3] {
        trial.test.cluster.start(node).await.expect("comes back");
    }
    all_on_record(&trial.test, &ALL).await;
    let records = audit_after(&trial.test, 2, ChainHead::default()).await;
    assert_eq!(shown(&records).get("the disk is mended"), Some(&1));
    all_have(&trial, &kept).await;
}

/// What a node cannot read it does not call absent: whoever asks it is told of an error, and who may ask others is told by
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_told_as_an_error_and_never_as_absent() {
    let mut trial = Trial::without_disks("").await;
    escrow_many(&trial, (1..=MANY).map(deposit)).await;
    // From the middle: opening the base reads what lies where a table begins.
    let kept = escrow_some(&trial, MANY / 2..MANY / 2 + 6).await;
    trial.test.cluster.wait_settled(&ALL).await.expect("settled");
    let node = others(trial.test.leader().await)[0];
    // None of them is in memory then, until it has opened one key after the other.
    trial.test.cluster.stop(node).await.expect("stopped");
    trial.test.cluster.start(node).await.expect("comes back");
    trial.shims[&node].fail(Fails::Reads, &trial.data(node).join("base"), Times::Always);
    let (alone, all) = ([node], [&[node], &*others(node)].concat());
    let alone = trial.test.cluster.client_within("auditor", &alone, ALONE_TIMEOUT).expect("a client");
    let mut why = Vec::new();
    let anywhere = trial.test.client("auditor", &all);
    for (_, receipt) in &kept {
        for how in [Consistency::Local, Consistency::Quorum] {
            let request = FindRequest {
                key_id_prefix: receipt.key_id.to_string(),
                consistency: how.into(),
                ..FindRequest::default()
            };
            let fingerprint = receipt.fingerprint.to_string();
            match alone.find(&request).await {
                Ok(found) => assert_eq!(found.keys.len(), 1, "{how:?} of {}", receipt.key_id),
                Err(error @ (ClientError::Failed(_) | ClientError::Unavailable { .. })) => {
                    why.push(error.to_string());
                }
                Err(error) => panic!("{how:?} of {}: {error:?}", receipt.key_id),
            }
            let found = anywhere.find(&request).await.expect("others can read it");
            assert_eq!(found.keys[0].fingerprint, fingerprint);
        }
    }
    assert!(why.iter().any(|why| why.contains(CAUSE)), "{why:?}");
    // A reveal is an entry that it cannot apply: it goes on nowhere but at the others.
    let desk = trial.test.client("helpdesk-advanced", &all);
    let (deposit, receipt) = &kept[0];
    let revealed = desk.recover(receipt.key_id, "locked out", None).await.expect("shown by another");
    assert!(same(&revealed.secret, &deposit.secret));
    let said = ends(&mut trial, node).await;
    assert!(said.contains("base: ") && said.contains(CAUSE), "{said}");

    trial.shims[&node].mend();
    trial.test.cluster.start(node).await.expect("comes back");
    all_have(&trial, &kept).await;
}

/// A node that cannot read what it has does not begin without it, and leaves it as it is: it ends and names the file, with the
/// code that has it started again. When the disk can be read again, all of it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_read_what_it_has_refuses_to_start_and_leaves_it() {
    let mut trial = Trial::without_disks("").await;
    let kept = escrow_heavy(&trial, 1..=HEAVY).await;
    let node = others(trial.test.leader().await)[0];
    let data = trial.data(node);
    trial.test.wait_for_page(node, "/metrics", |_, page| index(page, SNAPSHOT) > 0).await;
    trial.test.cluster.stop(node).await.expect("stopped");
    let files = [
        (data.join("log/r-"), Times::Once),
        (database(&trial, node).join("db"), Times::Once),
        // These are looked at more than once.
        (data.join("snapshots/0"), Times::Always),
        (data.join("storage.json"), Times::Always),
    ];
    for (file, times) in files {
        let before = sizes(&data);
        trial.shims[&node].fail(Fails::Reads, &file, times);
        let name = file.strip_prefix(&data).expect("below it").to_str().expect("UTF-8");
        let ended = trial.test.cluster.start(node).await;
        let Err(LocalClusterError::NodeEnded { how, tail, .. }) = ended else { panic!("{name}: {ended:?}") };
        let last = tail.lines().last().unwrap_or_default();
        assert!(last.contains(name) && last.contains(CAUSE), "{name}: {last}");
        assert_eq!(how, "exit status: 1", "{name}");
        trial.shims[&node].mend();
        let after = sizes(&data);
        for (file, size) in before {
            assert_eq!(after.get(&file), Some(&size), "{name}: {}", file.display());
        }
    }
    trial.test.cluster.start(node).await.expect("comes back");
    all_have(&trial, &kept).await;
}

/// How long each file below `dir` is, but for copies that a start had begun.
fn sizes(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("read").path();
        if path.is_dir() {
            sizes.extend(self::sizes(&path));
        } else if path.extension().is_none_or(|is| is != "settling") {
            let length = fs::metadata(&path).expect("a file").len();
            sizes.insert(path, length);
        }
    }
    sizes
}

/// Waits until `node` has ended by itself with the code that has it started again, and answers what it said last.
async fn ends(trial: &mut Trial, node: NodeId) -> String {
    let ended = timeout(NOTICED, trial.test.cluster.ended()).await.expect("it ends");
    assert_eq!(ended, (node, "exit status: 1".to_owned()));
    trial.test.log(node).lines().last().unwrap_or_default().to_owned()
}

/// All nodes agree, with one audit trail whose chain holds, and each has every one of these keys. Answers the trail.
pub async fn all_have(trial: &Trial, kept: &[Kept]) -> Vec<AuditRecord> {
    trial.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
    let trail = audit_after(&trial.test, 1, ChainHead::default()).await;
    for node in ALL {
        assert_all_held(&trial.test, node, kept).await;
        assert_eq!(audit_after(&trial.test, node, ChainHead::default()).await, trail, "node {node}");
    }
    trail
}

async fn escrow_some(trial: &Trial, numbers: impl Iterator<Item = u64>) -> Vec<Kept> {
    let (client, mut kept) = (trial.test.client("importer", &ALL), Vec::new());
    for deposit in numbers.map(deposit) {
        let receipt = client.escrow(&deposit).await.expect("kept");
        kept.push((deposit, receipt));
    }
    kept
}

/// Keys with packages, many at once.
async fn escrow_heavy(trial: &Trial, numbers: impl Iterator<Item = u64> + Clone + Send) -> Vec<Kept> {
    let package = |n: u64| Some(Secret::new(vec![n as u8; PACKAGE_BYTES]));
    escrow_many(trial, numbers.clone().map(|n| Deposit { package: package(n), ..deposit(n) })).await;
    // Once more by itself, each has a receipt.
    escrow_some(trial, numbers).await
}

async fn escrow_many(trial: &Trial, deposits: impl Iterator<Item = Deposit> + Send) {
    let client = trial.test.client("importer", &ALL);
    let look = |(), answer| assert!(matches!(answer, BulkAnswer::Kept(_)));
    let deposits = futures_util::stream::iter(deposits.map(|deposit| ((), deposit)));
    client.escrow_many(deposits, look).await.expect("all answered");
}

/// The base that a node uses.
fn database(trial: &Trial, node: NodeId) -> PathBuf {
    let base = trial.data(node).join("base");
    let number = fs::read_to_string(base.join("current")).expect("it says which");
    base.join(number.trim())
}

fn complete(snapshots: &Path) -> usize {
    let files = fs::read_dir(snapshots).expect("a directory").map(|file| file.expect("read").path());
    files.filter(|path| path.extension().is_some_and(|is| is == "snapshot")).count()
}

/// What a node's metrics say of an index.
fn index(page: &str, name: &str) -> u64 {
    metric(page, name).expect("a number") as u64
}
