//! What is kept of a machine, and which of two reports counts.
//!
//! The newest report counts, by the device's own clock: it alone knows in which order it looked at its volumes, whatever
//! way the reports took. A clock that runs ahead would win for ever, so a time in the future is held to when the report
//! came in. Of two reports of one time the order of their contents decides, so that every order of arrival ends alike.

use serde::{Deserialize, Serialize};

use super::facts::MachineReport;
use super::history::{History, Moment};
use crate::escrow::ids::Timestamp;

/// How far a device's clock may be ahead of the cluster's, in milliseconds, before its time is not believed.
pub const CLOCK_AHEAD_MAX_MS: u64 = 10 * 60 * 1_000;

/// The newest that is known of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceRecord {
    /// What the device said last, at the time by its own clock.
    pub report: MachineReport,
    /// The time it counts as: the device's own, or when the report came in if that was in the future.
    pub at: Timestamp,
    /// Since when the machine is in the state it is in.
    pub since: Timestamp,
    /// The history of the machine up to here has been dropped.
    pub floor: Option<Moment>,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Merged {
    /// It is the newest that is known of the machine.
    Newest {
        /// The machine is in another state than before.
        state_changed: bool,
        /// The device's clock is ahead, and its time was not believed.
        clock_ahead: bool,
    },
    /// The same had been uploaded before.
    Repeated,
    /// Something newer is known of the machine: this went into its history at most.
    Superseded,
    /// What is kept says something else than what was confirmed to be unchanged: the whole report is needed.
    Changed,
}

/// In this order reports count, the last one most.
type Order = (Timestamp, u64, [u8; 32], Timestamp);

fn order(report: &MachineReport, at: Timestamp) -> Order {
    (at, report.state().rank(), report.digest(), report.at)
}

/// The time that a device's time counts as, in a command that was stamped `stamp` by the node that took it. By that
/// stamp and not by the history's, which depends on what else came in.
pub fn held(device: Timestamp, stamp: Timestamp) -> Timestamp {
    if device.0 > stamp.0.saturating_add(CLOCK_AHEAD_MAX_MS) { stamp } else { device }
}

impl ComplianceRecord {
    /// Whether the device's clock was ahead.
    pub fn clock_ahead(&self) -> bool {
        self.report.at > self.at
    }

    /// What is kept once `report` came in, in a command stamped `stamp`, where `kept` and `history` were.
    pub fn merge(
        kept: Option<Self>,
        history: &mut History,
        report: MachineReport,
        stamp: Timestamp,
    ) -> (Self, Merged) {
        let at = held(report.at, stamp);
        let clock_ahead = report.at > at;
        let Some(mut kept) = kept else {
            history.tell(&report.machine, at, &report.state());
            let merged = Merged::Newest { state_changed: true, clock_ahead };
            return (Self { report, at, since: at, floor: None }, merged);
        };
        let (new, old) = (order(&report, at), order(&kept.report, kept.at));
        if new == old {
            return (kept, Merged::Repeated);
        }
        let state_changed = new.1 != old.1;
        // A confirmation moves the time of what is kept and leaves no trace in the history: a late report from before it
        // would seem to be the last that was told.
        if new < old && history.last() < Some(Moment { at, rank: new.1 }) {
            history.tell(&kept.report.machine, kept.at, &kept.report.state());
        }
        history.tell(&report.machine, at, &report.state());
        let merged = if new > old {
            (kept.report, kept.at) = (report, at);
            Merged::Newest { state_changed, clock_ahead }
        } else {
            Merged::Superseded
        };
        history.bound(kept.at);
        kept.since = history.since().unwrap_or(kept.at);
        kept.floor = history.floor();
        (kept, merged)
    }

    /// Notes that the device says the same still, at its time `device`: what it says has this `digest`.
    pub fn confirm(&mut self, device: Timestamp, stamp: Timestamp, digest: &[u8; 32]) -> Merged {
        if self.report.digest() != *digest {
            return Merged::Changed;
        }
        let at = held(device, stamp);
        if (at, device) <= (self.at, self.report.at) {
            return Merged::Repeated;
        }
        (self.at, self.report.at) = (at, device);
        Merged::Newest { state_changed: false, clock_ahead: device > at }
    }
}
