//! Rows of reports: cells under named columns, whatever the report.
//!
//! A cell has one text, which is what travels, what CSV has and what two nodes are compared by; and one key, by which
//! rows are sorted.

use std::fmt;

use crate::escrow::ids::Timestamp;

/// What stands between the parts of a list in the text of a cell. No part contains it: none has control characters.
pub const LIST_SEPARATOR: char = '\n';

/// What the cells of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// Text; may be empty.
    Text,
    /// Several texts; may be none.
    List,
    /// A number, whole or with one digit behind the point; may be absent.
    Number,
    /// A moment; may be absent.
    Time,
}

impl ColumnKind {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::List => "list",
            Self::Number => "number",
            Self::Time => "time",
        }
    }
}

/// A column of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name: what CSV, JSON and `--sort` call it.
    pub name: &'static str,
    /// What its cells are.
    pub kind: ColumnKind,
    /// It says the same in every row: it is about the machine, and the rows are of its volumes.
    pub of_machine: bool,
}

/// A column of the rows themselves.
pub(super) const fn column(name: &'static str, kind: ColumnKind) -> Column {
    Column { name, kind, of_machine: false }
}

/// A column that says the same in every row.
pub(super) const fn machine_column(name: &'static str, kind: ColumnKind) -> Column {
    Column { name, kind, of_machine: true }
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// There is nothing to say.
    Absent,
    /// Text.
    Text(String),
    /// Several texts.
    List(Vec<String>),
    /// A whole number.
    Number(u64),
    /// A number of tenths.
    Tenths(u64),
    /// A moment.
    Time(Timestamp),
}

/// One row: a cell for each column.
pub type Row = Vec<Cell>;

impl Cell {
    /// What is kept, if something is.
    pub(super) fn time(at: Option<Timestamp>) -> Self {
        at.map_or(Self::Absent, Self::Time)
    }

    /// A word or nothing.
    pub(super) fn text<T: fmt::Display>(text: Option<T>) -> Self {
        text.map_or(Self::Absent, |text| Self::Text(text.to_string()))
    }

    /// Yes or no.
    pub(super) fn flag(flag: bool) -> Self {
        Self::Text(if flag { "yes" } else { "no" }.to_owned())
    }

    /// Each of several things as text.
    pub(super) fn list<T: fmt::Display>(parts: impl IntoIterator<Item = T>) -> Self {
        Self::List(parts.into_iter().map(|part| part.to_string()).collect())
    }

    /// By what rows are sorted: bytes in whose order the cells stand, with an end that none contains. What is absent
    /// stands first. Texts stand in the order of their letters whatever the case.
    pub fn sort_key(&self) -> Vec<u8> {
        let mut key = match self {
            Self::Absent => Vec::new(),
            Self::Number(number) => number_key(number.saturating_mul(10)),
            Self::Tenths(tenths) => number_key(*tenths),
            Self::Time(at) => number_key(at.0),
            Self::Text(_) | Self::List(_) => self.to_string().to_lowercase().into_bytes(),
        };
        key.push(0);
        key
    }
}

/// Twenty digits: no byte of them is the end of a key.
fn number_key(number: u64) -> Vec<u8> {
    format!("{number:020}").into_bytes()
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => Ok(()),
            Self::Text(text) => f.write_str(text),
            Self::List(parts) => f.write_str(&parts.join(&LIST_SEPARATOR.to_string())),
            Self::Number(number) => number.fmt(f),
            Self::Tenths(tenths) => write!(f, "{}.{}", tenths / 10, tenths % 10),
            Self::Time(at) => at.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_sorted_by_what_they_mean() {
        let text = |text: &str| Cell::Text(text.to_owned());
        let orders = [
            vec![Cell::Absent, Cell::Number(2), Cell::Tenths(25), Cell::Number(10), Cell::Number(100)],
            vec![Cell::Absent, text("a"), text("aa"), text("B")],
            vec![Cell::Absent, Cell::Time(Timestamp(9)), Cell::Time(Timestamp(10))],
            vec![Cell::list(["a", "b"]), Cell::list(["a", "c"]), Cell::list(["ab"])],
        ];
        for order in orders {
            for pair in order.windows(2) {
                assert!(pair[0].sort_key() < pair[1].sort_key(), "{pair:?}");
            }
        }
    }

    #[test]
    fn a_cell_has_one_text() {
        let texts = [
            (Cell::Absent, ""),
            (Cell::Number(3), "3"),
            (Cell::Tenths(1_000), "100.0"),
            (Cell::Tenths(5), "0.5"),
            (Cell::Time(Timestamp(0)), "1970-01-01T00:00:00.000Z"),
            (Cell::list([1, 2]), "1\n2"),
            (Cell::flag(true), "yes"),
        ];
        for (cell, text) in texts {
            assert_eq!(cell.to_string(), text);
        }
    }
}
