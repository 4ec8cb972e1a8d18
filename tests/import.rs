//! Bulk import over real processes: what is in a file is in the cluster, whoever is killed meanwhile; what is wrong is
//! told by its line; and no secret is in anything that is written on the way.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::*;
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use strongroom::client::{BulkAnswer, Deposit};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{FindRequest, Key, ReadAuditRequest, StatusResponse};
use strongroom::secret::Secret;
use uuid::Uuid;

const HEADER: &str = "machine,volume,kind,key_id,secret,user\n";

async fn bulk_cluster() -> TestCluster {
    let test = three_nodes().await;
    let allowed =
        |status: &StatusResponse| status.feature_level >= FeatureLevel::BULK.0 && status.leader.is_some();
    test.cluster.wait_for("the feature level", SOON, &ALL, allowed).await.expect("raised by itself");
    test
}

fn text(secret: &Secret) -> &str {
    secret.expose_text().expect("a password")
}

/// The line of a table for key `n`.
fn line(n: u64) -> String {
    let Deposit { machine, volume, kind, key_id, secret, user, .. } = deposit(n);
    let (key_id, user) = (key_id.expect("given"), user.expect("given"));
    format!("{machine},{volume},{kind},{key_id},{},{user}\n", text(&secret))
}

fn table(keys: impl IntoIterator<Item = u64>) -> String {
    HEADER.to_owned() + &keys.into_iter().map(line).collect::<String>()
}

/// The recovery object of key `n`, with a package, as `ldifde` exports it.
fn object(n: u64) -> String {
    let Deposit { machine, key_id, secret, .. } = deposit(n);
    let id = key_id.expect("given").0;
    let base64 = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let package = base64(&package(n));
    let (first, rest) = package.split_at(50);
    format!(
        "dn: CN=2026-01-31T10:15:30-00:00{{{}}},CN={machine},OU=Laptops,DC=corp,\r\n DC=example\r\nchangetype: add\r\n\
         objectClass: top\r\nobjectClass: msFVE-RecoveryInformation\r\nmsFVE-KeyPackage:: {first}\r\n {rest}\r\n\
         msFVE-RecoveryGuid:: {}\r\nmsFVE-RecoveryPassword: {}\r\nmsFVE-VolumeGuid:: {}\r\n\r\n",
        id.to_string().to_uppercase(),
        base64(&id.to_bytes_le()),
        text(&secret),
        base64(&Uuid::from_u128(n.into()).to_bytes_le()),
    )
}

fn package(n: u64) -> Vec<u8> {
    (0..200).map(|byte: u8| byte ^ n as u8).collect()
}

async fn found(test: &TestCluster, node: NodeId, n: u64) -> Vec<Key> {
    let key_id = deposit(n).key_id.expect("given").to_string();
    let request = FindRequest { key_id_prefix: key_id, ..FindRequest::default() };
    test.client("auditor", &[node]).find(&request).await.expect("a local read").keys
}

/// Waits until `node` has key `n`.
async fn arrives(test: &TestCluster, node: NodeId, n: u64) {
    let deadline = Instant::now() + SOON;
    while found(test, node, n).await.is_empty() {
        assert!(Instant::now() < deadline, "key {n} does not arrive at node {node}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// That `node` holds these keys as they were in the file.
async fn assert_imported(test: &TestCluster, node: NodeId, keys: impl IntoIterator<Item = u64>) {
    let client = test.client("auditor", &[node]);
    let lookups = keys.into_iter().map(|n| {
        let client = client.clone();
        async move {
            let Deposit { machine, volume, kind, key_id, user, .. } = deposit(n);
            let key_id = key_id.expect("given").to_string();
            let request = FindRequest { key_id_prefix: key_id.clone(), ..FindRequest::default() };
            let keys = client.find(&request).await.expect("a local read").keys;
            assert_eq!(keys.len(), 1, "key {n} at node {node}");
            let key = &keys[0];
            assert_eq!((&key.machine, &key.volume), (&machine.to_string(), &volume.to_string()));
            assert_eq!((&key.kind, &key.key_id), (&kind.to_string(), &key_id));
            assert_eq!(key.users, [user.expect("given").to_string()]);
        }
    });
    futures_util::stream::iter(lookups).buffer_unordered(16).collect::<()>().await;
}

/// An import that reads what it is given bit by bit.
struct Fed(Child);

impl Fed {
    /// Begins at `node`, by its zone, and knows the others.
    fn start(test: &TestCluster, node: NodeId) -> Self {
        let arguments = ["import", "csv", "-", "--timeout", "60", "--zone", &format!("zone-{node}")];
        let mut command = test.command(&test.cluster.layout().profile("importer"), &ALL, &arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }

    fn feed(&mut self, text: &str) {
        let input = self.0.stdin.as_mut().expect("piped");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("it reads");
    }

    fn finish(mut self) -> Output {
        drop(self.0.stdin.take());
        self.0.wait_with_output().expect("it ends")
    }
}

fn summary(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&stdout)
        .unwrap_or_else(|_| panic!("no summary: {stdout}{}", String::from_utf8_lossy(&output.stderr)))
}

fn counts(output: &Output) -> [u64; 4] {
    let summary = summary(output);
    ["records", "kept", "already_escrowed", "rejected"].map(|name| summary[name].as_u64().expect("a count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_over_the_loss_of_the_leader_and_of_its_own_node_and_again_keeps_nothing_twice() {
    const PART: u64 = 300;
    let mut test = bulk_cluster().await;
    let leader = test.leader().await;
    let own = ALL.into_iter().find(|id| *id != leader).expect("three");
    let third = ALL.into_iter().find(|id| ![leader, own].contains(id)).expect("three");

    let mut import = Fed::start(&test, own);
    import.feed(&table(1..=PART));
    arrives(&test, own, PART).await;
    test.cluster.kill(leader).await.expect("killed");
    import.feed(&(PART + 1..=2 * PART).map(line).collect::<String>());
    arrives(&test, own, 2 * PART).await;
    test.cluster.start(leader).await.expect("comes back");
    test.cluster.wait_settled(&ALL).await.expect("caught up");
    test.cluster.kill(own).await.expect("killed");
    import.feed(&(2 * PART + 1..=3 * PART).map(line).collect::<String>());
    let output = import.finish();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    // What was sent to a node before it was killed may have been kept, and is answered by another one as kept before.
    let [records, kept, before, rejected] = counts(&output);
    assert_eq!((records, kept + before, rejected), (3 * PART, 3 * PART, 0), "{said}");
    assert_eq!(said, "", "nobody watches");

    test.cluster.start(own).await.expect("comes back");
    test.cluster.wait_settled(&ALL).await.expect("caught up");
    for node in [leader, own, third] {
        assert_imported(&test, node, 1..=3 * PART).await;
    }
    let desk = test.client("helpdesk-advanced", &[third]);
    for n in [1, PART + 1, 3 * PART] {
        let key_id = deposit(n).key_id.expect("given");
        let recovered = desk.recover(key_id, "locked out", None).await.expect("kept");
        assert!(same(&recovered.secret, &deposit(n).secret));
    }

    // The same again, and from a line in the middle, as whoever was interrupted does it.
    let file = test.dir.path().join("keys.csv");
    std::fs::write(&file, table(1..=3 * PART)).expect("written");
    let file = file.to_str().expect("UTF-8");
    let again = test.strongroom("importer", &ALL, &["import", "csv", file]);
    assert_eq!(counts(&again), [3 * PART, 0, 3 * PART, 0]);
    // Line 1 is the header.
    let rest = test.strongroom("importer", &ALL, &["import", "csv", file, "--from-line", "802"]);
    assert_eq!(counts(&rest), [100, 0, 100, 0]);
    assert_eq!(summary(&rest)["skipped"], 800);
}

/// Where output of a run is gathered, to be searched for secrets.
#[derive(Default)]
struct Written(Vec<(String, Vec<u8>)>);

impl Written {
    fn note(&mut self, what: &str, output: Output) -> Output {
        self.0.push((format!("standard output of {what}"), output.stdout.clone()));
        self.0.push((format!("standard error of {what}"), output.stderr.clone()));
        output
    }

    fn file(&mut self, path: &Path) -> String {
        let bytes = std::fs::read(path).expect("it is there");
        self.0.push((path.display().to_string(), bytes.clone()));
        String::from_utf8(bytes).expect("UTF-8")
    }

    fn assert_no_secret(&self, keys: &[u64]) {
        for n in keys {
            let secret = deposit(*n).secret;
            // Part of one is too much, in groups or without them.
            let beginning = &text(&secret)[..20];
            let digits = beginning.replace('-', "");
            for (what, bytes) in &self.0 {
                let written = String::from_utf8_lossy(bytes);
                assert!(!written.contains(beginning) && !written.contains(&digits), "{what} shows a secret");
            }
        }
    }
}

/// A table and an export in which some records are wrong.
fn spoilt_files(test: &TestCluster) -> [String; 2] {
    let contradiction = line(1).replace(text(&deposit(1).secret), text(&deposit(9).secret));
    let misspelt = line(7).replace(text(&deposit(7).secret), &text(&deposit(7).secret)[..54]);
    let two_volumes = line(8).replace("C:", "C: D:");
    let csv = [table([1, 2]), misspelt, contradiction, line(3), line(2), two_volumes].concat();
    let computer = "dn: CN=PC-00005,OU=Laptops,DC=corp,DC=example\r\nobjectClass: computer\r\n\r\n";
    let other_id = object(7).replace("msFVE-RecoveryGuid:: ", "msFVE-RecoveryGuid:: AA");
    let ldif = [computer, &object(5), &other_id, &object(6)].concat();
    [("keys.csv", csv), ("export.ldf", ldif)].map(|(name, content)| {
        let path = test.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_asks_nobody_and_whoever_may_not_import_changes_nothing() {
    let test = bulk_cluster().await;
    let mut written = Written::default();
    let [csv, ldif] = spoilt_files(&test);
    let before = test.client("operator", &ALL).status().await.expect("status");
    for (format, file, expected) in [("csv", &csv, [7, 0, 0, 2]), ("ldif", &ldif, [4, 0, 0, 1])] {
        // It needs neither endpoints nor a profile.
        let mut command = Command::new(program());
        command.args(["import", format, file, "--dry-run", "--output", "json"]);
        for name in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE"] {
            command.env_remove(name);
        }
        let output = written.note("a dry run", run(command, ""));
        assert_eq!((counts(&output), output.status.code()), (expected, Some(1)));
        assert_eq!(summary(&output)["dry_run"], true);
    }
    for profile in ["operator", "agent-PC-0001", "officer"] {
        let output = test.strongroom(profile, &ALL, &["import", "ldif", &ldif]);
        let (code, error) = failure(&written.note("a denied run", output));
        assert_eq!(code, 4, "{error}");
        assert!(
            error["message"].as_str().expect("words").contains("may not import keys and machines"),
            "{error}"
        );
    }
    let after = test.client("operator", &ALL).status().await.expect("status");
    let states = |status: &StatusResponse| -> Vec<_> {
        status.nodes.iter().map(|node| (node.applied, node.digest.clone())).collect()
    };
    assert_eq!(states(&before), states(&after), "nothing has changed");
    for node in ALL {
        written.0.push((format!("the log of node {node}"), test.log(node).into_bytes()));
    }
    written.assert_no_secret(&[1, 2, 3, 5, 6, 7, 8, 9]);
}

/// That the report names these lines, and `test` holds the contradiction on record once.
async fn assert_reported(test: &TestCluster, report: &str) {
    let mut lines: Vec<Value> =
        report.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    lines.sort_by_key(|line| line["line"].as_u64());
    let told: Vec<_> = lines
        .iter()
        .map(|told| (told["line"].as_u64(), told["code"].as_str(), told["field"].as_str()))
        .collect();
    let (invalid, conflict) = (Some("invalid"), Some("conflict"));
    let expected =
        [(Some(4), invalid, Some("secret")), (Some(5), conflict, None), (Some(8), invalid, Some("volume"))];
    assert_eq!(told, expected);
    assert_eq!(lines[1]["machine"], "PC-00001");
    let mut trail =
        test.client("auditor", &ALL).read_audit(&ReadAuditRequest::default()).await.expect("read");
    let mut conflicts = 0;
    while let Some(page) = trail.next().await.expect("read") {
        conflicts += page.records.iter().filter(|record| record.line.contains("PC-00001")).count();
    }
    assert_eq!(conflicts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_file_is_told_by_its_line_and_no_secret_is_written_anywhere() {
    let mut test = bulk_cluster().await;
    let mut written = Written::default();
    let [csv, ldif] = spoilt_files(&test);
    let rejected_csv: PathBuf = test.dir.path().join("rejected.jsonl");
    let rejected = rejected_csv.to_str().expect("UTF-8");
    let arguments = ["import", "csv", &csv, "--rejected-out", rejected];
    let output = written.note("the table", test.strongroom("importer", &ALL, &arguments));
    let (code, error) = failure(&output);
    assert_eq!((code, counts(&output)), (1, [7, 3, 1, 3]), "{error}");
    assert_reported(&test, &written.file(&rejected_csv)).await;
    // The report of a run is not lost to the next.
    let (code, error) = failure(&written.note("a second run", test.strongroom("importer", &ALL, &arguments)));
    assert_eq!(code, 5, "{error}");
    let mut trail =
        test.client("auditor", &ALL).read_audit(&ReadAuditRequest::default()).await.expect("read");
    let mut conflicts = 0;
    while let Some(page) = trail.next().await.expect("read") {
        conflicts += page.records.iter().filter(|record| record.line.contains("PC-00001")).count();
    }
    assert_eq!(conflicts, 1);

    let output = written.note("the export", test.strongroom("importer", &ALL, &["import", "ldif", &ldif]));
    let (code, error) = failure(&output);
    assert_eq!((code, counts(&output)), (1, [4, 2, 0, 1]), "{error}");
    assert_eq!(summary(&output)["machines_noted"], 1, "the computer that one of the keys lies under");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("line 15: msFVE-RecoveryGuid: base64 with its padding"), "{said}");
    let desk = test.client("helpdesk-advanced", &ALL);
    for n in [5, 6] {
        let key_id = deposit(n).key_id.expect("given");
        let recovered = desk.recover_with(key_id, "locked out", None, true).await.expect("kept");
        assert!(same(&recovered.secret, &deposit(n).secret));
        assert_eq!(recovered.package.expect("kept").expose(), package(n));
        assert_eq!(recovered.details.machine, format!("PC-{n:05}"));
        assert_eq!(recovered.details.volume, Uuid::from_u128(n.into()).to_string());
    }

    // Without a quorum: not now, and where to go on.
    for node in [2, 3] {
        test.cluster.kill(node).await.expect("killed");
    }
    let output = test.strongroom("importer", &[1], &["import", "csv", &csv, "--timeout", "4"]);
    let (code, error) = failure(&written.note("a run without a quorum", output));
    assert_eq!(code, 75, "{error}");
    assert!(error["hint"].as_str().expect("a hint").contains("--from-line 1 "), "{error}");
    for node in ALL {
        written.0.push((format!("the log of node {node}"), test.log(node).into_bytes()));
    }
    written.assert_no_secret(&[1, 2, 3, 5, 6, 7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_read_and_the_library_call() {
    let test = bulk_cluster().await;
    let path = |name: &str| test.dir.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("other.csv"), "name,secret\nPC-1,hunter2\n").expect("written");
    let utf16: Vec<u8> = table([1]).encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(path("utf16.csv"), utf16).expect("written");
    let rejected = path("rejected.jsonl");
    for (file, says) in [
        (path("missing.csv"), "file: cannot read it"),
        (path("other.csv"), "line 1: header: column 1"),
        (path("utf16.csv"), "UTF-16"),
    ] {
        let arguments = ["import", "csv", &file, "--rejected-out", &rejected];
        let (code, error) = failure(&test.strongroom("importer", &ALL, &arguments));
        assert_eq!(code, 2, "{error}");
        assert!(!Path::new(&rejected).exists(), "it would be in the way of the next run");
        let message = error["message"].as_str().expect("words");
        assert!(message.contains(says) && !message.contains("hunter2"), "{error}");
    }

    // More than fit in one window, some twice, some without an id, one too large for a batch beside others.
    let mut deposits: Vec<_> = (1..=3_000).map(deposit).collect();
    deposits[10] = Deposit { key_id: None, ..deposit(1) };
    for n in (20..2_000).step_by(100) {
        deposits[n].package = Some(Secret::new(vec![n as u8; 60_000]));
    }
    deposits[30].pending = true;
    let count = deposits.len();
    let mut answers = Vec::new();
    let client = test.client("importer", &ALL);
    let stream = futures_util::stream::iter(deposits.into_iter().enumerate());
    client.escrow_many(stream, |n, answer| answers.push((n, answer))).await.expect("all answered");
    assert_eq!(answers.len(), count);
    for (place, (n, answer)) in answers.iter().enumerate() {
        assert_eq!(place, *n, "answers come in the order of the records");
        match answer {
            BulkAnswer::Kept(kept) => {
                let expected = if *n == 10 { deposit(1).key_id } else { deposit(*n as u64 + 1).key_id };
                assert_eq!(Some(kept.key_id), expected);
                assert!(kept.index > 0 && kept.term > 0);
            }
            BulkAnswer::Refused(refused) => {
                assert_eq!((*n, refused.field.as_deref()), (30, Some("pending")), "{refused:?}");
            }
        }
    }
    // A receipt of any of them is had by escrowing it once more, by itself.
    let receipt = client.escrow(&deposit(2)).await.expect("kept");
    let BulkAnswer::Kept(kept) = &answers[1].1 else { panic!("kept") };
    assert!(receipt.already_escrowed);
    assert_eq!(
        (receipt.term, receipt.index, receipt.fingerprint, receipt.at),
        (kept.term, kept.index, kept.fingerprint, kept.at)
    );
    let none = futures_util::stream::empty::<((), Deposit)>();
    client.escrow_many(none, |(), _| unreachable!()).await.expect("nothing to do");
    let agent = test.client("agent-PC-0001", &ALL);
    let own = Deposit { machine: "PC-0001".parse().expect("an id"), ..deposit(1) };
    let denied = agent.escrow_many(futures_util::stream::iter([((), own)]), |(), _| unreachable!()).await;
    assert!(matches!(denied, Err(strongroom::client::ClientError::Denied(_))), "{denied:?}");
}

fn signal(test: &TestCluster, node: NodeId, signal: Signal) {
    let pid = test.cluster.pid(node).expect("it runs");
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

/// How many secrets `node` has sealed again.
async fn sealed_again(test: &TestCluster, node: NodeId) -> u64 {
    let (_, page) = test.page(node, "/metrics").await;
    let lines = page.lines().filter_map(|line| line.strip_prefix("strongroom_escrows_sealed_again_total "));
    lines.map(|value| value.parse::<f64>().expect("a number") as u64).next().expect("it is counted")
}

/// A node that is held still while the data key is rotated seals what waits in it with the old one; whole batches of it
/// are sealed again, which the importer does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lagging_node_seals_with_an_old_data_key_is_sealed_again() {
    const PART: u64 = 500;
    const ROUNDS: u64 = 8;
    let test = bulk_cluster().await;
    let leader = test.leader().await;
    let lagging = ALL.into_iter().find(|id| *id != leader).expect("three");
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != lagging).collect();
    let mut import = Fed::start(&test, lagging);
    import.feed(&table([1]));
    arrives(&test, lagging, 1).await;
    let mut last = 1;
    // Which comes first when it wakes up, the records or the entry, is up to chance.
    for _ in 0..ROUNDS {
        signal(&test, lagging, Signal::STOP);
        import.feed(&(last + 1..=last + PART).map(line).collect::<String>());
        test.client("operator", &others).rotate_keyring().await.expect("rotated");
        signal(&test, lagging, Signal::CONT);
        last += PART;
        arrives(&test, lagging, last).await;
        if sealed_again(&test, lagging).await > 0 {
            break;
        }
    }
    assert!(sealed_again(&test, lagging).await > 0, "it never sealed with an old key: nothing was tested");
    let output = import.finish();
    let [records, kept, before, rejected] = counts(&output);
    assert_eq!((records, kept + before, rejected), (last, last, 0));
    test.cluster.wait_settled(&ALL).await.expect("equal digests");
    assert_imported(&test, lagging, 1..=last).await;
    let desk = test.client("helpdesk-advanced", &others);
    for n in (2..=last).step_by(50) {
        let recovered =
            desk.recover(deposit(n).key_id.expect("given"), "locked out", None).await.expect("kept");
        assert!(same(&recovered.secret, &deposit(n).secret));
    }
}

/// A report of one machine, after everything that was acknowledged.
fn computer(test: &TestCluster, machine: &str) -> Value {
    let report = ["report", "computer", machine, "--format", "json", "--consistency", "quorum"];
    let output = test.strongroom("officer", &ALL, &report);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let row: Value = serde_json::from_str(printed.lines().nth(1).expect("a row")).expect("JSON");
    row["row"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_a_table_are_known_before_they_report_and_change_nothing_that_a_device_says() {
    const MACHINES: u64 = 1_000;
    let mut test = bulk_cluster().await;
    let path = test.dir.path().join("machines.csv");
    let file = path.to_str().expect("UTF-8");
    let table = |model: &str| {
        let line = |n| format!("PC-{n:05},corp.example,laptop-{n},{model},portable,CORP\\user{n}\n");
        let lines: String = (1..=MACHINES).map(line).collect();
        format!("machine,domain,name,model,type,users\n{lines}PC-1,corp.example,x,y,toaster,\n")
    };
    std::fs::write(&path, table("X13")).expect("written");
    let machines = |output: &Output| {
        let summary = summary(output);
        ["records", "machines_noted", "machines_known", "rejected"]
            .map(|name| summary[name].as_u64().expect("a count"))
    };
    let tried = test.strongroom("importer", &ALL, &["import", "csv", file, "--dry-run"]);
    assert_eq!((machines(&tried), tried.status.code()), ([MACHINES + 1, 0, 0, 1], Some(1)));
    let (code, error) = failure(&test.strongroom("agent-PC-0001", &ALL, &["import", "csv", file]));
    assert!(code == 4 && error["message"].as_str().expect("words").contains("machines"), "{error}");
    assert_eq!(test.strongroom("officer", &ALL, &["report", "computer", "PC-00001"]).status.code(), Some(3));

    // With a node down, which is asked first.
    test.cluster.kill(1).await.expect("killed");
    let arguments = ["import", "csv", file, "--zone", "zone-1"];
    let output = test.strongroom("importer", &ALL, &arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (machines(&output), output.status.code()),
        ([MACHINES + 1, MACHINES, 0, 1], Some(1)),
        "{said}"
    );
    assert!(said.contains("line 1002: type: one of portable,"), "{said}");
    assert_eq!(machines(&test.strongroom("importer", &ALL, &arguments)), [MACHINES + 1, 0, MACHINES, 1]);
    let rest = test.strongroom("importer", &ALL, &["import", "csv", file, "--from-line", "993"]);
    assert_eq!(machines(&rest), [10, 0, 9, 1]);
    let known = computer(&test, "PC-00007");
    assert_eq!((&known["computer_name"], &known["model"]), (&json!("laptop-7"), &json!("X13")));
    assert_eq!((&known["status"], &known["users"]), (&json!("unknown"), &json!([r"CORP\user7"])));
    assert_eq!(known["reported_at"], Value::Null, "an import is no report");

    let told = json!({
        "machine": "PC-00007", "at": "2026-01-31T08:00:00Z", "model": "X15", "users": [r"CORP\ada"],
        "policy": {"enforcement": "enforced"}, "volumes": [],
    });
    let put = test.strongroom_with_input("importer", &ALL, &["compliance", "put", "-"], &told.to_string());
    assert_eq!(put.status.code(), Some(0));
    let reported = computer(&test, "PC-00007");
    std::fs::write(&path, table("X14")).expect("written");
    assert_eq!(machines(&test.strongroom("importer", &ALL, &["import", "csv", file]))[1], MACHINES);
    let known = computer(&test, "PC-00007");
    assert_eq!(known, reported, "what the device said, when, and who was seen on it");
    assert_eq!((&known["model"], &known["computer_name"]), (&json!("X15"), &json!("laptop-7")));
    assert_eq!(known["users"], json!([r"CORP\user7", r"CORP\ada"]));
    assert_eq!(computer(&test, "PC-00008")["model"], "X14");
    test.cluster.start(1).await.expect("started");
    test.cluster.wait_agreed(&ALL).await.expect("agreed");
}
