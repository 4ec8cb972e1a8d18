//! What the admin port shows of a node.

use crate::http::{self, Admin};
use crate::rpc::Context;

/// A node as the admin port sees it.
#[derive(Clone)]
pub(super) struct AdminView(pub(super) Context);

impl Admin for AdminView {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        let node = &self.0.node;
        if self.0.is_draining() {
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
        if node.leader_in_contact().is_none() {
            reasons.push("knows no leader".to_owned());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn metrics(&self) -> Vec<http::Metric> {
        let vitals = self.0.node.vitals();
        let gauge = |name, help, value: u64| http::Metric::gauge(name, help, value as f64);
        vec![
            gauge("raft_term", "Current term.", vitals.term),
            gauge("raft_is_leader", "1 if this node leads.", u64::from(vitals.role == "leader")),
            gauge("raft_last_log_index", "Index of the last log entry.", vitals.last_log),
            gauge("raft_committed_index", "Index known to be committed.", vitals.committed),
            gauge("raft_applied_index", "Index applied to the state.", vitals.digest.index),
            gauge("raft_purged_index", "Index up to which the log is purged.", vitals.purged),
            gauge("raft_snapshot_index", "Index the newest snapshot covers.", vitals.snapshot),
            gauge(
                "certificate_expiry_timestamp_seconds",
                "When this node's certificate expires, in seconds since the Unix epoch.",
                self.0.tls.expires_at(),
            ),
        ]
    }
}
