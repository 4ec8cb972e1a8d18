//! Compaction: the base is written anew when sled's files have grown far beyond the rows in them.
//!
//! sled gives space back a segment at a time, once half of a segment is of no use any more, and a page may lie in ten of
//! them: after many writes all over the base its files are four times as large as its rows, and stay so. So, when little is
//! written, the rows are copied to a fresh database, in the order of keys, a slice at a time, while entries go on being
//! applied. While much is written the copy would cost a third of the rate and grow as fast as the base that it replaces:
//! then one is begun only when the files are larger still. The keeper is
//! the only one who writes the base, and tells the copy of it: a row behind the copy is written to the fresh one as well,
//! and one before it will be read as it is then. At the end both are the same, and the fresh one takes the other's place.
//!
//! A crash on the way leaves the old one in use, and the next start removes the other. What fails about the fresh one, as a
//! disk that is full, ends the compaction and nothing else.

use std::ops::Bound;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::StoreError;
use super::applied::Applied;
use super::base::{Base, FIRST_ROW_KEY, Slice};
use super::base_dir::BaseDir;
use super::overlay::Changes;

/// Files have grown since the last compaction when there is a quarter more of them.
const GROWTH: u64 = 4;

/// Bounds of a compaction; smaller in tests.
#[derive(Debug, Clone, Copy)]
pub struct CompactionLimits {
    /// How often it is looked whether one is due, and how long after a failure the next one is.
    pub check_every: Duration,
    /// A base with smaller files is left alone.
    pub floor_bytes: u64,
    /// One is due when the files have more than so many times the bytes of the rows and little is written.
    pub times_rows: u64,
    /// Little is at most so many bytes of rows since it was last looked.
    pub quiet_max_bytes: u64,
    /// However much is written, one is due when the files have more than so many times the bytes of the rows: more than
    /// sled comes to by itself while many rows are new.
    pub times_rows_busy: u64,
    /// Bytes of the disk that it leaves free, beside those of the rows.
    pub reserve_bytes: u64,
    /// Most bytes of rows that are copied at once: the keeper does nothing else meanwhile, some ten milliseconds. Then it
    /// rests for as long as that took.
    pub slice_max_bytes: usize,
}

impl Default for CompactionLimits {
    fn default() -> Self {
        Self {
            check_every: Duration::from_secs(30),
            floor_bytes: 64 * 1024 * 1024,
            times_rows: 2,
            quiet_max_bytes: 16 * 1024 * 1024,
            times_rows_busy: 12,
            reserve_bytes: 512 * 1024 * 1024,
            slice_max_bytes: 512 * 1024,
        }
    }
}

/// See the module.
pub(super) struct Compaction {
    limits: CompactionLimits,
    /// When it is next looked whether one is due, or the next slice is.
    due: Instant,
    /// What the files came to after the last one. Until they have grown since, one more would make them no smaller.
    after_last: u64,
    /// Bytes of rows that were written since it was last looked whether one is due.
    written_bytes: u64,
    copy: Option<Copy>,
}

/// One that is under way.
struct Copy {
    fresh: Base,
    number: u64,
    /// The last key that was copied; `None` before the first.
    cursor: Option<Vec<u8>>,
}

/// A base that can take the place of the one that it is a copy of.
pub(super) struct Compacted {
    /// Its number in the folder.
    pub number: u64,
    /// The database.
    pub base: Base,
}

impl Compaction {
    /// None is under way.
    pub fn new(limits: CompactionLimits) -> Self {
        Self { limits, due: Instant::now() + limits.check_every, after_last: 0, written_bytes: 0, copy: None }
    }

    /// How long nothing is due, at most `longest`.
    pub fn rest(&self, longest: Duration) -> Duration {
        self.due.saturating_duration_since(Instant::now()).min(longest)
    }

    /// Goes on, if it is time: begins one if it is due, or copies a slice. Answers the fresh base when it is complete.
    ///
    /// # Errors
    /// Only what reading `base` returns.
    pub fn step(&mut self, base: &Base, dir: &BaseDir) -> Result<Option<Compacted>, StoreError> {
        let now = Instant::now();
        if now < self.due {
            return Ok(None);
        }
        let Some(copy) = &mut self.copy else {
            self.due = now + self.limits.check_every;
            self.begin_if_due(base, dir)?;
            return Ok(None);
        };
        let (slice, upto, is_last) = match copy.read(base, self.limits.slice_max_bytes) {
            Ok(read) => read,
            Err(error) => {
                self.abandon(dir);
                return Err(error);
            }
        };
        let written = enough_room(dir, self.limits.reserve_bytes).and_then(|()| copy.write(slice, &upto));
        let written = written.and_then(|()| if is_last { copy.fresh.flush() } else { Ok(()) });
        if let Err(error) = written {
            self.give_up(dir, &error);
            return Ok(None);
        }
        self.due = Instant::now() + now.elapsed();
        if !is_last {
            return Ok(None);
        }
        self.put_off();
        let Some(Copy { fresh, number, .. }) = self.copy.take() else { return Ok(None) };
        self.after_last = fresh.bytes_on_disk().unwrap_or(0);
        Ok(Some(Compacted { number, base: fresh }))
    }

    /// Looks later whether one is due, if none is under way.
    pub fn put_off(&mut self) {
        self.due = Instant::now() + self.limits.check_every;
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        self.copy.is_some()
    }

    /// Of a base whose rows and files come to so many bytes, and to which so many were written since this was last asked.
    fn is_due(&self, rows: u64, files: u64, written: u64) -> bool {
        let is_quiet = written <= self.limits.quiet_max_bytes;
        let times = if is_quiet { self.limits.times_rows } else { self.limits.times_rows_busy };
        let has_grown = files > self.after_last.saturating_add(self.after_last / GROWTH);
        files >= self.limits.floor_bytes && files > rows.saturating_mul(times) && has_grown
    }

    fn begin_if_due(&mut self, base: &Base, dir: &BaseDir) -> Result<(), StoreError> {
        let written = std::mem::take(&mut self.written_bytes);
        let rows = base.applied()?.unwrap_or_default().bytes;
        let files = base.bytes_on_disk()?;
        if !self.is_due(rows, files, written) {
            return Ok(());
        }
        let begun = dir.free_bytes().and_then(|free| {
            let enough = free >= rows.saturating_add(self.limits.reserve_bytes);
            enough.then(|| dir.create()).transpose()
        });
        match begun {
            Ok(Some((number, fresh))) => {
                tracing::info!(
                    files,
                    rows,
                    "the base is written anew: its files have grown far beyond its rows"
                );
                self.due = Instant::now();
                self.copy = Some(Copy { fresh, number, cursor: None });
            }
            Ok(None) => tracing::debug!(files, rows, "no room on the disk to write the base anew"),
            Err(error) => tracing::warn!(%error, "the base could not be written anew; tried again later"),
        }
        Ok(())
    }

    /// Takes note of what was just written to the base.
    pub fn wrote(&mut self, changes: &Changes, dir: &BaseDir) {
        let bytes: usize =
            changes.iter().map(|(key, change)| key.len() + change.as_ref().map_or(0, Bytes::len)).sum();
        self.written_bytes = self.written_bytes.saturating_add(bytes as u64);
        let Some(copy) = &self.copy else { return };
        let Some(cursor) = &copy.cursor else { return };
        let behind = changes.range::<[u8], _>((Bound::Unbounded, Bound::Included(&cursor[..])));
        let behind: Changes = behind.map(|(key, change)| (key.clone(), change.clone())).collect();
        if behind.is_empty() {
            return;
        }
        if let Err(error) = copy.fresh.write(&behind, &Applied::default()) {
            self.give_up(dir, &error);
        }
    }

    fn give_up(&mut self, dir: &BaseDir, error: &StoreError) {
        tracing::warn!(%error, "the base could not be written anew; tried again later");
        self.abandon(dir);
    }

    /// Ends the one that is under way, if there is one.
    pub fn abandon(&mut self, dir: &BaseDir) {
        self.put_off();
        let Some(Copy { fresh, number, .. }) = self.copy.take() else { return };
        // sled may panic while it closes on a disk that fails.
        let closed = std::thread::spawn(move || drop(fresh)).join();
        if closed.is_err() || dir.remove(number).is_err() {
            tracing::warn!("what is left of a base that was not finished goes at the next start");
        }
    }
}

fn enough_room(dir: &BaseDir, needed: u64) -> Result<(), StoreError> {
    let free = dir.free_bytes()?;
    if free >= needed {
        return Ok(());
    }
    Err(StoreError::NoRoom { needed, free })
}

impl Copy {
    /// The next slice; where the rows stand once it is written, which is nowhere until all are; and whether they are all.
    fn read(&self, base: &Base, max_bytes: usize) -> Result<(Changes, Applied, bool), StoreError> {
        let lower = match &self.cursor {
            Some(cursor) => Bound::Excluded(cursor.clone()),
            None => Bound::Included(FIRST_ROW_KEY.to_vec()),
        };
        let Slice { rows, stopped_at } = base.slice((lower, Bound::Unbounded), usize::MAX, max_bytes)?;
        let slice = rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
        let is_last = stopped_at.is_none();
        let upto = if is_last { base.applied()?.unwrap_or_default() } else { Applied::default() };
        Ok((slice, upto, is_last))
    }

    fn write(&mut self, slice: Changes, upto: &Applied) -> Result<(), StoreError> {
        self.fresh.write(&slice, upto)?;
        if let Some((last, _)) = slice.last_key_value() {
            self.cursor = Some(last.to_vec());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Of every size, and as fast as it is asked to go on.
    fn limits() -> CompactionLimits {
        CompactionLimits {
            check_every: Duration::ZERO,
            floor_bytes: 0,
            times_rows: 0,
            quiet_max_bytes: 0,
            times_rows_busy: 0,
            reserve_bytes: 0,
            slice_max_bytes: 500,
        }
    }

    struct Bed {
        dir: BaseDir,
        base: Base,
        compaction: Compaction,
        root: TempDir,
    }

    fn key(number: usize) -> Bytes {
        format!("\u{1}{number:06}").into()
    }

    fn changes(numbers: impl IntoIterator<Item = usize>, value: Option<&'static str>) -> Changes {
        numbers.into_iter().map(|number| (key(number), value.map(Bytes::from))).collect()
    }

    impl Bed {
        fn filled(limits: CompactionLimits) -> Self {
            let root = tempfile::tempdir().unwrap();
            let mut dir = BaseDir::open(root.path(), 1024 * 1024).unwrap();
            let (number, base) = dir.create().unwrap();
            dir.switch_to(number).unwrap();
            let mut bed = Self { dir, base, compaction: Compaction::new(limits), root };
            bed.write(&changes(0..1_000, Some("old")));
            // Its threads write the files when they come to it, and those have no bytes before.
            bed.base.flush().unwrap();
            bed
        }

        /// As the keeper does.
        fn write(&mut self, changes: &Changes) {
            let mut applied = self.base.applied().unwrap().unwrap_or_default();
            for (key, change) in changes {
                applied.change(key, self.base.get(key).unwrap().as_deref(), change.as_deref());
            }
            self.base.write(changes, &applied).unwrap();
            self.compaction.wrote(changes, &self.dir);
        }

        fn step(&mut self) -> Option<Compacted> {
            self.compaction.due = Instant::now();
            self.compaction.step(&self.base, &self.dir).unwrap()
        }
    }

    fn databases(root: &TempDir) -> usize {
        let entries = std::fs::read_dir(root.path()).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    }

    fn rows(base: &Base) -> Vec<(Bytes, Bytes)> {
        base.rows().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_copy_has_what_was_written_behind_and_before_it_meanwhile() {
        let mut bed = Bed::filled(limits());
        let mut slices = 0;
        let compacted = loop {
            if let Some(compacted) = bed.step() {
                break compacted;
            }
            slices += 1;
            bed.write(&changes([slices, 500 - slices, 990], Some("newer")));
            bed.write(&changes([2 * slices, 999 - slices, 700], None));
            bed.write(&changes([2_000 + slices], Some("new")));
        };
        assert!(slices > 5, "{slices} slices");
        assert_eq!(rows(&compacted.base), rows(&bed.base));
        let applied = compacted.base.applied().unwrap().unwrap();
        assert_eq!(Some(&applied), bed.base.applied().unwrap().as_ref());
        assert!(applied.describes(&compacted.base.recount().unwrap()));
        assert!(compacted.number > bed.dir.number());
    }

    #[test]
    fn one_that_is_not_over_says_so() {
        let mut bed = Bed::filled(limits());
        bed.step();
        bed.step();
        let copy = bed.compaction.copy.as_ref().unwrap();
        assert!(!rows(&copy.fresh).is_empty());
        assert_eq!(copy.fresh.applied().unwrap(), Some(Applied::default()));
        bed.compaction.abandon(&bed.dir);
        assert_eq!(databases(&bed.root), 1);
    }

    #[test]
    fn a_crash_on_the_way_leaves_the_base_in_use_and_the_next_start_removes_the_copy() {
        let mut bed = Bed::filled(limits());
        bed.step();
        bed.step();
        bed.write(&changes([3, 999], Some("newer")));
        let expected = rows(&bed.base);
        assert_eq!(databases(&bed.root), 2);
        let Bed { dir, base, compaction, root } = bed;
        drop((dir, base, compaction));
        let dir = BaseDir::open(root.path(), 1024 * 1024).unwrap();
        let (base, applied) = dir.open_current().unwrap().unwrap();
        assert_eq!(rows(&base), expected);
        assert!(applied.describes(&base.recount().unwrap()));
        assert_eq!(databases(&root), 1);
    }

    #[test]
    fn none_begins_without_need_or_without_room() {
        let small = CompactionLimits { floor_bytes: u64::MAX, ..limits() };
        let tight = CompactionLimits { times_rows: u64::MAX, times_rows_busy: u64::MAX, ..limits() };
        let full = CompactionLimits { reserve_bytes: u64::MAX, ..limits() };
        for limits in [small, tight, full] {
            let mut bed = Bed::filled(limits);
            bed.step();
            assert!(bed.compaction.copy.is_none(), "{limits:?}");
            assert_eq!(databases(&bed.root), 1);
        }
    }
    #[test]
    fn while_much_is_written_more_is_left_lying() {
        let limits = CompactionLimits { times_rows: 2, quiet_max_bytes: 10, times_rows_busy: 6, ..limits() };
        let mut compaction = Compaction::new(limits);
        for (files, written, due) in [(200, 0, false), (201, 10, true), (201, 11, false), (601, 11, true)] {
            assert_eq!(compaction.is_due(100, files, written), due, "{files} {written}");
        }
        compaction.after_last = 400;
        assert!(!compaction.is_due(100, 500, 0), "the last one left 400");
        assert!(compaction.is_due(100, 501, 0));
    }

    #[test]
    fn what_is_written_counts_once() {
        let quiet = CompactionLimits { times_rows_busy: u64::MAX, quiet_max_bytes: 100, ..limits() };
        let mut bed = Bed::filled(quiet);
        bed.step();
        assert!(bed.compaction.copy.is_none(), "a thousand rows were written");
        bed.step();
        assert!(bed.compaction.copy.is_some(), "nothing was");
    }
}
