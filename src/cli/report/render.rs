//! Printing a report as it comes, whatever its length: nothing of it is kept.

use std::io::{self, BufWriter, Stdout, Write};

use serde_json::{Map, Value, json};

use super::ReportFormat;
use super::computer::computer_text;
use super::terminal::fit;
use crate::cli::recover::{freshness_json, freshness_text};
use crate::cli::{Exit, Failure, Printer};
use crate::escrow::ids::Timestamp;
use crate::escrow::reports::{LIST_SEPARATOR, ReportKind};
use crate::proto::{ReportColumn, ReportHeader, ReportRow, ReportTotals};

/// What stands between the parts of a list in one line.
const LIST_JOIN: &str = "; ";
/// Letters of a date, and of a date with hours and minutes.
const DATE: usize = 10;
const MINUTE: usize = 16;

/// A report while it is printed.
pub(in crate::cli) struct Render {
    kind: ReportKind,
    columns: Vec<ReportColumn>,
    printer: Printer,
    to: To,
    /// Of a table of one machine, which is not long.
    rows: Vec<ReportRow>,
    /// Nobody reads it any more.
    is_over: bool,
}

enum To {
    Csv(Box<csv::Writer<Stdout>>),
    Json(BufWriter<Stdout>),
    Table(BufWriter<Stdout>),
}

impl Render {
    /// Prints where the report was made, and its columns.
    pub fn begin(
        kind: ReportKind,
        format: ReportFormat,
        header: &ReportHeader,
        printer: Printer,
    ) -> Result<Self, Failure> {
        let to = match format {
            ReportFormat::Csv => To::Csv(Box::new(csv_writer(io::stdout()))),
            ReportFormat::Json => To::Json(BufWriter::new(io::stdout())),
            ReportFormat::Table => To::Table(BufWriter::new(io::stdout())),
        };
        let columns = header.columns.clone();
        let mut render = Self { kind, columns, printer, to, rows: Vec::new(), is_over: false };
        render.print_header(header)?;
        Ok(render)
    }

    fn print_header(&mut self, header: &ReportHeader) -> Result<(), Failure> {
        let written = match &mut self.to {
            To::Csv(csv) => {
                self.printer.note(&header_text(header));
                csv.write_record(self.columns.iter().map(|column| &column.name)).map_err(io::Error::other)
            }
            To::Json(out) => writeln!(out, "{}", json!({ "header": header_json(header) })),
            To::Table(out) => {
                let heading = match widths(self.kind) {
                    Some(widths) => format!("\n{}", heading(widths)),
                    None => String::new(),
                };
                writeln!(out, "{}\n{heading}", header_text(header))
            }
        };
        self.after(written).map(drop)
    }

    /// Prints rows; answers whether anybody still reads them.
    pub fn rows(&mut self, rows: &[ReportRow]) -> Result<bool, Failure> {
        for row in rows {
            let written = match &mut self.to {
                To::Csv(csv) => {
                    let cells =
                        self.columns.iter().zip(&row.cells).map(|(column, cell)| csv_cell(column, cell));
                    csv.write_record(cells).map_err(io::Error::other)
                }
                To::Json(out) => writeln!(out, "{}", json!({ "row": object(&self.columns, row, None) })),
                To::Table(out) => match widths(self.kind) {
                    Some(widths) => writeln!(out, "{}", line(&self.columns, widths, row)),
                    None => {
                        self.rows.push(row.clone());
                        Ok(())
                    }
                },
            };
            if !self.after(written)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints what stands at the end.
    pub fn finish(mut self, totals: &ReportTotals) -> Result<(), Failure> {
        let ReportTotals { rows, machines, truncated, next } = totals;
        let more = more_text(self.kind, totals);
        let written = match &mut self.to {
            To::Csv(csv) => {
                if let Some(more) = more {
                    self.printer.note(&more);
                }
                csv.flush()
            }
            To::Json(out) => {
                let next = (!next.is_empty()).then_some(next);
                let totals =
                    json!({ "rows": rows, "machines": machines, "truncated": truncated, "next": next });
                writeln!(out, "{}", json!({ "totals": totals })).and_then(|()| out.flush())
            }
            To::Table(out) => {
                let text = match widths(self.kind) {
                    Some(_) => totals_text(self.kind, totals),
                    None => with_more(computer_text(&self.columns, &self.rows), more),
                };
                writeln!(out, "{text}").and_then(|()| out.flush())
            }
        };
        self.after(written).map(drop)
    }

    /// A reader that went away is not an error: it has read what it wanted.
    fn after(&mut self, written: io::Result<()>) -> Result<bool, Failure> {
        match written {
            Ok(()) => {}
            Err(error) if is_broken_pipe(&error) => self.is_over = true,
            Err(error) => {
                return Err(Failure::new(Exit::Failed, format!("writing to standard output: {error}")));
            }
        }
        Ok(!self.is_over)
    }
}

/// Every text is quoted but one that reads as a number, so that where another mark than the comma separates, a cell does not
/// end in the middle of one.
fn csv_writer<W: Write>(out: W) -> csv::Writer<W> {
    csv::WriterBuilder::new().quote_style(csv::QuoteStyle::NonNumeric).from_writer(out)
}

fn is_broken_pipe(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<csv::Error>());
    let of_csv = inner.is_some_and(|inner| match inner.kind() {
        csv::ErrorKind::Io(error) => error.kind() == io::ErrorKind::BrokenPipe,
        _ => false,
    });
    of_csv || error.kind() == io::ErrorKind::BrokenPipe
}

fn header_json(header: &ReportHeader) -> Value {
    json!({
        "report": header.report,
        "at": Timestamp(header.at_ms).to_string(),
        "as_of": header.as_of,
        "policy_version": header.policy_version,
        "freshness": freshness_json(header.freshness.as_ref()),
        "columns": header.columns.iter().map(|column| &column.name).collect::<Vec<_>>(),
    })
}

fn header_text(header: &ReportHeader) -> String {
    let at = Timestamp(header.at_ms);
    let time = if header.as_of { format!("as of {at}") } else { format!("at {at}") };
    let policy = match header.policy_version {
        0 => "the policy that every cluster begins with".to_owned(),
        version => format!("policy version {version}"),
    };
    format!("report {} {time}\n{policy}\n{}", header.report, freshness_text(header.freshness.as_ref()))
}

fn totals_text(kind: ReportKind, totals: &ReportTotals) -> String {
    let ReportTotals { rows, machines, .. } = totals;
    let more = more_text(kind, totals).map(|more| format!("\n{more}")).unwrap_or_default();
    match kind {
        ReportKind::RecoveryAudit => format!("\n{rows} requests{more}"),
        ReportKind::Enterprise => format!("\n{machines} machines"),
        _ => format!("\n{rows} rows{more}"),
    }
}

/// The page about a machine, and that there is more of it.
fn with_more(page: String, more: Option<String>) -> String {
    more.into_iter().fold(page, |page, more| format!("{page}\n\n{more}"))
}

/// Where there is more than was shown, how to see it.
fn more_text(kind: ReportKind, totals: &ReportTotals) -> Option<String> {
    if !totals.truncated {
        return None;
    }
    let narrow = match kind {
        ReportKind::RecoveryAudit => "narrow it with --since and --until",
        ReportKind::Computer => "leave it out",
        _ => "narrow it to some machines",
    };
    Some(match totals.next.as_str() {
        "" => format!("there are more rows: raise --limit, or {narrow}"),
        next => format!("there are more rows: go on with --after {next}"),
    })
}

/// With what a spreadsheet takes a cell for a formula, also as wide letters.
const FORMULAS: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];

/// A cell as CSV has it. What a spreadsheet would take for a formula gets a quotation mark before it, behind a semicolon as
/// well, which ends a cell in most of Europe: names and models are what a device says they are.
fn csv_cell(column: &ReportColumn, cell: &str) -> String {
    let text = cell.replace(LIST_SEPARATOR, LIST_JOIN);
    if !matches!(column.kind.as_str(), "text" | "list") {
        return text;
    }
    let mut harmless = String::with_capacity(text.len());
    let mut begins = true;
    for letter in text.chars() {
        if begins && FORMULAS.contains(&letter) {
            harmless.push('\'');
        }
        begins = letter == ';' || (begins && letter.is_whitespace());
        harmless.push(letter);
    }
    harmless
}

/// A row as JSON: of all columns, or of those that are about the machine, or that are not.
pub(in crate::cli) fn object(columns: &[ReportColumn], row: &ReportRow, of_machine: Option<bool>) -> Value {
    let cells = columns.iter().zip(&row.cells);
    let wanted = cells.filter(|(column, _)| of_machine.is_none_or(|wanted| column.of_machine == wanted));
    let object: Map<String, Value> =
        wanted.map(|(column, cell)| (column.name.clone(), json_cell(column, cell))).collect();
    Value::Object(object)
}

fn json_cell(column: &ReportColumn, cell: &str) -> Value {
    match column.kind.as_str() {
        "list" => cell.split(LIST_SEPARATOR).filter(|part| !part.is_empty()).collect(),
        "number" => serde_json::from_str(cell).unwrap_or(Value::Null),
        "time" if cell.is_empty() => Value::Null,
        _ => Value::String(cell.to_owned()),
    }
}

/// The columns of a table and their widths, two letters apart, 80 in all; `None` for the report of one machine.
fn widths(kind: ReportKind) -> Option<&'static [(&'static str, usize)]> {
    Some(match kind {
        ReportKind::Computer => return None,
        ReportKind::Enterprise => &[("status", 20), ("machines", 12), ("percent", 8)],
        ReportKind::EnterpriseDetails => {
            &[("machine", 18), ("status", 18), ("last_contact", DATE), ("reasons", 28)]
        }
        ReportKind::Findings => {
            &[("machine", 18), ("finding", 21), ("drive", 10), ("key_id", 9), ("since", DATE)]
        }
        ReportKind::RecoveryAudit => &[
            ("time", MINUTE),
            ("status", 8),
            ("helpdesk_user", 11),
            ("end_user", 13),
            ("computer", 11),
            ("reason", 11),
        ],
        ReportKind::Stale => {
            &[("machine", 20), ("last_contact", 12), ("days_silent", 11), ("status", 15), ("users", 14)]
        }
    })
}

fn heading(widths: &[(&str, usize)]) -> String {
    let cells = widths.iter().map(|(name, width)| fit(&name.replace('_', " ").to_uppercase(), *width));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn line(columns: &[ReportColumn], widths: &[(&str, usize)], row: &ReportRow) -> String {
    let cell = |(name, width): &(&str, usize)| {
        let found = columns.iter().zip(&row.cells).find(|(column, _)| column.name == *name);
        let Some((column, cell)) = found else { return " ".repeat(*width) };
        match column.kind.as_str() {
            "time" => format!("{:width$}", moment(cell, *width)),
            "number" => format!("{cell:>width$}"),
            _ => fit(&cell.replace(LIST_SEPARATOR, LIST_JOIN), *width),
        }
    };
    widths.iter().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// A moment in as many letters: to the minute if they are enough for that, else the day.
fn moment(text: &str, width: usize) -> String {
    let letters = if width >= MINUTE { MINUTE } else { DATE };
    text.chars().take(letters).map(|letter| if letter == 'T' { ' ' } else { letter }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::super::terminal::TABLE_WIDTH;
    use super::*;

    pub fn columns(kind: ReportKind) -> Vec<ReportColumn> {
        let column = |column: &crate::escrow::reports::Column| ReportColumn {
            name: column.name.to_owned(),
            kind: column.kind.as_str().to_owned(),
            of_machine: column.of_machine,
        };
        kind.columns().iter().map(column).collect()
    }

    /// A row whose cells are as long as they come.
    pub fn long_row(kind: ReportKind) -> ReportRow {
        let cell = |column: &crate::escrow::reports::Column| match column.kind.as_str() {
            "time" => "2026-01-31T12:34:56.789Z".to_owned(),
            "number" => "1000000".to_owned(),
            "list" => ["x".repeat(60), "y".repeat(60)].join("\n"),
            _ => "z".repeat(120),
        };
        ReportRow { cells: kind.columns().iter().map(cell).collect() }
    }

    #[test]
    fn every_table_fits_in_80_columns_and_has_columns_that_there_are() {
        for kind in ReportKind::ALL {
            let Some(widths) = widths(kind) else { continue };
            for (name, _) in widths {
                assert!(kind.column(name).is_ok(), "{kind} {name}");
            }
            let heading = heading(widths);
            let line = line(&columns(kind), widths, &long_row(kind));
            assert!(heading.width() <= TABLE_WIDTH && line.width() <= TABLE_WIDTH, "{heading}\n{line}");
        }
    }

    #[test]
    fn where_there_is_more_it_is_said_how_to_see_it() {
        let more = |kind, truncated, next: &str| {
            more_text(kind, &ReportTotals { rows: 1, machines: 1, truncated, next: next.to_owned() })
        };
        assert_eq!(more(ReportKind::Findings, false, ""), None);
        let text = more(ReportKind::Findings, true, "M-1").unwrap();
        assert!(text.ends_with("--after M-1"), "{text}");
        let text = more(ReportKind::Findings, true, "").unwrap();
        assert!(!text.contains("--after"), "{text}");
        let text = more(ReportKind::Computer, true, "").unwrap();
        assert!(text.ends_with("raise --limit, or leave it out"), "{text}");
        assert_eq!(with_more("page".to_owned(), Some(text.clone())), format!("page\n\n{text}"));
        assert_eq!(with_more("page".to_owned(), None), "page");
        let text = more(ReportKind::RecoveryAudit, true, "").unwrap();
        assert!(text.contains("--since") && !text.contains("--after"), "{text}");
    }

    #[test]
    fn times_are_shown_as_far_as_there_is_room() {
        assert_eq!(moment("2026-01-31T12:34:56.789Z", 10), "2026-01-31");
        assert_eq!(moment("2026-01-31T12:34:56.789Z", 16), "2026-01-31 12:34");
    }

    #[test]
    fn no_text_of_a_device_is_a_formula_to_a_spreadsheet() {
        let column = |kind: &str| ReportColumn { kind: kind.to_owned(), ..Default::default() };
        for text in ["=1+1", "+1", "-1", "@sum", "＝1"] {
            assert_eq!(csv_cell(&column("text"), text), format!("'{text}"));
        }
        for (text, harmless) in [
            ("  =1", "  '=1"),
            ("x;=1", "x;'=1"),
            ("x; \u{a0}+1;-2", "x; \u{a0}'+1;'-2"),
            ("a=b; c-d", "a=b; c-d"),
        ] {
            assert_eq!(csv_cell(&column("text"), text), harmless);
        }
        assert_eq!(csv_cell(&column("list"), "a\n=1"), "a; '=1");
        let mut csv = csv_writer(Vec::new());
        csv.write_record(["x;y", "3", "2026-01-31", ""]).unwrap();
        assert_eq!(csv.into_inner().unwrap(), b"\"x;y\",3,\"2026-01-31\",\"\"\n");
        assert_eq!(csv_cell(&column("list"), "a\nb"), "a; b");
        assert_eq!(csv_cell(&column("number"), "-1"), "-1");
    }

    #[test]
    fn a_row_as_json_has_lists_numbers_and_nothing_where_there_is_nothing() {
        let of = |name: &str, kind: &str, of_machine| ReportColumn {
            name: name.to_owned(),
            kind: kind.to_owned(),
            of_machine,
        };
        let columns = [
            of("users", "list", true),
            of("percent", "number", false),
            of("since", "time", false),
            of("name", "text", false),
            of("keys", "number", false),
        ];
        let cells = ["a\nb", "33.3", "", "", ""].map(str::to_owned).to_vec();
        let row = ReportRow { cells };
        let expected = json!({"users": ["a", "b"], "percent": 33.3, "since": null, "name": "", "keys": null});
        assert_eq!(object(&columns, &row, None), expected);
        assert_eq!(object(&columns, &row, Some(true)), json!({"users": ["a", "b"]}));
    }
}
