//! `strongroom audit export`: the audit trail as JSON lines.
//!
//! What is exported is checked on the way: a trail that does not hold, or does not follow what a file has of it, ends with
//! an error and not with a file that looks good.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::file::{Held, held, unreadable};
use super::progress::Progress;
use super::{believed, trust_of};
use crate::cli::find::Consistency;
use crate::cli::{Exit, Failure, Global, Printer};
use crate::client::AuditTrail;
use crate::escrow::audit::ChainHead;
use crate::escrow::audit::check::{Checker, Expectation};
use crate::proto;
use crate::seal::checkpoint::Checkpoint;

/// Write the audit trail as JSON lines.
#[derive(Debug, Args)]
pub(super) struct ExportCommand {
    /// Only records above this number, to standard output.
    #[arg(long, value_name = "SEQ", default_value_t = 0, conflicts_with = "append")]
    after: u64,
    /// Go on with the export in this file, from its last record on; it is made if it does not exist.
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// Export the nearest replica as it is, or everything recorded so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
    /// Wait until the answering node has applied this index.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    min_index: u64,
}

impl ExportCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        let trust = trust_of(None, global)?;
        let target = self.append.as_deref().map(Target::open).transpose()?;
        let held = target
            .as_ref()
            .map_or(ChainHead { sequence: self.after, hash: [0; 32] }, |target| target.held.head);
        let request = proto::ReadAuditRequest {
            after: held.sequence,
            consistency: proto::Consistency::from(self.consistency).into(),
            min_index: self.min_index,
            ..Default::default()
        };
        let trail = client.read_audit(&request).await?;
        let line = &trail.begin().checkpoint;
        let checkpoint =
            Checkpoint::parse(line).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let signed = believed(&checkpoint, &trust, "the node that was asked")?;
        let checker = Checker::new(Expectation {
            after: held.sequence,
            after_hash: target.as_ref().map(|target| target.held.head.hash),
            signed: vec![signed],
            all_signed: true,
            reaches: checkpoint.seq,
        });
        match target {
            Some(target) => target.go_on(trail, &checkpoint, checker, printer).await,
            None => {
                let stdout = io::stdout();
                let written = write(&mut stdout.lock(), trail, &checkpoint, checker, printer).await;
                match written {
                    Err(Ended::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    other => other.map_err(|ended| ended.into_failure("standard output")),
                }
            }
        }
    }
}

/// An export that is gone on with.
struct Target<'a> {
    path: &'a Path,
    file: File,
    held: Held,
}

impl<'a> Target<'a> {
    /// Opens the file, alone.
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(|error| unreadable(path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("{}: another export is writing it", path.display());
                return Err(Failure::new(Exit::Conflict, what).with_hint("wait until that one is done"));
            }
            Err(TryLockError::Error(error)) => return Err(unreadable(path, &error)),
        }
        let read = file.try_clone().map_err(|error| unreadable(path, &error))?;
        let held = held(read, path)?;
        Ok(Self { path, file, held })
    }

    /// Writes what is new behind what is there.
    async fn go_on(
        mut self,
        trail: AuditTrail,
        checkpoint: &Checkpoint,
        checker: Checker,
        printer: Printer,
    ) -> Result<(), Failure> {
        let (path, from) = (self.path, self.held.head.sequence);
        let failed = |ended: Ended| ended.into_failure(&path.display().to_string());
        if self.held.bytes > self.held.whole_bytes {
            printer.note(&format!("{}: its last line was cut off; it is written again", path.display()));
        }
        // Nothing new: the checkpoint alone would make the file grow for ever. That the file's last record is the
        // cluster's is still checked.
        if checkpoint.seq == from && from > 0 {
            checker.finish().map_err(|fault| failed(Ended::Fault(fault)))?;
        } else {
            let io = |error| failed(Ended::Output(error));
            self.file.set_len(self.held.whole_bytes).map_err(io)?;
            self.file.seek(SeekFrom::End(0)).map_err(io)?;
            let mut buffered = BufWriter::new(&self.file);
            let written = write(&mut buffered, trail, checkpoint, checker, printer).await;
            // What was written is good, whatever came after it: the next export goes on from there.
            buffered.flush().map_err(io)?;
            drop(buffered);
            // Without the sync a power cut could take away what a caller was told it has.
            self.file.sync_all().map_err(io)?;
            written.map_err(failed)?;
        }
        let (to, records) = (checkpoint.seq, checkpoint.seq - from);
        let document = json!({ "file": path, "after": from, "head": to, "records": records });
        printer.result(&document, || match records {
            0 => format!("nothing new: {} has all {to} records", path.display()),
            1 => format!("{}: record {to} was added", path.display()),
            _ => format!("{}: records {} to {to} were added", path.display(), from + 1),
        })
    }
}

/// Why an export ended early.
enum Ended {
    Client(crate::client::ClientError),
    Fault(crate::escrow::audit::check::Fault),
    Output(io::Error),
}

impl Ended {
    fn into_failure(self, target: &str) -> Failure {
        match self {
            Self::Client(error) => error.into(),
            Self::Fault(fault) => Failure::new(Exit::Failed, format!("the trail does not hold: {fault}")).with_hint(
                "what was written ends before it; `strongroom audit verify` asks all nodes, and with the file shows \
                 whether it is the file that is wrong",
            ),
            Self::Output(error) => Failure::new(Exit::Failed, format!("writing to {target}: {error}")),
        }
    }
}

impl From<crate::client::ClientError> for Ended {
    fn from(error: crate::client::ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The checkpoint first: an export that is cut off lacks what a node has signed for.
async fn write(
    out: &mut impl Write,
    mut trail: AuditTrail,
    checkpoint: &Checkpoint,
    mut checker: Checker,
    printer: Printer,
) -> Result<(), Ended> {
    let mut begun = false;
    let first = checker.sequence();
    let progress = Progress::new(printer, checkpoint.seq.saturating_sub(first));
    while !checker.is_in_trouble()
        && let Some(page) = trail.next().await?
    {
        for proto::AuditLine { line, .. } in &page.records {
            checker.line(line);
            if checker.is_in_trouble() {
                break;
            }
            // Not before a record is seen to follow what is there.
            if !std::mem::replace(&mut begun, true) {
                writeln!(out, "{}", checkpoint.render())?;
            }
            writeln!(out, "{line}")?;
        }
        progress.at(checker.sequence() - first);
    }
    checker.finish().map_err(Ended::Fault)?;
    if !begun {
        writeln!(out, "{}", checkpoint.render())?;
    }
    Ok(out.flush()?)
}
