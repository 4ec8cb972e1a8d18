//! A pass over the base as it is at one index, while entries go on being applied and brought to it: snapshots and reports
//! are of one moment, and nobody's write waits for them.
//!
//! The keeper reads a slice of rows, then brings to the base what was sealed meanwhile, and so on. Of a row that the pass
//! has not come to yet, what it was is kept in memory before it is written over; of a row behind
//! the pass nothing has to be kept. If that memory is full, the base is not written until the pass has come further, and
//! the overlay takes what is applied.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeBounds};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::StoreError;
use super::base::{Base, FIRST_ROW_KEY, Slice};
use super::keeper::Keeper;
use super::overlay::{Change, Changes, row_bytes};
use crate::escrow::state::Table;

/// Bounds of a pass; smaller in tests.
#[derive(Debug, Clone, Copy)]
pub struct PassLimits {
    /// Most rows read before the base is written again: some tens of milliseconds.
    pub slice_max_rows: usize,
    /// Most bytes of rows read before that, about.
    pub slice_max_bytes: usize,
    /// Memory for rows as they were, in bytes, about; at most what a generation changes more.
    pub undo_max_bytes: usize,
    /// Longest rest between two slices of a snapshot: on a disk that is slow for a moment, resting as long again helps
    /// nobody.
    pub rest_max: Duration,
}

impl Default for PassLimits {
    fn default() -> Self {
        Self {
            slice_max_rows: 8_192,
            slice_max_bytes: 1024 * 1024,
            undo_max_bytes: 32 * 1024 * 1024,
            rest_max: Duration::from_millis(50),
        }
    }
}

/// Keys that are still to be read: from and to.
pub(super) type Stretch = (Bound<Vec<u8>>, Bound<Vec<u8>>);
type Rows = VecDeque<(Bytes, Bytes)>;

/// See the module. The rows come in the order of the stretches, and in each in the order of keys.
pub(super) struct Pass<'a> {
    keeper: &'a mut Keeper,
    /// What is still to be read, with what may not change any more for it: the first one from where the pass stands.
    ahead: VecDeque<Stretch>,
    undo: Undo,
    slice: Rows,
    /// When it rested last, if it does.
    rested: Option<Instant>,
}

impl<'a> Pass<'a> {
    /// Begins one over `stretches`, which do not overlap. The base stands where the pass is to be of.
    pub fn over(keeper: &'a mut Keeper, stretches: impl IntoIterator<Item = Stretch>) -> Self {
        let ahead = stretches.into_iter().collect();
        Self { keeper, ahead, undo: Undo::default(), slice: Rows::new(), rested: None }
    }

    /// The same, at half the speed while nobody waits for it: all nodes write their snapshots at about the same time.
    pub fn at_leisure(self) -> Self {
        Self { rested: Some(Instant::now()), ..self }
    }

    /// Rests for as long as the last slice and its rows took, unless the node stops or something is to be written.
    fn rest(&mut self) {
        let Some(rested) = self.rested else { return };
        if !self.keeper.shared.is_closing() && self.keeper.shared.oldest_sealed().is_none() {
            std::thread::sleep(rested.elapsed().min(self.keeper.pass_limits.rest_max));
        }
        self.rested = Some(Instant::now());
    }

    /// Reads the next slice. Says whether there was anything to read.
    fn read_on(&mut self) -> Result<bool, StoreError> {
        self.let_write()?;
        self.rest();
        let Some((lower, upper)) = self.ahead.pop_front() else { return Ok(false) };
        let limits = self.keeper.pass_limits;
        let range = (lower.clone(), upper.clone());
        let Slice { rows: read, stopped_at } =
            self.keeper.base.slice(range, limits.slice_max_rows, limits.slice_max_bytes)?;
        let upto = match stopped_at {
            Some(key) => {
                self.ahead.push_front((Bound::Excluded(key.to_vec()), upper));
                Bound::Included(key.to_vec())
            }
            None => upper,
        };
        self.slice = as_it_was(read.into(), self.undo.take(&(lower, upto)));
        Ok(true)
    }

    /// Brings to the base what is sealed by now, as far as there is memory for what it changes ahead of the pass.
    fn let_write(&mut self) -> Result<(), StoreError> {
        let newest = self.keeper.shared.newest_sealed();
        while self.undo.bytes < self.keeper.pass_limits.undo_max_bytes {
            let (ahead, undo) = (&self.ahead, &mut self.undo);
            let keep = |base: &Base, changes: &Changes| {
                for key in changes.keys().filter(|key| ahead.iter().any(|stretch| holds(stretch, key))) {
                    if !undo.rows.contains_key(key) {
                        undo.put(key.clone(), base.get(key)?);
                    }
                }
                Ok(())
            };
            match self.keeper.write_oldest(newest, Duration::ZERO, keep) {
                Ok(true) => {}
                // A view still needs the base as it is: the next slice first.
                Ok(false) | Err(StoreError::Busy) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Iterator for Pass<'_> {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.slice.pop_front() {
                return Some(Ok(row));
            }
            match self.read_on() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.ahead.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// All rows.
pub(super) fn everything() -> Stretch {
    (Bound::Included(FIRST_ROW_KEY.to_vec()), Bound::Unbounded)
}

/// The rows of one table; its number stands before each key.
pub(super) fn table(table: Table) -> Stretch {
    let number = table as u8;
    (Bound::Included(vec![number]), Bound::Excluded(vec![number + 1]))
}

fn bounds((lower, upper): &Stretch) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice))
}

fn holds(stretch: &Stretch, key: &[u8]) -> bool {
    RangeBounds::<[u8]>::contains(&bounds(stretch), key)
}

/// Rows ahead of a pass that were written over since it began, as they were then.
#[derive(Default)]
struct Undo {
    rows: BTreeMap<Bytes, Change>,
    bytes: usize,
}

impl Undo {
    fn put(&mut self, key: Bytes, before: Change) {
        self.bytes += row_bytes(&key, &before);
        self.rows.insert(key, before);
    }

    /// Those of a stretch the pass has read.
    fn take(&mut self, stretch: &Stretch) -> Changes {
        let keys: Vec<Bytes> =
            self.rows.range::<[u8], _>(bounds(stretch)).map(|(key, _)| key.clone()).collect();
        let mut taken = Changes::new();
        for key in keys {
            if let Some(before) = self.rows.remove(&key) {
                self.bytes -= row_bytes(&key, &before);
                taken.insert(key, before);
            }
        }
        taken
    }
}

/// The rows that were `read`, with those that are others now as they were before.
fn as_it_was(read: Rows, before: Changes) -> Rows {
    if before.is_empty() {
        return read;
    }
    let mut rows: BTreeMap<Bytes, Bytes> = read.into_iter().collect();
    for (key, before) in before {
        match before {
            Some(value) => drop(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
    rows.into_iter().collect()
}
