//! Waiting until a learner has received and applied what the leader has, and saying how far it is.

use std::time::Duration;

use tokio::time::Instant;

use crate::escrow::ids::NodeId;
use crate::proto::MemberProgress;

use super::super::error::NodeError;
use super::super::node::Node;
use super::Order;
use super::plan::LAG_MAX_ENTRIES;
use super::refused::Refused;

/// A learner that makes no progress this long is left a learner, and the operator is told.
const STALL: Duration = Duration::from_secs(30);
/// Between two looks at a learner's progress.
const POLL: Duration = Duration::from_millis(100);
/// Between two reports of it.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// Shorter than this nothing is said of the pace.
const PACE_MIN: Duration = Duration::from_secs(1);

/// How far a learner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reached {
    /// Index up to which it has received.
    matched: u64,
    /// Index up to which it has applied; 0 until it has received enough to be asked.
    applied: u64,
    target: u64,
    /// Bytes sent to it since the change began.
    sent: u64,
    /// Bytes still to send, as far as is known.
    left: u64,
}

impl Reached {
    fn has_received(self) -> bool {
        self.matched > 0 && self.matched + LAG_MAX_ENTRIES >= self.target
    }

    /// As a voter it may be elected, and then everybody waits for what it has still to apply.
    fn is_caught_up(self) -> bool {
        self.has_received() && self.applied + LAG_MAX_ENTRIES >= self.target
    }

    /// Seconds it will take at the pace of the last `elapsed`.
    fn seconds_left(self, elapsed: Duration) -> Option<u64> {
        if elapsed < PACE_MIN || self.sent == 0 {
            return None;
        }
        let millis = u128::from(self.left) * elapsed.as_millis() / u128::from(self.sent);
        u64::try_from(millis.div_ceil(1_000)).ok()
    }
}

impl Node {
    /// Waits until learner `id` has at most [`LAG_MAX_ENTRIES`] entries still to receive and to apply.
    ///
    /// # Errors
    /// [`NodeError::Change`] after [`STALL`] without progress; [`NodeError::NotLeader`].
    pub(super) async fn catch_up(&self, id: NodeId, order: &Order) -> Result<(), NodeError> {
        let sent = self.inner.peers.sent(id);
        let (sent_before, began) = (sent.bytes(), Instant::now());
        let (mut furthest, mut moved_at, mut reported) = ((0, 0, 0), began, None::<Instant>);
        let mut seen = false;
        loop {
            self.running()?;
            // What is shown of the membership follows it by a moment, so one that was just added may not be there yet.
            let there = self.is_member(id);
            if seen && !there {
                let why = format!("node {id} was taken out while it was catching up");
                return Err(Refused::conflict(why, "see `strongroom member list`").into());
            }
            seen |= there;
            // What was sent stays sent, and asking again goes on from there. Meanwhile other changes may be made.
            if order.progress.is_closed() {
                return Err(Refused::interrupted("who asked for the change has gone").into());
            }
            let mut reached = self.reached(id, sent.bytes().saturating_sub(sent_before))?;
            if reached.has_received() {
                reached.applied = self.reach(id).await.1;
            }
            if reached.is_caught_up() {
                return Ok(());
            }
            let position = (reached.applied, reached.matched, reached.sent);
            if position > furthest {
                (furthest, moved_at) = (position, Instant::now());
            }
            if reported.is_none_or(|reported| reported.elapsed() >= REPORT_INTERVAL) {
                reported = Some(Instant::now());
                let _ = order.progress.try_send(message(id, reached, began.elapsed()));
            }
            if moved_at.elapsed() > STALL {
                return Err(Refused::unavailable(
                    format!(
                        "node {id} has made no progress for {} s (received up to index {}, applied up to {}, of {}); it stays a learner",
                        STALL.as_secs(),
                        reached.matched,
                        reached.applied,
                        reached.target
                    ),
                    "look at its log, then run the same command again: it goes on where it ended",
                )
                .into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn reached(&self, id: NodeId, sent: u64) -> Result<Reached, NodeError> {
        let metrics = self.metrics();
        let Some(replication) = metrics.replication else {
            return Err(NodeError::NotLeader(metrics.current_leader));
        };
        let matched = replication.get(&id).copied().flatten().map_or(0, |log_id| log_id.index);
        let storage = &self.inner.storage;
        let purged = metrics.purged.map_or(0, |purged| purged.index);
        // What is purged comes by snapshot, and what follows that by log.
        let snapshot = if matched < purged { storage.machine.snapshots().newest() } else { None };
        let since = snapshot.as_ref().and_then(|file| file.position()).map_or(matched, |at| at.index);
        let log = storage.log.bytes_since(Some(since)).unwrap_or(0);
        let whole = snapshot.map_or(0, |file| file.bytes()).saturating_add(log);
        // Of what comes by log, `log` shrinks as it is received; of a snapshot, what was sent is taken off.
        let left = if matched < purged { whole.saturating_sub(sent) } else { whole };
        Ok(Reached { matched, applied: 0, target: metrics.last_log_index.unwrap_or(0), sent, left })
    }
}

fn message(id: NodeId, reached: Reached, elapsed: Duration) -> MemberProgress {
    MemberProgress {
        step: "catching-up".to_owned(),
        node: id,
        matched: reached.matched,
        applied: reached.applied,
        target: reached.target,
        sent_bytes: reached.sent,
        total_bytes: reached.sent.saturating_add(reached.left),
        seconds_left: reached.seconds_left(elapsed),
        ..MemberProgress::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_is_caught_up_when_little_is_left_and_never_with_nothing() {
        let at =
            |matched, applied, target| Reached { matched, applied, target, sent: 0, left: 0 }.is_caught_up();
        assert!(at(1_000, 1_000, 1_000 + LAG_MAX_ENTRIES));
        assert!(!at(1_000, 1_000, 1_001 + LAG_MAX_ENTRIES));
        assert!(!at(0, 0, 10), "one that has confirmed nothing may not even be there");
    }

    #[test]
    fn a_learner_that_has_still_to_apply_what_it_received_is_not_caught_up() {
        let reached =
            Reached { matched: 1_000, applied: 1_000 - LAG_MAX_ENTRIES, target: 1_000, sent: 0, left: 0 };
        assert!(reached.is_caught_up());
        assert!(!Reached { applied: reached.applied - 1, ..reached }.is_caught_up());
    }

    #[test]
    fn the_time_left_follows_the_pace_and_is_not_made_up() {
        let reached = Reached { matched: 1, applied: 1, target: 9, sent: 1_000, left: 4_000 };
        assert_eq!(reached.seconds_left(Duration::from_secs(2)), Some(8));
        assert_eq!(reached.seconds_left(Duration::from_millis(10)), None, "too soon to tell");
        assert_eq!(Reached { sent: 0, ..reached }.seconds_left(Duration::from_secs(9)), None, "no pace");
        assert_eq!(Reached { left: 0, ..reached }.seconds_left(Duration::from_secs(9)), Some(0));
    }
}
