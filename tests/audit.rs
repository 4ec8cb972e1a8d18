//! The audit trail as auditors take it away: the same from every node, gone on with where it ended, refused to others,
//! and nothing done to it stays unseen.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::*;
use serde_json::Value;
use strongroom::client::Client;
use strongroom::escrow::audit::line;
use strongroom::escrow::ids::{KeyId, NodeId};

/// A cluster with some history: what forming it left, reveals that were allowed and denied, a conflict.
struct Desk {
    test: TestCluster,
    keys: Vec<KeyId>,
}

impl Desk {
    async fn new() -> Self {
        let test = three_nodes().await;
        let importer = test.client("importer", &ALL);
        let mut keys = Vec::new();
        for n in 1..=3 {
            keys.push(importer.escrow(&deposit(n)).await.expect("kept").key_id);
        }
        let desk = Self { test, keys };
        desk.reveal(3).await;
        let denied = desk.client("helpdesk").recover(desk.keys[0], "curious", None).await;
        denied.expect_err("the user is not named");
        let other = strongroom::client::Deposit { key_id: Some(desk.keys[0]), ..deposit(9) };
        importer.escrow(&other).await.expect_err("another key has that id");
        desk
    }

    fn client(&self, profile: &str) -> Client {
        self.test.client(profile, &ALL)
    }

    /// Leaves so many records.
    async fn reveal(&self, times: usize) {
        let client = self.client("helpdesk-advanced");
        for turn in 0..times {
            client.recover(self.keys[turn % 3], "locked out", None).await.expect("shown");
        }
    }

    fn audit(&self, nodes: &[NodeId], arguments: &[&str]) -> Output {
        self.test.strongroom("auditor", nodes, &[&["audit"], arguments].concat())
    }

    /// The lines of an export of what `node` has once it has applied `index`.
    fn export(&self, node: NodeId, index: u64, more: &[&str]) -> Vec<String> {
        let index = index.to_string();
        lines(&self.audit(&[node], &[&["export", "--min-index", &index], more].concat()))
    }

    /// Up to where node 1 has applied everything.
    async fn settled(&self) -> u64 {
        self.test.cluster.wait_settled(&ALL).await.expect("settled").nodes[0].applied
    }

    fn file(&self, name: &str, lines: &[String]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("written");
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.test.dir.path().join(name)
    }

    fn verify(&self, files: &[&Path], more: &[&str]) -> Output {
        let files: Vec<&str> = files.iter().map(|path| path.to_str().expect("text")).collect();
        self.audit(&ALL, &[&["verify"], files.as_slice(), more].concat())
    }

    /// Asserts what is found in an export that was made into `lines`.
    #[track_caller]
    fn assert_found(&self, lines: &[String], record: u64, kind: &str) {
        assert_found(&self.verify(&[&self.file("forged.jsonl", lines)], &[]), record, kind);
    }
}

#[track_caller]
fn assert_found(output: &Output, record: u64, kind: &str) {
    let (code, error) = failure(output);
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no result: {error}"));
    assert_eq!((&found["record"], &found["kind"]), (&record.into(), &kind.into()), "{found}");
    assert_eq!((code, &found["verified"]), (1, &false.into()));
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with(&format!("record {record}: {kind}: ")), "{message}");
}

#[track_caller]
fn good(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[track_caller]
fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text").lines().map(str::to_owned).collect()
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_exports_the_same_trail_and_it_is_gone_on_with_where_it_ended() {
    let desk = Desk::new().await;
    let index = desk.settled().await;
    let exports = ALL.map(|node| desk.export(node, index, &[]));

    // Byte for byte the same, but for the first line: who signed it, with what, and when.
    for (node, export) in ALL.iter().zip(&exports) {
        assert_eq!(export[1..], exports[0][1..], "node {node}");
        let (mut checkpoint, mut first) = (json(&export[0]), json(&exports[0][0]));
        assert_eq!(checkpoint["node"], format!("spiffe://test/node/{node}"));
        for own in ["at", "node", "signature", "certificates"] {
            checkpoint[own].take();
            first[own].take();
        }
        assert_eq!(checkpoint, first, "node {node}");
    }
    let numbers: Vec<u64> =
        exports[0][1..].iter().map(|line| json(line)["seq"].as_u64().expect("seq")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let events: Vec<Value> = exports[0][1..].iter().map(|line| json(line)["event"].take()).collect();
    for event in ["cluster-initialized", "node-admitted", "reveal", "escrow-conflict"] {
        assert!(events.contains(&event.into()), "{event}: {events:?}");
    }

    // Into a file from one node, on from another, with a line that was cut off in between.
    let file = desk.path("trail.jsonl");
    let append = ["export", "--append", file.to_str().expect("text"), "--consistency", "quorum"];
    let first = good(&desk.audit(&[1], &append));
    assert_eq!(first["head"], numbers.len());
    desk.reveal(4).await;
    let part = fs::read_to_string(&file).expect("written");
    fs::write(&file, &part[..part.len() - 40]).expect("written");
    let cut = failure(&desk.verify(&[&file], &[]));
    assert_eq!(cut.0, 1, "{}", cut.1);
    let second = good(&desk.audit(&[2], &append));
    assert_eq!(
        (&second["after"], &second["head"]),
        (&(numbers.len() - 1).into(), &(numbers.len() + 4).into())
    );
    let nothing = good(&desk.audit(&[3], &append));
    assert_eq!(nothing["records"], 0);

    let index = desk.settled().await;
    let whole = desk.export(3, index, &[]);
    let resumed = fs::read_to_string(&file).expect("written");
    let records: Vec<&str> = resumed.lines().filter(|line| line.starts_with(r#"{"type":"record""#)).collect();
    assert_eq!(records, whole[1..], "resumed, it is the whole");
    assert_eq!(
        resumed.lines().count(),
        records.len() + 2,
        "a checkpoint for each time there was something new"
    );

    let held = good(&desk.verify(&[&file], &["--against"]));
    assert_eq!((&held["verified"], &held["head"]), (&true.into(), &(records.len()).into()));
    assert_eq!(held["signed_by"], serde_json::json!([1, 2]));
    // The same as two files, and a part alone.
    let after = numbers.len().to_string();
    let (old, new) = (
        desk.file("old.jsonl", &exports[1]),
        desk.file("new.jsonl", &desk.export(2, index, &["--after", &after])),
    );
    assert_eq!(good(&desk.verify(&[&old, &new], &[]))["records"], records.len());
    assert_eq!(good(&desk.verify(&[&new], &["--after", &after]))["records"], 4);
    assert_found(&desk.verify(&[&new], &[]), 1, "deleted");
    assert_found(&desk.verify(&[&new, &old], &[]), 1, "reordered");

    // Offline: nobody is asked, the CA is enough.
    let ca = desk.test.cluster.layout().profile("auditor").join("ca.crt");
    let mut offline = std::process::Command::new(program());
    offline.args(["audit", "verify", "--ca"]).arg(ca).arg(&file).args(["--output", "json"]);
    for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT"] {
        offline.env_remove(variable);
    }
    assert_eq!(good(&run(offline, ""))["records"], records.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_an_export_is_found_and_named() {
    let desk = Desk::new().await;
    let index = desk.settled().await;
    let export = desk.export(1, index, &[]);
    let last = export.len() as u64 - 1;
    let whole = desk.file("whole.jsonl", &export);
    assert_eq!(good(&desk.verify(&[&whole], &["--expect-seq", &last.to_string()]))["signed_to"], last);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut forged = export.clone();
        change(&mut forged);
        forged
    };

    // Line n holds record n: the checkpoint is line 0.
    desk.assert_found(&with(&|lines| drop(lines.remove(3))), 3, "deleted");
    desk.assert_found(&with(&|lines| lines.swap(2, 5)), 2, "reordered");
    desk.assert_found(&with(&|lines| lines.insert(4, lines[6].clone())), 4, "inserted");
    desk.assert_found(&with(&|lines| lines.insert(2, "{}".to_owned())), 2, "inserted");
    let allowed = |lines: &mut Vec<String>| lines[6] = lines[6].replace("allowed", "denied");
    desk.assert_found(&with(&allowed), 6, "altered");
    let elsewhere =
        |lines: &mut Vec<String>| lines[4] = lines[4].replace("\"address\":\"", "\"address\":\"1");
    desk.assert_found(&with(&elsewhere), 4, "altered");
    desk.assert_found(&with(&|lines| lines.truncate(6)), 6, "truncated");
    desk.assert_found(&with(&|lines| lines.truncate(1)), 1, "truncated");
    desk.assert_found(&with(&|lines| drop(lines.remove(0))), 1, "unsigned");

    // Without the checkpoint the chain alone holds, and what is known otherwise shows what is missing.
    let unsigned = desk.file(
        "unsigned.jsonl",
        &with(&|lines| {
            lines.remove(0);
            lines.truncate(5);
        }),
    );
    assert_eq!(good(&desk.verify(&[&unsigned], &["--chain-only"]))["signed_to"], Value::Null);
    assert_found(
        &desk.verify(&[&unsigned], &["--chain-only", "--expect-seq", &last.to_string()]),
        6,
        "truncated",
    );
    assert_found(&desk.verify(&[&unsigned], &["--chain-only", "--against"]), 6, "truncated");

    // A checkpoint that was changed, or moved to another record.
    let forged = with(&|lines| {
        lines[0] = lines[0].replacen(&format!("\"seq\":{last}"), &format!("\"seq\":{}", last - 1), 1)
    });
    let (code, error) = failure(&desk.verify(&[&desk.file("forged.jsonl", &forged)], &[]));
    assert_eq!(code, 1, "{error}");
    assert!(error["message"].as_str().expect("said").contains("line 1: the checkpoint of record"), "{error}");

    // By somebody who knows how records are hashed; with nothing new in the cluster, and with something new.
    let mut record = line::parse(export.last().expect("one")).expect("a record").record;
    record.by.name = "somebody-else".to_owned();
    let foreign = with(&|lines| {
        lines.pop();
        lines.push(line::render(&record));
    });
    desk.assert_found(&foreign, last, "altered");
    let unsigned = desk.file("foreign.jsonl", &foreign[1..]);
    assert_found(&desk.verify(&[&unsigned], &["--chain-only", "--against"]), last, "altered");
    // Going on with that is refused, and leaves it as it is.
    let before = fs::read(&unsigned).expect("there");
    for more in [0, 1] {
        desk.reveal(more).await;
        let append = ["export", "--consistency", "quorum", "--append", unsigned.to_str().expect("text")];
        let (code, error) = failure(&desk.audit(&ALL, &append));
        let message = error["message"].as_str().expect("said");
        assert!(code == 1 && message.contains("the trail does not hold: record"), "{code} {message}");
        assert_eq!(fs::read(&unsigned).expect("there"), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_of_the_cluster_is_read_by_auditors_alone_with_and_without_a_quorum() {
    let mut desk = Desk::new().await;
    let index = desk.settled().await;
    let head = desk.export(1, index, &[]).len() as u64 - 1;
    listed(&desk, head);
    refused(&desk);

    let held = good(&desk.audit(&ALL, &["verify"]));
    assert_eq!((&held["verified"], &held["head"]), (&true.into(), &head.into()));
    let nodes = held["nodes"].as_array().expect("nodes");
    assert!(
        nodes.len() == 3 && nodes.iter().all(|node| node["agrees"] == true && node["head"] == head),
        "{nodes:?}"
    );
    assert_found(
        &desk.audit(&ALL, &["verify", "--expect-seq", &(head + 1).to_string()]),
        head + 1,
        "truncated",
    );

    // A survivor alone: what it has is read, exported and verified, and said to be local.
    for node in [1, 2] {
        desk.test.cluster.kill(node).await.expect("killed");
    }
    let list = good(&desk.audit(&[3], &["list", "--limit", "1"]));
    assert_eq!((&list["head"], &list["freshness"]["consistency"]), (&head.into(), &"local".into()));
    assert_eq!(desk.export(3, 0, &[]).len() as u64, head + 1);
    let held = good(&desk.audit(&[3], &["verify"]));
    let agrees: Vec<&Value> =
        held["nodes"].as_array().expect("nodes").iter().map(|node| &node["agrees"]).collect();
    assert_eq!(agrees, [&Value::Null, &Value::Null, &Value::Bool(true)]);
    let (code, _) = failure(&desk.audit(&[3], &["list", "--consistency", "quorum", "--timeout", "5"]));
    assert_eq!(code, 75, "what needs a quorum is not answered without one");
}

fn listed(desk: &Desk, head: u64) {
    let list = |more: &[&str]| {
        let mut list = good(&desk.audit(&ALL, &[&["list", "--consistency", "quorum"], more].concat()));
        let numbers: Vec<u64> = list["records"]
            .as_array()
            .expect("records")
            .iter()
            .map(|one| one["seq"].as_u64().expect("seq"))
            .collect();
        (numbers, list["truncated"].take())
    };
    let all: Vec<u64> = (1..=head).rev().collect();
    assert_eq!(list(&[]), (all.clone(), false.into()));
    assert_eq!(list(&["--limit", "2"]), (vec![head, head - 1], true.into()));
    assert_eq!(list(&["--oldest-first", "--limit", "2"]), (vec![1, 2], true.into()));
    // The last records: three reveals, a denial, a conflict.
    assert_eq!(list(&["--outcome", "denied"]).0, [head, head - 1]);
    assert_eq!(list(&["--machine", "PC-00001", "--outcome", "allowed"]).0, [head - 4]);
    assert_eq!(list(&["--key-id", &desk.keys[1].to_string()]).0, [head - 3]);
    let denied = good(&desk.audit(&ALL, &["list", "--outcome", "denied"]));
    let actor = denied["records"][1]["actor"].as_str().expect("an actor");
    assert!(actor.starts_with("spiffe://test/helpdesk/"), "{actor}");
    assert_eq!(list(&["--actor", actor]).0, [head - 1]);
    assert_eq!(list(&["--source", "quorum"]).0, all);
    assert!(list(&["--source", "degraded"]).0.is_empty());
    let at = denied["records"][1]["time"].as_str().expect("a time");
    let (since, until) = (list(&["--since", at]).0, list(&["--until", at]).0);
    assert_eq!([since, until].concat(), all, "each record is before that time or not");
}

/// Who may not, and what is not well formed.
fn refused(desk: &Desk) {
    for profile in ["operator", "officer", "helpdesk", "helpdesk-advanced", "importer", "agent-PC-0001"] {
        for command in [&["audit", "list"][..], &["audit", "export"], &["audit", "verify"]] {
            let output = desk.test.strongroom(profile, &ALL, command);
            let (code, error) = failure(&output);
            assert_eq!((code, output.stdout.len()), (4, 0), "{profile}: {error}");
            assert!(
                error["message"].as_str().expect("said").ends_with("may not read the audit trail"),
                "{error}"
            );
        }
    }
    let nonsense = desk.file("nonsense.txt", &["hello".to_owned()]);
    let nonsense = nonsense.to_str().expect("text");
    let cases: [(&[&str], &str); 12] = [
        (&["list", "--since", "yesterday"], "time"),
        (&["list", "--key-id", "1234567"], "key_id"),
        (&["list", "--machine", "a b"], "machine"),
        (&["list", "--user", "user1"], "user"),
        (&["list", "--outcome", "maybe"], "outcome"),
        (&["list", "--source", "rumour"], "source"),
        (&["list", "--limit", "0"], "limit"),
        (&["export", "--after", "999999"], "after: at most"),
        (&["export", "--after", "1", "--append", "x"], "--append"),
        (&["export", "--append", nonsense], "not an export"),
        (&["verify", nonsense], "not an export"),
        (&["verify", "/nonexistent/export"], "/nonexistent/export"),
    ];
    for (arguments, says) in cases {
        let (code, error) = failure(&desk.audit(&ALL, arguments));
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error["message"].as_str().expect("said").contains(says), "{arguments:?}: {error}");
    }
}
