//! Whether this node's clock is one to stamp commands by.
//!
//! Limits and approvals are judged by stamps, and stamps never go back: one from a clock that runs ahead would hold all
//! later ones until the time it names. So nodes tell each other what their clocks show whenever they compare digests
//! (`healing`). One whose clock is further than [`CLOCK_BOUND`] from those of a majority of the voters, all on the same
//! side of it, stamps nothing: its callers are sent to other nodes, and it hands the leadership over. It goes on voting
//! and answering lookups. However the clocks stand, some voter is in the middle, so never all of them step back.
//!
//! A leader believes no forwarded stamp that is further than that ahead of its own clock either, and puts its own in the
//! place of it. To refuse the command instead would let a leader whose clock is behind stop everybody's.
//!
//! Between two comparisons the clock that goes on whatever is set is held against the one that can be set, so that a
//! step counts at once. While no majority can be asked, nobody knows which clock is wrong, and all are believed.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::escrow::ids::Timestamp;

use super::quorum::since_boot;

/// How far a clock may be from the others'. Synchronised ones are within a fraction of a second, and limits are counted
/// in slots of ten minutes.
pub const CLOCK_BOUND: Duration = Duration::from_secs(30);

/// How far this node's clock is ahead of those of a majority of the voters, in milliseconds; behind if negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew(pub i64);

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.0 < 0 { "behind" } else { "ahead of" };
        let seconds = self.0.unsigned_abs().saturating_add(500) / 1_000;
        write!(f, "its clock is {seconds} s {way} those of a majority of the voters")
    }
}

/// One moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// By the clock that goes into commands.
    wall: Timestamp,
    /// By the one that nobody sets.
    boot: Duration,
}

impl Moment {
    /// What the clock that goes into commands shows at `later`, if nobody has set it since.
    fn unset_until(self, later: Self) -> i64 {
        let passed = later.boot.saturating_sub(self.boot);
        signed(self.wall).saturating_add(i64::try_from(passed.as_millis()).unwrap_or(i64::MAX))
    }

    /// How far this node's clock is at least ahead of one that showed `shown` at some time between the moments `asked`
    /// and `heard`, counted from here; 0 if that may be the time an answer takes.
    pub(super) fn lead_over(self, shown: Timestamp, asked: Self, heard: Self) -> i64 {
        let earliest = self.unset_until(asked).saturating_sub(signed(shown));
        let latest = self.unset_until(heard).saturating_sub(signed(shown));
        earliest.max(0).saturating_add(latest.min(0))
    }
}

fn signed(at: Timestamp) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// How far a clock is at least from those of a majority of `voters` voters, all of them on the same side, by its `leads`
/// over those that answered; 0 if there are none such. Who does not answer counts as agreeing, and so does the node
/// itself if it `votes`. `None` if no majority could be asked.
pub(super) fn judge(leads: &[i64], votes: bool, voters: usize) -> Option<Skew> {
    let majority = voters / 2 + 1;
    if voters == 0 || leads.len() + usize::from(votes) < majority {
        return None;
    }
    let mut leads = leads.to_vec();
    leads.resize(voters.max(leads.len()), 0);
    leads.sort_unstable();
    let ahead_of_most = leads[leads.len() - majority];
    let behind_most = leads[majority - 1];
    Some(Skew(if ahead_of_most > 0 { ahead_of_most } else { behind_most.min(0) }))
}

/// This node's clock, and what the last comparison said of it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    found: Mutex<Option<(Skew, Moment)>>,
    #[cfg(test)]
    set_ahead_ms: std::sync::atomic::AtomicU64,
}

impl Clock {
    /// Now, by both clocks.
    pub(super) fn moment(&self) -> Moment {
        Moment { wall: self.now(), boot: since_boot() }
    }

    /// What goes into commands.
    pub(super) fn now(&self) -> Timestamp {
        let now = super::now();
        #[cfg(test)]
        let now = Timestamp(now.0 + self.set_ahead_ms.load(std::sync::atomic::Ordering::Relaxed));
        now
    }

    /// Sets the clock of one of several nodes in a process.
    #[cfg(test)]
    pub(super) fn set_ahead(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.set_ahead_ms.store(by, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether a majority has been compared with.
    #[cfg(test)]
    pub(super) fn is_known(&self) -> bool {
        self.found.lock().unwrap().is_some()
    }

    /// Notes what a comparison that began at `began` came to.
    pub(super) fn note(&self, found: Option<Skew>, began: Moment) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found.map(|skew| (skew, began));
    }

    /// How far it is from the others' now: as last found, and what it was set by since.
    pub(super) fn skew(&self) -> Skew {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.map_or(Skew(0), |(skew, began)| skew_at(skew, began, self.moment()))
    }
}

fn skew_at(found: Skew, began: Moment, now: Moment) -> Skew {
    let set_by = signed(now.wall).saturating_sub(began.unset_until(now));
    Skew(found.0.saturating_add(set_by))
}

impl Skew {
    /// Whether it is more than a clock to stamp by may have.
    pub fn is_too_much(self) -> bool {
        u128::from(self.0.unsigned_abs()) > CLOCK_BOUND.as_millis()
    }
}

/// Whether a leader whose clock shows `now` believes a stamp.
pub(super) fn is_credible(stamp: Timestamp, now: Timestamp) -> bool {
    u128::from(stamp.0.saturating_sub(now.0)) <= CLOCK_BOUND.as_millis()
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
