//! Reports and uploads while nodes die, stop, are full or have no place: whoever knows other nodes notices little, whoever
//! knows no other is told why. Real processes, real kill -9.

mod common;

use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::*;
use rustix::process::{Pid, Signal, kill_process};
use strongroom::client::{Client, ClientError, Report};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{NodeId, Timestamp};
use strongroom::proto::compliance_service_client::ComplianceServiceClient;
use strongroom::proto::{
    Consistency, GetComplianceRequest, PutManyRequest, PutManyResponse, ReportRequest, StatusResponse,
    UploadOutcome,
};
use strongroom::rpc::compliance::UPLOADERS_MAX;
use strongroom::rpc::report::REPORTS_MAX;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// Machines whose report is several times what connections and nodes hold ahead of a reader.
const MACHINES: u64 = 1_200;
/// Longest an upload may look for a node: a busy machine takes long to elect one.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

fn knows_compliance(status: &StatusResponse) -> bool {
    status.feature_level >= FeatureLevel::COMPLIANCE.0 && status.leader.is_some()
}

async fn cluster() -> TestCluster {
    let test = three_nodes().await;
    test.cluster.wait_for("the feature level", SOON, &ALL, knows_compliance).await.expect("raised");
    test
}

/// What machine `n` says: much.
fn document(n: u64, at: Timestamp) -> String {
    let users: Vec<String> = (0..16).map(|user| format!(r"{:D<64}\{user:U>64}", "")).collect();
    serde_json::json!({
        "machine": format!("PC-{n:05}"), "at": at.to_string(), "make": "m".repeat(128), "model": "m".repeat(128),
        "users": users, "policy": {"enforcement": "enforced"},
        "error": {"code": 1, "text": "e".repeat(512)},
        "volumes": [{"volume": "C:", "kind": "os", "protection": "on", "conversion": "encrypted",
            "method": "xts-aes-256", "protectors": ["tpm"]}]
    })
    .to_string()
}

fn documents(count: u64) -> Vec<String> {
    let at = strongroom::raft::now();
    (1..=count).map(|n| document(n, at)).collect()
}

/// That every machine was taken, in the order of the documents.
#[track_caller]
fn assert_all_taken(outcomes: &[UploadOutcome], count: u64) {
    assert_eq!(outcomes.len() as u64, count);
    for (n, outcome) in (1..).zip(outcomes) {
        assert_eq!(outcome.machine, format!("PC-{n:05}"));
        assert!(["newest", "repeated"].contains(&&*outcome.outcome), "{outcome:?}");
    }
}

/// A cluster with [`MACHINES`] machines, which every node has.
async fn loaded() -> TestCluster {
    let test = cluster().await;
    let importer = test.cluster.client_within("importer", &ALL, UPLOAD_TIMEOUT).expect("a client");
    let outcomes = importer.put_compliance_many(&documents(MACHINES)).await;
    assert_all_taken(&outcomes.expect("taken"), MACHINES);
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    test
}

fn details() -> ReportRequest {
    ReportRequest { report: "enterprise-details".to_owned(), ..ReportRequest::default() }
}

/// How many rows are left of a report, which ends with its totals.
async fn rest(report: &mut Report) -> Result<u64, ClientError> {
    let mut rows = 0;
    while let Some(more) = report.next().await? {
        rows += more.len() as u64;
    }
    assert_eq!(report.totals().expect("behind the last row").rows, rows);
    Ok(rows)
}

/// A report that was begun, and waits in the node for its reader.
async fn begun(client: &Client) -> Report {
    client.report(&details()).await.expect("begun")
}

#[track_caller]
fn unavailable<T>(answer: Result<T, ClientError>, why: &str) {
    match answer.map(drop).expect_err("not to be had") {
        error @ (ClientError::Unavailable { .. } | ClientError::Temporary(_)) => {
            assert!(error.to_string().contains(why), "{error}");
        }
        error => panic!("{error:?}"),
    }
}

/// That the command ended with 75, and said why.
#[track_caller]
fn assert_not_now(output: &Output, why: &str) {
    let (code, error) = failure(output);
    assert_eq!(code, 75, "{error}");
    assert!(error["message"].as_str().expect("words").contains(why), "{error}");
}

async fn is_known(client: &Client, n: u64) -> bool {
    let request = GetComplianceRequest { machine: format!("PC-{n:05}"), ..GetComplianceRequest::default() };
    match client.compliance(&request).await {
        Ok(known) => !known.document.is_empty(),
        Err(ClientError::NotFound(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_whose_node_is_killed_go_on_at_another_with_nothing_lost_and_nothing_twice() {
    let mut test = cluster().await;
    let leader = test.leader().await;
    let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != leader).collect();
    // At the leader: what it has taken and not answered may be kept or not.
    let nodes = [leader, others[0], others[1]];
    let importer = test.cluster.client_within("importer", &nodes, UPLOAD_TIMEOUT).expect("a client");
    let documents = documents(MACHINES);
    let sent = documents.clone();
    let uploads = tokio::spawn(async move { importer.put_compliance_many(&sent).await });
    let reader = test.client("auditor", &[others[0]]);
    let deadline = Instant::now() + SOON;
    while !is_known(&reader, MACHINES / 10).await {
        assert!(Instant::now() < deadline, "nothing arrives");
        tokio::time::sleep(POLL).await;
    }
    test.cluster.kill(leader).await.expect("killed");
    assert!(!uploads.is_finished() && !is_known(&reader, MACHINES).await, "in the middle of it");

    let outcomes = uploads.await.expect("no panic").expect("it goes on");
    assert_all_taken(&outcomes, MACHINES);
    test.cluster.start(leader).await.expect("comes back");
    test.cluster.wait_agreed(&ALL).await.expect("all alike");
    // Each of them once, as it was told first, wherever one looks.
    for node in ALL {
        let client = test.client("officer", &[node]);
        let request = ReportRequest { consistency: Consistency::Quorum.into(), ..details() };
        let mut report = client.report(&request).await.expect("begun");
        let columns = report.header().columns.iter();
        let since = columns.clone().position(|column| column.name == "state_since").expect("a column");
        let told = columns.clone().position(|column| column.name == "reported_at").expect("a column");
        let mut machines = Vec::new();
        while let Some(rows) = report.next().await.expect("whole") {
            for row in rows {
                assert_eq!(row.cells[since], row.cells[told], "the state has not changed since");
                machines.push(row.cells[0].clone());
            }
        }
        let expected: Vec<String> = (1..=MACHINES).map(|n| format!("PC-{n:05}")).collect();
        assert!(machines == expected, "{} machines at node {node}", machines.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_finishes_its_reports_and_one_that_is_killed_says_by_their_end_that_it_did_not() {
    let mut test = loaded().await;
    let mut report = begun(&test.client("officer", &[1])).await;
    let pid = test.cluster.pid(1).expect("it runs");
    let pid = Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero");
    kill_process(pid, Signal::TERM).expect("signalled");
    test.wait_for_page(1, "/readyz", |_, reasons| reasons.contains("stopping")).await;
    // No new ones: they are begun elsewhere.
    let elsewhere = test.client("officer", &[1, 2]).report(&details()).await.expect("at the other");
    assert_eq!(elsewhere.header().freshness.as_ref().expect("said").node, 2);
    drop(elsewhere);
    assert_eq!(rest(&mut report).await.expect("what was under way is finished"), MACHINES);
    assert!(test.cluster.stop(1).await.expect("ended"), "by itself, with success");

    let mut report = begun(&test.client("officer", &[2])).await;
    let command = ["report", "enterprise", "--details", "--format", "csv"];
    let mut printing = test.command(&test.cluster.layout().profile("officer"), &[2], &command);
    printing.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut printing = printing.spawn().expect("it starts");
    let mut first = [0; 9];
    printing.stdout.as_mut().expect("piped").read_exact(&mut first).expect("it begins");
    assert_eq!(&first, b"\"machine\"");
    test.cluster.kill(2).await.expect("killed");
    unavailable(rest(&mut report).await, "the report: ");
    // It is not taken for whole, although rows came.
    let printed = printing.wait_with_output().expect("it ends");
    assert!((printed.stdout.iter().filter(|byte| **byte == b'\n').count() as u64) < MACHINES);
    assert_not_now(&printed, "the report: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_a_node_cannot_make_is_made_by_the_next_and_if_none_can_it_says_why() {
    let test = cluster().await;
    let outcomes = test.client("importer", &ALL).put_compliance_many(&documents(3)).await;
    assert_all_taken(&outcomes.expect("taken"), 3);
    test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    let folder = |node| test.cluster.layout().node(node).expect("a node").data_path().join("reports");
    std::fs::remove_dir(folder(1)).expect("empty");
    let mut report = test.client("officer", &ALL).report(&details()).await.expect("at another");
    assert_eq!(report.header().freshness.as_ref().expect("said").node, 2);
    assert_eq!(rest(&mut report).await.expect("whole"), 3);
    // The command prefers it by its zone.
    let command = ["report", "findings", "--format", "csv", "--zone", "zone-1"];
    let printed = test.strongroom("officer", &ALL, &command);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let said = String::from_utf8_lossy(&printed.stderr);
    assert!(["node 2", "node 3"].iter().any(|node| said.contains(node)), "{said}");

    for node in [2, 3] {
        std::fs::remove_dir(folder(node)).expect("empty");
    }
    let output = test.strongroom("officer", &ALL, &command);
    assert_not_now(&output, "data/reports: ");
    let (_, error) = failure(&output);
    for node in ALL {
        let address = test.cluster.layout().node(node).expect("a node").api_address();
        assert!(error["message"].as_str().expect("words").contains(&address), "{error}");
    }
    // What fits in memory needs no file.
    for report in [&["computer", "PC-00001"][..], &["recovery-audit"]] {
        let printed = test.strongroom("auditor", &ALL, &[&["report"], report].concat());
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    }
}

/// A stream of uploads that is left open.
async fn open_stream(
    test: &TestCluster,
    node: NodeId,
) -> Result<(mpsc::Sender<PutManyRequest>, Streaming<PutManyResponse>), tonic::Status> {
    let channel = test.channel("importer", node).await;
    let (requests, messages) = mpsc::channel(1);
    let opened = ComplianceServiceClient::new(channel).put_many(ReceiverStream::new(messages)).await;
    opened.map(|answers| (requests, answers.into_inner()))
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_few_and_who_finds_none_goes_to_another_node() {
    let test = loaded().await;
    let (one, both) = (test.client("officer", &[1]), test.client("officer", &[1, 2]));
    let mut reports = Vec::new();
    for _ in 0..REPORTS_MAX {
        reports.push(begun(&one).await);
    }
    let hasty = test.cluster.client_within("officer", &[1], Duration::from_secs(1)).expect("a client");
    unavailable(hasty.report(&details()).await, "4 reports are served here already");
    let command = ["report", "enterprise", "--timeout", "2"];
    assert_not_now(&test.strongroom("officer", &[1], &command), "4 reports are served here already");
    assert_eq!(begun(&both).await.header().freshness.as_ref().expect("said").node, 2);
    // One that was left gives its place back, and the others are whole.
    drop(reports.pop());
    // Over a connection of its own: theirs waits for their reader.
    let mut next = begun(&test.client("officer", &[1])).await;
    assert_eq!(rest(&mut next).await.expect("whole"), MACHINES);
    for report in &mut reports {
        assert_eq!(rest(report).await.expect("whole"), MACHINES);
    }

    let mut streams = Vec::new();
    for _ in 0..UPLOADERS_MAX {
        streams.push(open_stream(&test, 1).await.expect("there is room"));
    }
    let refused = open_stream(&test, 1).await.map(drop).expect_err("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let hasty = test.cluster.client_within("importer", &[1], Duration::from_secs(1)).expect("a client");
    let documents = documents(1);
    unavailable(hasty.put_compliance_many(&documents).await, "16 streams of uploads are served here already");
    let outcomes = test.client("importer", &[1, 2]).put_compliance_many(&documents).await;
    assert_all_taken(&outcomes.expect("at the other"), 1);
    drop(streams.pop());
    let outcomes = test.client("importer", &[1]).put_compliance_many(&documents).await;
    assert_all_taken(&outcomes.expect("in its place"), 1);
    // No device can take them: it has one machine to speak of.
    let own = document(1, strongroom::raft::now()).replace("PC-00001", "PC-0001");
    let agent = test.client("agent-PC-0001", &ALL);
    let denied = agent.put_compliance_many(std::slice::from_ref(&own)).await;
    assert!(matches!(denied, Err(ClientError::Denied(_))), "{denied:?}");
    agent.put_compliance(&own).await.expect("by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_stopping_ends_streams_of_uploads_which_go_on_elsewhere() {
    let mut test = cluster().await;
    let (_requests, mut answers) = open_stream(&test, 3).await.expect("there is room");
    let began = Instant::now();
    assert!(test.cluster.stop(3).await.expect("ended"), "by itself, with success");
    assert!(began.elapsed() < Duration::from_secs(9), "not for the stream's sake: {:?}", began.elapsed());
    let told = answers.message().await.expect_err("it says why");
    assert!(told.message().contains("stopping"), "{told}");
}

/// A disk with room enough, until it has none.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_no_report_is_made_and_escrows_go_on_until_there_is_room_again() {
    const MIB: u64 = 1 << 20;
    let mut test = cluster().await;
    test.cluster.kill(1).await.expect("killed");
    let data = test.cluster.layout().node(1).expect("a node").data_path();
    let before = data.with_extension("before");
    std::fs::rename(&data, &before).expect("moved");
    std::fs::create_dir(&data).expect("an empty one");
    let Some(disk) = SmallDisk::over(data.clone(), "2g") else {
        eprintln!("SKIPPED: a full disk under reports (this process may not mount a file system)");
        return;
    };
    let copied = Command::new("cp").arg("-a").arg(before.join(".")).arg(&data).status();
    assert!(copied.expect("cp").success(), "to another disk");
    test.cluster.start(1).await.expect("goes on from there");
    let outcomes = test.client("importer", &ALL).put_compliance_many(&documents(100)).await;
    assert_all_taken(&outcomes.expect("taken"), 100);
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    let officer = test.client("officer", &[1]);
    assert_eq!(rest(&mut begun(&officer).await).await.expect("whole"), 100);

    let status = test.client("operator", &[1]).status().await.expect("status");
    let node = status.nodes.iter().find(|node| node.id == 1).expect("itself");
    let used = (node.disk_size_bytes - node.disk_free_bytes).div_ceil(MIB);
    disk.resize(&format!("{}m", used + 40));
    // What is left is for the log, but for what a report would have taken of it before it looked.
    let filler = data.join("filler");
    let mut file = std::fs::File::create(&filler).expect("room");
    file.write_all(&vec![0; 4 * MIB as usize]).expect("room");
    unavailable(officer.report(&details()).await, "of its disk are free");
    assert_not_now(&test.strongroom("officer", &[1], &["report", "enterprise"]), "of its disk are free");
    let importer = test.client("importer", &[1]);
    for n in 1..=20 {
        importer.escrow(&deposit(n)).await.expect("escrows go on");
    }
    let elsewhere = test.client("officer", &[1, 2]).report(&details()).await.expect("at the other");
    assert_eq!(elsewhere.header().freshness.as_ref().expect("said").node, 2);
    drop(elsewhere);

    disk.resize("2g");
    assert_eq!(rest(&mut begun(&officer).await).await.expect("by itself"), 100);
    test.cluster.wait_settled(&ALL).await.expect("all alike");
}
