//! The changes of state of a machine, so that one can ask how it stood when it was lost.
//!
//! A row is a *run*: the state, since when, and when it was told again. Reports may come late and twice, through several
//! nodes; so a run that a late report contradicts is split, and what comes of a set of reports does not depend on the
//! order in which they come. For that the times of repeats are kept beside the state, [`AGAIN_MAX`] of them: a report that
//! comes later than so many others of the same run is still put in its place, but where the run goes on behind it is
//! known only from the repeats that are kept.
//!
//! What is too old or too much is dropped from the front, and stays dropped: the *floor* refuses what comes late from
//! there. A run is never longer than what the machine said, and more runs never become fewer by another report; so what is
//! dropped depends on the reports alone as well.

use serde::{Deserialize, Serialize};

use super::state::MachineState;
use crate::escrow::ids::{MachineId, Timestamp};

/// Most changes of state kept for a machine. A laptop changes some ten times a year.
pub const CHANGES_MAX: usize = 128;
/// How far back before the newest report the state of a machine is known, in days: a year, and a month to look into it.
pub const HISTORY_MAX_DAYS: u64 = 400;
/// Most repeats of which the time is kept, of one run.
pub const AGAIN_MAX: usize = 32;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// When a state was told, and which it was among others of the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// When, as the time counts.
    pub at: Timestamp,
    /// [`MachineState::rank`] of the state.
    pub rank: u64,
}

/// A change of state: the machine was found in this one, and in it again until the next change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceChange {
    /// The machine.
    pub machine: MachineId,
    /// Since when.
    pub at: Timestamp,
    /// [`MachineState::rank`] of the state.
    pub rank: u64,
    /// The state.
    pub state: MachineState,
    /// When reports said the same again, in order.
    pub again: Vec<Timestamp>,
}

impl ComplianceChange {
    fn first(&self) -> Moment {
        Moment { at: self.at, rank: self.rank }
    }

    fn last(&self) -> Moment {
        Moment { at: self.told_at(), rank: self.rank }
    }

    /// When a report said so last.
    pub fn told_at(&self) -> Timestamp {
        self.again.last().copied().unwrap_or(self.at)
    }

    /// Notes that a report said the same at `at`.
    fn add(&mut self, at: Timestamp) {
        if at < self.at {
            self.again.insert(0, std::mem::replace(&mut self.at, at));
        } else if at > self.at
            && let Err(place) = self.again.binary_search(&at)
        {
            self.again.insert(place, at);
        }
        let excess = self.again.len().saturating_sub(AGAIN_MAX);
        self.again.drain(..excess);
    }

    /// Cuts off what was told after `moment`, as a run of its own.
    fn split_after(&mut self, moment: Moment) -> Option<Self> {
        let is_before = |at: &Timestamp| Moment { at: *at, rank: self.rank } < moment;
        let kept = self.again.partition_point(is_before);
        let mut later = self.again.split_off(kept);
        if later.is_empty() {
            return None;
        }
        let at = later.remove(0);
        Some(Self { at, again: later, machine: self.machine.clone(), state: self.state.clone(), ..*self })
    }
}

/// What is kept of a machine's past.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The runs, the oldest first; two that follow each other are of different states.
    runs: Vec<ComplianceChange>,
    /// What was told at or before this has been dropped.
    floor: Option<Moment>,
}

impl History {
    /// The history of these rows, which are in the order of their keys.
    pub fn of(runs: Vec<ComplianceChange>, floor: Option<Moment>) -> Self {
        Self { runs, floor }
    }

    /// The runs, the oldest first.
    pub fn runs(&self) -> &[ComplianceChange] {
        &self.runs
    }

    /// What was told at or before this has been dropped.
    pub fn floor(&self) -> Option<Moment> {
        self.floor
    }

    /// The newest moment at which a report is known to have told something.
    pub fn last(&self) -> Option<Moment> {
        self.runs.last().map(ComplianceChange::last)
    }

    /// Since when the machine is in the state that was told last.
    pub fn since(&self) -> Option<Timestamp> {
        self.runs.last().map(|run| run.at)
    }

    /// Notes that `machine` was in `state` at `at`.
    pub fn tell(&mut self, machine: &MachineId, at: Timestamp, state: &MachineState) {
        let moment = Moment { at, rank: state.rank() };
        if self.floor.is_some_and(|floor| moment <= floor) {
            return;
        }
        let place = self.runs.partition_point(|run| run.first() <= moment);
        let rest = match place.checked_sub(1).map(|before| &mut self.runs[before]) {
            Some(run) if run.rank == moment.rank => return run.add(at),
            Some(run) => run.split_after(moment),
            None => None,
        };
        if rest.is_none()
            && let Some(next) = self.runs.get_mut(place).filter(|next| next.rank == moment.rank)
        {
            return next.add(at);
        }
        let told = ComplianceChange {
            machine: machine.clone(),
            at,
            rank: moment.rank,
            state: state.clone(),
            again: Vec::new(),
        };
        self.runs.splice(place..place, std::iter::once(told).chain(rest));
    }

    /// Drops what is too much, or too old beside what was told at `newest`. The state that the machine was in at the
    /// oldest time that counts is kept, however long it had been in it.
    pub fn bound(&mut self, newest: Timestamp) {
        let oldest = Timestamp(newest.0.saturating_sub(HISTORY_MAX_DAYS * DAY_MS));
        let too_old = self.runs.partition_point(|run| run.at <= oldest).saturating_sub(1);
        let excess = self.runs.len().saturating_sub(CHANGES_MAX).max(too_old);
        if let Some(dropped) = self.runs.drain(..excess).next_back() {
            self.floor = self.floor.max(Some(dropped.last()));
        }
    }
}

/// How a machine stood at `at`, by its runs in order: in which state, and since when. `None` if that is not known.
pub fn as_of(runs: &[ComplianceChange], at: Timestamp) -> Option<&ComplianceChange> {
    runs[..runs.partition_point(|run| run.at <= at)].last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::compliance::words::Enforcement;

    fn machine() -> MachineId {
        "PC-0001".parse().unwrap()
    }

    fn state(error: u32) -> MachineState {
        MachineState { enforcement: Enforcement::Enforced, error: Some(error), volumes: Vec::new() }
    }

    fn tell(history: &mut History, at: u64, error: u32) {
        history.tell(&machine(), Timestamp(at), &state(error));
        history.bound(Timestamp(at));
    }

    /// State, since when, and when again.
    fn runs(history: &History) -> Vec<(u32, u64, Vec<u64>)> {
        let run = |run: &ComplianceChange| {
            (run.state.error.unwrap(), run.at.0, run.again.iter().map(|at| at.0).collect())
        };
        history.runs().iter().map(run).collect()
    }

    #[test]
    fn a_late_report_splits_the_run_that_it_contradicts_and_joins_those_that_it_continues() {
        let mut history = History::default();
        for (at, error) in [(10, 1), (30, 1), (50, 1), (70, 2)] {
            tell(&mut history, at, error);
        }
        assert_eq!(runs(&history), [(1, 10, vec![30, 50]), (2, 70, vec![])]);
        tell(&mut history, 40, 3);
        assert_eq!(runs(&history), [(1, 10, vec![30]), (3, 40, vec![]), (1, 50, vec![]), (2, 70, vec![])]);
        tell(&mut history, 45, 1);
        tell(&mut history, 35, 3);
        tell(&mut history, 5, 1);
        tell(&mut history, 60, 2);
        let expected = [(1, 5, vec![10, 30]), (3, 35, vec![40]), (1, 45, vec![50]), (2, 60, vec![70])];
        assert_eq!(runs(&history), expected);
        tell(&mut history, 1, 2);
        assert_eq!(runs(&history)[..2], [(2, 1, vec![]), (1, 5, vec![10, 30])]);
        tell(&mut history, 40, 3);
        assert_eq!(runs(&history)[1..], expected, "told twice");
    }

    #[test]
    fn the_state_at_a_time_is_what_was_told_last_before_it() {
        let mut history = History::default();
        for (at, error) in [(10, 1), (20, 2), (30, 2)] {
            tell(&mut history, at, error);
        }
        let found = |at| as_of(history.runs(), Timestamp(at)).map(|run| (run.state.error, run.at.0));
        assert_eq!(found(9), None);
        assert_eq!(found(10), Some((Some(1), 10)));
        assert_eq!(found(19), Some((Some(1), 10)));
        assert_eq!(found(20), Some((Some(2), 20)));
        assert_eq!(found(u64::MAX), Some((Some(2), 20)));
        assert_eq!(as_of(&[], Timestamp(1)), None);
    }

    #[test]
    fn the_repeats_that_are_kept_of_a_run_are_the_newest() {
        let mut history = History::default();
        for at in 0..=2 * AGAIN_MAX as u64 {
            tell(&mut history, at, 1);
        }
        let newest: Vec<u64> = (AGAIN_MAX as u64 + 1..=2 * AGAIN_MAX as u64).collect();
        assert_eq!(runs(&history), [(1, 0, newest)]);
    }

    #[test]
    fn the_newest_changes_are_kept_and_what_was_dropped_does_not_come_back() {
        let mut history = History::default();
        for at in 0..CHANGES_MAX as u64 {
            tell(&mut history, at, (at % 2) as u32);
        }
        assert_eq!((history.runs().len(), history.floor()), (CHANGES_MAX, None));
        tell(&mut history, CHANGES_MAX as u64, 2);
        assert_eq!(history.runs().len(), CHANGES_MAX);
        assert_eq!(history.floor(), Some(Moment { at: Timestamp(0), rank: state(0).rank() }));
        let before = history.clone();
        tell(&mut history, 0, 0);
        assert_eq!(history, before);
    }

    #[test]
    fn the_state_at_the_oldest_time_that_counts_is_known_however_old_it_is() {
        let day = |days: u64| days * DAY_MS;
        let mut history = History::default();
        tell(&mut history, 0, 1);
        tell(&mut history, day(10), 2);
        tell(&mut history, day(HISTORY_MAX_DAYS + 9), 3);
        assert_eq!(history.runs().len(), 3, "at the oldest time the first is still the one");
        tell(&mut history, day(HISTORY_MAX_DAYS + 10), 3);
        assert_eq!(runs(&history)[0].0, 2);
        tell(&mut history, day(5_000), 3);
        assert_eq!(
            runs(&history),
            [(3, day(HISTORY_MAX_DAYS + 9), vec![day(HISTORY_MAX_DAYS + 10), day(5_000)])]
        );
    }
}
