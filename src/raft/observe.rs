//! What a node sees of the others, for status and metrics.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;

use super::node::Node;
use super::usage::Usage;
use crate::escrow::ids::NodeId;

/// Another member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Which.
    pub id: NodeId,
    /// Entries of the log that it is not known to have; only the leader knows.
    pub lag: Option<u64>,
    /// Since it was last heard from; `None` if not since this node started.
    pub last_contact: Option<Duration>,
}

impl Node {
    /// The other members as this node sees them.
    pub fn peers(&self) -> Vec<PeerView> {
        let metrics = self.metrics();
        let last_log = metrics.last_log_index.unwrap_or(0);
        let others = metrics.membership_config.nodes().map(|(id, _)| *id).filter(|id| *id != metrics.id);
        others
            .map(|id| {
                let matched = metrics.replication.as_ref().and_then(|matched| matched.get(&id).copied());
                let matched = matched.map(|matched| matched.map_or(0, |log_id| log_id.index));
                let acknowledged =
                    metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
                let acknowledged = acknowledged.map(|heard| heard.elapsed());
                PeerView {
                    id,
                    lag: matched.map(|matched| last_log.saturating_sub(matched)),
                    last_contact: [self.inner.contacts.age(id), acknowledged].into_iter().flatten().min(),
                }
            })
            .collect()
    }

    /// Notes that member `id` was heard from: it called, or it answered. Others are not remembered.
    pub fn heard_from(&self, id: NodeId) {
        if self.is_member(id) {
            self.inner.contacts.heard(id);
        }
    }

    /// What this node takes of its disk and memory, as of a few seconds ago; `None` if that is not known (yet).
    pub fn usage(&self) -> Option<Usage> {
        self.inner.usage.last()
    }

    /// Counts and logs changes of the leader.
    pub(super) fn watch_leader(&self) {
        let mut metrics = self.inner.raft.server_metrics();
        let changes = self.inner.options.metrics.raft.leader_changes.clone();
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let (leader, term) = {
                    let metrics = metrics.borrow_and_update();
                    (metrics.current_leader, metrics.vote.leader_id.term)
                };
                match leader {
                    Some(leader) if last != Some(leader) => {
                        // The first one is no change.
                        if last.replace(leader).is_some() {
                            changes.inc();
                        }
                        tracing::info!(leader, term, "a leader is known");
                    }
                    _ => {}
                }
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        });
    }
}
