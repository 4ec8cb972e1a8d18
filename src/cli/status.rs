//! `strongroom status`: nodes, roles, lag, digests and how many failures the cluster tolerates.

use serde_json::{Value, json};

use super::output::table;
use super::{Failure, Global, Printer, keyring};
use crate::escrow::ids::Timestamp;
use crate::proto::{NodeStatus, StatusResponse};

/// Digits of a digest in the table: enough to see that two differ.
const DIGEST_SHOWN: usize = 12;
/// Columns of a terminal.
const WIDTH: usize = 80;
/// Of an RFC 3339 time, its date.
const DATE_LENGTH: usize = 10;

pub(super) async fn run(global: &Global, printer: Printer) -> Result<(), Failure> {
    let status = global.client()?.status().await?;
    printer.result(&json_of(&status), || text_of(&status))
}

/// How many committed entries a node has still to apply; `None` if it could not be asked.
fn lag(status: &StatusResponse, node: &NodeStatus) -> Option<u64> {
    let committed = status.nodes.iter().map(|node| node.committed).max().unwrap_or(0);
    node.reachable.then(|| committed.saturating_sub(node.applied))
}

fn json_of(status: &StatusResponse) -> Value {
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.id,
                "role": node.role,
                "zone": node.zone,
                "applied": node.reachable.then_some(node.applied),
                "committed": node.reachable.then_some(node.committed),
                "last_log": node.reachable.then_some(node.last_log),
                "lag": lag(status, node),
                "digest": known(&node.digest),
                "api": node.api_address,
                "peer": node.peer_address,
                "voter": node.voter,
                "reachable": node.reachable,
                "version": known(&node.version),
                "purged": node.reachable.then_some(node.purged),
                "snapshot": node.reachable.then_some(node.snapshot),
                "certificate_expires_at": expiry(node),
                "last_contact_ms": node.last_contact_ms,
                "agreement": known(&node.agreement),
                "quarantine": known(&node.quarantine),
                "draining": node.reachable.then_some(node.draining),
                "disk_free_bytes": measured(node).map(|node| node.disk_free_bytes),
                "disk_size_bytes": measured(node).map(|node| node.disk_size_bytes),
                "disk_used_bytes": measured(node).map(|node| node.disk_used_bytes),
                "overlay_bytes": measured(node).map(|node| node.overlay_bytes),
                "overlay_max_bytes": measured(node).map(|node| node.overlay_max_bytes),
                "feature_level": node.reachable.then_some(node.feature_level),
                "journal_own": node.reachable.then_some(node.journal_own),
                "journal_told": node.reachable.then_some(node.journal_told),
                "journal_oldest_age_ms": node.journal_oldest_age_ms,
                "journal_fault": known(&node.journal_fault),
                "journal_begun_anew": node.reachable.then_some(node.journal_begun_anew),
                "keys_opened": node.opened_all_at_ms.map(|_| node.keys_opened),
                "opened_all_at": node.opened_all_at_ms.map(|at| Timestamp(at).to_string()),
                "keys_not_opened": node.reachable.then_some(node.keys_not_opened),
                "not_opened": node.not_opened,
                "opening_fault": known(&node.opening_fault),
                "clock_ahead_ms": node.reachable.then_some(node.clock_ahead_ms),
                "clock_fault": known(&node.clock_fault),
            })
        })
        .collect();
    json!({
        "cluster": known(&status.cluster),
        "cluster_name": known(&status.cluster_name),
        "leader": status.leader,
        "term": status.term,
        "answered_by": status.answered_by,
        "failure_tolerance": tolerated(status),
        "health": known(&status.health),
        "warnings": status.warnings,
        "feature_level": (status.feature_level > 0).then_some(status.feature_level),
        "keyring": status.keyring.as_ref().map(keyring::json_of),
        "nodes": nodes,
    })
}

fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The node, if it has said what it takes: one that has just started has not looked yet.
fn measured(node: &NodeStatus) -> Option<&NodeStatus> {
    (node.disk_size_bytes > 0).then_some(node)
}

/// When the node's certificate expires; `None` if it could not be asked.
fn expiry(node: &NodeStatus) -> Option<String> {
    let at = node.certificate_expires_at;
    (at > 0).then(|| Timestamp(at.saturating_mul(1_000)).to_string())
}

fn text_of(status: &StatusResponse) -> String {
    if status.cluster.is_empty() {
        return format!(
            "node {} belongs to no cluster: create one with `init`, or add it with `member add`",
            status.answered_by
        );
    }
    let leader = status.leader.map_or("no leader".to_owned(), |leader| format!("leader is node {leader}"));
    let health = known(&status.health).map(|health| format!("{health}: ")).unwrap_or_default();
    // Only while there is something to say.
    let keyring = status.keyring.as_ref().filter(|keyring| keyring.has_old_data_keys);
    let keyring = keyring.map(|keyring| format!("\n{}", keyring::text_of(keyring))).unwrap_or_default();
    let warnings: String =
        status.warnings.iter().map(|warning| format!("\n{}", wrapped("warning: ", warning))).collect();
    format!(
        "cluster {} ({})\n{leader} in term {}, as node {} sees it\n{health}{}{keyring}{warnings}\n\n{}\n\n{}",
        status.cluster_name,
        status.cluster,
        status.term,
        status.answered_by,
        tolerance(status),
        nodes_text(status),
        upkeep_text(status),
    )
}

/// `text` after `label`, in lines of at most [`WIDTH`], the later ones indented as far as the label goes.
fn wrapped(label: &str, text: &str) -> String {
    let mut lines = label.trim_end().to_owned();
    let mut used = lines.chars().count();
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used + 1 + length > WIDTH {
            lines.push('\n');
            lines.push_str(&" ".repeat(label.len() - 1));
            used = label.len() - 1;
        }
        lines.push(' ');
        lines.push_str(word);
        used += 1 + length;
    }
    lines
}

/// How many voters may still be lost, those that are unreachable now counted as lost.
fn tolerance(status: &StatusResponse) -> String {
    let (all, away) = voters(status);
    match (tolerated(status), away) {
        (None, _) => format!("no quorum, {away} of {all} voters away"),
        (Some(1), 0) => "tolerates 1 failure".to_owned(),
        (Some(left), 0) => format!("tolerates {left} failures"),
        (Some(0), _) => format!("{away} of {all} voters away, tolerates no more"),
        (Some(left), _) => format!("{away} of {all} voters away, tolerates {left} more"),
    }
}

/// How many more voters may be lost; `None` if too many are already.
fn tolerated(status: &StatusResponse) -> Option<usize> {
    let (_, away) = voters(status);
    usize::try_from(status.failure_tolerance).unwrap_or(usize::MAX).checked_sub(away)
}

/// How many voters there are, and how many of them cannot be reached.
fn voters(status: &StatusResponse) -> (usize, usize) {
    let voters = status.nodes.iter().filter(|node| node.voter);
    (voters.clone().count(), voters.filter(|node| !node.reachable).count())
}

/// The nodes as a table.
fn nodes_text(status: &StatusResponse) -> String {
    let header = ["NODE", "ROLE", "ZONE", "APPLIED", "LAG", "DIGEST", "API"];
    let dash = || "-".to_owned();
    let rows = status
        .nodes
        .iter()
        .map(|node| {
            let when_reachable = |text: String| if node.reachable { text } else { dash() };
            vec![
                node.id.to_string(),
                node.role.clone(),
                known(&node.zone).unwrap_or("-").to_owned(),
                when_reachable(node.applied.to_string()),
                lag(status, node).map_or_else(dash, |lag| lag.to_string()),
                when_reachable(node.digest.chars().take(DIGEST_SHOWN).collect()),
                node.api_address.clone(),
            ]
        })
        .collect();
    table(&header, &[0, 3, 4], rows)
}

/// What operators look after, as a table.
fn upkeep_text(status: &StatusResponse) -> String {
    let header = ["NODE", "VERSION", "STATE", "HEARD", "FREE", "USED", "OVERLAY", "CERTIFICATE"];
    let dash = || "-".to_owned();
    let rows = status
        .nodes
        .iter()
        .map(|node| {
            let percent = |node: &NodeStatus| {
                let max = node.overlay_max_bytes.max(1);
                format!("{} %", node.overlay_bytes.saturating_mul(100) / max)
            };
            vec![
                node.id.to_string(),
                known(&node.version).unwrap_or("-").to_owned(),
                state(node).to_owned(),
                heard(node).unwrap_or_else(dash),
                measured(node).map_or_else(dash, |node| size(node.disk_free_bytes)),
                measured(node).map_or_else(dash, |node| size(node.disk_used_bytes)),
                measured(node).map_or_else(dash, percent),
                expiry(node).map_or_else(dash, |at| at.chars().take(DATE_LENGTH).collect()),
            ]
        })
        .collect();
    table(&header, &[0, 3, 4, 5, 6], rows)
}

/// The most important thing about a node's state, in a word.
fn state(node: &NodeStatus) -> &str {
    match node {
        _ if !node.quarantine.is_empty() => "quarantined",
        _ if node.draining => "stopping",
        _ => known(&node.agreement).unwrap_or("-"),
    }
}

/// How long ago it was heard from.
fn heard(node: &NodeStatus) -> Option<String> {
    Some(match node.last_contact_ms? / 1_000 {
        0 => "now".to_owned(),
        seconds @ 1..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    })
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let exponent = (bytes.max(1).ilog2() / 10).clamp(1, 4);
    let value = bytes as f64 / f64::from(1 << (10 * (exponent - 1))) / 1_024.0;
    format!("{value:.1} {}", units[exponent as usize - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::KeyringStatus;

    fn node(id: u64, role: &str, applied: u64) -> NodeStatus {
        NodeStatus {
            id,
            role: role.into(),
            zone: "west-1".into(),
            api_address: format!("192.168.100.{id}:7420"),
            peer_address: format!("192.168.100.{id}:7421"),
            voter: true,
            reachable: role != "unreachable",
            applied,
            committed: applied,
            last_log: applied,
            digest: "ab".repeat(32),
            version: "0.1.0".into(),
            purged: 0,
            snapshot: 0,
            certificate_expires_at: if role == "unreachable" { 0 } else { 1_700_000_000 },
            disk_free_bytes: 123 << 30,
            disk_size_bytes: 456 << 30,
            disk_used_bytes: 17 << 20,
            overlay_bytes: 12,
            overlay_max_bytes: 100,
            last_contact_ms: (id < 3).then_some(61_000),
            agreement: "agrees".into(),
            ..NodeStatus::default()
        }
    }

    fn status() -> StatusResponse {
        StatusResponse {
            cluster: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            cluster_name: "demo".into(),
            leader: Some(1),
            term: 3,
            nodes: vec![
                node(1, "leader", 12_345_678),
                node(2, "follower", 12_345_670),
                node(3, "unreachable", 0),
            ],
            failure_tolerance: 1,
            answered_by: 2,
            feature_level: 2,
            keyring: Some(KeyringStatus {
                key_version: 2,
                keys_under_old_data_keys: Some(70),
                has_old_data_keys: true,
                ..KeyringStatus::default()
            }),
            health: "degraded".into(),
            warnings: vec![
                "voter 3 is away: last heard from 61 s ago".into(),
                "node 2 is quarantined and serves no reads: its state differs from that of the others (at \
                 index 12345678; to be replaced by a peer's)"
                    .into(),
            ],
        }
    }

    #[test]
    fn the_table_says_what_needs_attention_and_json_says_everything() {
        let mut status = status();
        status.nodes[1].quarantine = "its state differs".into();
        let text = text_of(&status);
        assert!(text.contains("\ndegraded: 1 of 3 voters away, tolerates no more\n"), "{text}");
        assert!(text.contains("\nwarning: voter 3 is away: last heard from 61 s ago\n"), "{text}");
        for shown in ["quarantined", "123.0 GiB", "17.0 MiB", "12 %", "61 s", "2023-11-14"] {
            assert!(text.contains(shown), "{shown} is missing in:\n{text}");
        }
        let json = json_of(&status);
        assert_eq!((&json["health"], &json["feature_level"]), (&json!("degraded"), &json!(2)));
        assert_eq!(json["warnings"].as_array().map(Vec::len), Some(2));
        assert!(text.contains("\ndata key 2: 70 keys are still under older ones\n"), "{text}");
        assert_eq!(json["keyring"]["keys_under_old_data_keys"], 70);
        assert_eq!(json["nodes"][1]["quarantine"], "its state differs");
        assert_eq!(json["nodes"][0]["quarantine"], Value::Null);
        assert_eq!(json["nodes"][0]["overlay_max_bytes"], 100);
        assert_eq!(json["nodes"][2]["last_contact_ms"], Value::Null);
    }

    #[test]
    fn sizes_are_readable_and_nothing_is_divided_by_zero() {
        let sizes = [0, 1, 1_023, 1 << 20, 5 << 39, u64::MAX].map(size);
        assert_eq!(sizes, ["0.0 KiB", "0.0 KiB", "1.0 KiB", "1.0 MiB", "2.5 TiB", "16777216.0 TiB"]);
    }

    #[test]
    fn the_table_of_nodes_fits_in_80_columns() {
        let text = text_of(&status());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{}: {line}", line.chars().count());
        }
    }

    #[test]
    fn json_counts_lag_from_the_highest_commit_and_says_null_for_what_is_unknown() {
        let json = json_of(&status());
        let lags: Vec<_> = (0..3).map(|node| json["nodes"][node]["lag"].clone()).collect();
        assert_eq!(lags, [json!(0), json!(8), Value::Null]);
        assert_eq!(json["nodes"][0]["certificate_expires_at"], "2023-11-14T22:13:20.000Z");
        assert_eq!(json["nodes"][2]["certificate_expires_at"], Value::Null);
        assert_eq!(json["leader"], 1);
        let leaderless = StatusResponse { leader: None, ..status() };
        assert_eq!(json_of(&leaderless)["leader"], Value::Null);
    }

    #[test]
    fn nodes_that_are_away_count_as_failures() {
        let (up, away) = (|id| node(id, "follower", 7), |id| node(id, "unreachable", 0));
        let told = |nodes| tolerance(&StatusResponse { nodes, ..status() });
        assert_eq!(told(vec![up(1), up(2), up(3)]), "tolerates 1 failure");
        assert_eq!(told(vec![up(1), up(2), away(3)]), "1 of 3 voters away, tolerates no more");
        assert_eq!(told(vec![up(1), away(2), away(3)]), "no quorum, 2 of 3 voters away");
        let learner = NodeStatus { voter: false, ..away(4) };
        assert_eq!(told(vec![up(1), up(2), up(3), learner]), "tolerates 1 failure");
    }

    #[test]
    fn a_node_without_a_cluster_says_so() {
        let alone = StatusResponse { cluster: String::new(), answered_by: 2, ..StatusResponse::default() };
        assert!(text_of(&alone).contains("belongs to no cluster"));
        assert_eq!(json_of(&alone)["cluster"], Value::Null);
    }
}
