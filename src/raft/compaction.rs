//! Taking a snapshot when the log has grown heavy enough, and cutting the log behind it.
//!
//! openraft's own policy counts entries; ours weighs bytes, so that snapshots cost a constant factor of what is
//! written, however large the entries are. The rule is in `store::policy`.
//!
//! openraft would cut all at once what a snapshot has made superfluous, hundreds of megabytes: every fsync on the file
//! system waits for that. So it is told to keep everything, and to cut one chunk after the other.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::storage::Storage;
use super::types::Raft;

/// Between two looks at the weight of the log, and between two cuts: a chunk of 16 MiB each, more than is written meanwhile.
const POLL: Duration = Duration::from_millis(250);

/// Triggers a snapshot whenever one is due, and cuts the log up to `keep_entries` before the newest one, until `stop`.
pub(super) fn spawn(raft: Raft, storage: Storage, keep_entries: u64, stop: CancellationToken) {
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
            match storage.next_cut(keep_entries) {
                Ok(None) => {}
                Ok(Some(upto)) => {
                    if raft.trigger().purge_log(upto).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "looking at the chunks of the log"),
            }
        }
    }));
}
