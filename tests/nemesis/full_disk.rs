//! Full disks (design §10; Vault #18943): a clear error, reads go on, and writes resume by themselves when there is room.

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;
use strongroom::client::{Client, ClientError};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{Consistency, FindRequest};
use tokio::time::{sleep, timeout};

use crate::common::*;
use crate::trial::Trial;

/// Longest a caller without a quorum waits here.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How many keys may be acknowledged while a node is about to hear that they are.
const LATEST: usize = 20;
/// Room that is too little to go on with, and enough for what people do.
const LITTLE_BYTES: u64 = 40 * 1024 * 1024;
/// Longest it takes until a node has noticed that its disk is full.
const NOTICED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn on_full_disks_reads_go_on_and_writes_resume_when_there_is_room() {
    let mut trial = Trial::begin(3).await;
    if trial.disks.is_empty() {
        return;
    }
    let load = Load::start(&trial.test, 4).with_readers(&trial.test, &ALL);
    load.progress(20).await;

    // The leader's: it says why it ends, and the others go on without anything being lost.
    let first = trial.test.leader().await;
    trial.disks[&first].fill();
    ends_for_want_of_room(&mut trial, first).await;
    load.progress(20).await;
    // Started again by its service manager it says so again, until there is room.
    // Whether it ends before it answers or soon after that.
    drop(trial.test.cluster.start(first).await);
    ends_for_want_of_room(&mut trial, first).await;
    load.progress(20).await;

    // Another one's as well: no quorum is left, and nothing is acknowledged.
    let rest = others(first);
    let second = rest[0];
    trial.disks[&second].fill();
    ends_for_want_of_room(&mut trial, second).await;
    let (kept, _) = load.finish().await;
    let last = [rest[1]];
    let importer = trial.test.cluster.client_within("importer", &last, CALL_TIMEOUT).expect("a client");
    let refused = importer.escrow(&deposit(900_000)).await.expect_err("no quorum has room");
    assert!(matches!(refused, ClientError::Unavailable { .. }), "{refused:?}");
    // The very last it may have, without having been told that they are committed.
    assert_all_held(&trial.test, last[0], &kept[..kept.len() - LATEST]).await;
    let shown =
        trial.test.client("helpdesk-advanced", &last).recover(kept[0].1.key_id, "locked out", None).await;
    assert!(same(&shown.expect("P4: a survivor shows it").secret, &kept[0].0.secret));

    // Room comes back; the service manager does the rest.
    for node in [first, second] {
        trial.disks[&node].make_room();
        trial.test.cluster.start(node).await.expect("it starts, now that there is room");
    }
    let again = trial.test.client("importer", &ALL);
    let deadline = tokio::time::Instant::now() + SOON;
    while again.escrow(&deposit(900_001)).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "writes resume");
    }
    let request = FindRequest {
        key_id_prefix: key(900_001).to_string(),
        consistency: Consistency::Quorum.into(),
        ..FindRequest::default()
    };
    assert_eq!(trial.test.client("auditor", &[first]).find(&request).await.expect("a quorum").keys.len(), 1);
    trial.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
    for node in ALL {
        assert_all_held(&trial.test, node, &kept).await;
    }
}

/// Waits until `node` has ended by itself, and looks whether it said why.
async fn ends_for_want_of_room(trial: &mut Trial, node: NodeId) {
    assert_eq!(one_ends_for_want_of_room(trial).await, node);
}

/// Waits until a node has ended by itself, and looks whether it said why.
async fn one_ends_for_want_of_room(trial: &mut Trial) -> NodeId {
    let (node, how) = timeout(NOTICED, trial.test.cluster.ended()).await.expect("it ends");
    assert_eq!(how, "exit status: 1", "node {node}");
    let log = trial.test.log(node);
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("No space left on device"), "it says why: {last}");
    node
}

/// Disks of one size fill at one time. Before they are full machines are told to wait, by name of the disks; people go on
/// everywhere, and so do machines once a majority has room, by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn with_little_room_everywhere_machines_wait_and_people_go_on() {
    let mut trial = Trial::begin(3).await;
    if trial.disks.is_empty() {
        return;
    }
    let load = Load::start(&trial.test, 4);
    load.progress(40).await;
    trial.disks[&1].fill_but(LITTLE_BYTES);
    load.progress(40).await;
    let (kept, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "one of three without room changes nothing");

    [2, 3].iter().for_each(|node| trial.disks[node].fill_but(LITTLE_BYTES));
    let importer = trial.test.cluster.client_within("importer", &ALL, CALL_TIMEOUT).expect("a client");
    let deadline = tokio::time::Instant::now() + NOTICED;
    while importer.escrow(&deposit(900_000)).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "it is noticed");
    }
    let secret = String::from_utf8(deposit(2).secret.expose().to_vec()).expect("digits");
    let arguments = [
        "escrow",
        "--machine",
        "PC-00002",
        "--volume",
        "C:",
        "--kind",
        "bitlocker-password",
        "--timeout",
        "3",
    ];
    let (code, error) = failure(&trial.test.strongroom_with_input("importer", &[2], &arguments, &secret));
    let message = error["message"].as_str().expect("words");
    assert_eq!(code, 75, "{error}");
    assert!(message.contains("has room on its disk") && message.contains("node 3"), "{error}");
    for (node, (deposit, receipt)) in ALL.into_iter().zip(&kept) {
        let request = FindRequest {
            key_id_prefix: receipt.key_id.to_string(),
            consistency: Consistency::Quorum.into(),
            ..FindRequest::default()
        };
        let found = trial.test.client("auditor", &[node]).find(&request).await;
        assert_eq!(found.expect("reads go on").keys.len(), 1);
        let desk = trial.test.client("helpdesk-advanced", &[node]);
        let shown = desk.recover(receipt.key_id, "locked out", None).await.expect("reveals go on");
        assert!(same(&shown.secret, &deposit.secret));
        assert_eq!(shown.details.freshness.expect("said").consistency, "quorum", "and are on record");
    }

    [1, 2].iter().for_each(|node| trial.disks[node].make_room());
    let again = ALL.map(|node| trial.test.client("importer", &[node]));
    each_takes_a_key(&again).await;
    assert!(trial.test.cluster.ended().now_or_never().is_none(), "no node has ended");
    trial.disks[&3].make_room();
    trial.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
}

/// Disks of one size fill at one time, at last to the last block. Whoever has to write ends and says why, over and over, as its unit has it started
/// again; nobody is told of a success; and when there is room everywhere, the service manager alone has brought all of
/// it back.
#[tokio::test(flavor = "multi_thread")]
async fn with_all_disks_full_the_service_manager_tries_until_there_is_room_and_nothing_is_lost() {
    let unit = Unit::shipped();
    let mut trial = Trial::begin(3).await;
    if trial.disks.is_empty() {
        return;
    }
    let load = Load::start(&trial.test, 4);
    load.progress(40).await;
    trial.disks.values().for_each(|disk| disk.fill());
    // Who does not get to write its vote stays up, and shows what it has.
    let mut down = Vec::new();
    while down.len() < 2 {
        down.push(one_ends_for_want_of_room(&mut trial).await);
    }
    let (kept, _) = load.finish().await;
    let importer = trial.test.cluster.client_within("importer", &ALL, CALL_TIMEOUT).expect("a client");
    let refused = importer.escrow(&deposit(900_000)).await.expect_err("no quorum has room");
    assert!(matches!(refused, ClientError::Unavailable { .. }), "{refused:?}");
    for _ in 0..2 {
        for node in &down {
            sleep(unit.restart_after).await;
            // Whether it ends before it answers or soon after that.
            drop(trial.test.cluster.start(*node).await);
        }
        down = vec![one_ends_for_want_of_room(&mut trial).await, one_ends_for_want_of_room(&mut trial).await];
    }

    trial.disks.values().for_each(|disk| disk.make_room());
    let each = ALL.map(|node| trial.test.client("importer", &[node]));
    tokio::select! {
        () = unit.keeps_running(&mut trial, down) => {}
        () = each_takes_a_key(&each) => {}
    }
    trial.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
    for node in ALL {
        assert_all_held(&trial.test, node, &kept).await;
    }
}

async fn each_takes_a_key(clients: &[Client]) {
    for (n, client) in (900_001..).zip(clients) {
        let deadline = tokio::time::Instant::now() + SOON;
        while client.escrow(&deposit(n)).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "writes resume");
        }
    }
}

/// How the shipped unit has the service manager go about a node that ends.
struct Unit {
    restart_after: Duration,
}

impl Unit {
    fn shipped() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/systemd/strongroom.service");
        let unit = fs::read_to_string(path).expect("the unit");
        let value = |name: &str| {
            let found = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name}")).to_owned()
        };
        // However often, and with the code that a node with a full disk ends with.
        assert_eq!((value("Restart"), value("StartLimitIntervalSec")), ("on-failure".into(), "0".into()));
        assert!(value("RestartPreventExitStatus").split(' ').all(|code| code != "1"));
        Self { restart_after: Duration::from_secs(value("RestartSec").parse().expect("seconds")) }
    }

    /// Starts whoever is down, and whoever ends later.
    async fn keeps_running(&self, trial: &mut Trial, mut down: Vec<NodeId>) {
        loop {
            for node in std::mem::take(&mut down) {
                sleep(self.restart_after).await;
                drop(trial.test.cluster.start(node).await);
            }
            down.push(trial.test.cluster.ended().await.0);
        }
    }
}
