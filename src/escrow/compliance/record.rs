//! What is kept of a machine, and which of two reports counts.
//!
//! The newest report counts, by the device's own clock: it alone knows in which order it looked at its volumes, whatever
//! way the reports took. A clock that runs ahead would win for ever, so a time in the future is held to when the report
//! came in. Of two reports of one time the order of their contents decides, so that every order of arrival ends alike.

use serde::{Deserialize, Serialize};

use super::contact::Said;
use super::facts::MachineReport;
use super::history::{History, Told};
use crate::escrow::ids::Timestamp;
use crate::escrow::state::{Rows, StateError};

/// How far a device's clock may be ahead of the cluster's, in milliseconds, before its time is not believed.
pub const CLOCK_AHEAD_MAX_MS: u64 = 10 * 60 * 1_000;

/// The newest that is known of a machine. Its row has the times of when it was written; how they moved since is in
/// [`Said`], and [`lookup::compliance`](crate::escrow::lookup::compliance) brings the two together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceRecord {
    /// What the device said last, at the time by its own clock.
    pub report: MachineReport,
    /// The time it counts as: the device's own, or when the report came in if that was in the future.
    pub at: Timestamp,
    /// Since when the machine is in the state it is in.
    pub since: Timestamp,
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

    /// The same with its times as they moved since it was written.
    #[must_use]
    pub fn with_times_of(mut self, said: Option<&Said>) -> Self {
        if let Some(said) = said {
            (self.report.at, self.at, self.since) = (said.device, said.at, said.run.at);
        }
        self
    }
}

/// What is known of a machine, while reports are put into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The newest report.
    pub record: ComplianceRecord,
    /// When that was said.
    pub said: Said,
}

impl Kept {
    /// What is kept once `report` came in, in a command stamped `stamp`, where `kept` and `history` were. With the time
    /// that it counts as; `None` if it is one of a clock that is ahead, and late.
    ///
    /// # Errors
    /// [`StateError`] if the storage fails.
    pub fn merge<S: Rows>(
        kept: Option<Self>,
        history: &mut History<'_, S>,
        report: MachineReport,
        stamp: Timestamp,
    ) -> Result<(Self, Merged, Option<Timestamp>), StateError> {
        let (state, digest) = (report.state(), report.digest());
        let Some(mut kept) = kept else {
            let at = held(report.at, stamp);
            history.tell(Told::new(at, stamp), &state)?;
            let clock_ahead = report.at > at;
            let run = history.newest().unwrap_or(super::Moment { at, rank: state.rank() });
            let said = Said::first(&report, digest, at, run);
            let merged = Merged::Newest { state_changed: true, clock_ahead };
            return Ok((Self { record: ComplianceRecord { report, at, since: at }, said }, merged, Some(at)));
        };
        // What waits is older than what may come of the report.
        if !kept.said.again.is_empty() {
            history.tell_again(kept.said.run, std::mem::take(&mut kept.said.again))?;
        }
        let Some(at) = kept.said.counted(report.at, stamp) else {
            return Ok((kept, Merged::Superseded, None));
        };
        history.tell(Told::new(at, stamp), &state)?;
        kept.said.note_ahead(report.at, at);
        let merged = kept.replace(report, at, digest, state.rank());
        history.bound(kept.said.at)?;
        if let Some(run) = history.newest() {
            kept.said.run = run;
        }
        kept.record.since = kept.said.run.at;
        kept.said.dropped = history.floor().map(|floor| floor.at);
        Ok((kept, merged, Some(at)))
    }

    /// Keeps `report` in place of what is kept, if it counts more.
    fn replace(&mut self, report: MachineReport, at: Timestamp, digest: [u8; 32], rank: u64) -> Merged {
        let said = &mut self.said;
        let (new, old) = ((at, rank, digest, report.at), (said.at, said.run.rank, said.digest, said.device));
        if new <= old {
            return if new == old { Merged::Repeated } else { Merged::Superseded };
        }
        let clock_ahead = report.at > at;
        (said.at, said.digest, said.device) = (at, digest, report.at);
        self.record = ComplianceRecord { report, at, since: at };
        Merged::Newest { state_changed: rank != old.1, clock_ahead }
    }
}
