//! Printing: results to standard output, everything else to standard error, in the format that was asked for.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use super::failure::{Exit, Failure};

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document.
    Json,
}

/// Where a command prints to.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    format: Format,
}

impl Printer {
    /// Prints in `format`.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// The format in use.
    pub fn format(self) -> Format {
        self.format
    }

    /// Prints a result: `document` as JSON, or what `text` makes of it for people.
    ///
    /// # Errors
    /// [`Exit::Failed`] if standard output does not take it.
    pub fn result<T: Serialize>(self, document: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Json => {
                let json = serde_json::to_string_pretty(document)
                    .map_err(|error| Failure::new(Exit::Failed, format!("encoding the result: {error}")))?;
                line(&json)
            }
            Format::Table => line(&text()),
        }
    }

    /// Says something on the way, on standard error.
    pub fn note(self, text: &str) {
        // Nobody to tell it to is no reason to stop.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Reports a failure on standard error.
    pub fn failure(self, failure: &Failure) {
        self.note(&failure.render(self.format));
    }

    /// Whether a person watches standard error.
    pub fn watched(self) -> bool {
        io::stderr().is_terminal()
    }
}

/// Prints `text` and a line end on standard output.
///
/// # Errors
/// [`Exit::Failed`] if standard output does not take it. A reader that went away is not an error: it has read
/// what it wanted.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("writing to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A table without lines around it; cells are never wrapped, so that what is copied from it is whole. Columns
/// whose number is in `numbers` are aligned to the right.
pub fn table(header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    let last = header.len().saturating_sub(1);
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if number == last { 0 } else { 2 }));
        if numbers.contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Name and value pairs, one a line, the values in one column.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = pairs.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_frame_and_wraps_nothing() {
        let long = "x".repeat(120);
        let rows = vec![vec!["1".to_owned(), long.clone()], vec!["22".to_owned(), "b".to_owned()]];
        let text = table(&["N", "WHAT"], &[0], rows);
        assert_eq!(text, format!(" N  WHAT\n 1  {long}\n22  b"));
    }

    #[test]
    fn facts_stand_in_columns() {
        assert_eq!(facts(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2");
    }
}
