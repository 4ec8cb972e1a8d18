//! When to take a snapshot.

use super::StoreError;
use super::log::Log;
use super::machine::Machine;

/// A snapshot is due when the log since the last one outweighs a share of the state: so all snapshots together cost a
/// constant factor of what is written, and the log never outgrows the state by much.
///
/// Derived from what lies on the disk, not from counters in memory: a node that is restarted often and written to
/// seldom still gets its snapshot, and its log is still truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// Below this much log, in bytes, there is never one.
    pub floor_bytes: u64,
    /// The share of the state's size, in percent.
    pub share_percent: u64,
}

/// See [`SnapshotPolicy::floor_bytes`].
pub const SNAPSHOT_FLOOR_BYTES: u64 = 64 * 1024 * 1024;
/// See [`SnapshotPolicy::share_percent`].
pub const SNAPSHOT_SHARE_PERCENT: u64 = 50;

/// How many times the log that calls for a snapshot a quarantined node may keep. It makes no snapshot of its wrong
/// state, so its log is only cut when a repair puts a peer's in place; past this the node stops, for a disk that is full
/// of log helps nobody, and a log that could be cut only on the strength of a wrong state is not cut at all.
pub const QUARANTINE_LOG_FACTOR: u64 = 8;

/// What must stay free on the disk beside a snapshot, in bytes: for the log meanwhile, and so that nobody has to wait for
/// room (`raft::room`) because snapshots are written.
const SPARE_BYTES: u64 = 128 * 1024 * 1024;

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { floor_bytes: SNAPSHOT_FLOOR_BYTES, share_percent: SNAPSHOT_SHARE_PERCENT }
    }
}

impl SnapshotPolicy {
    /// Whether a log of `log_bytes` since the last snapshot is enough for a state of `state_bytes`.
    pub fn is_due(&self, log_bytes: u64, state_bytes: u64) -> bool {
        let share = u128::from(state_bytes) * u128::from(self.share_percent) / 100;
        log_bytes >= self.floor_bytes && u128::from(log_bytes) >= share
    }

    /// Most log that a quarantined node keeps since the last snapshot, which was of a state of `state_bytes`, in bytes.
    pub fn quarantine_log_max_bytes(&self, state_bytes: u64) -> u64 {
        let share = u128::from(state_bytes) * u128::from(self.share_percent) / 100;
        let due = self.floor_bytes.max(u64::try_from(share).unwrap_or(u64::MAX));
        due.saturating_mul(QUARANTINE_LOG_FACTOR)
    }

    /// Whether a snapshot of `machine` is due, given its newest one and the log, and there is room for it: a snapshot
    /// that does not fit would stop the node, and a log that is too long does not.
    ///
    /// # Errors
    /// The log is broken by an earlier panic, or the file system does not say how much room there is.
    pub fn is_due_for(&self, machine: &Machine, log: &Log) -> Result<bool, StoreError> {
        let applied = machine.applied();
        let snapshots = machine.snapshots();
        let newest = snapshots.newest().and_then(|file| file.position());
        if applied.position == newest {
            return Ok(false);
        }
        let log_bytes = log.bytes_since(newest.map(|position| position.index)).map_err(StoreError::Log)?;
        if !self.is_due(log_bytes, applied.bytes) {
            return Ok(false);
        }
        let needed = applied.bytes + 8 * applied.rows + SPARE_BYTES;
        let free = snapshots.free_bytes()?;
        if free < needed {
            tracing::warn!(free, needed, "no room for a snapshot: the log is not truncated");
        }
        Ok(free >= needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_must_outweigh_both_the_floor_and_the_share() {
        let policy = SnapshotPolicy { floor_bytes: 100, share_percent: 50 };
        assert!(!policy.is_due(99, 10));
        assert!(policy.is_due(100, 10));
        assert!(!policy.is_due(499, 1_000));
        assert!(policy.is_due(500, 1_000));
        assert!(!policy.is_due(u64::MAX / 4, u64::MAX));
    }

    #[test]
    fn a_quarantined_node_keeps_a_multiple_of_the_log_that_calls_for_a_snapshot() {
        let policy = SnapshotPolicy { floor_bytes: 100, share_percent: 50 };
        for state_bytes in [0, 10, 200, 1_000, u64::MAX] {
            let max = policy.quarantine_log_max_bytes(state_bytes);
            assert!(policy.is_due(max / QUARANTINE_LOG_FACTOR, state_bytes) || max == u64::MAX);
        }
        assert_eq!(policy.quarantine_log_max_bytes(10), 100 * QUARANTINE_LOG_FACTOR);
        assert_eq!(policy.quarantine_log_max_bytes(1_000), 500 * QUARANTINE_LOG_FACTOR);
    }
}
