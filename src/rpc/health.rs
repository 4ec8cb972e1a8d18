//! What a status comes to: is the cluster healthy, and what needs attention.
//!
//! Everything is judged from what the nodes say of themselves, by the node that answers. A warning is a sentence that
//! names the node and what is wrong; what to do about each is in the runbook.

use crate::proto::{NodeStatus, StatusResponse};
use crate::tls::{CertificateKind, Urgency};

/// Below this share of the disk, in percent, or…
const DISK_LOW_PERCENT: u64 = 10;
/// … below this many bytes, space is running out: a snapshot of a million machines and the base made of it fit no more.
const DISK_LOW_BYTES: u64 = 1 << 30;
/// With less than this a node calls itself not ready: the log cannot begin two more of its files, and a node whose log
/// cannot be written stops.
pub const DISK_FULL_BYTES: u64 = 32 << 20;
const DAY_SECONDS: u64 = 24 * 3_600;
/// Entries behind the highest commit at which a node is said to lag: some seconds of a busy cluster.
const LAG_WARNING_ENTRIES: u64 = 4_096;
/// Share of the overlay's bound, in percent, at which it is said to fill up: past the bound applying waits.
const OVERLAY_WARNING_PERCENT: u64 = 80;

/// Fills in health and warnings of a status that is complete otherwise, at `now` (Unix seconds).
pub(super) fn judge(status: &mut StatusResponse, now: u64) {
    // A node that belongs to no cluster waits to be added: neither well nor ill.
    if status.cluster.is_empty() {
        return;
    }
    let found = warnings(status, now);
    status.warnings.extend(found);
    status.health = match () {
        () if !has_quorum(status) => "no-quorum",
        () if !status.warnings.is_empty() => "degraded",
        () => "healthy",
    }
    .to_owned();
}

fn voters(status: &StatusResponse) -> impl Iterator<Item = &NodeStatus> {
    status.nodes.iter().filter(|node| node.voter)
}

/// Whether a leader is in contact, and enough voters could be asked.
fn has_quorum(status: &StatusResponse) -> bool {
    let away = voters(status).filter(|node| !node.reachable).count();
    let tolerated = usize::try_from(status.failure_tolerance).unwrap_or(usize::MAX);
    status.leader.is_some() && away <= tolerated
}

fn warnings(status: &StatusResponse, now: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if status.leader.is_none() {
        warnings.push("no leader is in contact: nothing can be written".to_owned());
    }
    let voters = voters(status).count();
    if voters > 0 && voters.is_multiple_of(2) {
        let instead = voters - 1;
        let tolerated = status.failure_tolerance;
        warnings.push(format!(
            "{voters} voters, an even number: they tolerate {tolerated} failures, as {instead} would"
        ));
    }
    if let Some(left) =
        status.keyring.as_ref().map(|keyring| keyring.keys_not_resealed).filter(|left| *left > 0)
    {
        warnings.push(format!(
            "{left} keys could not be sealed under the current data key: the leader's log names them"
        ));
    }
    let version =
        status.nodes.iter().find(|node| node.id == status.answered_by).map(|node| node.version.as_str());
    let committed = status.nodes.iter().map(|node| node.committed).max().unwrap_or(0);
    for node in &status.nodes {
        if node.reachable {
            about(node, version, committed, now, &mut warnings);
        } else {
            let what = if node.voter { "voter" } else { "learner" };
            let since = node.last_contact_ms.map_or_else(
                || format!("not heard from since node {} started", status.answered_by),
                |ms| format!("last heard from {} s ago", ms / 1_000),
            );
            warnings.push(format!("{what} {} is away: {since}", node.id));
        }
    }
    warnings
}

/// What a node that answers says of itself.
fn about(node: &NodeStatus, version: Option<&str>, committed: u64, now: u64, warnings: &mut Vec<String>) {
    let id = node.id;
    if !node.quarantine.is_empty() {
        warnings.push(format!("node {id} is quarantined and serves no reads: {}", node.quarantine));
    } else if node.agreement == "differs" {
        warnings.push(format!("the state of node {id} differs from that of the others"));
    }
    if node.draining {
        warnings.push(format!("node {id} is stopping"));
    }
    let behind = committed.saturating_sub(node.applied);
    if behind >= LAG_WARNING_ENTRIES {
        warnings.push(format!("node {id} lags by {behind} entries"));
    }
    let (free, size) = (node.disk_free_bytes, node.disk_size_bytes);
    // A size of zero: it does not say.
    if size > 0 && (free < DISK_LOW_BYTES || free / DISK_LOW_PERCENT < size / 100) {
        let percent = free.saturating_mul(100) / size;
        warnings.push(format!("the disk of node {id} has {} MiB free, {percent} %", free >> 20));
    }
    if node.overlay_max_bytes > 0
        && node.overlay_bytes.saturating_mul(100) / node.overlay_max_bytes >= OVERLAY_WARNING_PERCENT
    {
        warnings.push(format!("the disk of node {id} does not keep up: its overlay is nearly full"));
    }
    if !node.clock_fault.is_empty() {
        warnings.push(format!("node {id} takes no commands: {}", node.clock_fault));
    }
    if !node.journal_fault.is_empty() {
        let fault = &node.journal_fault;
        warnings.push(format!("without a quorum node {id} shows no keys, its journal is damaged: {fault}"));
    }
    if node.journal_begun_anew {
        warnings.push(format!(
            "the journal of node {id} was put back to an older copy, or another node uses it: it has begun a new one"
        ));
    }
    if !node.opening_fault.is_empty() {
        warnings.push(format!("node {id} can open no key: {}", node.opening_fault));
    } else if node.keys_not_opened > 0 {
        let (count, named) = (node.keys_not_opened, node.not_opened.join(", "));
        warnings.push(format!("{count} of the kept keys cannot be opened at node {id}: {named}"));
    }
    let waiting = node.journal_own + node.journal_told;
    if waiting > 0 {
        let seconds = node.journal_oldest_age_ms.unwrap_or(0) / 1_000;
        warnings.push(format!(
            "{waiting} reveals in the journal of node {id} are not on record, the oldest is {seconds} s old"
        ));
    }
    warnings.extend(certificate_of(node, now));
    if let Some(version) = version.filter(|version| *version != node.version) {
        warnings.push(format!("node {id} runs version {}, the node asked runs {version}", node.version));
    }
}

/// What to know of a node's certificate, if its end is near. Zero: it does not say when it ends.
fn certificate_of(node: &NodeStatus, now: u64) -> Option<String> {
    let NodeStatus { id, certificate_not_before: from, certificate_expires_at: until, .. } = *node;
    let when = match Urgency::of(CertificateKind::Own, from, until, now) {
        _ if until == 0 => return None,
        Urgency::None => return None,
        Urgency::Over => "has expired".to_owned(),
        Urgency::Soon | Urgency::Urgent => match (until - now) / DAY_SECONDS {
            0 => "expires within a day".to_owned(),
            1 => "expires in 1 day".to_owned(),
            days => format!("expires in {days} days"),
        },
    };
    Some(format!("the certificate of node {id} {when}: renew it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::EXPIRY_WARNING;

    const NOW: u64 = 1_800_000_000;

    fn node(id: u64) -> NodeStatus {
        NodeStatus {
            id,
            role: if id == 1 { "leader" } else { "follower" }.into(),
            voter: true,
            reachable: true,
            applied: 10_000,
            committed: 10_000,
            version: "1.0.0".into(),
            certificate_not_before: NOW,
            certificate_expires_at: NOW + 365 * DAY_SECONDS,
            disk_free_bytes: 50 << 30,
            disk_size_bytes: 100 << 30,
            overlay_bytes: 1,
            overlay_max_bytes: 100,
            last_contact_ms: Some(5),
            agreement: "agrees".into(),
            ..NodeStatus::default()
        }
    }

    fn away(id: u64) -> NodeStatus {
        let last_contact_ms = Some(61_500);
        NodeStatus { id, voter: true, role: "unreachable".into(), last_contact_ms, ..NodeStatus::default() }
    }

    fn judged(nodes: Vec<NodeStatus>) -> StatusResponse {
        let voters = nodes.iter().filter(|node| node.voter).count();
        let mut status = StatusResponse {
            cluster: "c".into(),
            leader: Some(1),
            failure_tolerance: u32::try_from(voters - (voters / 2 + 1)).unwrap(),
            answered_by: 1,
            nodes,
            ..StatusResponse::default()
        };
        judge(&mut status, NOW);
        status
    }

    #[test]
    fn a_cluster_with_nothing_wrong_is_healthy() {
        let status = judged(vec![node(1), node(2), node(3)]);
        assert_eq!((status.health.as_str(), status.warnings), ("healthy", Vec::new()));
    }

    #[test]
    fn a_voter_away_degrades_and_two_of_three_are_no_quorum() {
        let status = judged(vec![node(1), node(2), away(3)]);
        assert_eq!(status.health, "degraded");
        assert_eq!(status.warnings, ["voter 3 is away: last heard from 61 s ago"]);
        let status = judged(vec![node(1), away(2), away(3)]);
        assert_eq!(status.health, "no-quorum");
        assert_eq!(status.warnings.len(), 2);
        let mut status = judged(vec![node(1), node(2), node(3)]);
        status.leader = None;
        judge(&mut status, NOW);
        assert_eq!(status.health, "no-quorum", "without a leader nothing is written");
    }

    #[test]
    fn a_learner_away_degrades_and_never_costs_the_quorum() {
        let learner = NodeStatus { voter: false, last_contact_ms: None, ..away(4) };
        let status = judged(vec![node(1), node(2), node(3), learner]);
        assert_eq!(status.health, "degraded");
        assert_eq!(status.warnings, ["learner 4 is away: not heard from since node 1 started"]);
    }

    #[test]
    fn each_fault_of_a_node_has_a_sentence_that_names_it() {
        type Fault = fn(&mut NodeStatus);
        let faults: [(Fault, &str); 20] = [
            (
                |node| node.quarantine = "scrub found damage".into(),
                "node 2 is quarantined and serves no reads: scrub",
            ),
            (|node| node.agreement = "differs".into(), "the state of node 2 differs"),
            (|node| node.draining = true, "node 2 is stopping"),
            (
                |node| node.clock_fault = "its clock is 3600 s ahead".into(),
                "node 2 takes no commands: its clock",
            ),
            (|node| node.journal_fault = "cut short".into(), "without a quorum node 2 shows no keys"),
            (
                |node| (node.journal_own, node.journal_oldest_age_ms) = (3, Some(61_000)),
                "3 reveals in the journal of node 2 are not on record, the oldest is 61 s old",
            ),
            (|node| node.journal_begun_anew = true, "the journal of node 2 was put back to an older copy"),
            (|node| node.opening_fault = "no identity".into(), "node 2 can open no key: no identity"),
            (
                |node| (node.keys_not_opened, node.not_opened) = (2, vec!["b0b1".into()]),
                "2 of the kept keys cannot be opened at node 2: b0b1",
            ),
            (|node| node.applied = 10_000 - LAG_WARNING_ENTRIES, "node 2 lags by 4096 entries"),
            (|node| node.disk_free_bytes = 9 << 30, "the disk of node 2 has 9216 MiB free, 9 %"),
            (
                |node| (node.disk_free_bytes, node.disk_size_bytes) = (1 << 20, 2 << 20),
                "the disk of node 2 has 1 MiB free, 50 %",
            ),
            (|node| node.overlay_bytes = 80, "the disk of node 2 does not keep up"),
            (
                |node| {
                    (node.certificate_not_before, node.certificate_expires_at) =
                        (NOW - 360 * DAY_SECONDS, NOW + 5 * DAY_SECONDS + 1);
                },
                "the certificate of node 2 expires in 5 days",
            ),
            (
                |node| {
                    (node.certificate_not_before, node.certificate_expires_at) =
                        (NOW - 5 * DAY_SECONDS, NOW + 2 * DAY_SECONDS);
                },
                "the certificate of node 2 expires in 2 days",
            ),
            (
                |node| {
                    (node.certificate_not_before, node.certificate_expires_at) =
                        (NOW - DAY_SECONDS, NOW + 3_600);
                },
                "the certificate of node 2 expires within a day",
            ),
            (|node| node.certificate_expires_at = NOW - 1, "the certificate of node 2 has expired"),
            (|node| node.version = "0.9.0".into(), "node 2 runs version 0.9.0, the node asked runs 1.0.0"),
            (|node| node.disk_free_bytes = 0, "the disk of node 2 has 0 MiB free, 0 %"),
            (|node| node.overlay_bytes = 100, "the disk of node 2 does not keep up"),
        ];
        for (fault, expected) in faults {
            let mut faulty = node(2);
            fault(&mut faulty);
            let status = judged(vec![node(1), faulty, node(3)]);
            assert_eq!(status.health, "degraded", "{expected}");
            assert_eq!(status.warnings.len(), 1, "{:?}", status.warnings);
            assert!(status.warnings[0].starts_with(expected), "{:?}", status.warnings);
        }
    }

    #[test]
    fn what_is_just_within_bounds_is_not_warned_about() {
        let fine = NodeStatus {
            applied: 10_001 - LAG_WARNING_ENTRIES,
            disk_free_bytes: 10 << 30,
            overlay_bytes: 79,
            certificate_not_before: NOW - 335 * DAY_SECONDS,
            certificate_expires_at: NOW + EXPIRY_WARNING.as_secs(),
            ..node(2)
        };
        // Issued anew every week, on a day in the middle of it.
        let short_lived = NodeStatus {
            certificate_not_before: NOW - 4 * DAY_SECONDS,
            certificate_expires_at: NOW + 3 * DAY_SECONDS,
            ..node(3)
        };
        assert_eq!(judged(vec![node(1), fine, short_lived]).warnings, Vec::<String>::new());
    }

    #[test]
    fn keys_that_stay_under_an_older_data_key_are_warned_about() {
        let keyring =
            |keys_not_resealed| Some(crate::proto::KeyringStatus { keys_not_resealed, ..Default::default() });
        for (left, warnings) in [(0, 0), (2, 1)] {
            let mut status = judged(vec![node(1), node(2), node(3)]);
            status.keyring = keyring(left);
            judge(&mut status, NOW);
            assert_eq!(status.warnings.len(), warnings, "{:?}", status.warnings);
        }
    }

    #[test]
    fn an_even_number_of_voters_is_warned_about() {
        let status = judged(vec![node(1), node(2), node(3), node(4)]);
        assert_eq!(status.warnings, ["4 voters, an even number: they tolerate 1 failures, as 3 would"]);
    }

    #[test]
    fn a_node_that_waits_to_be_added_is_neither_well_nor_ill() {
        let mut status = StatusResponse { nodes: vec![node(1)], answered_by: 1, ..StatusResponse::default() };
        judge(&mut status, NOW);
        assert_eq!((status.health.as_str(), status.warnings.len()), ("", 0));
    }
}
