//! Releases side by side: the feature level in a rolling upgrade, and data of a newer release.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::*;
use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::client::Deposit;
use strongroom::escrow::command::{Action, Command as Entry, RaiseFeatureLevel};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{NodeId, RequestId, Timestamp};
use strongroom::escrow::records::{LogPosition, Source};
use strongroom::proto::StatusResponse;
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::seal::receipt::Receipt;
use strongroom::store::directory::{DIRECTORY_FORMAT, DataDir};
use strongroom::store::format::{self, Payload, VERSION};

const HOLD: &str = "[upgrade]\nhold_feature_level = 1\n";

/// Rewrites the configuration of a stopped node.
fn reconfigure(test: &TestCluster, node: NodeId, from: &str, to: &str) {
    let path = test.cluster.layout().node(node).expect("a node").config_path();
    let text = fs::read_to_string(&path).expect("a configuration");
    assert!(text.contains(from));
    fs::write(&path, text.replace(from, to)).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feature_level_rises_by_itself_once_the_last_node_of_a_rolling_upgrade_supports_it() {
    let mut test = three_nodes_with(HOLD).await;
    let remove = ["member", "remove", "3", "--any-voter-count"];
    let (code, error) = failure(&test.strongroom("operator", &ALL, &remove));
    let message = error["message"].as_str().expect("a message");
    assert_eq!(code, 5, "{error}");
    assert!(message.contains("feature level 2") && message.contains("the cluster is at 1"), "{message}");
    let load = Load::start(&test, 3).with_readers(&test, &ALL);
    for node in ALL {
        load.progress(20).await;
        let status = test.client("operator", &ALL).status().await.expect("status");
        assert_eq!(status.feature_level, 1, "before node {node} is upgraded");
        assert!(test.cluster.stop(node).await.expect("stopped"), "it ends by itself");
        reconfigure(&test, node, HOLD, "");
        test.cluster.start(node).await.expect("comes back");
        let all_back = |status: &StatusResponse| {
            status.leader.is_some() && status.nodes.iter().all(|node| node.reachable && node.applied > 0)
        };
        test.cluster.wait_for("the node's return", SOON, &ALL, all_back).await.expect("back");
        if node != 3 {
            let holding = |status: &StatusResponse| {
                status.feature_level == 1
                    && status.warnings.iter().any(|why| why.contains("node 3 supports feature level 1 only"))
            };
            test.cluster
                .wait_for("a warning of who holds the level back", SOON, &ALL, holding)
                .await
                .expect("told");
        }
    }
    let raised = |status: &StatusResponse| {
        let told = status.warnings.iter().any(|why| why.contains("supports feature level"));
        status.feature_level == FeatureLevel::SUPPORTED.0 && !told
    };
    test.cluster.wait_for("the new feature level", SOON, &ALL, raised).await.expect("raised");
    let (acknowledged, failed) = load.finish().await;
    assert_eq!(failed, Failed::NONE, "of {} escrows", acknowledged.len());
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    let removed = test.strongroom("operator", &ALL, &remove);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let status = test.cluster.wait_settled(&[1, 2]).await.expect("two are left");
    assert_eq!(status.nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [1, 2]);

    // The way back is closed: what an older release would do with the next entry is not known.
    test.cluster.stop(2).await.expect("stopped");
    reconfigure(&test, 2, "\n[tls]", &format!("\n{HOLD}\n[tls]"));
    let error = test.cluster.start(2).await.expect_err("it supports less than its data").to_string();
    assert!(error.contains("upgrade.hold_feature_level keeps this node at feature level 1"), "{error}");
    let level = FeatureLevel::SUPPORTED;
    assert!(error.contains(&format!("its cluster is at level {level} already")), "{error}");
    assert!(error.contains("exit status: 1"), "{error}");
}

/// A cluster of one node that is stopped and holds a few keys, of which some are in a snapshot.
struct Stopped {
    test: TestCluster,
    acknowledged: Vec<(Deposit, Receipt)>,
    data: PathBuf,
}

impl Stopped {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let plan = ClusterPlan { nodes: 1, members: 1, ..plan("") };
        let mut cluster = LocalCluster::open_or_create(dir.path(), &plan, program()).expect("a layout");
        cluster.form().await.expect("a cluster forms");
        let mut test = TestCluster { cluster, dir };
        let raised = |status: &StatusResponse| status.feature_level == FeatureLevel::SUPPORTED.0;
        test.cluster.wait_for("the feature level", SOON, &[1], raised).await.expect("raised");
        let mut acknowledged = Vec::new();
        for n in 1..=5 {
            let receipt = test.client("importer", &[1]).escrow(&deposit(n)).await.expect("kept");
            acknowledged.push((deposit(n), receipt));
        }
        assert!(test.cluster.stop(1).await.expect("stopped"), "it ends by itself");
        let data = test.cluster.layout().node(1).expect("a node").data_path();
        let stopped = Self { test, acknowledged, data };
        let storage = stopped.storage().await;
        storage.machine.snapshot().await.expect("a snapshot");
        storage.close().await.expect("closed");
        stopped
    }

    async fn storage(&self) -> Storage {
        let data = DataDir::open_or_create(&self.data).expect("the node is stopped");
        Storage::open(&data, StorageOptions::default()).await.expect("its storage opens")
    }

    /// Starts the node, which must end by itself with `code`; what it said.
    fn refuses(&self, code: i32) -> String {
        let mut server = Command::new(program());
        server.args(["server", "--config"]);
        server.arg(self.test.cluster.layout().node(1).expect("a node").config_path());
        let mut server = server.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let deadline = Instant::now() + SOON;
        while server.try_wait().expect("waited").is_none() {
            if Instant::now() >= deadline {
                server.kill().expect("killed");
                panic!("it runs on");
            }
            std::thread::yield_now();
        }
        let output = server.wait_with_output().expect("ended");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    /// Asserts that the node refuses to start, says `what` is of a newer format than `ours`, and leaves its data as it is.
    fn assert_refuses_newer(&self, file: &str, what: &str, ours: u32) {
        let (found, supported) = (format!("of format {}", ours + 1), format!("up to format {ours}"));
        self.assert_refuses(file, &[file, what, &found, &supported, "newer release"]);
    }

    /// Asserts that the node refuses to start over `file`, says all of `parts`, and leaves its data as it is.
    fn assert_refuses(&self, file: &str, parts: &[&str]) {
        let before = contents(&self.data);
        // What can be told before anything is opened is told with all else that is wrong with the configuration.
        let said = self.refuses(if file == "storage.json" { 2 } else { 1 });
        for part in parts {
            assert!(said.contains(part), "{said:?} does not say {part:?}");
        }
        let after = contents(&self.data);
        let changed: Vec<_> =
            before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
        assert!(changed.is_empty(), "changed by the attempt: {changed:?}");
    }

    /// Asserts that the node, its data mended, has every key.
    async fn assert_starts(&mut self) {
        self.test.cluster.start(1).await.expect("starts");
        self.test.cluster.wait_settled(&[1]).await.expect("leads");
        assert_all_readable(&self.test, 1, &self.acknowledged).await;
        assert!(self.test.cluster.stop(1).await.expect("stopped"), "it ends by itself");
    }
}

/// Every file below `dir` with what is in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("listed").path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).expect("read"));
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_format_is_refused_and_left_as_it_is() {
    let mut stopped = Stopped::new().await;
    let path = stopped.data.join("storage.json");
    let text = fs::read_to_string(&path).expect("an identity");
    let formats = [
        ("format", "is of a data directory", DIRECTORY_FORMAT),
        ("records", "holds records", VERSION.into()),
    ];
    for (field, what, ours) in formats {
        let newer = text.replace(&format!("\"{field}\": {ours}"), &format!("\"{field}\": {}", ours + 1));
        assert_ne!(newer, text);
        fs::write(&path, newer).expect("written");
        stopped.assert_refuses_newer("storage.json", what, ours);
    }
    // A build before the first release.
    let older = text.replace(&format!("\"format\": {DIRECTORY_FORMAT}"), "\"format\": 1");
    assert_ne!(older, text);
    fs::write(&path, older).expect("written");
    let parts = ["data_dir: ", "of format 1", "before the first release", "an empty data directory"];
    stopped.assert_refuses("storage.json", &parts);
    fs::write(&path, text).expect("written");
    stopped.assert_starts().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_newer_format_is_refused_and_not_set_aside() {
    /// Where the version byte of the header stands: behind the magic and the header's length.
    const VERSION_AT: usize = 12;
    let mut stopped = Stopped::new().await;
    let snapshot = contents(&stopped.data.join("snapshots")).into_keys().next().expect("a snapshot");
    let bytes = fs::read(&snapshot).expect("read");
    let mut newer = bytes.clone();
    newer[VERSION_AT] += 1;
    fs::write(&snapshot, newer).expect("written");
    let name = snapshot.file_name().expect("a name").to_string_lossy().into_owned();
    stopped.assert_refuses_newer(&name, "is a snapshot", VERSION.into());
    fs::write(&snapshot, bytes).expect("written");
    stopped.assert_starts().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_entries_of_a_newer_format_is_refused() {
    let stopped = Stopped::new().await;
    let storage = stopped.storage().await;
    let last = storage.log.state().expect("read").last.expect("entries");
    let mut record = Payload::Commands(vec![b"whatever a newer release writes"]).encode();
    record[0] += 1;
    let next = LogPosition { index: last.index + 1, ..last };
    storage.log.append(vec![(next, record)], drop).await.expect("appended");
    storage.close().await.expect("closed");
    drop(storage);
    stopped.assert_refuses_newer("/log", "holds entries", VERSION.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_a_newer_format_is_refused_and_not_set_aside() {
    let mut stopped = Stopped::new().await;
    let base = stopped.data.join("base");
    let number = fs::read_to_string(base.join("current")).expect("a base is in use");
    let database = base.join(number.trim());
    let bump = |by: i8| {
        let db = sled::open(&database).expect("opens");
        let mut applied = db.get([0]).expect("read").expect("where it stands").to_vec();
        applied[0] = applied[0].checked_add_signed(by).expect("a version");
        db.insert([0], applied).expect("written");
        db.flush().expect("flushed");
        db.len()
    };
    let rows = bump(1);
    // sled writes to its files when it opens them, so what is compared is what lies in them.
    let said = stopped.refuses(1);
    for part in [number.trim(), "holds rows of format 2", "up to format 1", "newer release"] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    assert_eq!(fs::read_to_string(base.join("current")).expect("read"), number);
    let aside = fs::read_dir(&base).expect("listed").flatten();
    let aside: Vec<_> =
        aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged")).collect();
    assert!(aside.is_empty(), "{aside:?}");
    assert_eq!(bump(-1), rows);
    stopped.assert_starts().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_a_newer_release_stops_the_replica_and_says_why() {
    let stopped = Stopped::new().await;
    let storage = stopped.storage().await;
    let last = storage.log.state().expect("read").last.expect("entries");
    let command = Entry {
        request: RequestId(uuid::Uuid::new_v4()),
        at: Timestamp(1),
        by: "spiffe://test/node/1".parse().expect("an identity"),
        source: Source { node: 1, address: String::new() },
        action: Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(2) }),
    };
    let mut bytes = format::encode(&command);
    // The action stands last: which, and the level.
    let which = bytes.len() - 2;
    bytes[which] = 200;
    let next = LogPosition { index: last.index + 1, ..last };
    let record = Payload::Commands(vec![&bytes]).encode();
    storage.log.append(vec![(next, record)], drop).await.expect("appended");
    storage.close().await.expect("closed");
    drop(storage);
    let said = stopped.refuses(1);
    for part in [&format!("entry {}", next.index), "this release is too old"] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
}
