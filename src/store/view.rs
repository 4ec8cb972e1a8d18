//! Reading the state, and changing it by one entry.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Bound;

use bytes::Bytes;

use super::StoreError;
use super::applied::{Applied, Effect};
use super::base::Base;
use super::format;
use super::overlay::{Change, Changes, Epoch, OverlayRows};
use crate::escrow::records::LogPosition;
use crate::escrow::state::{Row, Rows, State, StateError};

/// The state after one entry, unchanged however much is applied while it is read. Cheap to make; to be dropped soon,
/// because the base stands still behind it: within a request, not across the sending of a report (which reads what it took
/// down in a [`spool`](super::spool)).
#[derive(Clone)]
pub struct View {
    pub(super) base: Base,
    pub(super) position: Option<LogPosition>,
    pub(super) rows: OverlayRows,
    pub(super) _epoch: Epoch,
}

impl View {
    /// The entry after which this is the state.
    pub fn position(&self) -> Option<LogPosition> {
        self.position
    }

    /// The value under the key of a row: the overlay's, or else the base's.
    fn value(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.rows.get(key) {
            Some(slot) => Ok(slot.change.clone()),
            None => self.base.get(key),
        }
    }

    /// At most `limit` values whose keys are in `range`, with `changes` over the overlay over the base.
    fn values(&self, range: &KeyRange, changes: &Changes, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        let bounds = || (range.lower.as_ref().map(Vec::as_slice), Bound::Excluded(range.end.as_slice()));
        let mut changed = changes.range::<[u8], _>(bounds()).peekable();
        let mut overlaid = self.rows.range::<[u8], _>(bounds()).peekable();
        let mut resting =
            self.base.range((range.lower.clone(), Bound::Excluded(range.end.clone()))).peekable();
        let mut values = Vec::new();
        while values.len() < limit {
            let base_key = match resting.peek() {
                Some(Ok((key, _))) => Some(key.clone()),
                Some(Err(_)) => return resting.next().transpose().map(|_| values),
                None => None,
            };
            let keys = [
                changed.peek().map(|(key, _)| *key),
                overlaid.peek().map(|(key, _)| *key),
                base_key.as_ref(),
            ];
            let Some(key) = keys.into_iter().flatten().min().cloned() else { break };
            let change = changed.next_if(|(at, _)| **at == key).map(|(_, change)| change.clone());
            let slot = overlaid.next_if(|(at, _)| **at == key).map(|(_, slot)| slot.change.clone());
            let row = resting.next_if(|row| row.as_ref().is_ok_and(|(at, _)| *at == key));
            let row = row.transpose()?.map(|(_, value)| Some(value));
            if let Some(Some(value)) = change.or(slot).or(row) {
                values.push(value);
            }
        }
        Ok(values)
    }
}

/// The keys of a table that begin with a prefix and come after some key.
struct KeyRange {
    lower: Bound<Vec<u8>>,
    end: Vec<u8>,
}

impl KeyRange {
    fn new<R: Row>(prefix: &[u8], after: Option<&[u8]>) -> Self {
        let first = row_key::<R>(prefix);
        let mut end = first.clone();
        // The first key behind all that begin with `first`. Its table number is below 255, so there is one.
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let lower = match after.map(row_key::<R>) {
            Some(after) if after >= end => Bound::Included(end.clone()),
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        Self { lower, end }
    }
}

/// The key of a row among those of all tables: the table's number in front.
fn row_key<R: Row>(key: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(1 + key.len());
    whole.push(R::TABLE as u8);
    whole.extend_from_slice(key);
    whole
}

fn decode<R: Row>(value: &[u8]) -> Result<R, StateError> {
    format::decode(value)
        .map_err(|error| StateError(format!("a row of table {:?}: {error}", R::TABLE).into()))
}

impl From<StoreError> for StateError {
    fn from(error: StoreError) -> Self {
        Self(Box::new(error))
    }
}

impl Rows for View {
    fn row<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StateError> {
        self.value(&row_key::<R>(key))?.map(|value| decode(&value)).transpose()
    }

    fn rows<R: Row>(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<R>, StateError> {
        let values = self.values(&KeyRange::new::<R>(prefix, after), &Changes::new(), limit)?;
        values.iter().map(|value| decode(value)).collect()
    }
}

/// One entry while it is applied: its own changes over the state before it. Nothing of it takes effect until
/// [`Transaction::finish`].
pub(super) struct Transaction {
    view: View,
    changes: Changes,
    /// Rows as they were before the entry, as far as they were asked for by key: most that are changed were read first,
    /// and the digest needs them once more.
    read: RefCell<HashMap<Vec<u8>, Change>>,
}

impl Transaction {
    pub fn over(view: View) -> Self {
        Self { view, changes: Changes::new(), read: RefCell::default() }
    }

    /// The value under the key of a row before the entry.
    fn before(&self, key: Vec<u8>) -> Result<Change, StoreError> {
        if let Some(value) = self.read.borrow().get(&key) {
            return Ok(value.clone());
        }
        let value = self.view.value(&key)?;
        self.read.borrow_mut().insert(key, value.clone());
        Ok(value)
    }

    /// What the entry changed, and where the state stands after it.
    pub fn finish(self, mut applied: Applied, position: LogPosition) -> Result<Effect, StoreError> {
        let Self { view, mut changes, read } = self;
        let mut read = read.into_inner();
        let mut failure = None;
        changes.retain(|key, after| {
            let before = match read.remove(&key[..]).map_or_else(|| view.value(key), Ok) {
                Ok(before) => before,
                Err(error) => {
                    failure = Some(error);
                    return false;
                }
            };
            applied.change(key, before.as_deref(), after.as_deref());
            // A row written as it was needs no place in the overlay.
            before != *after
        });
        if let Some(error) = failure {
            return Err(error);
        }
        applied.advance(position);
        Ok(Effect { changes, applied })
    }

    fn change(&mut self, key: Vec<u8>, change: Change) {
        self.changes.insert(key.into(), change);
    }
}

impl Rows for Transaction {
    fn row<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StateError> {
        let key = row_key::<R>(key);
        let value = match self.changes.get(key.as_slice()) {
            Some(change) => change.clone(),
            None => self.before(key)?,
        };
        value.map(|value| decode(&value)).transpose()
    }

    fn rows<R: Row>(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<R>, StateError> {
        let values = self.view.values(&KeyRange::new::<R>(prefix, after), &self.changes, limit)?;
        values.iter().map(|value| decode(value)).collect()
    }
}

impl State for Transaction {
    fn put<R: Row>(&mut self, row: &R) {
        self.change(row_key::<R>(&row.key()), Some(format::encode(row).into()));
    }

    fn put_new<R: Row>(&mut self, row: &R) {
        let key = row_key::<R>(&row.key());
        debug_assert!(
            !matches!(self.row::<R>(&row.key()), Ok(Some(_))),
            "a row of table {:?} that was to be new is there",
            R::TABLE
        );
        // What a command before it in this entry removed may have been there before the entry.
        if !self.changes.contains_key(key.as_slice()) {
            self.read.get_mut().insert(key.clone(), None);
        }
        self.change(key, Some(format::encode(row).into()));
    }

    fn delete<R: Row>(&mut self, key: &[u8]) {
        self.change(row_key::<R>(key), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::ids::Timestamp;
    use crate::escrow::records::DepartedNode;
    use crate::store::shared::{Opened, Shared};

    fn departed(id: u64, at: u64) -> DepartedNode {
        DepartedNode { id, at: Timestamp(at) }
    }

    /// Applies what `write` does to rows 1 and 2, which the base has, and says whether the sum is that of the rows.
    fn sums_up(write: impl FnOnce(&mut Transaction)) -> bool {
        let root = tempfile::tempdir().unwrap();
        let base = Base::open(&root.path().join("1"), 1024 * 1024).unwrap();
        let mut resting = Applied::default();
        let rows: Changes = [1, 2]
            .map(|id| departed(id, 7))
            .map(|row| (row_key::<DepartedNode>(&row.key()).into(), Some(format::encode(&row).into())))
            .into();
        for (key, value) in &rows {
            resting.change(key, None, value.as_deref());
        }
        base.write(&rows, &resting).unwrap();
        let shared = Shared::new(Opened::new(base.clone(), resting.clone()).unwrap(), usize::MAX, usize::MAX);
        let mut transaction = Transaction::over(shared.view().unwrap());
        write(&mut transaction);
        let effect = transaction.finish(resting, LogPosition { term: 1, index: 1 }).unwrap();
        base.write(&effect.changes, &effect.applied).unwrap();
        effect.applied.describes(&base.recount().unwrap())
    }

    #[test]
    fn the_sum_is_that_of_the_rows_also_of_those_that_nobody_looked_for() {
        assert!(sums_up(|rows| rows.put_new(&departed(3, 1))));
        assert!(sums_up(|rows| {
            rows.put_new(&departed(3, 1));
            rows.put(&departed(3, 2));
            rows.delete::<DepartedNode>(&departed(3, 2).key());
            rows.put_new(&departed(3, 4));
        }));
        assert!(sums_up(|rows| rows.put(&departed(1, 8))));
    }

    #[test]
    fn a_row_that_the_same_entry_removed_is_new_but_was_there() {
        assert!(sums_up(|rows| {
            rows.delete::<DepartedNode>(&departed(1, 7).key());
            rows.put_new(&departed(1, 9));
        }));
    }

    #[test]
    #[should_panic(expected = "that was to be new is there")]
    #[cfg(debug_assertions)]
    fn where_debug_assertions_are_on_a_row_that_is_not_new_is_noticed() {
        sums_up(|rows| rows.put_new(&departed(1, 9)));
    }
}
