//! When a machine was last heard of, and how its device confirmed since what it said last: a small row, which is all that
//! is written when a device says the same again.
//!
//! Such a confirmation is part of the history as well. Its time waits here, and goes into the newest run with others, so
//! that the state is not read and written each time.

use serde::{Deserialize, Serialize};

use super::facts::MachineReport;
use super::history::{ComplianceChange, Moment, Told};
use super::record::{Merged, held};
use crate::escrow::ids::{MachineId, Timestamp};

/// Most times of confirmations that wait beside the newest run.
pub const CONFIRMATIONS_MAX: usize = 8;
/// How long a report of a device whose clock is ahead may be repeated after it, in milliseconds, and is known as older
/// than what came in since. Nobody retries for a day; and a clock that was once far ahead must not silence its device.
pub const AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

/// When a machine was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastContact {
    /// The machine.
    pub machine: MachineId,
    /// When, by a report, an escrow or whatever.
    pub at: Timestamp,
    /// What it said last, if it ever said anything.
    pub said: Option<Said>,
}

/// What a machine said last, without what that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// [`MachineReport::digest`] of it.
    pub digest: [u8; 32],
    /// When it said so last, by its own clock.
    pub device: Timestamp,
    /// The time that counts as: the device's own, or when it came in if that was in the future.
    pub at: Timestamp,
    /// The newest run of the machine's history, which has its state.
    pub run: Moment,
    /// When it said the same again, as far as that run does not have it yet; in order.
    pub again: Vec<Told>,
    /// The last that came in by a clock that was ahead.
    pub ahead: Option<Ahead>,
    /// What the machine said up to here is not kept any more.
    pub dropped: Option<Timestamp>,
}

/// A report of a device whose clock was ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ahead {
    /// Its time by the device's clock.
    pub device: Timestamp,
    /// The time that it counts as.
    pub at: Timestamp,
}

impl Said {
    /// What is known of `report`, the first one of its machine.
    pub(super) fn first(report: &MachineReport, digest: [u8; 32], at: Timestamp, run: Moment) -> Self {
        let mut said =
            Self { digest, device: report.at, at, run, again: Vec::new(), ahead: None, dropped: None };
        said.note_ahead(report.at, at);
        said
    }

    /// Puts what waits into the newest of these changes, which they end with.
    pub fn tell_again_in(&self, changes: &mut [ComplianceChange]) {
        if let Some(run) = changes.last_mut().filter(|run| run.moment() == self.run) {
            self.again.iter().for_each(|told| run.add(*told));
        }
    }

    /// The time that a device's time counts as, in a command stamped `stamp`.
    ///
    /// Of a clock that is ahead the order of its own times counts, or an older report that comes again would count as
    /// newer than what was said since. `None` for such a one: when it was said first is not to be known from it.
    pub(super) fn counted(&self, device: Timestamp, stamp: Timestamp) -> Option<Timestamp> {
        let at = held(device, stamp);
        let ahead =
            self.ahead.filter(|ahead| at < device && stamp.0 <= ahead.at.0.saturating_add(AHEAD_MAX_MS));
        match ahead {
            None => Some(at),
            Some(ahead) if device > ahead.device => Some(at.max(Timestamp(ahead.at.0.saturating_add(1)))),
            Some(ahead) if device == ahead.device => Some(ahead.at),
            Some(ahead) => Some(at).filter(|at| *at < ahead.at),
        }
    }

    /// Notes a report of a clock that is ahead, if it is one.
    pub(super) fn note_ahead(&mut self, device: Timestamp, at: Timestamp) {
        if device > at && self.ahead.is_none_or(|ahead| at > ahead.at) {
            self.ahead = Some(Ahead { device, at });
        }
    }

    /// Notes that the device says the same still, at its time `device`: what it says has this `digest`.
    pub fn confirm(&mut self, device: Timestamp, stamp: Timestamp, digest: &[u8; 32]) -> Merged {
        if self.digest != *digest {
            return Merged::Changed;
        }
        let Some(at) = self.counted(device, stamp) else { return Merged::Repeated };
        if at < self.run.at {
            // It said the same before it said something else: that belongs further back in the history.
            return Merged::Changed;
        }
        Told::put_among(&mut self.again, Told::new(at, stamp));
        self.note_ahead(device, at);
        if (at, device) <= (self.at, self.device) {
            return Merged::Repeated;
        }
        (self.at, self.device) = (at, device);
        Merged::Newest { state_changed: false, clock_ahead: device > at }
    }
}
