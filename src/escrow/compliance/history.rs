//! The changes of state of a machine, so that one can ask how it stood when it was lost.
//!
//! A row is a *run*: the state, since when, and when it was told again. Reports may come late and twice, through several
//! nodes; so a run that a late report contradicts is split, and what comes of a set of reports does not depend on the
//! order in which they come. For that the times of repeats are kept beside the state, up to [`AGAIN_MAX`] of them. Past
//! that the last one of each day is kept, then of every two days, and so on: how long a machine had been silent is known
//! from them for as long as its history goes back, and where a run goes on behind a late report to within such a span.
//!
//! Beside each time is when that came in, if it was not at once. Who has a device can tell of its past what they like, but
//! not make it have been told in time.
//!
//! What is too old or too much is dropped from the front, and stays dropped: the *floor* refuses what comes late from
//! there. A run is never longer than what the machine said, and more runs never become fewer by another report; so what is
//! dropped depends on the reports alone as well. A confirmation moves the bound of days and does not touch the history: what
//! is too old by then counts as dropped at once, and its row goes with the next change, or when confirmations are put into
//! the run that they are of.
//!
//! A report touches the runs beside its time and no others; which there are is in one small row, the [`HistoryIndex`]. So
//! it costs the same however long the history is.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::facts::VOLUMES_MAX;
use super::state::{MachineState, VOLUME_STATE_MAX_BYTES};
use crate::escrow::ids::{MachineId, Timestamp};
use crate::escrow::state::{Rows, StateError};

/// Most changes of state kept for a machine. A laptop changes some ten times a year.
pub const CHANGES_MAX: usize = 128;
/// Most bytes that the states of a machine's history come to, by [`MachineState::weight`]: of a laptop with its two or
/// three volumes, all of [`CHANGES_MAX`].
pub const HISTORY_MAX_BYTES: usize = 256 * 1024;
/// How far back before the newest report the state of a machine is known, in days: a year, and a month to look into it.
pub const HISTORY_MAX_DAYS: u64 = 400;
/// Most runs that are looked at for how a machine stood at a time.
pub const AROUND_MAX: usize = 2;
/// Most repeats of which the time is kept, of one run.
pub const AGAIN_MAX: usize = 32;
/// What came in no later than this after its time came in at once, in milliseconds: a retry through another node.
pub const AT_ONCE_MAX_MS: u64 = 10 * 60 * 1_000;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

// The newest run is never too much.
const _: () = assert!((VOLUMES_MAX + 1) * VOLUME_STATE_MAX_BYTES <= HISTORY_MAX_BYTES);

/// When a state was told, and which it was among others of the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// When, as the time counts.
    pub at: Timestamp,
    /// [`MachineState::rank`] of the state.
    pub rank: u64,
}

/// When a device told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When, as the time counts: mostly by the device's clock.
    pub at: Timestamp,
    /// When it came in first, by the cluster's clock, if that was more than [`AT_ONCE_MAX_MS`] later.
    pub late: Option<Timestamp>,
}

impl Told {
    /// Told at `at`, in a command stamped `stamp`.
    pub fn new(at: Timestamp, stamp: Timestamp) -> Self {
        let late = (stamp.0.saturating_sub(at.0) > AT_ONCE_MAX_MS).then_some(stamp);
        Self { at, late }
    }

    /// Whether it had come in by `at`, and was not of a later time.
    pub fn is_known_by(self, at: Timestamp) -> bool {
        self.at <= at && self.late.is_none_or(|came_in| came_in <= at)
    }

    /// Puts `told` among others in the order of time. Of what was told twice the first time counts at which it came in.
    pub(super) fn put_among(others: &mut Vec<Self>, told: Self) {
        match others.binary_search_by_key(&told.at, |other| other.at) {
            Ok(place) => others[place].late = others[place].late.min(told.late),
            Err(place) => others.insert(place, told),
        }
    }
}

/// A change of state: the machine was found in this one, and in it again until the next change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceChange {
    /// The machine.
    pub machine: MachineId,
    /// Since when.
    pub at: Timestamp,
    /// When that came in, as in [`Told`].
    pub late: Option<Timestamp>,
    /// [`MachineState::rank`] of the state.
    pub rank: u64,
    /// The state.
    pub state: MachineState,
    /// When reports said the same again, in order.
    pub again: Vec<Told>,
    /// Of those the last of each span of so many days is kept: 0 for all, then 1, 2, 4 and so on, as powers of two.
    pub thinned: u8,
}

impl ComplianceChange {
    /// When it was told first.
    pub fn moment(&self) -> Moment {
        Moment { at: self.at, rank: self.rank }
    }

    fn last(&self) -> Moment {
        let at = self.again.last().map_or(self.at, |told| told.at);
        Moment { at, rank: self.rank }
    }

    fn first(&self) -> Told {
        Told { at: self.at, late: self.late }
    }

    /// When it was told, as far as that is kept, the first time first.
    pub fn told(&self) -> impl DoubleEndedIterator<Item = Told> + '_ {
        std::iter::once(self.first()).chain(self.again.iter().copied())
    }

    /// When it was told last by `at`, as far as that is kept.
    pub fn told_by(&self, at: Timestamp) -> Option<Timestamp> {
        self.told().map(|told| told.at).rfind(|told| *told <= at)
    }

    /// Notes that a report said the same at another time.
    pub fn add(&mut self, told: Told) {
        let first = self.first();
        if told.at == first.at {
            self.late = first.late.min(told.late);
        } else if told.at > first.at {
            Told::put_among(&mut self.again, told);
        } else {
            (self.at, self.late) = (told.at, told.late);
            self.again.insert(0, first);
        }
        self.thin();
    }

    /// Spans are of fixed beginnings, and each is made of two of the next smaller ones: so what is left does not depend on
    /// the order in which times were added.
    fn thin(&mut self) {
        loop {
            if let Some(doubled) = self.thinned.checked_sub(1) {
                let days = 1_u64.checked_shl(doubled.into()).unwrap_or(u64::MAX);
                let span = DAY_MS.saturating_mul(days);
                self.again.dedup_by(|later, kept| {
                    let is_same = later.at.0 / span == kept.at.0 / span;
                    if is_same {
                        *kept = *later;
                    }
                    is_same
                });
            }
            if self.again.len() <= AGAIN_MAX {
                return;
            }
            self.thinned += 1;
        }
    }

    /// Cuts off what was told after `moment`, as a run of its own.
    fn split_after(&mut self, moment: Moment) -> Option<Self> {
        let is_before = |told: &Told| Moment { at: told.at, rank: self.rank } < moment;
        let kept = self.again.partition_point(is_before);
        let mut later = self.again.split_off(kept);
        if later.is_empty() {
            return None;
        }
        let Told { at, late } = later.remove(0);
        let (machine, state) = (self.machine.clone(), self.state.clone());
        Some(Self { at, late, again: later, machine, state, ..*self })
    }
}

/// Which changes are kept of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryIndex {
    /// The machine.
    pub machine: MachineId,
    /// What was told at or before this has been dropped.
    pub floor: Option<Moment>,
    /// The runs, the oldest first; two that follow each other are of different states.
    pub runs: Vec<RunEntry>,
}

/// One run in a [`HistoryIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEntry {
    /// When it was told first.
    pub first: Moment,
    /// [`MachineState::weight`] of its state.
    pub bytes: u32,
}

/// What is kept of a machine's past, while reports are put into it.
pub struct History<'a, S> {
    rows: &'a S,
    index: HistoryIndex,
    /// As its row is.
    stored: HistoryIndex,
    /// The runs that were read or made.
    runs: BTreeMap<Moment, ComplianceChange>,
    /// Of which the rows are not as they were.
    changed: BTreeSet<Moment>,
}

/// What is to be written once all reports are in a history.
pub struct HistoryWrites {
    /// The index, if it changed.
    pub index: Option<HistoryIndex>,
    /// The runs that changed or are new.
    pub changed: Vec<ComplianceChange>,
    /// The runs that are no more.
    pub gone: Vec<Moment>,
}

impl<'a, S: Rows> History<'a, S> {
    /// What these rows have of `machine`.
    ///
    /// # Errors
    /// [`StateError`] if the storage fails; so for all below.
    pub fn read(rows: &'a S, machine: &MachineId) -> Result<Self, StateError> {
        let none = || HistoryIndex { machine: machine.clone(), floor: None, runs: Vec::new() };
        let index: HistoryIndex = rows.row(&machine.row_key())?.unwrap_or_else(none);
        let (runs, changed) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { rows, stored: index.clone(), index, runs, changed })
    }

    /// What was told at or before this has been dropped.
    pub fn floor(&self) -> Option<Moment> {
        self.index.floor
    }

    /// When the machine was first found in the state that was told last.
    pub fn newest(&self) -> Option<Moment> {
        self.index.runs.last().map(|run| run.first)
    }

    /// Notes that the machine was in `state`.
    pub fn tell(&mut self, told: Told, state: &MachineState) -> Result<(), StateError> {
        let moment = Moment { at: told.at, rank: state.rank() };
        if self.index.floor.is_some_and(|floor| moment <= floor) {
            return Ok(());
        }
        let place = self.index.runs.partition_point(|run| run.first <= moment);
        let mut rest = None;
        if let Some(before) = place.checked_sub(1).map(|before| self.index.runs[before].first) {
            if before.rank == moment.rank {
                return self.tell_again(before, [told]);
            }
            rest = self.run(before)?.split_after(moment);
            if rest.is_some() {
                self.changed.insert(before);
            }
        }
        if rest.is_none()
            && let Some(next) = self.index.runs.get(place).map(|run| run.first)
            && next.rank == moment.rank
        {
            return self.begin_earlier(place, next, told);
        }
        let run = ComplianceChange {
            machine: self.index.machine.clone(),
            at: told.at,
            late: told.late,
            rank: moment.rank,
            state: state.clone(),
            again: Vec::new(),
            thinned: 0,
        };
        for run in rest.into_iter().chain([run]) {
            self.insert(place, run);
        }
        Ok(())
    }

    /// Notes that the run that began at `first` was told again, at times that are in it.
    pub fn tell_again(
        &mut self,
        first: Moment,
        times: impl IntoIterator<Item = Told>,
    ) -> Result<(), StateError> {
        let run = self.run(first)?;
        let before = run.clone();
        for told in times {
            run.add(told);
        }
        if *run != before {
            self.changed.insert(first);
        }
        Ok(())
    }

    /// The run in this place began earlier than was known.
    fn begin_earlier(&mut self, place: usize, known: Moment, told: Told) -> Result<(), StateError> {
        let mut run = self.run(known)?.clone();
        run.add(told);
        self.index.runs.remove(place);
        self.runs.remove(&known);
        self.changed.insert(known);
        self.insert(place, run);
        Ok(())
    }

    fn insert(&mut self, place: usize, run: ComplianceChange) {
        let first = run.moment();
        self.index.runs.insert(place, RunEntry { first, bytes: run.state.weight() });
        self.changed.insert(first);
        self.runs.insert(first, run);
    }

    fn run(&mut self, first: Moment) -> Result<&mut ComplianceChange, StateError> {
        match self.runs.entry(first) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unread) => {
                let key = ComplianceChange::row_key(&self.index.machine, first);
                Ok(unread.insert(self.rows.required(&key)?))
            }
        }
    }

    /// Drops what is too much, or too old beside what was told at `newest`. The state that the machine was in at the
    /// oldest time that counts is kept, however long it had been in it.
    pub fn bound(&mut self, newest: Timestamp) -> Result<(), StateError> {
        let runs = &self.index.runs;
        let oldest = oldest_kept(newest);
        let too_old = runs.partition_point(|run| run.first.at <= oldest).saturating_sub(1);
        let too_many = runs.len().saturating_sub(CHANGES_MAX);
        // From the newest on: what is beyond the bound with those behind it.
        let mut room = HISTORY_MAX_BYTES;
        let fitting = runs.iter().rev().take_while(|run| {
            let left = room.checked_sub(run.bytes as usize);
            room = left.unwrap_or(0);
            left.is_some()
        });
        let excess = (runs.len() - fitting.count()).max(too_many).max(too_old);
        let dropped: Vec<Moment> = runs[..excess].iter().map(|run| run.first).collect();
        if let Some(last) = dropped.last() {
            let floor = self.run(*last)?.last();
            self.index.floor = self.index.floor.max(Some(floor));
            self.index.runs.drain(..excess);
        }
        for first in dropped {
            self.runs.remove(&first);
            self.changed.insert(first);
        }
        Ok(())
    }

    /// What is to be written.
    pub fn into_writes(mut self) -> HistoryWrites {
        let is_stored = |first: &Moment| self.stored.runs.iter().any(|run| run.first == *first);
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for first in self.changed {
            match self.runs.remove(&first) {
                Some(run) => changed.push(run),
                None if is_stored(&first) => gone.push(first),
                // It came and went.
                None => {}
            }
        }
        HistoryWrites { index: (self.index != self.stored).then_some(self.index), changed, gone }
    }

    /// The runs, the oldest first.
    #[cfg(test)]
    pub fn runs(&mut self) -> Vec<ComplianceChange> {
        let firsts: Vec<Moment> = self.index.runs.iter().map(|run| run.first).collect();
        firsts.into_iter().map(|first| self.run(first).unwrap().clone()).collect()
    }
}

/// How far the past reaches back of a machine of which the newest was told at `newest`. Of what was told by then, the last
/// is kept.
fn oldest_kept(newest: Timestamp) -> Timestamp {
    Timestamp(newest.0.saturating_sub(HISTORY_MAX_DAYS * DAY_MS))
}

/// Those of the runs, in order, that say how a machine stood at `at`: the one that counts, if there is one, and what comes
/// behind it, two in all. The second says whether the first is [too old](is_too_old).
pub fn around(runs: &[ComplianceChange], at: Timestamp) -> &[ComplianceChange] {
    let begin = runs.partition_point(|run| run.at <= at).saturating_sub(1);
    &runs[begin..runs.len().min(begin + AROUND_MAX)]
}

/// Whether the first of these runs does not count any more, the newest having been told at `newest`.
pub fn is_too_old(runs: &[ComplianceChange], newest: Timestamp) -> bool {
    runs.get(1).is_some_and(|second| second.at <= oldest_kept(newest))
}

/// How a machine stood at `at`, by its runs in order: in which state, and since when. `None` if that is not known.
pub fn as_of(runs: &[ComplianceChange], at: Timestamp) -> Option<&ComplianceChange> {
    runs[..runs.partition_point(|run| run.at <= at)].last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::compliance::words::Enforcement;
    use crate::escrow::memory::Memory;

    fn state(error: u32) -> MachineState {
        MachineState { enforcement: Enforcement::Enforced, error: Some(error), volumes: Vec::new() }
    }

    fn day(days: u64) -> u64 {
        days * DAY_MS
    }

    /// A history of nothing.
    fn begin(rows: &Memory) -> History<'_, Memory> {
        History::read(rows, &"PC-0001".parse().unwrap()).unwrap()
    }

    fn tell(history: &mut History<'_, Memory>, at: u64, error: u32) {
        history.tell(Told::new(Timestamp(at), Timestamp(at)), &state(error)).unwrap();
        history.bound(Timestamp(at)).unwrap();
    }

    /// State, since when, and when again.
    fn runs(history: &mut History<'_, Memory>) -> Vec<(u32, u64, Vec<u64>)> {
        let run = |run: ComplianceChange| {
            (run.state.error.unwrap(), run.at.0, run.again.iter().map(|told| told.at.0).collect())
        };
        history.runs().into_iter().map(run).collect()
    }

    #[test]
    fn a_late_report_splits_the_run_that_it_contradicts_and_joins_those_that_it_continues() {
        let rows = Memory::new();
        let mut history = begin(&rows);
        for (at, error) in [(10, 1), (30, 1), (50, 1), (70, 2)] {
            tell(&mut history, at, error);
        }
        assert_eq!(runs(&mut history), [(1, 10, vec![30, 50]), (2, 70, vec![])]);
        tell(&mut history, 40, 3);
        assert_eq!(
            runs(&mut history),
            [(1, 10, vec![30]), (3, 40, vec![]), (1, 50, vec![]), (2, 70, vec![])]
        );
        tell(&mut history, 45, 1);
        tell(&mut history, 35, 3);
        tell(&mut history, 5, 1);
        tell(&mut history, 60, 2);
        let expected = [(1, 5, vec![10, 30]), (3, 35, vec![40]), (1, 45, vec![50]), (2, 60, vec![70])];
        assert_eq!(runs(&mut history), expected);
        tell(&mut history, 1, 2);
        assert_eq!(runs(&mut history)[..2], [(2, 1, vec![]), (1, 5, vec![10, 30])]);
        tell(&mut history, 40, 3);
        assert_eq!(runs(&mut history)[1..], expected, "told twice");
    }

    #[test]
    fn the_state_at_a_time_is_what_was_told_last_before_it() {
        let rows = Memory::new();
        let mut history = begin(&rows);
        for (at, error) in [(10, 1), (20, 2), (30, 2)] {
            tell(&mut history, at, error);
        }
        let runs = history.runs();
        let found = |at| as_of(&runs, Timestamp(at)).map(|run| (run.state.error, run.at.0));
        assert_eq!(found(9), None);
        assert_eq!(found(10), Some((Some(1), 10)));
        assert_eq!(found(19), Some((Some(1), 10)));
        assert_eq!(found(20), Some((Some(2), 20)));
        assert_eq!(found(u64::MAX), Some((Some(2), 20)));
        assert_eq!(as_of(&[], Timestamp(1)), None);
        let told = |at| runs[1].told_by(Timestamp(at)).map(|at| at.0);
        assert_eq!([told(19), told(20), told(29), told(30)], [None, Some(20), Some(20), Some(30)]);
    }

    #[test]
    fn of_many_repeats_the_last_of_each_span_is_kept_whatever_their_order() {
        let times: Vec<u64> = (0..HISTORY_MAX_DAYS).map(|days| day(days) + days % 7).collect();
        let rows = Memory::new();
        let (mut one, mut other) = (begin(&rows), begin(&rows));
        for at in &times {
            tell(&mut one, *at, 1);
        }
        for step in 0..times.len() {
            // A step that has no part in common with the number of times: each once, in another order.
            tell(&mut other, times[step * 39 % times.len() + step / times.len()], 1);
        }
        let kept = one.runs();
        for step in (0..times.len()).rev() {
            tell(&mut other, times[step], 1);
        }
        assert_eq!(kept, other.runs());
        assert!(kept[0].again.len() <= AGAIN_MAX);
        for (days, at) in times.iter().enumerate() {
            let told = kept[0].told_by(Timestamp(*at)).unwrap();
            assert!(at - told.0 <= day(17), "silent on day {days} since {told}");
        }
        assert_eq!(kept[0].told_by(Timestamp(u64::MAX)), Some(Timestamp(*times.last().unwrap())));
    }

    #[test]
    fn when_something_first_came_in_is_kept_if_that_was_late() {
        let rows = Memory::new();
        let mut history = begin(&rows);
        let mut told = |at: u64, stamp: u64| {
            history.tell(Told::new(Timestamp(at), Timestamp(stamp)), &state(1)).unwrap();
        };
        told(day(3), day(3) + AT_ONCE_MAX_MS);
        told(day(1), day(5));
        told(day(2), day(9));
        told(day(2), day(6));
        told(day(2), day(7));
        let run = history.runs().remove(0);
        let late: Vec<_> = run.told().map(|told| (told.at.0, told.late.map(|late| late.0))).collect();
        assert_eq!(late, [(day(1), Some(day(5))), (day(2), Some(day(6))), (day(3), None)]);
        let known = |at: u64| run.told().any(|told| told.is_known_by(Timestamp(at)));
        assert_eq!([day(1), day(2), day(3) - 1, day(3)].map(known), [false, false, false, true]);
    }

    #[test]
    fn the_newest_changes_are_kept_and_what_was_dropped_does_not_come_back() {
        let rows = Memory::new();
        let mut history = begin(&rows);
        for at in 0..CHANGES_MAX as u64 {
            tell(&mut history, at, (at % 2) as u32);
        }
        assert_eq!((history.runs().len(), history.floor()), (CHANGES_MAX, None));
        tell(&mut history, CHANGES_MAX as u64, 2);
        assert_eq!(history.runs().len(), CHANGES_MAX);
        assert_eq!(history.floor(), Some(Moment { at: Timestamp(0), rank: state(0).rank() }));
        let before = history.runs();
        tell(&mut history, 0, 0);
        assert_eq!(history.runs(), before);
    }

    #[test]
    fn the_state_at_the_oldest_time_that_counts_is_known_however_old_it_is() {
        let rows = Memory::new();
        let mut history = begin(&rows);
        tell(&mut history, 0, 1);
        tell(&mut history, day(10), 2);
        tell(&mut history, day(HISTORY_MAX_DAYS + 9), 3);
        assert_eq!(history.runs().len(), 3, "at the oldest time the first is still the one");
        tell(&mut history, day(HISTORY_MAX_DAYS + 10), 3);
        assert_eq!(runs(&mut history)[0].0, 2);
        tell(&mut history, day(5_000), 3);
        assert_eq!(
            runs(&mut history),
            [(3, day(HISTORY_MAX_DAYS + 9), vec![day(HISTORY_MAX_DAYS + 10), day(5_000)])]
        );
    }
}
