//! Taking a snapshot when the log has grown heavy enough.
//!
//! openraft's own policy counts entries; ours weighs bytes, so that snapshots cost a constant factor of what is
//! written, however large the entries are. The rule is in `store::policy`.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::storage::Storage;
use super::types::Raft;

/// Between two looks at the weight of the log.
const POLL: Duration = Duration::from_secs(1);

/// Triggers a snapshot whenever one is due, until `stop`.
pub(super) fn spawn(raft: Raft, storage: Storage, stop: CancellationToken) {
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match storage.snapshot_is_due() {
                Ok(false) => {}
                // While one is being built, openraft leaves further triggers be.
                Ok(true) => {
                    if raft.trigger().snapshot().await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "weighing the log"),
            }
        }
    }));
}
