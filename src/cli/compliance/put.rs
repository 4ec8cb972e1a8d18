//! `strongroom compliance put`: one document, or one a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::cli::output::facts;
use crate::cli::{Exit, Failure, Global, Printer};
use crate::client::Client;
use crate::escrow::compliance::MachineReport;
use crate::escrow::compliance::document::DOCUMENT_MAX_BYTES;
use crate::escrow::ids::{Invalid, Timestamp};
use crate::proto;

/// Documents of one stream, and about how many bytes of them: what is not answered when it breaks is uploaded again.
const ROUND_DOCUMENTS: usize = 8_192;
/// See [`ROUND_DOCUMENTS`].
const ROUND_BYTES: usize = 16 * 1024 * 1024;
/// Most lines of which it is said what is wrong with them; all are counted.
const COMPLAINTS_MAX: u64 = 100;

/// Keep what a device says of itself, or what many do.
#[derive(Debug, Args)]
pub(super) struct PutCommand {
    /// The JSON document, as `compliance schema` describes it; `-` for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The file has a document on each line. What is wrong with a line holds up no other.
    #[arg(long)]
    many: bool,
    /// Begin with this line of it.
    #[arg(long, value_name = "LINE", default_value_t = 1, requires = "many",
        value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
}

impl PutCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let source = open(&self.file)?;
        if self.many {
            let mut many = Many::new(global.client()?, printer);
            let uploaded = many.upload(Lines::of(source), self.from_line, &self.file).await;
            many.progress.finish_and_clear();
            uploaded.map_err(|failure| many.with_the_way_on(failure, self.from_line))?;
            return many.report();
        }
        let mut text = String::new();
        let read = source.take(DOCUMENT_MAX_BYTES as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| unreadable(&self.file, &error))?;
        let report = MachineReport::from_json(&text)?;
        let kept = global.client()?.put_compliance(&report.to_json()).await?;
        let outcome = kept.outcome.unwrap_or_default();
        let owed = outcome.rotation_owed_since_ms.map(|since| Timestamp(since).to_string());
        let document = json!({
            "machine": outcome.machine,
            "outcome": outcome.outcome,
            "state_changed": outcome.state_changed,
            "clock_ahead": outcome.clock_ahead,
            "rotation_owed_since": owed,
            "index": kept.index,
        });
        printer.result(&document, || {
            let mut lines = vec![
                ("machine", outcome.machine.clone()),
                ("outcome", in_words(&outcome).to_owned()),
                ("index", kept.index.to_string()),
            ];
            lines.extend(owed.map(|since| ("rotation owed since", since)));
            facts(&lines)
        })
    }
}

fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(file).map_err(|error| unreadable(file, &error))?))
}

fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Invalid, format!("document: {}: {error}", file.display()))
}

fn in_words(outcome: &proto::UploadOutcome) -> &'static str {
    match (outcome.outcome.as_str(), outcome.state_changed, outcome.clock_ahead) {
        ("newest", _, true) => "kept; the device's clock is ahead, and its time was not believed",
        ("newest", true, false) => "kept: the machine is in another state than before",
        ("newest", false, false) => "kept: the machine is in the same state as before",
        ("repeated", ..) => "had been kept before",
        ("superseded", ..) => "something newer is known of the machine",
        _ => "refused",
    }
}

/// Many documents while they are uploaded.
struct Many {
    client: Client,
    printer: Printer,
    progress: ProgressBar,
    /// Of each document of the round: the line it stands on.
    lines: Vec<u64>,
    documents: Vec<String>,
    /// Bytes of them.
    bytes: usize,
    /// Up to this line everything is settled.
    settled: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    newest: u64,
    state_changed: u64,
    repeated: u64,
    superseded: u64,
    clock_ahead: u64,
    refused: u64,
}

impl Many {
    fn new(client: Client, printer: Printer) -> Self {
        let target =
            if printer.watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let progress = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{pos} documents, {per_sec}") {
            progress.set_style(style);
        }
        Self {
            client,
            printer,
            progress,
            lines: Vec::new(),
            documents: Vec::new(),
            bytes: 0,
            settled: 0,
            counts: Counts::default(),
        }
    }

    async fn upload(&mut self, mut lines: Lines, from_line: u64, file: &Path) -> Result<(), Failure> {
        while let Some(line) = lines.next().map_err(|error| unreadable(file, &error))? {
            if lines.number < from_line {
                continue;
            }
            let report = line.and_then(|text| match text.trim() {
                "" => Ok(None),
                text => MachineReport::from_json(text).map(Some),
            });
            match report {
                Ok(Some(report)) => {
                    let document = report.to_json();
                    self.bytes += document.len();
                    self.lines.push(lines.number);
                    self.documents.push(document);
                }
                Ok(None) => {}
                Err(invalid) => self.refused(lines.number, &invalid.to_string()),
            }
            if self.documents.len() == ROUND_DOCUMENTS || self.bytes >= ROUND_BYTES {
                self.round().await?;
            }
        }
        self.round().await
    }

    async fn round(&mut self) -> Result<(), Failure> {
        let outcomes = self.client.put_compliance_many(&self.documents).await?;
        self.bytes = 0;
        self.documents.clear();
        self.progress.inc(outcomes.len() as u64);
        for (line, outcome) in std::mem::take(&mut self.lines).into_iter().zip(outcomes) {
            self.settled = line;
            self.counts.clock_ahead += u64::from(outcome.clock_ahead);
            self.counts.state_changed += u64::from(outcome.state_changed);
            match outcome.outcome.as_str() {
                "newest" => self.counts.newest += 1,
                "repeated" => self.counts.repeated += 1,
                "superseded" => self.counts.superseded += 1,
                _ => self.refused(line, &outcome.error),
            }
        }
        Ok(())
    }

    /// A failure that ended it, with what was done until then and where to go on.
    fn with_the_way_on(&self, failure: Failure, from_line: u64) -> Failure {
        let Counts { newest, repeated, superseded, refused, .. } = self.counts;
        let so_far = format!(
            "{newest} were the newest, {repeated} had been kept, {superseded} were superseded and {refused} refused"
        );
        failure.with_the_way_on(from_line, self.settled, &so_far)
    }

    fn refused(&mut self, line: u64, why: &str) {
        self.counts.refused += 1;
        if self.counts.refused <= COMPLAINTS_MAX {
            let note = || self.printer.note(&format!("line {line}: {why}"));
            self.progress.suspend(note);
        }
    }

    fn report(&self) -> Result<(), Failure> {
        let Counts { newest, state_changed, repeated, superseded, clock_ahead, refused } = self.counts;
        let document = json!({
            "newest": newest,
            "state_changed": state_changed,
            "repeated": repeated,
            "superseded": superseded,
            "clock_ahead": clock_ahead,
            "refused": refused,
        });
        self.printer.result(&document, || {
            facts(&[
                ("newest", newest.to_string()),
                ("in another state", state_changed.to_string()),
                ("repeated", repeated.to_string()),
                ("superseded", superseded.to_string()),
                ("clock ahead", clock_ahead.to_string()),
                ("refused", refused.to_string()),
            ])
        })?;
        match refused {
            0 => Ok(()),
            refused => Err(Failure::new(Exit::Invalid, format!("{refused} documents were refused"))),
        }
    }
}

/// The lines of a file, of which no more than a document's worth is in memory.
struct Lines {
    source: BufReader<Box<dyn Read>>,
    /// Of the line that was read last.
    number: u64,
}

impl Lines {
    fn of(source: Box<dyn Read>) -> Self {
        Self { source: BufReader::new(source), number: 0 }
    }

    /// The next line, or what is wrong with it; `None` behind the last.
    fn next(&mut self) -> io::Result<Option<Result<String, Invalid>>> {
        let mut line = self.part()?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if line.len() > DOCUMENT_MAX_BYTES + 1 {
            while !line.is_empty() && line.last() != Some(&b'\n') {
                line = self.part()?;
            }
            let expected = format!("at most {DOCUMENT_MAX_BYTES} bytes");
            return Ok(Some(Err(Invalid::new("document", expected))));
        }
        Ok(Some(String::from_utf8(line).map_err(|_| Invalid::new("document", "text in UTF-8"))))
    }

    /// The rest of a line, or as much of it as is too long.
    fn part(&mut self) -> io::Result<Vec<u8>> {
        let mut part = Vec::new();
        let most = DOCUMENT_MAX_BYTES as u64 + 2;
        self.source.by_ref().take(most).read_until(b'\n', &mut part)?;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_line_holds_up_no_other() {
        let longest = "x".repeat(DOCUMENT_MAX_BYTES);
        let too_long = "y".repeat(3 * DOCUMENT_MAX_BYTES);
        let mut file = format!("one\n{longest}\n{too_long}\n{longest}y\n").into_bytes();
        file.extend_from_slice(b"\xff\xfe\n\nlast");
        let mut lines = Lines::of(Box::new(io::Cursor::new(file)));
        let mut next = || {
            let line = lines.next().unwrap();
            line.map(|line| {
                (lines.number, line.map(|line| line.len()).map_err(|invalid| invalid.to_string()))
            })
        };
        assert_eq!(next(), Some((1, Ok(4))));
        assert_eq!(next(), Some((2, Ok(DOCUMENT_MAX_BYTES + 1))));
        for number in [3, 4] {
            let (found, line) = next().unwrap();
            assert_eq!(found, number);
            assert!(line.unwrap_err().starts_with("document: at most"));
        }
        assert_eq!(next(), Some((5, Err("document: text in UTF-8".to_owned()))));
        assert_eq!(next(), Some((6, Ok(1))));
        assert_eq!(next(), Some((7, Ok(4))));
        assert_eq!(next(), None);
    }
}
