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
use crate::escrow::ids::Timestamp;
use crate::proto;

/// Documents of one stream: what is not answered when it breaks is uploaded again.
const ROUND_DOCUMENTS: usize = 8_192;
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
}

impl PutCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let source = open(&self.file)?;
        if self.many {
            return Many::new(global.client()?, printer).upload(source, &self.file).await;
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
        let counts = Counts::default();
        Self { client, printer, progress, lines: Vec::new(), documents: Vec::new(), counts }
    }

    async fn upload(mut self, source: Box<dyn Read>, file: &Path) -> Result<(), Failure> {
        let mut source = BufReader::new(source);
        let mut number = 0;
        loop {
            number += 1;
            let mut text = String::new();
            let most = DOCUMENT_MAX_BYTES as u64 + 2;
            let read = (&mut source).take(most).read_line(&mut text);
            if read.map_err(|error| unreadable(file, &error))? == 0 {
                break;
            }
            if text.len() as u64 == most && !text.ends_with('\n') {
                let what = format!("document: line {number} has more than {DOCUMENT_MAX_BYTES} bytes");
                return Err(Failure::new(Exit::Invalid, what));
            }
            if text.trim().is_empty() {
                continue;
            }
            match MachineReport::from_json(&text) {
                Ok(report) => {
                    self.lines.push(number);
                    self.documents.push(report.to_json());
                }
                Err(invalid) => self.refused(number, &invalid.to_string()),
            }
            if self.documents.len() == ROUND_DOCUMENTS {
                self.round().await?;
            }
        }
        self.round().await?;
        self.progress.finish_and_clear();
        self.report()
    }

    async fn round(&mut self) -> Result<(), Failure> {
        let (lines, documents) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.documents));
        for (line, outcome) in lines.into_iter().zip(self.client.put_compliance_many(&documents).await?) {
            self.counts.clock_ahead += u64::from(outcome.clock_ahead);
            self.counts.state_changed += u64::from(outcome.state_changed);
            match outcome.outcome.as_str() {
                "newest" => self.counts.newest += 1,
                "repeated" => self.counts.repeated += 1,
                "superseded" => self.counts.superseded += 1,
                _ => self.refused(line, &outcome.error),
            }
        }
        self.progress.inc(documents.len() as u64);
        Ok(())
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
