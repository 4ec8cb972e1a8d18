//! Reading the base again, slowly, and comparing what is there with the digest that was kept of it: the digest is of
//! what was written, and says nothing of what became of it on the disk.
//!
//! A pass goes over the base in the order of keys, a little at a time, while entries go on being applied. The keeper is
//! the only one who writes the base, and tells the pass before it does: a row behind the pass that changes is taken out
//! of its sum as it rests there now, and into it as it will be. So at the end of a pass its sum is that of the base as it
//! is then. What sled holds in its cache is not read from the disk again.

use std::ops::Bound;
use std::time::{Duration, Instant};

use super::StoreError;
use super::applied::Applied;
use super::base::{Base, FIRST_ROW_KEY};
use super::overlay::Changes;

/// Between two steps of a pass.
pub const STEP_EVERY: Duration = Duration::from_secs(1);
/// Most bytes of rows read in one step: with [`STEP_EVERY`], a gigabyte takes some four minutes. The keeper does
/// nothing else meanwhile, a few milliseconds.
pub const STEP_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Most rows read in one step.
pub const STEP_MAX_ROWS: usize = 16_384;
/// From the end of one pass to the beginning of the next.
pub const PASS_EVERY: Duration = Duration::from_secs(3_600);

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to read, or it is not time yet.
    More,
    /// The pass is over: the rows are those that were written.
    Matches,
    /// The pass is over, and they are not.
    Mismatch,
}

/// See the module.
pub(super) struct Scrub {
    /// The last key that was read; `None` before the first.
    cursor: Option<Vec<u8>>,
    counted: Applied,
    /// When the next step is due.
    due: Instant,
}

impl Scrub {
    /// A pass that begins at once: a node that was restarted has more reason to look than any.
    pub fn new() -> Self {
        Self { cursor: None, counted: Applied::default(), due: Instant::now() }
    }

    /// Begins again, with a pause of `pause`.
    pub fn begin_again(&mut self, pause: Duration) {
        *self = Self { due: Instant::now() + pause, ..Self::new() };
    }

    /// Takes note of what is about to be written to `base`.
    pub fn before_write(&mut self, base: &Base, changes: &Changes) -> Result<(), StoreError> {
        let Some(cursor) = &self.cursor else { return Ok(()) };
        for (key, change) in changes {
            if key[..] > cursor[..] {
                // In the order of keys: the rest lies before the pass.
                break;
            }
            let before = base.get(key)?;
            self.counted.change(key, before.as_deref(), change.as_deref());
        }
        Ok(())
    }

    /// Reads on, if it is time.
    pub fn step(&mut self, base: &Base) -> Result<Step, StoreError> {
        if Instant::now() < self.due {
            return Ok(Step::More);
        }
        let lower = match self.cursor.take() {
            Some(cursor) => Bound::Excluded(cursor),
            None => Bound::Included(FIRST_ROW_KEY.to_vec()),
        };
        let (mut bytes, mut rows) = (0, 0);
        for row in base.range((lower, Bound::Unbounded)) {
            let (key, value) = row?;
            self.counted.change(&key, None, Some(&value));
            bytes += (key.len() + value.len()) as u64;
            rows += 1;
            if bytes >= STEP_MAX_BYTES || rows >= STEP_MAX_ROWS {
                self.cursor = Some(key.to_vec());
                self.due = Instant::now() + STEP_EVERY;
                return Ok(Step::More);
            }
        }
        let kept = base.applied()?.unwrap_or_default();
        let matches = kept.describes(&self.counted);
        self.begin_again(PASS_EVERY);
        Ok(if matches { Step::Matches } else { Step::Mismatch })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::base_dir::BaseDir;

    /// A base with more rows than one step reads, and what is known of it.
    struct Filled {
        base: Base,
        applied: Applied,
        _root: tempfile::TempDir,
    }

    fn key(number: usize) -> Bytes {
        format!("\u{1}{number:06}").into()
    }

    impl Filled {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (_, base) = BaseDir::open(root.path(), 8 * 1024 * 1024).unwrap().create().unwrap();
            let mut filled = Self { base, applied: Applied::default(), _root: root };
            let rows = (0..STEP_MAX_ROWS + 100).map(|number| (key(number), Some(Bytes::from("old"))));
            filled.write(&mut Scrub::new(), rows.collect());
            filled
        }

        /// Writes as the keeper does.
        fn write(&mut self, scrub: &mut Scrub, changes: Changes) {
            for (key, change) in &changes {
                let before = self.base.get(key).unwrap();
                self.applied.change(key, before.as_deref(), change.as_deref());
            }
            scrub.before_write(&self.base, &changes).unwrap();
            self.base.write(&changes, &self.applied).unwrap();
        }
    }

    /// A pass that has read its first step of `filled`.
    fn half_way(filled: &Filled) -> Scrub {
        let mut scrub = Scrub::new();
        assert_eq!(scrub.step(&filled.base).unwrap(), Step::More);
        assert_eq!(scrub.cursor.as_deref(), Some(&key(STEP_MAX_ROWS - 1)[..]));
        scrub
    }

    fn finish(filled: &Filled, mut scrub: Scrub) -> Step {
        scrub.due = Instant::now();
        scrub.step(&filled.base).unwrap()
    }

    #[test]
    fn what_is_written_behind_and_before_a_pass_is_no_mismatch() {
        let mut filled = Filled::new();
        let mut scrub = half_way(&filled);
        let new = || Some(Bytes::from("newer"));
        let last = STEP_MAX_ROWS + 99;
        let changes =
            [(0, None), (7, new()), (STEP_MAX_ROWS - 1, new()), (STEP_MAX_ROWS, None), (last, new())];
        let changes = changes.into_iter().map(|(number, change)| (key(number), change));
        filled.write(&mut scrub, changes.collect());
        filled.write(&mut scrub, Changes::from([(key(0), new()), (key(last + 1), new())]));
        assert_eq!(finish(&filled, scrub), Step::Matches);
    }

    #[test]
    fn a_row_that_changed_by_itself_is_found_wherever_the_pass_is() {
        for number in [3, STEP_MAX_ROWS + 50] {
            let filled = Filled::new();
            let under_way = half_way(&filled);
            let damage = Changes::from([(key(number), Some("damaged".into()))]);
            filled.base.write(&damage, &filled.applied).unwrap();
            let found = if number > STEP_MAX_ROWS { Step::Mismatch } else { Step::Matches };
            assert_eq!(finish(&filled, under_way), found, "row {number} by the pass that is under way");
            assert_eq!(finish(&filled, half_way(&filled)), Step::Mismatch, "row {number} by the next");
        }
    }

    #[test]
    fn a_pass_rests_between_its_steps_and_after_its_end() {
        let filled = Filled::new();
        let mut scrub = half_way(&filled);
        assert_eq!(scrub.step(&filled.base).unwrap(), Step::More);
        assert_eq!(scrub.counted.rows, STEP_MAX_ROWS as u64, "nothing was read before it was time");
        scrub.due = Instant::now();
        assert_eq!(scrub.step(&filled.base).unwrap(), Step::Matches);
        assert!(scrub.due > Instant::now() + PASS_EVERY / 2);
    }
}
