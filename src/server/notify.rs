//! What the service manager is told, if there is one: sd_notify(3) of systemd, which others speak as well.
//!
//! Without `NOTIFY_SOCKET` in the environment all of it is nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::task::AbortOnDropHandle;

use crate::escrow::ids::NodeId;
use crate::raft::Node;

/// Says that `node` serves: what was ordered after it may start. A node that waits to be added serves as well, for it
/// is through its ports that it is added.
pub(super) fn serving(node: NodeId) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("node {node} serves"))]);
}

/// Says that the node is stopping, and that it may take up to `limit`.
pub(super) fn stopping(limit: Duration) {
    let limit = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(limit),
        NotifyState::Status("handing over and finishing requests under way"),
    ]);
}

/// Feeds the watchdog, if there is one, twice in its time, for as long as the consensus core answers. The service
/// manager restarts a node whose core is stuck, or none of whose threads gets to run any more.
pub(super) fn feed_watchdog(node: Node) -> Option<AbortOnDropHandle<()>> {
    let interval = sd_notify::watchdog_enabled()? / 2;
    let feed = async move {
        let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            // Not bounded: as long as there is no answer, there is nothing to tell.
            if node.responsive().await.is_ok() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    };
    Some(AbortOnDropHandle::new(tokio::spawn(feed)))
}

/// A service manager that does not listen is no reason not to serve.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "telling the service manager");
    }
}
