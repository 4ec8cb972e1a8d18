//! Compliance over the real ports: any node takes what devices say and makes the reports, with a node down as well, and
//! every node makes the same ones.

mod common;

use std::process::{Command, Output};

use common::*;
use serde_json::{Value, json};
use strongroom::client::{BulkAnswer, Deposit};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{NodeId, Timestamp};
use strongroom::proto::ReportRequest;

const NODE_DOWN: NodeId = 3;
const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// So many milliseconds from now, as it is written.
fn from_now(ms: i64) -> String {
    Timestamp(strongroom::raft::now().0.saturating_add_signed(ms)).to_string()
}

/// An hour ago.
fn before() -> String {
    from_now(-60 * MINUTE_MS as i64)
}

/// Three voters that know of compliance.
async fn cluster() -> TestCluster {
    let test = three_nodes().await;
    let allowed =
        |status: &strongroom::proto::StatusResponse| status.feature_level >= FeatureLevel::COMPLIANCE.0;
    test.cluster.wait_for("the feature level", SOON, &ALL, allowed).await.expect("raised");
    test
}

/// What machine `n` says at `at`: it is encrypted, and its key is the one of `deposit(n)`.
fn document(n: u64, at: &str) -> Value {
    let key = deposit(n).key_id.expect("given").to_string();
    json!({
        "machine": format!("PC-{n:05}"), "at": at, "domain": "CORP", "name": format!("laptop-{n}"),
        "make": "Make", "model": "Model", "type": "portable", "os": "Windows 11",
        "users": [format!(r"CORP\user{n}")],
        "policy": {"enforcement": "enforced", "cipher": "xts-aes-256", "os": "required"},
        "volumes": [
            {"volume": "C:", "kind": "os", "protection": "on", "conversion": "encrypted",
             "method": "xts-aes-256", "protectors": ["tpm", "recovery-password"], "recovery_keys": [key]},
            {"volume": "D:", "kind": "removable", "protection": "off", "conversion": "decrypted", "method": "none"}
        ]
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn done_json(output: Output) -> Value {
    serde_json::from_str(&done(output)).expect("a document")
}

fn put(test: &TestCluster, nodes: &[NodeId], document: &Value) -> Value {
    let put = ["compliance", "put", "-"];
    done_json(test.strongroom_with_input("importer", nodes, &put, &document.to_string()))
}

/// A report of one node as CSV, made once it has applied `index`, and judged at `at` unless it is of the past.
fn csv(test: &TestCluster, profile: &str, node: NodeId, report: &[&str], at: &str, index: u64) -> String {
    csv_of(test, profile, &[node], report, at, index)
}

/// As [`csv`], of one of `nodes`.
fn csv_of(
    test: &TestCluster,
    profile: &str,
    nodes: &[NodeId],
    report: &[&str],
    at: &str,
    index: u64,
) -> String {
    let index = index.to_string();
    let mut arguments = vec!["report"];
    arguments.extend(report);
    arguments.extend(["--format", "csv", "--min-index", &index]);
    // What is on record is not judged.
    if !report.contains(&"--as-of") && report[0] != "recovery-audit" {
        arguments.extend(["--at", at]);
    }
    done(test.strongroom(profile, nodes, &arguments))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_node_down_uploads_and_reports_go_on_and_every_node_makes_the_same_ones() {
    let mut test = cluster().await;
    let importer = test.client("importer", &ALL);
    for n in 1..=4 {
        importer.escrow(&deposit(n)).await.expect("kept");
    }
    // Nobody could open the fifth.
    let early: String = (1..=5).map(|n| format!("{}\n", document(n, &before()))).collect();
    let many = test.strongroom_with_input("importer", &ALL, &["compliance", "put", "-", "--many"], &early);
    assert_eq!(done_json(many)["newest"], 5);
    let (then, later) = (from_now(0), from_now(5 * MINUTE_MS as i64));

    let desk = test.client("helpdesk-advanced", &ALL);
    desk.recover(key(1), "locked out", None).await.expect("shown");
    test.cluster.kill(NODE_DOWN).await.expect("killed");
    let (left, dead_first) = ([1, 2], [NODE_DOWN, 1, 2]);
    let mut opened = document(1, &later);
    opened["volumes"][0]["protection"] = "off".into();
    let outcome = put(&test, &left, &opened);
    assert_eq!((&outcome["outcome"], &outcome["state_changed"]), (&json!("newest"), &json!(true)));
    // The same again, and what is older than that: neither changes anything.
    assert_eq!(put(&test, &left, &opened)["outcome"], "repeated");
    assert_eq!(put(&test, &left, &document(1, &then))["outcome"], "superseded");
    // Nothing new but the time; of endpoints of which the first is dead, singly and as a stream.
    let uploader = test.client("importer", &dead_first);
    let third = [document(3, &later).to_string()];
    assert_eq!(uploader.put_compliance_many(&third).await.expect("taken")[0].outcome, "newest");
    let repeated = uploader.put_compliance(&third[0]).await.expect("taken").outcome.expect("said");
    assert_eq!(repeated.outcome, "repeated");
    let outcome = put(&test, &dead_first, &document(2, &later));
    assert_eq!((&outcome["outcome"], &outcome["state_changed"]), (&json!("newest"), &json!(false)));
    let get = ["compliance", "get", "PC-00001", "--consistency", "quorum"];
    let known = done_json(test.strongroom("auditor", &[2], &get));
    assert_eq!(known["document"]["volumes"][0]["protection"], "off");
    assert_eq!(known["compliance"]["status"], "non-compliant");

    let at = from_now(25 * DAY_MS as i64);
    let reports: [&[&str]; 7] = [
        &["enterprise"],
        &["enterprise", "--details"],
        &["enterprise", "--details", "--as-of", &then],
        &["findings", "--sort", "machine", "--descending"],
        &["stale", "--days", "20", "--sort", "days_silent"],
        &["computer", "PC-00001"],
        &["recovery-audit"],
    ];
    let index = test.cluster.wait_settled(&left).await.expect("settled").nodes[0].applied;
    let meanwhile: Vec<String> =
        reports.iter().map(|report| csv_of(&test, "auditor", &dead_first, report, &at, index)).collect();
    let kinds = ["computer", "enterprise", "enterprise-details", "findings", "recovery-audit", "stale"];
    for kind in kinds {
        // In the order that is given, so that the dead one is tried first.
        let reader = test.client("auditor", &dead_first);
        let machine = if kind == "computer" { "PC-00001" } else { "" };
        let request = ReportRequest {
            report: kind.to_owned(),
            machine: machine.to_owned(),
            ..ReportRequest::default()
        };
        let mut report = reader.report(&request).await.expect("begun");
        assert_eq!(report.header().freshness.as_ref().expect("said").node, 1, "{kind}");
        while report.next().await.expect("it goes on").is_some() {}
        assert!(report.totals().is_some(), "{kind}");
    }
    test.cluster.start(NODE_DOWN).await.expect("started");
    test.cluster.wait_agreed(&ALL).await.expect("agreed");
    for (report, expected) in reports.iter().zip(&meanwhile) {
        for node in ALL {
            let made = csv(&test, "auditor", node, report, &at, index);
            assert_eq!(made, *expected, "{report:?} at node {node}");
        }
    }
    // Who has to name a user is not told of one.
    let details = csv(&test, "helpdesk", 1, reports[1], &at, index);
    assert!(meanwhile[1].contains("user1") && !details.contains("user1"), "{details}");
    let known = text(&test.strongroom("helpdesk", &ALL, &get).stdout);
    assert!(known.contains("PC-00001") && !known.contains("user1"), "{known}");
    let overview: Vec<&str> = meanwhile[0].lines().collect();
    let expected = [r#""status","machines","percent""#, r#""compliant",3,60.0"#, r#""non-compliant",2,40.0"#];
    assert_eq!(overview[..3], expected);
    let row =
        |report: &str, begins: &str| report.lines().any(|line| line.replace('"', "").starts_with(begins));
    assert!(row(&meanwhile[1], "PC-00001,laptop-1,CORP,non-compliant,C: protection-off"), "{}", meanwhile[1]);
    assert!(row(&meanwhile[2], "PC-00001,laptop-1,CORP,compliant"), "as it was: {}", meanwhile[2]);
    assert!(row(&meanwhile[3], "PC-00005,laptop-5,CORP,recovery-key-missing,C:"), "{}", meanwhile[3]);
    assert_eq!(meanwhile[4].lines().count(), 6, "all are silent by then: {}", meanwhile[4]);

    // The audit of recoveries, from the trail: of the one that was while all were there, and of one since.
    let shown = |audit: &str| audit.lines().filter(|row| row.contains(",\"shown\",")).count();
    assert_eq!(shown(&meanwhile[6]), 1, "{}", meanwhile[6]);
    desk.recover(key(2), "locked out too", None).await.expect("shown");
    let index = test.cluster.wait_settled(&ALL).await.expect("settled").nodes[0].applied;
    let audits = ALL.map(|node| csv(&test, "auditor", node, &["recovery-audit"], &at, index));
    let plain = audits[0].replace('"', "");
    assert!(plain.contains("PC-00001,bitlocker-password,locked out") && shown(&audits[0]) == 2);
    assert!(audits.iter().all(|audit| *audit == audits[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_names_what_it_was_made_from_and_keeps_to_its_order_and_limit() {
    let test = cluster().await;
    let told = before();
    let lines: String = (1..=300).map(|n| format!("{}\n", document(n, &told))).collect();
    let many = test.strongroom_with_input("importer", &ALL, &["compliance", "put", "-", "--many"], &lines);
    assert_eq!(done_json(many)["newest"], 300);
    let again = test.strongroom_with_input("importer", &[2], &["compliance", "put", "-", "--many"], &lines);
    assert_eq!(done_json(again)["repeated"], 300);
    test.cluster.wait_settled(&ALL).await.expect("settled");

    let json = |more: &[&str]| -> Vec<Value> {
        let at = ["--at", "2100-03-01T00:00:00Z"];
        let report = [&["report", "enterprise", "--details", "--format", "json"], &at[..], more].concat();
        let printed = done(test.strongroom("officer", &[2], &report));
        printed.lines().map(|line| serde_json::from_str(line).expect("a document a line")).collect()
    };
    let all = json(&[]);
    let header = &all[0]["header"];
    assert_eq!(header["freshness"]["node"], 2);
    assert_eq!(header["freshness"]["consistency"], "local");
    assert!(header["freshness"]["applied"].as_u64() > Some(0));
    assert_eq!(header["at"], "2100-03-01T00:00:00.000Z");
    assert_eq!(all[301], json!({"totals": {"rows": 300, "machines": 300, "truncated": false, "next": null}}));
    assert_eq!(all[1]["row"]["machine"], "PC-00001");
    assert_eq!(all[1]["row"]["users"], json!([r"CORP\user1"]));
    let page = json(&["--after", "PC-00100", "--limit", "2"]);
    let machines: Vec<&Value> = page[1..3].iter().map(|row| &row["row"]["machine"]).collect();
    assert_eq!(machines, ["PC-00101", "PC-00102"]);
    let totals = json!({"rows": 2, "machines": 2, "truncated": true, "next": "PC-00102"});
    assert_eq!(page[3], json!({"totals": totals}));
    let sorted = json(&["--sort", "computer_name", "--descending", "--limit", "1"]);
    assert_eq!(sorted[1]["row"]["computer_name"], "laptop-99");
    assert_eq!(json(&["--machine", "LAPTOP-29?"]).len(), 12);

    pages_of_findings_leave_nothing_out(&test);
    let judged = ["report", "recovery-audit", "--at", "2100-03-01T00:00:00Z"];
    let (code, error) = failure(&test.strongroom("auditor", &ALL, &judged));
    assert!(code == 2 && error["message"].as_str().expect("words").starts_with("at: left out"), "{error}");

    let table = ["report", "enterprise", "--details", "--format", "table"];
    let table = done(test.strongroom("operator", &ALL, &table));
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let found = std::fs::read_dir(test.cluster.layout().node(2).expect("a node").data_path().join("reports"));
    assert_eq!(found.expect("a folder").count(), 0, "nothing is left of them");
}

/// Of machines of which each has two encrypted drives and no key in escrow.
fn pages_of_findings_leave_nothing_out(test: &TestCluster) {
    const MACHINES: usize = 3;
    for n in 0..MACHINES {
        let mut open = document(1, &before());
        open["machine"] = format!("PG-{n}").into();
        open["volumes"][1] = open["volumes"][0].clone();
        open["volumes"][1]["volume"] = "D:".into();
        put(test, &[2], &open);
    }
    let page = |more: &[&str]| -> (Vec<Value>, Value) {
        let report = ["report", "findings", "--machine", "PG-?", "--format", "json"];
        let printed = done(test.strongroom("officer", &[2], &[&report[..], more].concat()));
        let mut lines: Vec<Value> =
            printed.lines().map(|line| serde_json::from_str(line).expect("a document a line")).collect();
        let totals = lines.pop().expect("totals")["totals"].clone();
        (lines.split_off(1), totals)
    };
    let (all, totals) = page(&[]);
    assert!(all.len() >= 2 * MACHINES, "several of a machine: {all:?}");
    assert_eq!((&totals["truncated"], &totals["next"]), (&json!(false), &Value::Null));
    let (mut paged, mut pages, mut after) = (Vec::new(), 0, "PC-1".to_owned());
    loop {
        let (rows, totals) = page(&["--limit", "1", "--after", &after]);
        paged.extend(rows);
        pages += 1;
        assert_eq!(totals["machines"], 1, "{totals}");
        match totals["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!((paged, pages), (all, MACHINES));
    let (sorted, totals) = page(&["--limit", "1", "--sort", "drive"]);
    assert_eq!((sorted.len(), &totals["truncated"], &totals["next"]), (1, &json!(true), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_what_the_table_says() {
    let test = cluster().await;
    put(&test, &ALL, &document(1, &before()));
    let file = test.dir.path().join("policy.json");
    std::fs::write(&file, "{}").expect("written");
    let policy = file.to_str().expect("a path");
    let asked = ["compliance", "exempt", "request", "PC-00001", "--reason", "to be decided about"];
    done(test.strongroom("helpdesk", &ALL, &asked));
    let own = json!({"machine": "PC-0001", "at": before(), "policy": {"enforcement": "enforced"},
        "volumes": []});
    let own =
        test.strongroom_with_input("agent-PC-0001", &ALL, &["compliance", "put", "-"], &own.to_string());
    assert_eq!(done_json(own)["outcome"], "newest", "an agent speaks for the machine that it is");
    let document = document(1, &from_now(0)).to_string();
    // put, put many, get, report, recovery audit, request an exemption, decide about one, set the policy
    let table = [
        ("agent-PC-0001", "........"),
        ("auditor", "..xxx..."),
        ("helpdesk", "..xx.x.."),
        ("helpdesk-advanced", "..xx.x.."),
        ("importer", "xx......"),
        ("officer", "..xx..xx"),
        ("operator", "..xx.x.."),
    ];
    let commands: [&[&str]; 8] = [
        &["compliance", "put", "-"],
        &["compliance", "put", "-", "--many"],
        &["compliance", "get", "PC-00001"],
        &["report", "enterprise"],
        &["report", "recovery-audit"],
        &["compliance", "exempt", "request", "PC-00001", "--reason", "the table of roles"],
        &["compliance", "exempt", "reject", "PC-00001"],
        &["compliance", "policy", "set", policy],
    ];
    for (profile, expected) in table {
        let mut allowed = String::new();
        for arguments in commands {
            let output = test.strongroom_with_input(profile, &ALL, arguments, &document);
            allowed.push(match output.status.code() {
                Some(0) => 'x',
                Some(4) => '.',
                code => panic!("{profile} {arguments:?}: {code:?} {}", text(&output.stderr)),
            });
        }
        assert_eq!(allowed, expected, "{profile}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exemption_is_asked_for_granted_until_a_date_and_ended() {
    let test = cluster().await;
    let mut open = document(1, &before());
    open["volumes"][0]["conversion"] = "decrypted".into();
    put(&test, &ALL, &open);
    let exempt = |profile: &str, arguments: &[&str]| {
        done_json(test.strongroom(profile, &ALL, &[&["compliance", "exempt"], arguments].concat()))
    };
    let status = || {
        let csv = ["report", "enterprise", "--details", "--format", "csv", "--consistency", "quorum"];
        let printed = done(test.strongroom("officer", &ALL, &csv));
        let row = printed.lines().nth(1).expect("a row").replace('"', "");
        row.split(',').nth(3).expect("a status").to_owned()
    };
    assert_eq!(status(), "non-compliant");
    let asked =
        exempt("helpdesk", &["request", "PC-00001", "--reason", "test bench", "--until", "2100-01-01"]);
    let listed = exempt("officer", &["list", "--waiting", "--consistency", "quorum"]);
    assert_eq!(listed["exemptions"][0]["exemption"], asked["exemption"]);
    let granted = exempt("officer", &["grant", "PC-00001"]);
    assert_eq!(granted["reason"], "test bench", "who decides by the machine alone sees about what");
    assert_eq!(granted["asked_by"], listed["exemptions"][0]["asked_by"]);
    assert_eq!(exempt("auditor", &["list", "--consistency", "quorum"])["exemptions"][0]["state"], "granted");
    let known = done_json(test.strongroom(
        "helpdesk",
        &ALL,
        &["compliance", "get", "PC-00001", "--consistency", "quorum"],
    ));
    assert_eq!(known["compliance"]["status"], "temporarily-exempt");
    exempt("officer", &["revoke", "PC-00001"]);
    let again = test.strongroom("officer", &ALL, &["compliance", "exempt", "revoke", "PC-00001"]);
    assert_eq!(failure(&again).0, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_judges_every_machine_anew() {
    let test = cluster().await;
    test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
    put(&test, &ALL, &document(1, &before()));
    let overview = || {
        let csv = ["report", "enterprise", "--format", "csv", "--consistency", "quorum"];
        done(test.strongroom("officer", &ALL, &csv))
    };
    assert!(overview().contains("\n\"compliant\",1,100.0"));
    let file = test.dir.path().join("policy.json");
    std::fs::write(&file, r#"{"os_protectors": ["tpm-pin"]}"#).expect("written");
    let set =
        test.strongroom("officer", &ALL, &["compliance", "policy", "set", file.to_str().expect("a path")]);
    assert_eq!(done_json(set)["version"], 1);
    assert!(overview().contains("\n\"non-compliant\",1,100.0"));
    let shown =
        test.strongroom("auditor", &ALL, &["compliance", "policy", "show", "--consistency", "quorum"]);
    assert_eq!(done_json(shown)["policy"]["os_protectors"], json!(["tpm-pin"]));
    let stale = test.strongroom(
        "officer",
        &ALL,
        &["compliance", "policy", "set", file.to_str().expect("a path"), "--replaces", "0"],
    );
    // The same policy again is no conflict; another one would be.
    done(stale);
    std::fs::write(&file, "{}").expect("written");
    let conflict = ["compliance", "policy", "set", file.to_str().expect("a path"), "--replaces", "0"];
    assert_eq!(failure(&test.strongroom("officer", &ALL, &conflict)).0, 5);
}

/// What is found of a machine can be so much that, once for each volume, it would be more than a message takes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_one_machine_fits_one_message_however_much_it_is() {
    const VOLUMES: u64 = 64;
    const MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
    let test = cluster().await;
    let name = |n: u64| format!("{:V<120}{n:08}", "");
    let keys = (0..16 * VOLUMES).map(|n| {
        let (machine, volume) =
            ("PC-0001".parse().expect("an id"), name(n % VOLUMES).parse().expect("an id"));
        (n, Deposit { machine, volume, ..deposit(n) })
    });
    let importer = test.client("importer", &ALL);
    let kept = |_, answer| assert!(matches!(answer, BulkAnswer::Kept(_)), "{answer:?}");
    importer.escrow_many(futures_util::stream::iter(keys), kept).await.expect("all answered");
    // Of none of which the device knows any more.
    let other = key(1_000_000).to_string();
    let volume = |n| {
        json!({"volume": name(n), "kind": "fixed", "protection": "on", "conversion": "encrypted",
            "method": "xts-aes-256", "protectors": ["recovery-password"], "recovery_keys": [other]})
    };
    let told = json!({"machine": "PC-0001", "at": before(), "policy": {"enforcement": "enforced"},
        "volumes": (0..VOLUMES).map(volume).collect::<Vec<_>>()});
    let put = ["compliance", "put", "-"];
    done(test.strongroom_with_input("agent-PC-0001", &ALL, &put, &told.to_string()));
    let get = ["compliance", "get", "PC-0001", "--consistency", "quorum"];
    let known = done_json(test.strongroom("auditor", &ALL, &get));
    assert_eq!(known["volumes"].as_array().expect("a list").len() as u64, VOLUMES);
    assert!(known["compliance"]["findings"].as_array().expect("a list").len() > 1_000);
    // Which the report says of each volume, and so goes out in parts.
    let report = ["report", "computer", "PC-0001", "--format", "csv", "--consistency", "quorum"];
    let report = done(test.strongroom("auditor", &ALL, &report));
    assert!(report.len() > MESSAGE_MAX_BYTES, "{} bytes", report.len());
}

/// While a member runs an older release, or is held back: that passes, and so is not what a caller is to give up over.
#[tokio::test(flavor = "multi_thread")]
async fn below_its_feature_level_compliance_is_not_there_yet() {
    let test = three_nodes_with("[upgrade]\nhold_feature_level = 3\n").await;
    let document = document(1, &before()).to_string();
    let own = document.replace("PC-00001", "PC-0001");
    let deposits = "machine,volume,kind,secret\nPC-1,C:,generic,not-shown\n";
    let machines = "machine,name\nPC-1,ada-laptop\n";
    let policy = test.dir.path().join("policy.json");
    std::fs::write(&policy, "{}").expect("written");
    let policy = policy.to_str().expect("a path");
    let commands: [(&str, &[&str], &str); 7] = [
        ("agent-PC-0001", &["compliance", "put", "-"], &own),
        ("importer", &["compliance", "put", "-"], &document),
        ("importer", &["compliance", "put", "-", "--many"], &document),
        ("helpdesk", &["compliance", "exempt", "request", "PC-00001", "--reason", "too early"], ""),
        ("officer", &["compliance", "policy", "set", policy], ""),
        ("importer", &["import", "csv", "-"], deposits),
        ("importer", &["import", "csv", "-"], machines),
    ];
    for (profile, arguments, input) in commands {
        let arguments = [arguments, &["--timeout", "1"]].concat();
        let (code, error) = failure(&test.strongroom_with_input(profile, &ALL, &arguments, input));
        assert_eq!(code, 75, "{arguments:?}: {error}");
        let message = error["message"].as_str().expect("words");
        assert!(message.contains("feature level 4"), "{arguments:?}: {message}");
    }
}

/// Without a cluster: what is wrong is found before a node is asked.
#[test]
fn wrong_input_is_refused_by_the_path_of_the_field() {
    let run = |arguments: &[&str], input: &str| {
        let mut command = Command::new(program());
        command.args(arguments).args([
            "--output",
            "json",
            "--endpoints",
            "127.0.0.1:9",
            "--profile",
            "nowhere",
        ]);
        common::run(command, input)
    };
    let wrong = |arguments: &[&str], input: &str, expected: &str| {
        let (code, error) = failure(&run(arguments, input));
        assert_eq!(code, 2, "{arguments:?}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    };
    let mut document = document(1, &before());
    document["volumes"][1]["percent"] = 101.into();
    wrong(&["compliance", "put", "-"], &document.to_string(), "volumes[1].percent: ");
    wrong(&["compliance", "put", "-"], "{", "document: ");
    wrong(&["compliance", "put", "/nowhere/at-all"], "", "document: /nowhere/at-all");
    wrong(&["compliance", "put", "-", "--from-line", "2"], "", "--many");
    wrong(&["compliance", "get", "a b\n"], "", "MACHINE");
    wrong(&["compliance", "exempt", "request", "PC-1", "--reason", "x", "--until", "soon"], "", "RFC 3339");
    wrong(&["report", "enterprise", "--sort", "colour"], "", "sort: a column of this report: status,");
    wrong(&["report", "enterprise", "--status", "fine"], "", "one of compliant,");
    wrong(&["report", "stale", "--days", "0"], "", "--days");
    wrong(&["report", "findings", "--after", "PC-1", "--sort", "since"], "", "--sort");
    wrong(&["report", "recovery-audit", "--since", "yesterday"], "", "RFC 3339");
    wrong(&["report", "enterprise", "--as-of", "2026-01-01", "--at", "2026-01-01"], "", "--at");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.json");
    std::fs::write(&file, r#"{"minimum_cipher": {"os": "hardware"}}"#).expect("written");
    let set = ["compliance", "policy", "set", file.to_str().expect("a path"), "--check"];
    wrong(&set, "", "policy.minimum_cipher.os: ");
}
