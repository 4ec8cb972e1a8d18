//! Reveals where no quorum answers: shown on any survivor, never without a record, and each on record exactly once after
//! the heal. Real processes, real kill -9.

mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use common::trail::*;
use common::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use strongroom::client::{Client, ClientError, Recovered};
use strongroom::escrow::audit::ChainHead;
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{NodeId, RequestId, Timestamp};
use strongroom::escrow::journal::alone::Waiting;
use strongroom::escrow::journal::{DegradedReveal, JournalPlace, Knowledge, Noted};
use strongroom::escrow::records::{AuditEvent, AuditRecord, LogPosition, Source};
use strongroom::proto::membership_change::Change;
use strongroom::proto::replace_member::Replacement;
use strongroom::proto::{
    Consistency, FindRequest, MembershipChange, RemoveMember, ReplaceMember, StatusResponse,
};
use strongroom::store::journal::{Decided, Journal, JournalError};
use strongroom::store::quarantine::{Cause, Quarantine, QuarantineNote, Stage};

const FIVE: [NodeId; 5] = [1, 2, 3, 4, 5];

fn signal(test: &TestCluster, node: NodeId, signal: Signal) {
    let pid = test.cluster.pid(node).expect("the node runs");
    kill_process(Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero"), signal)
        .expect("signalled");
}

async fn escrow(test: &TestCluster, nodes: &[NodeId], keys: std::ops::Range<u64>) {
    let importer = test.client("importer", nodes);
    for n in keys {
        importer.escrow(&deposit(n)).await.expect("kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_survivor_that_restarted_finds_and_reveals_and_each_is_on_record_once_in_the_new_cluster() {
    let mut test = three_of(5, "").await;
    escrow(&test, &ALL, 1..5).await;
    let status = test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in ALL {
        test.cluster.kill(node).await.expect("killed");
    }
    // This one shows a key as well, and will be left out of what follows.
    test.cluster.start(2).await.expect("alone");
    let elsewhere = test.client("helpdesk-advanced", &[2]).recover(key(4), "left behind", None).await;
    assert_eq!(consistency(&elsewhere.expect("shown")), "degraded");
    test.cluster.kill(2).await.expect("killed");
    test.cluster.start(1).await.expect("alone");

    let request = FindRequest { key_id_prefix: key(1).to_string(), ..FindRequest::default() };
    let found = test.client("helpdesk", &[1]).find(&request).await.expect("a local read");
    assert_eq!(found.keys.len(), 1);
    let id = key(1).to_string();
    let arguments = ["recover", &id, "--reason", "roof on fire", "--user", r"CORP\user1"];
    let output = test.strongroom("helpdesk", &[1], &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown_first: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let freshness = &shown_first["freshness"];
    assert_eq!((&freshness["consistency"], &freshness["node"]), (&"degraded".into(), &1.into()));
    assert_eq!((&freshness["quorum_age_ms"], &freshness["leader_known"]), (&Value::Null, &false.into()));
    assert_eq!(
        (&shown_first["audit_sequence"], &shown_first["journal"]["sequence"]),
        (&Value::Null, &1.into())
    );
    assert!(deposit(1).secret.expose() == shown_first["secret"].as_str().expect("a secret").as_bytes());

    // The rules are those of any day, and a denial is noted too.
    let wrong = ["recover", &id, "--reason", "curious", "--user", r"CORP\user2"];
    let (code, error) = failure(&test.strongroom("helpdesk", &[1], &wrong));
    assert_eq!(code, 4, "{error}");
    test.cluster.kill(1).await.expect("killed");
    test.cluster.start(1).await.expect("alone again");
    let desk = test.client("helpdesk-advanced", &[1]);
    let second = desk.recover(key(2), "flood", None).await.expect("shown");
    assert_eq!((consistency(&second), second.details.journal_sequence), ("degraded", 3));
    let alone = test.client("operator", &[1]).status().await.expect("status");
    assert_eq!(of(&alone, 1).journal_own, 3);
    assert!(alone.warnings.iter().any(|warning| warning.contains("3 reveals in the journal of node 1")));
    let journal = std::fs::read(data(&test, 1).join("journal/own")).expect("the journal");
    for n in [1, 2] {
        let secret = deposit(n).secret.expose().to_vec();
        assert!(!journal.windows(secret.len()).any(|part| part == secret), "no secret in the journal");
    }

    assert!(test.cluster.stop(1).await.expect("stopped"), "by itself");
    let mut recover = Command::new(program());
    recover.args(["recover-cluster", "--apply", "--confirm", &status.cluster, "--config"]);
    recover.arg(test.cluster.layout().node(1).expect("a node").config_path());
    let output = run(recover, "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    test.cluster.start(1).await.expect("serves");
    all_on_record(&test, &[1]).await;
    for node in [4, 5] {
        test.cluster.start(node).await.expect("a new node");
        let address = test.cluster.layout().node(node).expect("a node").peer_address();
        let operator = test.client("operator", &[1]);
        // On a busy machine the new node may not answer in time: then the operator is told to try again.
        let add = async || -> Result<(), ClientError> {
            let mut change = operator.add_member(&address, false).await?;
            while change.next().await?.is_some() {}
            Ok(())
        };
        let deadline = Instant::now() + SOON;
        while let Err(error) = add().await {
            assert!(Instant::now() < deadline, "node {node} becomes no voter: {error}");
        }
    }
    let members = [1, 4, 5];
    test.cluster.wait_settled(&members).await.expect("three again");
    let desk = test.client("helpdesk-advanced", &members);
    for (n, state, owes) in [(1, "disclosed", true), (2, "disclosed", true), (3, "active", false)] {
        let request = FindRequest { key_id_prefix: key(n).to_string(), ..FindRequest::default() };
        let found = desk.find(&request).await.expect("found").keys.remove(0);
        assert_eq!((found.state.as_str(), found.rotation_owed_since_ms.is_some()), (state, owes), "key {n}");
    }
    let third = desk.recover(key(3), "back to normal", None).await.expect("shown");
    assert_eq!(consistency(&third), "quorum");

    // The one that was left out has nothing to say any more but what it showed.
    test.cluster.start(2).await.expect("the process runs");
    let deadline = Instant::now() + ON_RECORD;
    let request = FindRequest { key_id_prefix: key(4).to_string(), ..FindRequest::default() };
    while desk.find(&request).await.expect("found").keys[0].state != "disclosed" {
        assert!(Instant::now() < deadline, "the journal of a node that was left out is not handed over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    all_on_record(&test, &members).await;
    test.cluster.wait_settled(&members).await.expect("settled");
    test.cluster.kill(2).await.expect("wiped");

    // On a node that was not there when it happened, and again after a start of the one that was.
    for node in [4, 1] {
        test.cluster.stop(node).await.expect("stopped");
        let records = audit_of(&test, node).await;
        if node == 4 {
            let once = ["back to normal", "flood", "left behind", "roof on fire"]
                .map(|reason| (reason.to_owned(), 1));
            assert_eq!(shown(&records), BTreeMap::from(once));
        }
        let reconciled: Vec<_> = records
            .iter()
            .filter_map(|record| match &record.event {
                AuditEvent::RevealReconciled { place, reveal } if reveal.source.node == 1 => {
                    Some((place.sequence, reveal.clone(), record.at))
                }
                _ => None,
            })
            .collect();
        assert_eq!(reconciled.iter().map(|(sequence, ..)| *sequence).collect::<Vec<_>>(), [1, 2, 3]);
        for (sequence, reveal, recorded_at) in reconciled {
            assert_eq!(reveal.was_shown(), sequence != 2);
            assert!(reveal.at <= recorded_at && reveal.machine.is_some());
        }
    }
}

/// What was asked, by its reason, whether the key was shown, and without a quorum by which entry of a journal.
type Asked = BTreeMap<String, (bool, Option<JournalPlace>)>;

async fn ask(client: &Client, n: u64, reason: String, asked: &mut Asked) -> Option<Recovered> {
    let answer = client.recover(key(n), &reason, None).await;
    if let Err(error) = &answer {
        assert!(matches!(error, ClientError::Unavailable { .. }), "{reason}: {error}");
    }
    let alone = answer.as_ref().ok().filter(|answer| consistency(answer) == "degraded").map(entry_of);
    asked.insert(reason, (answer.is_ok(), alone));
    answer.ok()
}

/// Both sides of a partition reveal, one after the other; the node that was alone may lead when it begins, so that what
/// it has proposed is committed after all, and may be killed before the heal or in it.
async fn partition(test: &mut TestCluster, seed: u64, asked: &mut Asked) {
    let mut seeded = Seeded::of(seed);
    let leader = test.leader().await;
    let alone = if seeded.draw(2) == 0 { leader } else { ALL[seeded.draw(3) as usize] };
    let others: Vec<_> = ALL.into_iter().filter(|id| *id != alone).collect();
    let (desk, desk_elsewhere) =
        (test.client("helpdesk-advanced", &[alone]), test.client("helpdesk-advanced", &others));
    eprintln!("seed {seed}: node {alone} alone, node {leader} leads");

    for node in &others {
        signal(test, *node, Signal::STOP);
    }
    for n in 0..1 + seeded.draw(2) {
        // The first is proposed while a leader still believes in its quorum, and may be committed later.
        let recovered = ask(&desk, 1 + seeded.draw(4), format!("seed {seed} alone {n}"), asked).await;
        assert_eq!(consistency(&recovered.expect("a survivor shows what it has")), "degraded");
    }
    let crash = seeded.draw(3);
    if crash == 0 {
        test.cluster.kill(alone).await.expect("killed");
    } else {
        signal(test, alone, Signal::STOP);
    }
    for node in &others {
        signal(test, *node, Signal::CONT);
    }
    if seeded.draw(2) == 0 {
        let recovered =
            ask(&desk_elsewhere, 1 + seeded.draw(4), format!("seed {seed} elsewhere"), asked).await;
        if let Some(recovered) = recovered {
            assert!(["quorum", "degraded"].contains(&consistency(&recovered)));
        }
    }
    match crash {
        0 => test.cluster.start(alone).await.expect("comes back"),
        1 => {
            signal(test, alone, Signal::CONT);
            ask(&desk, 1 + seeded.draw(4), format!("seed {seed} healing"), asked).await;
            test.cluster.kill(alone).await.expect("killed");
            test.cluster.start(alone).await.expect("comes back");
        }
        _ => signal(test, alone, Signal::CONT),
    }
    all_on_record(test, &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_partitions_and_crashes_no_reveal_is_without_a_record_and_none_has_two() {
    let mut test = three_nodes().await;
    escrow(&test, &ALL, 1..5).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    let mut asked = Asked::new();
    for seed in 1..=6 {
        partition(&mut test, seed, &mut asked).await;
    }
    test.cluster.wait_settled(&ALL).await.expect("settled");
    for node in ALL {
        assert!(test.cluster.stop(node).await.expect("stopped"), "by itself");
    }
    for node in ALL {
        let records = audit_of(&test, node).await;
        let (on_record, named) = (shown(&records), named(&records));
        assert!(named.values().all(|times| *times == 1), "{named:?}");
        for (reason, (was_shown, alone)) in &asked {
            let is_named = alone.is_none_or(|place| named.contains_key(&place));
            assert!(is_named, "{reason}: no record names {alone:?} at node {node}");
            let records = on_record.get(reason).copied().unwrap_or(0);
            let expected = if *was_shown { 1..=1 } else { 0..=1 };
            assert!(expected.contains(&records), "{reason}: {records} records at node {node}");
        }
        assert!(on_record.keys().all(|reason| asked.contains_key(reason)), "{on_record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_takes_nothing_means_no_reveal() {
    let mut test = three_nodes().await;
    escrow(&test, &ALL, 1..3).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in [2, 3] {
        test.cluster.kill(node).await.expect("killed");
    }
    let id = key(1).to_string();
    let arguments = ["recover", id.as_str(), "--reason", "locked out"];
    let refused = |test: &TestCluster, why: &str| {
        let output = test.strongroom("helpdesk-advanced", &[1], &arguments);
        let (code, error) = failure(&output);
        assert_eq!((code, output.stdout.len()), (75, 0), "{error}");
        assert!(error["message"].as_str().expect("words").contains(why), "{error}");
    };
    // A disk that takes nothing: where the file would be written, nothing can be.
    let blocked = data(&test, 1).join("journal/own.tmp");
    std::fs::create_dir(&blocked).expect("blocked");
    refused(&test, "cannot be written");
    std::fs::remove_dir(&blocked).expect("room again");
    let desk = test.client("helpdesk-advanced", &[1]);
    assert_eq!(desk.recover(key(1), "room again", None).await.expect("shown").details.journal_sequence, 1);

    test.cluster.kill(1).await.expect("killed");
    let journal = data(&test, 1).join("journal/own");
    let whole = std::fs::read(&journal).expect("the journal");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&journal, &damaged).expect("damaged");
    test.cluster.start(1).await.expect("it serves what it can");
    refused(&test, "damaged");
    let status = test.client("operator", &[1]).status().await.expect("status");
    assert!(of(&status, 1).journal_fault.contains("hash"), "{:?}", of(&status, 1).journal_fault);

    // Whole again, it goes on where it was, and comes on record with a quorum, whatever became of what others told it.
    test.cluster.kill(1).await.expect("killed");
    std::fs::write(&journal, &whole).expect("restored");
    let told = data(&test, 1).join("journal/told");
    std::fs::write(&told, "nothing that was written there").expect("damaged");
    test.cluster.start(1).await.expect("comes back");
    refused(&test, "damaged");
    test.cluster.start(2).await.expect("comes back");
    all_on_record(&test, &[1, 2]).await;
    let status = test.client("operator", &[1]).status().await.expect("status");
    let fault = of(&status, 1).journal_fault;
    assert!(fault.contains("journal/told"), "{fault:?}");
    test.cluster.stop(2).await.expect("stopped");
    // What was refused may have been proposed, and committed after all.
    assert_eq!(shown(&audit_of(&test, 2).await).get("room again"), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_journal_means_no_reveal_until_there_is_room() {
    let mut test = three_nodes().await;
    escrow(&test, &ALL, 1..3).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in ALL {
        test.cluster.kill(node).await.expect("killed");
    }
    let journal = data(&test, 1).join("journal");
    let Some(_disk) = SmallDisk::over(journal.clone(), "64k") else {
        eprintln!("SKIPPED: a full disk under the journal (this process may not mount a file system)");
        return;
    };
    test.cluster.start(1).await.expect("alone, with an empty journal");
    let filler = journal.join("filler");
    let mut file = std::fs::File::create(&filler).expect("room");
    while file.write_all(&[0; 4_096]).is_ok() {}
    drop(file);

    let id = key(1).to_string();
    let arguments = ["recover", id.as_str(), "--reason", "no room"];
    let output = test.strongroom("helpdesk-advanced", &[1], &arguments);
    let (code, error) = failure(&output);
    assert_eq!((code, output.stdout.len()), (75, 0), "{error}");
    assert!(error["message"].as_str().expect("words").contains("cannot be written"), "{error}");
    let request = FindRequest { key_id_prefix: id.clone(), ..FindRequest::default() };
    assert_eq!(test.client("helpdesk", &[1]).find(&request).await.expect("reads go on").keys.len(), 1);

    // There is room again: it goes on by itself, and what it shows comes on record.
    std::fs::remove_file(&filler).expect("removed");
    let desk = test.client("helpdesk-advanced", &[1]);
    let shown = desk.recover(key(1), "room again", None).await.expect("shown");
    assert_eq!((consistency(&shown), shown.details.journal_sequence), ("degraded", 1));
    for node in [2, 3] {
        test.cluster.start(node).await.expect("comes back");
    }
    all_on_record(&test, &ALL).await;
    test.cluster.stop(2).await.expect("stopped");
    let on_record = self::shown(&audit_of(&test, 2).await);
    assert_eq!((on_record.get("room again"), on_record.get("no room")), (Some(&1), None));
}

/// The journal goes back to how it was, and numbers what it takes next as it numbered what it has forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_put_back_to_an_older_copy_loses_no_reveal_and_ends() {
    let mut test = three_nodes().await;
    escrow(&test, &ALL, 1..3).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    let file = data(&test, 1).join("journal/own");
    let alone_and_back = async |test: &mut TestCluster, reason: &str| {
        for node in [2, 3] {
            test.cluster.kill(node).await.expect("killed");
        }
        let shown = test.client("helpdesk-advanced", &[1]).recover(key(1), reason, None).await;
        for node in [2, 3] {
            test.cluster.start(node).await.expect("comes back");
        }
        all_on_record(test, &ALL).await;
        shown.expect("shown").details
    };
    let first = alone_and_back(&mut test, "before the copy").await;
    test.cluster.kill(1).await.expect("killed");
    let copy = std::fs::read(&file).expect("the journal");
    test.cluster.start(1).await.expect("comes back");
    let second = alone_and_back(&mut test, "after the copy").await;
    assert_eq!((&second.journal, second.journal_sequence), (&first.journal, 2));

    // Decided by the older copy before this node learns that the place is taken: as good as cut off with an old disk.
    test.cluster.kill(1).await.expect("killed");
    std::fs::write(&file, &copy).expect("put back");
    let journal = Journal::open(&data(&test, 1).join("journal")).expect("it is whole");
    assert_eq!(journal.last().sequence, 1);
    let reveal = DegradedReveal { reason: "decided by the copy".to_owned(), ..degraded(1) };
    let decided = |_: &Waiting<'_>| Ok(Decided::<()>::Entry(Box::new(Noted::Reveal(reveal))));
    journal.append::<(), JournalError>(decided).expect("it takes it");
    drop(journal);
    test.cluster.start(1).await.expect("comes back");
    let renewed = |status: &StatusResponse| of(status, 1).journal_begun_anew;
    let status = test.cluster.wait_for("a new journal", SOON, &[1], renewed).await.expect("begun");
    assert!(status.warnings.iter().any(|warning| warning.contains("put back")), "{:?}", status.warnings);
    all_on_record(&test, &ALL).await;
    let last = alone_and_back(&mut test, "in the new one").await;
    assert_eq!(last.journal_sequence, 1);
    assert_ne!(last.journal, first.journal);

    for node in ALL {
        assert!(test.cluster.stop(node).await.expect("stopped"), "by itself");
    }
    let once = ["after the copy", "before the copy", "decided by the copy", "in the new one"];
    let once = BTreeMap::from(once.map(|reason| (reason.to_owned(), 1)));
    for node in ALL {
        assert_eq!(shown(&audit_of(&test, node).await), once, "node {node}");
    }
}

/// A reveal of key 1 that node 1 shows without a quorum.
fn degraded(number: u128) -> DegradedReveal {
    DegradedReveal {
        request: RequestId(uuid::Uuid::from_u128(number)),
        at: Timestamp(1),
        by: "spiffe://test/helpdesk-advanced/desk".parse().expect("an identity"),
        source: Source { node: 1, address: String::new() },
        key_id: key(1),
        machine: Some(deposit(1).machine),
        user: None,
        reason: "decided alone".to_owned(),
        denied: None,
        approval: None,
        knowledge: Knowledge {
            position: LogPosition { term: 1, index: 1 },
            quorum_age_ms: None,
            policy_version: 0,
        },
    }
}

/// What of approvals without a quorum is on record, in the order of journals: how often each entry, and what it says.
fn approvals(records: &[AuditRecord]) -> BTreeMap<JournalPlace, (usize, String)> {
    let mut found: BTreeMap<JournalPlace, (usize, String)> = BTreeMap::new();
    for record in records {
        let (place, says) = match &record.event {
            AuditEvent::ApprovalAskReconciled { place, ask } => (place, format!("asked {}", ask.approval)),
            AuditEvent::ApprovalDecisionReconciled { place, decision } => {
                let outcome = match (&decision.denied, decision.granted) {
                    (Some(_), _) => "denied",
                    (None, true) => "granted",
                    (None, false) => "rejected",
                };
                (place, format!("{outcome} {}", decision.approval))
            }
            AuditEvent::RevealReconciled { place, reveal } => {
                let approval = reveal.approval.map(|approval| approval.to_string()).unwrap_or_default();
                (place, format!("shown {approval}"))
            }
            _ => continue,
        };
        found.entry(*place).or_insert((0, says)).0 += 1;
    }
    found
}

/// The id in the command that a denied reveal asks another person to run.
#[track_caller]
fn asked_for(error: &Value) -> String {
    let hint = error["hint"].as_str().expect("a hint");
    let command = hint.split('`').nth(1).expect("the command to run");
    command.strip_prefix("strongroom approval grant ").expect("a grant").to_owned()
}

async fn set_policy(test: &TestCluster, nodes: &[NodeId], policy: &str) {
    let allowed = |status: &StatusResponse| status.feature_level >= FeatureLevel::DESK.0;
    test.cluster.wait_for("the feature level", SOON, nodes, allowed).await.expect("raised");
    test.client("officer", nodes).set_policy(policy, 0).await.expect("set");
}

async fn power_cut(test: &mut TestCluster, node: NodeId) {
    test.cluster.kill(node).await.expect("killed");
    test.cluster.start(node).await.expect("comes back alone");
}

/// Asked for, granted by another and used once at the only node that is left, which dies after each step.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_survivor_has_a_reveal_approved_by_another_person_once_and_all_of_it_is_on_record_once() {
    let mut test = three_nodes().await;
    escrow(&test, &ALL, 1..2).await;
    set_policy(&test, &ALL, r#"{"without_quorum": "approve"}"#).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    // It led: what it would propose now might be committed after the heal.
    let alone = test.leader().await;
    let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != alone).collect();
    for node in &others {
        test.cluster.kill(*node).await.expect("killed");
    }
    let id = key(1).to_string();
    let recover = ["recover", &id, "--reason", "roof on fire"];
    let (code, error) = failure(&test.strongroom("helpdesk-advanced", &[alone], &recover));
    assert_eq!(code, 4, "{error}");
    assert!(error["message"].as_str().expect("words").contains(&format!("at node {alone}")), "{error}");
    let asked = asked_for(&error);
    power_cut(&mut test, alone).await;

    let listed =
        test.client("officer", &[alone]).approvals(Consistency::Local).await.expect("listed").approvals;
    let [waits] = listed.as_slice() else { panic!("one waits: {listed:?}") };
    assert_eq!((&waits.id, waits.degraded, waits.granted_by.as_str()), (&asked, true, ""));
    let (code, error) =
        failure(&test.strongroom("helpdesk-advanced", &[alone], &["approval", "grant", &asked]));
    assert_eq!(code, 4, "{error}");
    assert!(error["message"].as_str().expect("words").contains("asked for themselves"), "{error}");
    power_cut(&mut test, alone).await;
    let (code, error) = failure(&test.strongroom("helpdesk-advanced", &[alone], &recover));
    assert_eq!((code, asked_for(&error)), (4, asked.clone()), "it waits still: {error}");

    let output = test.strongroom("officer", &[alone], &["approval", "grant", &asked]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let granted: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&granted["journal"]["sequence"], &granted["freshness"]["consistency"]),
        (&3.into(), &"degraded".into())
    );
    power_cut(&mut test, alone).await;

    let output = test.strongroom("helpdesk-advanced", &[alone], &recover);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown_once: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(deposit(1).secret.expose() == shown_once["secret"].as_str().expect("a secret").as_bytes());
    assert_eq!(
        (&shown_once["freshness"]["consistency"], &shown_once["journal"]["sequence"]),
        (&"degraded".into(), &4.into())
    );
    power_cut(&mut test, alone).await;

    let (code, error) = failure(&test.strongroom("helpdesk-advanced", &[alone], &recover));
    let again = asked_for(&error);
    assert_eq!(code, 4, "used once: {error}");
    assert_ne!(again, asked);
    let granted = test.strongroom("officer", &[alone], &["approval", "grant", &again]);
    assert!(granted.status.success(), "{}", String::from_utf8_lossy(&granted.stderr));
    power_cut(&mut test, alone).await;

    // With a quorum it is good for nothing, granted or not, and machines that are not marked need none.
    for node in others {
        test.cluster.start(node).await.expect("comes back");
    }
    all_on_record(&test, &ALL).await;
    let listed =
        test.client("officer", &[alone]).approvals(Consistency::Quorum).await.expect("listed").approvals;
    assert!(listed.is_empty(), "{listed:?}");
    let (code, error) = failure(&test.strongroom("officer", &ALL, &["approval", "grant", &again]));
    assert_eq!(code, 3, "{error}");
    test.cluster.wait_settled(&ALL).await.expect("settled");
    for node in ALL {
        assert!(test.cluster.stop(node).await.expect("stopped"), "by itself");
    }
    for node in ALL {
        let records = audit_of(&test, node).await;
        let entries: Vec<(usize, String)> = approvals(&records).into_values().collect();
        let expected = [
            format!("asked {asked}"),
            format!("denied {asked}"),
            format!("granted {asked}"),
            format!("shown {asked}"),
            format!("asked {again}"),
            format!("granted {again}"),
        ];
        assert_eq!(entries, expected.map(|says| (1, says)), "node {node}");
        assert_eq!(shown(&records), BTreeMap::from([("roof on fire".to_owned(), 1)]));
        let refused = records.iter().filter(|record| {
            matches!(&record.event, AuditEvent::ApprovalRefused { approval, .. } if approval.to_string() == again)
        });
        assert_eq!(refused.count(), 1, "node {node}: what was tried after the heal is on record as well");
    }
}

/// Five voters, which have keys 1 and 2.
async fn five_nodes() -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let five = strongroom::cli::local_cluster::ClusterPlan { nodes: 5, members: 5, ..plan("") };
    let mut cluster =
        strongroom::cli::local_cluster::LocalCluster::open_or_create(dir.path(), &five, program())
            .expect("a layout");
    cluster.form().await.expect("a cluster forms");
    let test = TestCluster { cluster, dir };
    escrow(&test, &FIVE, 1..3).await;
    test
}

/// The one that was told is removed as well before it can say so; then it is all that has the reveal.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_hands_over_what_a_lost_one_had_told_it() {
    let mut test = five_nodes().await;
    test.cluster.wait_settled(&FIVE).await.expect("all have it");
    let rest = [1, 2, 3];
    for node in rest {
        test.cluster.kill(node).await.expect("killed");
    }
    let desk = test.client("helpdesk-advanced", &[4]);
    assert_eq!(consistency(&desk.recover(key(1), "told", None).await.expect("shown")), "degraded");
    test.cluster.kill(4).await.expect("lost for ever");
    test.cluster.kill(5).await.expect("down");
    for node in rest {
        test.cluster.start(node).await.expect("comes back");
    }
    for node in [4, 5] {
        let remove = Change::Remove(RemoveMember { node });
        let change = MembershipChange { change: Some(remove), any_voter_count: true, ..Default::default() };
        let operator = test.client("operator", &rest);
        let mut steps = operator.change_membership(&change).await.expect("begun");
        while steps.next().await.expect("it goes on").is_some() {}
    }
    test.cluster.start(5).await.expect("the process runs");
    let deadline = Instant::now() + ON_RECORD;
    let desk = test.client("helpdesk-advanced", &rest);
    let request = FindRequest { key_id_prefix: key(1).to_string(), ..FindRequest::default() };
    while desk.find(&request).await.expect("found").keys[0].state != "disclosed" {
        assert!(Instant::now() < deadline, "what the removed node was told is not handed over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    all_on_record(&test, &rest).await;
    test.cluster.wait_settled(&rest).await.expect("settled");
    test.cluster.stop(1).await.expect("stopped");
    let records = audit_of(&test, 1).await;
    assert_eq!(shown(&records), BTreeMap::from([("told".to_owned(), 1)]));
    let decided_by = records.iter().find_map(|record| match &record.event {
        AuditEvent::RevealReconciled { reveal, .. } => Some(reveal.source.node),
        _ => None,
    });
    assert_eq!(decided_by, Some(4));
}

/// Five voters, of which two are left; one of those reveals, tells the other, and is lost for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_node_had_told_comes_on_record_without_it_and_once_if_it_comes_back_after_all() {
    let mut test = five_nodes().await;
    let marked = format!(r#"{{"approval": {{"machines": ["{}"]}}}}"#, deposit(2).machine);
    set_policy(&test, &FIVE, &marked).await;
    test.cluster.wait_settled(&FIVE).await.expect("all have it");
    for node in [1, 2, 3] {
        test.cluster.kill(node).await.expect("killed");
    }
    let recovered =
        test.client("helpdesk-advanced", &[4]).recover(key(1), "told", None).await.expect("shown");
    assert_eq!(consistency(&recovered), "degraded");
    // Told before it was shown.
    let status = test.client("operator", &[5]).status().await.expect("status");
    assert_eq!((of(&status, 4).journal_own, of(&status, 5).journal_told), (1, 1));
    // An approval counts at the node where it was asked for: whoever decides finds it, and it is used there alone.
    let recover = ["recover", &key(2).to_string(), "--reason", "marked"];
    let asked = asked_for(&failure(&test.strongroom("helpdesk-advanced", &[4], &recover)).1);
    let granted = test.strongroom("officer", &[5, 4], &["approval", "grant", &asked]);
    assert!(granted.status.success(), "{}", String::from_utf8_lossy(&granted.stderr));
    let elsewhere = asked_for(&failure(&test.strongroom("helpdesk-advanced", &[5], &recover)).1);
    assert_ne!(elsewhere, asked, "node 5 was told of it, and has it asked for anew");
    test.cluster.kill(4).await.expect("lost");
    test.cluster.kill(5).await.expect("killed: it keeps it over a restart");
    let rest = [1, 2, 5];
    for node in rest {
        test.cluster.start(node).await.expect("comes back");
    }
    all_on_record(&test, &rest).await;
    test.cluster.start(4).await.expect("comes back after all");
    let four = [1, 2, 4, 5];
    all_on_record(&test, &four).await;
    test.cluster.wait_settled(&four).await.expect("settled");
    test.cluster.stop(4).await.expect("stopped");
    let records = audit_of(&test, 4).await;
    assert_eq!(shown(&records), BTreeMap::from([("told".to_owned(), 1)]));
    let entries = approvals(&records);
    assert!(entries.values().all(|(times, _)| *times == 1), "{entries:?}");
    let mut says: Vec<String> = entries.into_values().map(|(_, says)| says).collect();
    says.sort();
    let mut expected = [
        "shown ".to_owned(),
        format!("asked {asked}"),
        format!("granted {asked}"),
        format!("asked {elsewhere}"),
    ];
    expected.sort();
    assert_eq!(says, expected);
}

/// Cut off, asked, killed, and replaced meanwhile: it belongs to nothing any more when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_replaced_while_it_was_cut_off_hands_its_journal_over_even_if_it_is_quarantined() {
    let mut test = three_of(4, "").await;
    escrow(&test, &ALL, 1..3).await;
    test.cluster.wait_settled(&ALL).await.expect("all have it");
    for node in [2, 3] {
        signal(&test, node, Signal::STOP);
    }
    let desk = test.client("helpdesk-advanced", &[1]);
    let recovered = desk.recover(key(1), "cut off", None).await.expect("shown");
    assert_eq!(consistency(&recovered), "degraded");
    test.cluster.kill(1).await.expect("killed");
    for node in [2, 3] {
        signal(&test, node, Signal::CONT);
    }
    test.cluster.start(4).await.expect("a new node");
    let address = test.cluster.layout().node(4).expect("a node").peer_address();
    let replace = ReplaceMember { old: 1, replacement: Some(Replacement::PeerAddress(address)) };
    let change = MembershipChange { change: Some(Change::Replace(replace)), ..Default::default() };
    let operator = test.client("operator", &[2, 3]);
    let mut steps = operator.change_membership(&change).await.expect("begun");
    while steps.next().await.expect("it goes on").is_some() {}
    let members = [2, 3, 4];
    test.cluster.wait_settled(&members).await.expect("three again");

    // Whatever else is wrong with it.
    let note = QuarantineNote::open(&data(&test, 1).join("quarantine.json")).expect("none yet");
    let (cause, stage) = (Cause::Scrub, Stage::Waiting);
    note.set(Quarantine { cause, index: 1, since_ms: 1, stage }).expect("quarantined");
    test.cluster.start(1).await.expect("the process runs");
    let deadline = Instant::now() + ON_RECORD;
    // The reveal itself may be on record without it: that was proposed too.
    let entry = entry_of(&recovered);
    while !named(&audit_after(&test, 2, ChainHead::default()).await).contains_key(&entry) {
        assert!(Instant::now() < deadline, "the journal of a node that was removed is not handed over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = test.client("helpdesk-advanced", &[1]).recover(key(2), "removed", None).await;
    assert!(refused.is_err(), "it shows nothing any more");
    all_on_record(&test, &members).await;
    test.cluster.wait_settled(&members).await.expect("settled");
    test.cluster.stop(4).await.expect("stopped");
    assert_eq!(shown(&audit_of(&test, 4).await), BTreeMap::from([("cut off".to_owned(), 1)]));
}
