//! A [`State`] in an ordered map, for tests of this room and of those above it. Not for nodes: it forgets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Bound;

use serde_json::Value;

use super::state::{Row, Rows, State, StateError, Table};

/// The whole state in memory. Rows are kept as JSON, so that two states are equal exactly if every row is, and a
/// [`dump`](Memory::dump) can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl Memory {
    /// A state without rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many rows there are in `table`.
    pub fn count(&self, table: Table) -> usize {
        self.rows.keys().filter(|(row, _)| *row == table).count()
    }

    /// Every row of one type, in the order of keys.
    ///
    /// # Errors
    /// [`StateError`] if a row does not decode.
    pub fn all<R: Row>(&self) -> Result<Vec<R>, StateError> {
        self.rows(&[], None, usize::MAX)
    }

    /// Every row as one line of text, in the order of tables and keys: the same text for equal states.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for ((table, key), row) in &self.rows {
            let row = match serde_json::from_slice(row) {
                Ok(row) => readable(row).to_string(),
                Err(error) => format!("does not decode: {error}"),
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{table:?}({}) {row}", readable_key(key));
        }
        text
    }
}

impl Rows for Memory {
    fn row<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StateError> {
        self.rows.get(&(R::TABLE, key.to_vec())).map(|row| decode(row)).transpose()
    }

    fn rows<R: Row>(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<R>, StateError> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded((R::TABLE, after.to_vec())),
            _ => Bound::Included((R::TABLE, prefix.to_vec())),
        };
        self.rows
            .range((from, Bound::Unbounded))
            .take_while(|((table, key), _)| *table == R::TABLE && key.starts_with(prefix))
            .take(limit)
            .map(|(_, row)| decode(row))
            .collect()
    }
}

impl State for Memory {
    fn put<R: Row>(&mut self, row: &R) {
        let bytes =
            serde_json::to_vec(row).expect("rows have no maps with keys that are not text, and no I/O");
        self.rows.insert((R::TABLE, row.key()), bytes);
    }

    fn put_new<R: Row>(&mut self, row: &R) {
        debug_assert!(!self.rows.contains_key(&(R::TABLE, row.key())), "a row that was to be new is there");
        self.put(row);
    }

    fn delete<R: Row>(&mut self, key: &[u8]) {
        self.rows.remove(&(R::TABLE, key.to_vec()));
    }
}

fn decode<R: Row>(row: &[u8]) -> Result<R, StateError> {
    serde_json::from_slice(row).map_err(|error| StateError(error.into()))
}

/// A name as text, whatever else as hexadecimal.
fn readable_key(key: &[u8]) -> String {
    let readable = |part: &[u8]| match std::str::from_utf8(part) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => text.to_owned(),
        _ => data_encoding::HEXLOWER.encode(part),
    };
    match key.iter().position(|byte| *byte == 0) {
        Some(end) if end > 0 => format!("{} {}", readable(&key[..end]), readable(&key[end + 1..])),
        Some(_) => data_encoding::HEXLOWER.encode(key),
        None => readable(key),
    }
}

/// Byte strings, which JSON has only as lists of numbers, as hexadecimal.
fn readable(value: Value) -> Value {
    match value {
        Value::Array(values) => {
            let byte = |value: &Value| value.as_u64().and_then(|number| u8::try_from(number).ok());
            match values.iter().map(byte).collect::<Option<Vec<u8>>>() {
                Some(bytes) if !bytes.is_empty() => Value::String(data_encoding::HEXLOWER.encode(&bytes)),
                _ => Value::Array(values.into_iter().map(readable).collect()),
            }
        }
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, readable(value))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::rows::UserMachine;

    fn row(user: &str, machine: &str) -> UserMachine {
        UserMachine { user: user.parse().unwrap(), machine: machine.parse().unwrap() }
    }

    #[test]
    fn rows_come_by_prefix_in_order_and_in_pages() {
        let mut state = Memory::new();
        for (user, machine) in
            [(r"A\user1", "PC-3"), (r"A\user", "PC-2"), (r"A\user1", "PC-1"), (r"B\user1", "PC-4")]
        {
            state.put(&row(user, machine));
        }
        let prefix = UserMachine::prefix(&r"a\USER1".parse().unwrap());
        let machines = |after: Option<&[u8]>, limit| {
            let rows: Vec<UserMachine> = state.rows(&prefix, after, limit).unwrap();
            rows.iter().map(|row| row.machine.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(machines(None, 9), ["PC-1", "PC-3"]);
        assert_eq!(machines(None, 1), ["PC-1"]);
        assert_eq!(machines(Some(&row(r"A\user1", "PC-1").key()), 9), ["PC-3"]);

        state.delete::<UserMachine>(&row(r"a\user1", "PC-1").key());
        assert_eq!(state.count(Table::UserMachine), 3);
        assert_eq!(state.row::<UserMachine>(&row(r"A\user1", "PC-1").key()).unwrap(), None);
    }
}
