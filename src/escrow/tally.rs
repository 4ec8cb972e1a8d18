//! Counting what happened of late, in slots of time, so that a limit over an hour or a day needs few numbers.

use serde::{Deserialize, Serialize};

use super::ids::Timestamp;

/// An hour, in milliseconds.
pub const HOUR_MS: u64 = 60 * 60 * 1_000;
/// A day, in milliseconds.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// Length of a slot, in milliseconds. What is counted in it counts until the whole of it is out of the time a limit looks
/// back, so up to this much longer.
pub const TALLY_SLOT_MS: u64 = 10 * 60 * 1_000;

/// When, in slots of [`TALLY_SLOT_MS`] since the Unix epoch, and how often; oldest first, none older than a day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slots(pub Vec<(u64, u32)>);

impl Slots {
    /// Counts one more at `now`, and forgets what is older than a day.
    pub fn count(&mut self, now: Timestamp) {
        self.count_late(now, now);
    }

    /// Counts one more that was at `at`, no later than `now`. Nothing that is older than a day is kept or counted.
    pub fn count_late(&mut self, at: Timestamp, now: Timestamp) {
        let slot = at.min(now).0 / TALLY_SLOT_MS;
        self.0.retain(|(old, _)| is_within(*old, DAY_MS, now));
        if !is_within(slot, DAY_MS, now) {
            return;
        }
        match self.0.iter_mut().find(|(known, _)| *known == slot) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => {
                self.0.push((slot, 1));
                self.0.sort_unstable();
            }
        }
    }

    /// How often within the last `window` milliseconds, and up to a slot before.
    pub fn within(&self, window: u64, at: Timestamp) -> u64 {
        let counted = self.0.iter().filter(|(slot, _)| is_within(*slot, window, at));
        counted.map(|(_, count)| u64::from(*count)).sum()
    }

    /// When it will have been fewer than `limit` times within `window`.
    pub fn free_at(&self, window: u64, at: Timestamp, limit: u32) -> Timestamp {
        let mut left = self.within(window, at);
        for (slot, count) in self.0.iter().filter(|(slot, _)| is_within(*slot, window, at)) {
            left -= u64::from(*count);
            if left < u64::from(limit) {
                return Timestamp((slot + 1) * TALLY_SLOT_MS + window);
            }
        }
        at
    }
}

/// Whether a part of `slot` lies within the last `window` milliseconds before `at`.
fn is_within(slot: u64, window: u64, at: Timestamp) -> bool {
    (slot + 1) * TALLY_SLOT_MS + window > at.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_counts_until_its_whole_slot_is_out_of_the_window() {
        let slot = |n: u64| Timestamp(n * TALLY_SLOT_MS);
        let mut slots = Slots::default();
        slots.count(Timestamp(slot(100).0 + 5));
        slots.count(slot(100));
        slots.count(slot(103));
        assert_eq!(slots.within(HOUR_MS, slot(103)), 3);
        assert_eq!(slots.within(HOUR_MS, Timestamp(slot(107).0 - 1)), 3);
        assert_eq!(slots.within(HOUR_MS, slot(107)), 1, "an hour and the slot later");
        assert_eq!(slots.free_at(HOUR_MS, slot(103), 3), slot(107), "it says when");
        assert_eq!(slots.free_at(HOUR_MS, slot(103), 1), slot(110));
        slots.count(slot(100 + 6 * 24 + 1));
        assert_eq!(slots.0, [(103, 1), (245, 1)], "what is older than a day is forgotten");
    }

    #[test]
    fn what_a_tally_keeps_is_bounded_and_late_stamps_are_kept_in_order() {
        let mut slots = Slots::default();
        for minute in 0..5_000 {
            slots.count(Timestamp(minute * 60_000));
        }
        assert!(slots.0.len() <= 6 * 24 + 1, "{}", slots.0.len());
        slots.count(Timestamp(4_000 * 60_000));
        assert!(slots.0.is_sorted());
    }
}
