//! Keys or machines in a table: comma-separated values (RFC 4180), one line each, under a line that names the columns. What
//! the columns are says which of the two it is: one that only a key has makes it a table of keys.
//!
//! Read here and not by a library, because of what the table holds. The `csv` crate keeps what it reads in buffers that it
//! does not wipe, reads a record of any length into memory (one stray quotation mark makes the rest of the file one
//! record), and makes sense of misplaced quotation marks, which with a free-form secret would keep another secret than
//! the one in the file. So a line is a record here, whatever is in it, and a value is quoted as the RFC has it or
//! refused. What that crate writes on one line is read as it was written; a property test says so.

use std::io::Read;

use zeroize::Zeroizing;

use super::lines::{LINE_MAX_BYTES, Lines};
use super::{ImportError, MachinePieces, Pieces, Record, Row};
use crate::client::Deposit;
use crate::escrow::ids::Invalid;
use crate::escrow::inventory::ImportedMachine;
use crate::secret::Secret;

/// The columns of keys, in any order; those marked are needed.
pub const KEY_COLUMNS: [(&str, bool); 7] = [
    ("machine", true),
    ("volume", true),
    ("kind", true),
    ("secret", true),
    ("key_id", false),
    ("package", false),
    ("user", false),
];
/// The columns of machines.
pub const MACHINE_COLUMNS: [(&str, bool); 8] = [
    ("machine", true),
    ("domain", false),
    ("name", false),
    ("make", false),
    ("model", false),
    ("type", false),
    ("os", false),
    ("users", false),
];

/// What may stand between two values; the header says which it is.
const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];

/// The field of errors about a whole line.
const FIELD: &str = "row";

/// The rows of a table.
pub struct CsvRows<R> {
    lines: Lines<R>,
    delimiter: u8,
    of: Of,
    /// What each column holds.
    columns: Vec<&'static str>,
    values: Values,
}

/// What the lines of a table are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Keys,
    Machines,
}

/// The values of one line.
struct Values {
    /// One behind the other.
    bytes: Zeroizing<Vec<u8>>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl<R: Read> CsvRows<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`ImportError::Header`] if it has a column that is not known, or lacks one that is needed.
    pub fn new(source: R) -> Result<Self, ImportError> {
        let mut lines = Lines::new(source);
        let mut values = Values {
            // It never grows, which would leave copies behind.
            bytes: Zeroizing::new(Vec::with_capacity(LINE_MAX_BYTES)),
            ends: Vec::new(),
        };
        let failed = |line, invalid| ImportError::Header { line, invalid };
        loop {
            let Some(line) = lines.next()? else {
                return Err(failed(1, Invalid::new("header", "a line that names the columns")));
            };
            if line.bytes.is_empty() {
                continue;
            }
            // No column has a delimiter in its name.
            let first = line.bytes.iter().copied().find(|byte| DELIMITERS.contains(byte));
            let (number, delimiter) = (line.number, first.unwrap_or(b','));
            values.split(line.bytes, delimiter).map_err(|invalid| failed(number, invalid))?;
            let (of, columns) = columns(&values).map_err(|invalid| failed(number, invalid))?;
            return Ok(Self { lines, delimiter, of, columns, values });
        }
    }
}

impl<R: Read> Iterator for CsvRows<R> {
    type Item = Result<Row, ImportError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            if line.bytes.is_empty() {
                continue;
            }
            let number = line.number;
            let split = if line.is_cut {
                Err(Invalid::new(FIELD, format!("a line of at most {LINE_MAX_BYTES} bytes")))
            } else {
                self.values.split(line.bytes, self.delimiter)
            };
            let record = split.and_then(|()| self.record()).unwrap_or_else(Record::Rejected);
            return Some(Ok(Row { line: number, record }));
        }
    }
}

impl<R> CsvRows<R> {
    /// What the values of this line are.
    fn record(&self) -> Result<Record, Invalid> {
        let (expected, found) = (self.columns.len(), self.values.ends.len());
        if expected != found {
            let expected = format!("{expected} values, as many as there are columns, not {found}");
            return Err(Invalid::new(FIELD, expected));
        }
        Ok(match self.of {
            Of::Keys => Record::Key(Box::new(self.deposit()?)),
            Of::Machines => Record::Machine(Box::new(self.machine()?)),
        })
    }

    fn deposit(&self) -> Result<Deposit, Invalid> {
        let package = self.text("package")?;
        Pieces {
            machine: self.text("machine")?,
            volume: self.text("volume")?,
            kind: self.text("kind")?,
            key_id: self.text("key_id")?,
            secret: Secret::new(self.value("secret").to_vec()),
            package: if package.is_empty() { None } else { Some(base64("package", package.as_bytes())?) },
            user: self.text("user")?,
        }
        .deposit()
    }

    fn machine(&self) -> Result<ImportedMachine, Invalid> {
        MachinePieces {
            machine: self.text("machine")?,
            domain: self.text("domain")?,
            name: self.text("name")?,
            make: self.text("make")?,
            model: self.text("model")?,
            machine_type: self.text("type")?,
            os: self.text("os")?,
            users: self.text("users")?,
        }
        .imported()
    }

    /// What stands in the column of this name; nothing if there is none.
    fn value(&self, name: &str) -> &[u8] {
        let place = self.columns.iter().position(|column| *column == name);
        place.map_or(&[], |place| self.values.at(place))
    }

    fn text(&self, name: &str) -> Result<&str, Invalid> {
        let text = std::str::from_utf8(self.value(name)).map_err(|_| Invalid::new(name, "UTF-8 text"))?;
        Ok(text.trim_matches(' '))
    }
}

/// What each value of the header names, and so what the table is of.
fn columns(header: &Values) -> Result<(Of, Vec<&'static str>), Invalid> {
    let known = |columns: &'static [(&'static str, bool)], name: &[u8]| {
        columns.iter().map(|(known, _)| *known).find(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    };
    let names: Vec<&[u8]> = (0..header.ends.len()).map(|place| header.at(place).trim_ascii()).collect();
    let is_of_a_key =
        |name: &&[u8]| known(&KEY_COLUMNS, name).is_some() && known(&MACHINE_COLUMNS, name).is_none();
    let (of, of_it): (_, &'static [_]) = match names.iter().any(is_of_a_key) {
        true => (Of::Keys, &KEY_COLUMNS),
        false => (Of::Machines, &MACHINE_COLUMNS),
    };
    let mut columns = Vec::new();
    for (place, name) in names.into_iter().enumerate() {
        // Not repeated: without a header it is a value of the first record.
        let Some(column) = known(of_it, name) else {
            return Err(Invalid::new("header", expected_columns(place + 1, of, &columns)));
        };
        if columns.contains(&column) {
            return Err(Invalid::new("header", format!("one column {column}, not two")));
        }
        columns.push(column);
    }
    match of_it.iter().find(|(name, needed)| *needed && !columns.contains(name)) {
        Some((name, _)) => Err(Invalid::new("header", format!("a column {name}"))),
        None => Ok((of, columns)),
    }
}

/// What the column in this place would have to be, behind those `before`.
fn expected_columns(place: usize, of: Of, before: &[&str]) -> String {
    let names = |columns: &[(&'static str, bool)]| {
        columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let (keys, machines) = (names(&KEY_COLUMNS), names(&MACHINE_COLUMNS));
    match of {
        Of::Keys => format!("column {place} to be one of {keys}"),
        Of::Machines if before.iter().any(|name| *name != "machine") => {
            format!("column {place} to be one of {machines}")
        }
        Of::Machines => format!("column {place} to be one of {keys} for keys, or of {machines} for machines"),
    }
}

impl Values {
    fn at(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[place]]
    }

    /// Takes a line apart.
    fn split(&mut self, line: &[u8], delimiter: u8) -> Result<(), Invalid> {
        self.bytes.clear();
        self.ends.clear();
        let mut rest = line;
        loop {
            let column = self.ends.len() + 1;
            let wrong = |what: &str| Invalid::new(FIELD, format!("value {column} {what}"));
            let behind = match rest.strip_prefix(b"\"") {
                Some(quoted) => {
                    let behind = self.unquote(quoted).ok_or_else(|| wrong("to end with a quotation mark"))?;
                    if behind.first().is_some_and(|byte| *byte != delimiter) {
                        return Err(wrong("to end with its quotation mark, one inside it to be doubled"));
                    }
                    behind
                }
                None => {
                    let end = rest.iter().position(|byte| *byte == delimiter).unwrap_or(rest.len());
                    let (value, behind) = rest.split_at(end);
                    if value.contains(&b'"') {
                        return Err(wrong(
                            "to be quoted as a whole, with what is a quotation mark in it doubled",
                        ));
                    }
                    self.bytes.extend_from_slice(value);
                    behind
                }
            };
            self.ends.push(self.bytes.len());
            match behind.split_first() {
                Some((_, next)) => rest = next,
                None => return Ok(()),
            }
        }
    }

    /// Takes a value whose opening quotation mark is gone; what comes behind its closing one. `None` if there is none.
    fn unquote<'a>(&mut self, mut rest: &'a [u8]) -> Option<&'a [u8]> {
        loop {
            let end = rest.iter().position(|byte| *byte == b'"')?;
            self.bytes.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix(b"\"") {
                Some(next) => {
                    self.bytes.push(b'"');
                    rest = next;
                }
                None => return Some(rest),
            }
        }
    }
}

/// What is behind `text` in base64.
pub(super) fn base64(field: &str, text: &[u8]) -> Result<Secret, Invalid> {
    let wrong = || Invalid::new(field, "base64 with its padding");
    let length = data_encoding::BASE64.decode_len(text.len()).map_err(|_| wrong())?;
    let mut decoded = Zeroizing::new(vec![0; length]);
    let written = data_encoding::BASE64.decode_mut(text, &mut decoded).map_err(|_| wrong())?;
    decoded.truncate(written);
    Ok(Secret::new(std::mem::take(&mut *decoded)))
}
