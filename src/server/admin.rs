//! What the admin port shows of a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::Timestamp;
use crate::escrow::lookup;
use crate::http::Admin;
use crate::metrics::{Metric, Sample, Values};
use crate::raft::opening::{CompletePass, Opening};
use crate::raft::{Agreement, Usage, Vitals};
use crate::rpc::health::DISK_FULL_BYTES;
use crate::rpc::{Context, now, wire};
use crate::store::journal::{JournalStats, OWN_ENTRIES_MAX};
use crate::tls::CertificateKind;

/// What a node can be, as metrics say it.
const ROLES: [&str; 5] = ["leader", "follower", "candidate", "learner", "stopped"];

/// What a comparison of states can come to, as metrics say it.
const AGREEMENTS: [Agreement; 3] = [Agreement::Agrees, Agreement::Differs, Agreement::Unknown];

/// A node as the admin port sees it.
#[derive(Clone)]
pub(super) struct AdminView {
    context: Context,
    /// Seconds since the Unix epoch.
    started_at: f64,
}

impl AdminView {
    /// Of a node that starts to serve now.
    pub(super) fn new(context: Context) -> Self {
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { context, started_at }
    }
}

impl Admin for AdminView {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        let node = &self.context.node;
        if self.context.is_draining() {
            reasons.push("stopping".to_owned());
        }
        if let Some(why) = node.expelled() {
            reasons.push(why.to_string());
        }
        match node.cluster() {
            Ok(Some(_)) => {}
            Ok(None) => reasons.push("belongs to no cluster yet".to_owned()),
            Err(error) => reasons.push(crate::error::chain(&error)),
        }
        if let Err(error) = node.running() {
            reasons.push(error.to_string());
        }
        if let Some(why) = node.quarantine() {
            reasons.push(format!("quarantined: {why}"));
        }
        if node.leader_in_contact().is_none() {
            reasons.push("knows no leader".to_owned());
        }
        if let Some(skew) = node.clock_fault() {
            reasons.push(format!("takes no commands: {skew}"));
        }
        if let Some(usage) = node.usage().filter(|usage| usage.space.free < DISK_FULL_BYTES) {
            reasons.push(format!("the disk is full: {} bytes are free", usage.space.free));
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn metrics(&self) -> Vec<Metric> {
        let node = &self.context.node;
        let vitals = node.vitals();
        let mut all = self.about();
        all.extend(consensus(&vitals));
        all.extend(self.freshness(&vitals));
        all.extend(self.peers());
        all.extend(node.usage().as_ref().map(usage).unwrap_or_default());
        all.extend(self.certificates());
        all.extend(journal(&node.journal_stats()));
        all.extend(opening(&node.opening()));
        all.extend(self.state());
        all.extend(node.options().metrics.collect());
        all
    }
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Indexes and terms fit a float exactly up to 2^53, which no cluster reaches.
fn number(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric::gauge(name, help, value as f64)
}

fn gauges<L: ToString>(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = (L, f64)>,
) -> Metric {
    let sample = |(of, value): (L, f64)| Sample { labels: vec![(label, of.to_string())], value };
    Metric { name, help, values: Values::Gauge(values.into_iter().map(sample).collect()) }
}

fn consensus(vitals: &Vitals) -> Vec<Metric> {
    let roles = ROLES.map(|role| (role, flag(role == vitals.role)));
    let lag = vitals.committed.saturating_sub(vitals.digest.index);
    vec![
        number("strongroom_raft_term", "Current term.", vitals.term),
        Metric::gauge("strongroom_raft_is_leader", "1 if this node leads.", flag(vitals.role == "leader")),
        gauges("strongroom_raft_role", "1 for the role this node has.", "role", roles),
        Metric::gauge(
            "strongroom_raft_leader_known",
            "1 if a leader is in contact.",
            flag(vitals.leader.is_some()),
        ),
        number("strongroom_raft_last_log_index", "Index of the last log entry.", vitals.last_log),
        number("strongroom_raft_committed_index", "Index known to be committed.", vitals.committed),
        number("strongroom_raft_applied_index", "Index applied to the state.", vitals.digest.index),
        number("strongroom_raft_purged_index", "Index up to which the log is purged.", vitals.purged),
        number("strongroom_raft_snapshot_index", "Index the newest snapshot covers.", vitals.snapshot),
        number(
            "strongroom_apply_lag_entries",
            "Entries known to be committed and not applied here yet.",
            lag,
        ),
    ]
}

fn usage(usage: &Usage) -> Vec<Metric> {
    let parts = [
        ("log", usage.log_bytes as f64),
        ("base", usage.machine.base_bytes as f64),
        ("snapshots", usage.snapshot_bytes as f64),
    ];
    vec![
        number("strongroom_disk_free_bytes", "Bytes free where the data directory is.", usage.space.free),
        number(
            "strongroom_disk_size_bytes",
            "Bytes of the file system of the data directory.",
            usage.space.size,
        ),
        gauges("strongroom_disk_used_bytes", "Bytes the data directory takes, by part.", "part", parts),
        number(
            "strongroom_overlay_bytes",
            "Bytes of the state that are in memory only, about.",
            usage.machine.overlay_bytes as u64,
        ),
        number(
            "strongroom_overlay_max_bytes",
            "Bytes of the state that may be in memory only; past it applying waits for the disk.",
            usage.machine.overlay_max_bytes as u64,
        ),
        number("strongroom_state_rows", "Rows of the state.", usage.machine.rows),
        number(
            "strongroom_state_bytes",
            "Bytes of the keys and values of the state.",
            usage.machine.row_bytes,
        ),
    ]
}

fn journal(stats: &JournalStats) -> Vec<Metric> {
    let age = |at: Timestamp| Duration::from_millis(now().0.saturating_sub(at.0)).as_secs_f64();
    let entries = [("own", stats.own as f64), ("told", stats.told as f64)];
    vec![
        gauges(
            "strongroom_journal_entries",
            "Reveals without a quorum that are not on record yet: of this node, and told by others.",
            "origin",
            entries,
        ),
        number(
            "strongroom_journal_entries_max",
            "Reveals without a quorum that this node may have waiting; past it none is shown.",
            OWN_ENTRIES_MAX as u64,
        ),
        number("strongroom_journal_bytes", "Bytes the journal of reveals takes.", stats.bytes as u64),
        Metric::gauge(
            "strongroom_journal_oldest_age_seconds",
            "Since the oldest reveal that is not on record was decided; 0 if there is none.",
            stats.oldest.map_or(0.0, age),
        ),
        Metric::gauge(
            "strongroom_journal_damaged",
            "1 if the journal of reveals is damaged and takes nothing.",
            flag(!stats.fault.is_empty()),
        ),
    ]
}

fn opening(opening: &Opening) -> Vec<Metric> {
    let mut all = vec![
        number(
            "strongroom_keys_not_opened",
            "Kept keys that this node could not open when it last tried.",
            opening.unopened,
        ),
        Metric::gauge(
            "strongroom_keyring_usable",
            "1 if this node can open the keyring, without which it opens no key.",
            flag(opening.fault.is_empty()),
        ),
    ];
    if let Some(CompletePass { at, opened }) = opening.complete {
        all.push(number("strongroom_keys_opened", "Keys opened by the last pass over all of them.", opened));
        all.push(Metric::gauge(
            "strongroom_keys_opened_timestamp_seconds",
            "When that pass ended, in seconds since the Unix epoch.",
            Duration::from_millis(at.0).as_secs_f64(),
        ));
    }
    all
}

impl AdminView {
    fn about(&self) -> Vec<Metric> {
        let options = self.context.node.options();
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let node = vec![
            ("node", options.id.to_string()),
            ("zone", options.member.zone.clone()),
            ("cluster", self.context.tls.identity().cluster.to_string()),
        ];
        vec![
            Metric { name: "strongroom_build", help: "The release that runs.", values: Values::Info(build) },
            Metric { name: "strongroom_node", help: "Who this node is.", values: Values::Info(node) },
            Metric::gauge(
                "strongroom_start_time_seconds",
                "When this node began to serve, in seconds since the Unix epoch.",
                self.started_at,
            ),
            Metric::gauge(
                "strongroom_ready",
                "1 if requests may be sent here: what /readyz says.",
                flag(self.ready().is_ok()),
            ),
            Metric::gauge(
                "strongroom_draining",
                "1 while the node is stopping.",
                flag(self.context.is_draining()),
            ),
        ]
    }

    fn freshness(&self, vitals: &Vitals) -> Vec<Metric> {
        let node = &self.context.node;
        let tolerance = node.failure_tolerance();
        let agreement = node.agreement();
        let mut all = vec![
            number("strongroom_raft_voters", "Voters, as this node knows them.", node.voters().len() as u64),
            Metric::gauge(
                "strongroom_raft_failure_tolerance",
                "Voters that may fail before writes stop.",
                f64::from(tolerance),
            ),
            number(
                "strongroom_raft_leader_id",
                "Id of the leader in contact; 0 if there is none.",
                vitals.leader.unwrap_or(0),
            ),
        ];
        all.push(Metric::gauge(
            "strongroom_clock_ahead_seconds",
            "Seconds by which this node's clock is ahead of those of a majority of the voters, at least; 0 if it is in the middle.",
            node.clock_skew().0 as f64 / 1_000.0,
        ));
        all.push(gauges(
            "strongroom_state_agreement",
            "1 for what the last comparison of the state with the others' came to.",
            "agreement",
            AGREEMENTS.map(|one| (one, flag(one == agreement))),
        ));
        all.push(Metric::gauge(
            "strongroom_quarantined",
            "1 while this node has put itself aside because its state is not right.",
            flag(node.quarantine().is_some()),
        ));
        all.push(Metric::gauge(
            "strongroom_quarantine_log_ratio",
            "Log that waits for the end of a quarantine, as a share of what is kept before the node stops; 0 if it is well.",
            node.held_log().map_or(0.0, |held| held.bytes as f64 / held.max_bytes as f64),
        ));
        if let Some(age) = node.freshness().quorum_age {
            all.push(Metric::gauge(
                "strongroom_quorum_age_seconds",
                "Since a quorum was last known to be in contact; missing if not since the start.",
                age.as_secs_f64(),
            ));
        }
        all
    }

    /// By member: as many as the cluster has.
    fn peers(&self) -> Vec<Metric> {
        let peers = self.context.node.peers();
        let lags = peers.iter().filter_map(|peer| Some((peer.id, peer.lag? as f64)));
        let contacts = peers.iter().filter_map(|peer| Some((peer.id, peer.last_contact?.as_secs_f64())));
        vec![
            gauges(
                "strongroom_peer_lag_entries",
                "At the leader: entries of the log a member is not known to have.",
                "peer",
                lags,
            ),
            gauges(
                "strongroom_peer_last_contact_age_seconds",
                "Since another member was last heard from; missing if not since the start.",
                "peer",
                contacts,
            ),
        ]
    }

    fn certificates(&self) -> Vec<Metric> {
        let tls = &self.context.tls;
        // Certificates of one CA key under one name count as one: the last to expire.
        let mut authorities = std::collections::BTreeMap::new();
        for ca in tls.expiries().into_iter().filter(|one| one.kind == CertificateKind::Authority) {
            let span = (ca.not_after, ca.not_before);
            let latest = authorities.entry(ca.subject).or_insert(span);
            *latest = span.max(*latest);
        }
        let of_each = |of: fn((u64, u64)) -> u64| {
            authorities
                .iter()
                .map(move |(subject, span)| (subject.clone(), of(*span) as f64))
                .collect::<Vec<_>>()
        };
        vec![
            number(
                "strongroom_certificate_expiry_timestamp_seconds",
                "When this node's certificate, or one above it, expires, in seconds since the Unix epoch.",
                tls.expires_at(),
            ),
            gauges(
                "strongroom_ca_certificate_expiry_timestamp_seconds",
                "When each CA of the bundle expires, in seconds since the Unix epoch.",
                "subject",
                of_each(|(not_after, _)| not_after),
            ),
            number(
                "strongroom_certificate_not_before_timestamp_seconds",
                "Since when this node's certificate is valid, in seconds since the Unix epoch.",
                tls.not_before(),
            ),
            gauges(
                "strongroom_ca_certificate_not_before_timestamp_seconds",
                "Since when each CA of the bundle is valid, in seconds since the Unix epoch.",
                "subject",
                of_each(|(_, not_before)| not_before),
            ),
        ]
    }

    /// What only the replicated state knows; nothing if it cannot be read, which other metrics tell.
    fn state(&self) -> Vec<Metric> {
        let Ok(view) = self.context.node.view() else { return Vec::new() };
        let mut all = vec![number(
            "strongroom_feature_level_supported",
            "Highest feature level this release can apply.",
            u64::from(FeatureLevel::SUPPORTED.0),
        )];
        if let Ok(level) = lookup::feature_level(&view) {
            all.push(number(
                "strongroom_feature_level",
                "Feature level the cluster allows, as this replica has it.",
                u64::from(level.0),
            ));
        }
        if let Ok(Some(keyring)) = wire::keyring_status(&view) {
            all.push(number(
                "strongroom_data_key_version",
                "Version of the data key that seals new secrets.",
                u64::from(keyring.key_version),
            ));
            all.push(number(
                "strongroom_keys_not_resealed",
                "Keys that the last pass over all of them could not seal under the current data key.",
                keyring.keys_not_resealed,
            ));
            if let Some(keys) = keyring.keys_under_old_data_keys {
                all.push(number(
                    "strongroom_keys_under_old_data_keys",
                    "Keys still sealed under older data keys than the current one; missing until they are counted.",
                    keys,
                ));
            }
        }
        if let Ok(heads) = lookup::heads(&view) {
            all.push(number(
                "strongroom_audit_sequence",
                "Number of the newest audit record this replica has.",
                heads.audit.sequence,
            ));
        }
        all
    }
}
