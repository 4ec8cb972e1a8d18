//! P7 on real processes: a node whose state differs, is damaged or lost, heals itself from the others.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use common::*;
use strongroom::client::Deposit;
use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::escrow::records::KeyRecord;
use strongroom::escrow::state::Row;
use strongroom::proto::{Consistency, FindRequest, NodeStatus, StatusResponse};
use strongroom::secret::Secret;
use strongroom::store::applied::Applied;
use strongroom::store::format;

/// Detection, fetching and comparing, on a busy machine.
const HEALS: Duration = Duration::from_secs(90);

fn of(status: &StatusResponse, node: NodeId) -> &NodeStatus {
    status.nodes.iter().find(|status| status.id == node).expect("a member")
}

fn is_quarantined(status: &StatusResponse, node: NodeId) -> bool {
    !of(status, node).quarantine.is_empty()
}

fn is_well(status: &StatusResponse, node: NodeId) -> bool {
    let status = of(status, node);
    status.reachable && status.quarantine.is_empty() && status.agreement == "agrees"
}

fn find_machine(machine: &str) -> FindRequest {
    let consistency = Consistency::Local.into();
    FindRequest { machine: machine.to_owned(), consistency, ..FindRequest::default() }
}

fn data(test: &TestCluster, node: NodeId) -> PathBuf {
    test.cluster.layout().node(node).expect("a node").data_path()
}

fn log(test: &TestCluster, node: NodeId) -> String {
    fs::read_to_string(test.cluster.layout().node(node).expect("a node").log_path()).expect("its log")
}

async fn a_follower(test: &TestCluster) -> NodeId {
    let leader = test.leader().await;
    ALL.into_iter().find(|id| *id != leader).expect("three nodes")
}

/// The database in use.
fn database(data: &Path) -> PathBuf {
    let current = fs::read_to_string(data.join("base/current")).expect("a base is in use");
    data.join("base").join(current.trim())
}

fn row_hash(key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    let hash = digest(&SHA256, &bytes);
    std::array::from_fn(|lane| {
        u64::from_le_bytes(hash.as_ref()[lane * 8..][..8].try_into().expect("8 bytes"))
    })
}

/// Takes the record of a key out of a stopped node's base. With `unnoticed`, what the base says of itself fits again, as
/// if applying had gone wrong: nothing on this node alone can tell.
fn lose_key(data: &Path, key: KeyId, unnoticed: bool) {
    let base = StoppedBase::open(&database(data));
    let is_record =
        |row: &[u8]| row[0] == KeyRecord::TABLE as u8 && row.windows(16).any(|part| part == key.0.as_bytes());
    let found = base.rows().into_iter().find(|(row, _)| is_record(row));
    let (row, value) = found.expect("the record of the key");
    let mut applied: Applied = format::decode(&base.applied()).expect("decodes");
    for (lane, hash) in applied.digest.0.iter_mut().zip(row_hash(&row, &value)) {
        *lane = lane.wrapping_sub(hash);
    }
    applied.rows -= 1;
    applied.bytes -= (row.len() + value.len()) as u64;
    base.change(|rows| drop(rows.remove(&row)));
    if unnoticed {
        base.set_applied(format::encode(&applied));
    }
}

/// A page of a node's admin port, with its head.
fn page(test: &TestCluster, node: NodeId, path: &str) -> String {
    let address = test.cluster.layout().node(node).expect("a node").admin_address();
    let mut stream = std::net::TcpStream::connect(address).expect("the admin port");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

/// What a node's metrics say of its quarantine: whether it is in one, how often it was since it started, and how often
/// it came back.
fn counted(test: &TestCluster, node: NodeId) -> [f64; 3] {
    let metrics = page(test, node, "/metrics");
    ["strongroom_quarantined", "strongroom_quarantines_total", "strongroom_state_repairs_total"]
        .map(|name| metric(&metrics, name).unwrap_or_else(|| panic!("{name} in {metrics}")))
}

/// Waits until `node` has repaired itself, and looks whether it has again what it had lost.
async fn assert_repaired(test: &TestCluster, node: NodeId) {
    let well = test.cluster.wait_for("the repair", HEALS, &ALL, |status| is_well(status, node)).await;
    well.expect("repaired, and status says so");
    let found = test.client("helpdesk", &[node]).find(&find_machine("PC-900003")).await;
    assert_eq!(found.expect("it serves again").keys.len(), 1, "what was lost is there again");
}

/// A cluster that has settled with some keys in it, of which one is lost in the base of a stopped follower.
async fn cluster_with_a_damaged_follower(unnoticed: bool) -> (TestCluster, NodeId) {
    let mut test = three_nodes().await;
    for n in 900_000..900_010 {
        test.client("importer", &ALL).escrow(&deposit(n)).await.expect("kept");
    }
    test.cluster.wait_settled(&ALL).await.expect("settled");
    let damaged = a_follower(&test).await;
    assert!(test.cluster.stop(damaged).await.expect("stopped"), "it ends by itself");
    lose_key(&data(&test, damaged), deposit(900_003).key_id.expect("given"), unnoticed);
    (test, damaged)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_differs_is_quarantined_repairs_itself_and_serves_again_under_load() {
    let (mut test, damaged) = cluster_with_a_damaged_follower(true).await;
    let load = Load::start(&test, 4);
    load.progress(20).await;
    test.cluster.start(damaged).await.expect("it opens: nothing is wrong as far as it can see");
    let quarantined =
        test.cluster.wait_for("the quarantine", HEALS, &ALL, |status| is_quarantined(status, damaged)).await;
    let why = of(&quarantined.expect("found out"), damaged).quarantine.clone();
    assert!(why.contains("differs"), "{why}");

    // The repair takes two more comparisons, four seconds: these ask within that time.
    assert_eq!(counted(&test, damaged), [1.0, 1.0, 0.0], "in quarantine, once, and not back yet");
    let ready = page(&test, damaged, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("quarantined: its state differs"), "{ready}");
    let request = find_machine("PC-900003");
    let alone = test.cluster.client_within("helpdesk", &[damaged], Duration::from_secs(1)).expect("a client");
    let refused = alone.find(&request).await.expect_err("a quarantined node shows nothing");
    assert!(format!("{refused:?}").contains("quarantined"), "{refused:?}");
    let order = [damaged, ALL.into_iter().find(|id| *id != damaged).expect("another")];
    let found = test.client("helpdesk", &order).find(&request).await.expect("the client asks another node");
    assert_eq!(found.keys.len(), 1, "what was lost on one node is found all the same");

    assert_repaired(&test, damaged).await;
    // It is counted when it has come back, an instant after it can be seen to.
    let deadline = Instant::now() + SOON;
    while counted(&test, damaged) != [0.0, 1.0, 1.0] {
        assert!(Instant::now() < deadline, "once in quarantine, and back: {:?}", counted(&test, damaged));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    load.progress(20).await;
    let (acknowledged, _) = load.finish().await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert_all_readable(&test, damaged, &acknowledged).await;
    assert!(!data(&test, damaged).join("quarantine.json").exists());
    let log = log(&test, damaged);
    assert!(
        log.contains("this node is quarantined") && log.contains("is repaired, agrees"),
        "its log says so"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_changed_on_the_disk_are_found_by_the_scrub_and_repaired() {
    let (mut test, damaged) = cluster_with_a_damaged_follower(false).await;
    test.cluster.start(damaged).await.expect("it opens: it was closed cleanly");
    let found = test.cluster.wait_for("the scrub's finding", HEALS, &ALL, |status| {
        of(status, damaged).quarantine.contains("scrub")
    });
    found.await.expect("found out");
    assert_repaired(&test, damaged).await;
}

/// P4: what is left is served, damaged or not, until there is somebody to repair it from.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_survivor_whose_rows_are_damaged_goes_on_serving_and_is_repaired_when_the_others_return() {
    let (mut test, damaged) = cluster_with_a_damaged_follower(false).await;
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != damaged).collect();
    for id in &others {
        test.cluster.kill(*id).await.expect("killed");
    }
    test.cluster.start(damaged).await.expect("it opens: it was closed cleanly");
    let survivors = [damaged];
    let alone = test.cluster.wait_for("the scrub's finding", HEALS, &survivors, |status| {
        of(status, damaged).agreement == "differs"
    });
    let alone = alone.await.expect("found out");
    assert_eq!(of(&alone, damaged).quarantine, "", "there is nobody else to ask");
    let found = test.client("helpdesk", &[damaged]).find(&find_machine("PC-900005")).await.expect("serves");
    assert_eq!(found.keys.len(), 1, "what is whole is found");

    for id in &others {
        test.cluster.start(*id).await.expect("comes back");
    }
    assert_repaired(&test, damaged).await;
}

/// Kill -9 when the quarantine is noted, when the snapshot is there, and when the state was replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_killed_is_finished_after_the_restart() {
    let (mut test, damaged) = cluster_with_a_damaged_follower(true).await;
    let data = data(&test, damaged);
    let note = || fs::read_to_string(data.join("quarantine.json")).unwrap_or_default();
    let has_snapshot = || {
        let names = fs::read_dir(data.join("snapshots")).expect("listed").flatten();
        names.into_iter().any(|entry| entry.path().extension().is_some_and(|name| name == "snapshot"))
    };
    let moments: [(&str, &dyn Fn() -> bool); 3] = [
        ("noted", &|| note().contains("waiting")),
        ("fetched", &has_snapshot),
        ("replaced", &|| note().contains("replaced")),
    ];
    for (moment, has_come) in moments {
        test.cluster.start(damaged).await.expect("comes back");
        let deadline = Instant::now() + HEALS;
        while !has_come() {
            assert!(Instant::now() < deadline, "{moment}: {}", log(&test, damaged));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        test.cluster.kill(damaged).await.expect("killed");
        assert!(!note().is_empty(), "{moment}: the quarantine outlives the process");
    }
    test.cluster.start(damaged).await.expect("comes back");
    assert_repaired(&test, damaged).await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
}

/// P12: with one of three voters gone there is no majority of others to take the state from, while writes go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_that_cannot_end_stops_the_node_before_its_log_fills_the_disk() {
    let mut test = three_nodes_with("[raft]\nsnapshot_log_bytes = 1048576\n").await;
    test.client("importer", &ALL).escrow(&deposit(900_003)).await.expect("kept");
    test.cluster.wait_settled(&ALL).await.expect("settled");
    let aside = a_follower(&test).await;
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != aside).collect();
    assert!(test.cluster.stop(aside).await.expect("stopped"), "it ends by itself");
    let note = r#"{"cause": "differs", "index": 1, "since_ms": 1, "stage": "waiting"}"#;
    fs::write(data(&test, aside).join("quarantine.json"), note).expect("written");
    // First the one that is to stay away: the quarantined one must never see a majority.
    assert!(test.cluster.stop(others[0]).await.expect("stopped"), "it ends by itself");
    test.cluster.start(aside).await.expect("it opens");
    let up = [others[1], aside];
    let why =
        test.cluster.wait_for("the quarantine", HEALS, &up, |status| is_quarantined(status, aside)).await;
    let why = of(&why.expect("known"), aside).quarantine.clone();
    assert!(why.contains("0 MiB of log wait for the repair, at most 8"), "{why}");

    let client = test.client("importer", &[others[1]]);
    let fill = async {
        for n in 0.. {
            let package = Some(Secret::new(vec![7; 48 * 1024]));
            // Once it has stopped there is no quorum, and nothing is acknowledged any more.
            if client.escrow(&Deposit { package, ..deposit(n) }).await.is_err() {
                return;
            }
        }
    };
    let full = async { tokio::join!(test.cluster.ended(), fill).0 };
    let (ended, how) = tokio::time::timeout(2 * HEALS, full).await.expect("it stops by itself");
    assert_eq!((ended, how.as_str()), (aside, "exit status: 1"));
    let said = log(&test, aside);
    let last = said.lines().rfind(|line| line.contains("member replace"));
    let last = last.unwrap_or_else(|| panic!("it does not say what to do: {said}"));
    assert!(last.contains("its state differs") && last.contains("raft.snapshot_log_bytes"), "{last}");

    // Started again it takes no more of the log, not even for a moment.
    let refused = test.cluster.start(aside).await.expect_err("it does not start");
    assert!(refused.to_string().contains("could not be repaired"), "{refused}");

    // With the others back and more room it repairs itself.
    test.cluster.start(others[0]).await.expect("comes back");
    let config = test.cluster.layout().node(aside).expect("a node").config_path();
    let text = fs::read_to_string(&config).expect("its configuration");
    fs::write(&config, text.replace("snapshot_log_bytes = 1048576", "snapshot_log_bytes = 8388608"))
        .expect("written");
    test.cluster.start(aside).await.expect("it starts with more room");
    assert_repaired(&test, aside).await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_hands_over_and_no_acknowledged_key_is_lost() {
    let (mut test, damaged) = cluster_with_a_damaged_follower(true).await;
    // Only the damaged one and another are up: no majority says which is wrong.
    let healthy: Vec<_> = ALL.into_iter().filter(|id| *id != damaged).collect();
    test.cluster.kill(healthy[0]).await.expect("killed");
    test.cluster.start(damaged).await.expect("comes back");
    let pair = [damaged, healthy[1]];
    let split = test.cluster.wait_for("the difference", HEALS, &pair, |status| {
        pair.iter().all(|id| of(status, *id).agreement == "differs" && !is_quarantined(status, *id))
    });
    split.await.expect("both say that they differ, and neither is put aside");
    if test.leader().await != damaged {
        // It hands over to the only other there is.
        test.cluster.stop(healthy[1]).await.expect("stopped");
        test.cluster.start(healthy[1]).await.expect("comes back");
    }
    let leads =
        test.cluster.wait_for("the lead", HEALS, &pair, |status| status.leader == Some(damaged)).await;
    leads.expect("the damaged node leads");
    let load = Load::start(&test, 2);
    test.cluster.start(healthy[0]).await.expect("comes back");
    let well = test.cluster.wait_for("the repair", HEALS, &ALL, |status| {
        ALL.iter().all(|id| is_well(status, *id)) && status.leader.is_some()
    });
    well.await.expect("the two agree, the third is repaired");
    load.progress(10).await;
    let (acknowledged, _) = load.finish().await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    for node in ALL {
        assert_all_readable(&test, node, &acknowledged).await;
    }
    let log = log(&test, damaged);
    assert!(log.contains("this node is quarantined"), "it was the damaged one");
    assert!(log.contains("handing the leadership over"), "it did not go on leading in quarantine");
}

/// A divergence that stops the node at an entry, at this start and at every other.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_apply_an_entry_to_its_state_takes_another_when_it_is_started_again() {
    let (mut test, damaged) = cluster_with_a_damaged_follower(true).await;
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != damaged).collect();
    // Escrowed once more under no name, it is found by its fingerprint, which on one node leads to no key.
    let unnamed = Deposit { key_id: None, ..deposit(900_003) };
    test.client("importer", &others).escrow(&unnamed).await.expect("kept already");
    // It stops while it starts, or soon after that.
    if test.cluster.start(damaged).await.is_ok() {
        let ended = tokio::time::timeout(HEALS, test.cluster.ended()).await.expect("it stops");
        assert_eq!(ended, (damaged, "exit status: 1".to_owned()));
    }
    assert!(log(&test, damaged).contains("this replica stops applying"), "{}", log(&test, damaged));

    for id in &others {
        test.cluster.kill(*id).await.expect("killed");
    }
    let config = test.cluster.layout().node(damaged).expect("a node").config_path();
    let mut alone = std::process::Command::new(program());
    let alone = alone.args(["server", "--config"]).arg(config).stderr(std::process::Stdio::null());
    let mut alone = alone.stdout(std::process::Stdio::null()).spawn().expect("it starts");
    let deadline = Instant::now() + HEALS;
    let noted = || fs::read_to_string(data(&test, damaged).join("quarantine.json")).unwrap_or_default();
    while !noted().contains("apply") {
        assert!(Instant::now() < deadline, "it notes why it does not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Killed while it asks for another state: the next start asks again.
    alone.kill().expect("killed");
    alone.wait().expect("gone");

    for id in &others {
        test.cluster.start(*id).await.expect("comes back");
    }
    test.cluster.start(damaged).await.expect("it starts with another's state");
    assert_repaired(&test, damaged).await;
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    let log = log(&test, damaged);
    assert!(
        log.contains("cannot be applied to the state of this node") && log.contains("is repaired, agrees")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_database_cannot_be_opened_rebuilds_it() {
    let mut test = three_nodes().await;
    for n in 900_000..900_010 {
        test.client("importer", &ALL).escrow(&deposit(n)).await.expect("kept");
    }
    test.cluster.wait_settled(&ALL).await.expect("settled");
    let damaged = a_follower(&test).await;
    assert!(test.cluster.stop(damaged).await.expect("stopped"), "it ends by itself");
    let data = data(&test, damaged);
    for entry in fs::read_dir(database(&data)).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let length = fs::metadata(&path).expect("there").len();
            fs::write(&path, vec![0xA5; usize::try_from(length).expect("small")]).expect("overwritten");
        }
    }
    test.cluster.start(damaged).await.expect("comes back");
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert!(log(&test, damaged).contains("the base cannot be used"), "its log says so");
    let aside = fs::read_dir(data.join("base")).expect("listed").flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged-"));
    assert_eq!(aside.count(), 1, "the damaged one is kept for whoever wants to know why");
    let found = test.client("helpdesk", &[damaged]).find(&find_machine("PC-900003")).await.expect("serves");
    assert_eq!(found.keys.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_base_and_snapshots_with_a_purged_log_fetches_its_state() {
    let mut test = three_nodes_with("[raft]\nsnapshot_log_bytes = 1048576\nkeep_entries = 10\n").await;
    let lost = a_follower(&test).await;
    let load = Load::start(&test, 16);
    let purged = test.cluster.wait_for("the purge", HEALS, &ALL, |status| of(status, lost).purged > 0).await;
    purged.expect("its log is purged");
    assert!(test.cluster.stop(lost).await.expect("stopped"), "it ends by itself");
    let data = data(&test, lost);
    assert!(data.join("members.json").exists(), "it knows whom to ask");
    fs::remove_dir_all(data.join("base")).expect("lost");
    fs::remove_dir_all(data.join("snapshots")).expect("lost");
    test.cluster.start(lost).await.expect("comes back");
    let (acknowledged, _) = load.finish().await;
    let settled = test.cluster.wait_settled(&ALL).await;
    settled.expect("equal digests");
    assert!(log(&test, lost).contains("the state of this node is lost"), "its log says so");
    let sample: Vec<_> = acknowledged.into_iter().step_by(50).collect();
    assert_all_readable(&test, lost, &sample).await;
}
