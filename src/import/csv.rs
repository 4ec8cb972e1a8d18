//! Keys in a table: comma-separated values (RFC 4180), one line a key, under a line that names the columns.
//!
//! Read here and not by a library, because of what the table holds. The `csv` crate keeps what it reads in buffers that it
//! does not wipe, reads a record of any length into memory (one stray quotation mark makes the rest of the file one
//! record), and makes sense of misplaced quotation marks, which with a free-form secret would keep another secret than
//! the one in the file. So a line is a record here, whatever is in it, and a value is quoted as the RFC has it or
//! refused. What that crate writes on one line is read as it was written; a property test says so.

use std::io::Read;

use zeroize::Zeroizing;

use super::lines::{LINE_MAX_BYTES, Lines};
use super::{ImportError, Pieces, Record, Row};
use crate::client::Deposit;
use crate::escrow::ids::Invalid;
use crate::secret::Secret;

/// The columns, in any order; those marked are needed.
pub const COLUMNS: [(&str, bool); 7] = [
    ("machine", true),
    ("volume", true),
    ("kind", true),
    ("secret", true),
    ("key_id", false),
    ("package", false),
    ("user", false),
];

/// What may stand between two values; the header says which it is.
const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];

/// The field of errors about a whole line.
const FIELD: &str = "row";

/// The rows of a table.
pub struct CsvRows<R> {
    lines: Lines<R>,
    delimiter: u8,
    /// Which of [`COLUMNS`] each column is.
    columns: Vec<usize>,
    values: Values,
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
            // No column has a delimiter in its name, and there are several columns.
            let first = line.bytes.iter().copied().find(|byte| DELIMITERS.contains(byte));
            let (number, delimiter) = (line.number, first.unwrap_or(b','));
            values.split(line.bytes, delimiter).map_err(|invalid| failed(number, invalid))?;
            let columns = columns(&values).map_err(|invalid| failed(number, invalid))?;
            return Ok(Self { lines, delimiter, columns, values });
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
            let record = match split.and_then(|()| self.deposit()) {
                Ok(deposit) => Record::Key(Box::new(deposit)),
                Err(invalid) => Record::Rejected(invalid),
            };
            return Some(Ok(Row { line: number, record }));
        }
    }
}

impl<R> CsvRows<R> {
    /// The key in the values of this line.
    fn deposit(&self) -> Result<Deposit, Invalid> {
        let (expected, found) = (self.columns.len(), self.values.ends.len());
        if expected != found {
            let expected = format!("{expected} values, as many as there are columns, not {found}");
            return Err(Invalid::new(FIELD, expected));
        }
        let value = |name: &str| -> &[u8] {
            let is_it = |column: &usize| COLUMNS[*column].0 == name;
            self.columns.iter().position(is_it).map_or(&[], |place| self.values.at(place))
        };
        let text = |name: &str| {
            let text = std::str::from_utf8(value(name)).map_err(|_| Invalid::new(name, "UTF-8 text"))?;
            Ok(text.trim_matches(' '))
        };
        let package = text("package")?;
        Pieces {
            machine: text("machine")?,
            volume: text("volume")?,
            kind: text("kind")?,
            key_id: text("key_id")?,
            secret: Secret::new(value("secret").to_vec()),
            package: if package.is_empty() { None } else { Some(base64("package", package.as_bytes())?) },
            user: text("user")?,
        }
        .deposit()
    }
}

/// Which of [`COLUMNS`] each value of the header names.
fn columns(header: &Values) -> Result<Vec<usize>, Invalid> {
    let names = || COLUMNS.map(|(name, _)| name).join(", ");
    let mut columns = Vec::new();
    for place in 0..header.ends.len() {
        let name = header.at(place).trim_ascii();
        let known = COLUMNS.iter().position(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()));
        // Not repeated: without a header it is a value of the first key.
        let Some(column) = known else {
            let expected = format!("column {} to be one of {}", place + 1, names());
            return Err(Invalid::new("header", expected));
        };
        if columns.contains(&column) {
            return Err(Invalid::new("header", format!("one column {}, not two", COLUMNS[column].0)));
        }
        columns.push(column);
    }
    let missing =
        COLUMNS.iter().enumerate().find(|(column, (_, needed))| *needed && !columns.contains(column));
    match missing {
        Some((_, (name, _))) => Err(Invalid::new("header", format!("a column {name}"))),
        None => Ok(columns),
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
