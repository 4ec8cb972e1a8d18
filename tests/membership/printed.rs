//! What a change says that it came to, as the operator reads it.

use serde_json::{Value, json};
use strongroom::escrow::ids::NodeId;

use crate::common::*;
use crate::steps::*;

/// What JSON says of members. Who leads is checked apart: that may change at any time.
fn members(voters: &[NodeId], quorum: u32, failure_tolerance: u32, leader: &Value) -> Value {
    let learners: [NodeId; 0] = [];
    json!({
        "voters": voters, "learners": learners,
        "quorum": quorum, "failure_tolerance": failure_tolerance, "leader": leader,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_change_prints_voters_quorum_and_failure_tolerance_before_and_after() {
    let mut test = three_of(5, "").await;
    removal_allowed(&test, &ALL).await;
    for node in [4, 5] {
        test.cluster.start(node).await.expect("starts");
    }
    make(&test, &ALL, add(&test, 4, false)).await;

    // As a person reads it.
    let output = member(&test, &ALL, &["add", &peer(&test, 5), "--output", "table"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).expect("text");
    let row = |name: &str| -> Vec<&str> {
        let line = table.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no line {name:?} in:\n{table}"));
        line[name.len()..].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    };
    assert_eq!(row("voters"), ["1, 2, 3, 4", "1, 2, 3, 4, 5"], "{table}");
    assert_eq!(row("learners"), ["none", "none"], "{table}");
    assert_eq!(row("quorum"), ["3", "3"], "{table}");
    assert_eq!(row("failures tolerated"), ["1", "2"], "{table}");
    assert!(row("leader").iter().all(|leader| leader.parse::<NodeId>().is_ok()), "{table}");
    assert!(table.contains("BEFORE") && table.contains("NOW") && table.ends_with("add: done\n"), "{table}");

    // As a script reads it, and the same as the dry run said.
    let leader = test.leader().await;
    let gone = [4, 5].into_iter().find(|id| *id != leader).expect("two");
    let left: Vec<NodeId> = [1, 2, 3, 4, 5].into_iter().filter(|id| *id != gone).collect();
    for (arguments, dry_run, step) in
        [(&["--dry-run"][..], true, "planned"), (&[], false, "done"), (&[], false, "done")]
    {
        let already = voters_of(&test.client("operator", &ALL).status().await.expect("a status")) == left;
        let gone = gone.to_string();
        let result = done(&member(&test, &ALL, &[&["remove", &gone], arguments].concat()).await);
        let leaders = (&result["before"]["leader"], &result["after"]["leader"]);
        assert!(leaders.0.is_u64() && leaders.1.is_u64(), "{result}");
        let after = members(&left, 3, 1, leaders.1);
        let (before, warning) = if already {
            (members(&left, 3, 1, leaders.0), format!("there is nothing to change: node {gone} left already"))
        } else {
            let warning = "4 voters tolerate no more failures than 3: an odd number is better".to_owned();
            (members(&[1, 2, 3, 4, 5], 3, 2, leaders.0), warning)
        };
        let expected = json!({
            "change": "remove", "dry_run": dry_run, "node": gone.parse::<NodeId>().expect("an id"),
            "step": step, "before": before, "after": after, "warnings": [warning],
        });
        assert_eq!(result, expected);
    }
}
