//! `strongroom import`: keys and machines out of other systems' files. The two go to the nodes side by side, each in their
//! order.
//!
//! The file is read by a thread of its own, a bounded way ahead of the nodes. What is wrong with a record is reported with
//! its line and never with its content. Importing is idempotent, so after whatever happened the same command finishes the
//! work; `--from-line` only saves time.

mod progress;
mod rejected;
mod tally;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use clap::{Args, Subcommand};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::progress::Progress;
use self::rejected::{Rejection, RejectionFile};
use self::tally::{Summary, Tally, text};
use super::{Exit, Failure, Global, Printer};
use crate::client::{BulkAnswer, BulkRefused, Client, Deposit, MachineNoted, UNANSWERED_MAX};
use crate::escrow::ids::{KeyId, MachineId};
use crate::escrow::inventory::ImportedMachine;
use crate::import::{Format, ImportError, Record, Rows, rows};

/// Most rejected records that are told on standard error, if they are written to no file.
const REJECTIONS_TOLD_MAX: u64 = 20;
/// The name of standard input.
const STANDARD_INPUT: &str = "-";

/// Keep the keys in a file, or note the machines in it.
#[derive(Debug, Args)]
pub(super) struct ImportCommand {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// A table: a line that names the columns machine, volume, kind and secret, and perhaps key_id, package (base64) and
    /// user, in any order; then one key a line. Or of machines: machine, and perhaps domain, name, make, model, type, os and
    /// users (with ; between them). UTF-8, separated by commas, semicolons or tabs.
    Csv(ImportArgs),
    /// BitLocker keys and machines of an Active Directory: an LDIF export of its msFVE-RecoveryInformation and computer
    /// objects, or of either.
    Ldif(ImportArgs),
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// The file; - for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read and check everything; ask no node, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin with the record that begins on this line or behind it.
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// A new file for what was rejected: JSON lines with line, machine, key_id, code, field and reason; never a secret.
    #[arg(long, value_name = "FILE")]
    rejected_out: Option<PathBuf>,
}

impl ImportCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let (format, args) = match self.source {
            Source::Csv(args) => (Format::Csv, args),
            Source::Ldif(args) => (Format::Ldif, args),
        };
        let client = if args.dry_run { None } else { Some(global.client()?) };
        let source = SourceFile::open(&args.file)?;
        let progress = Progress::new(printer, source.length, source.read.clone());
        let rows = rows(format, source).map_err(unreadable)?;
        // Not before there is something to read: an empty file would be in the way of the next run.
        let rejected_out = args.rejected_out.as_deref().map(RejectionFile::create).transpose()?;
        let import = Arc::new(Import {
            from_line: args.from_line,
            printer,
            progress,
            began: Instant::now(),
            state: Mutex::new(State { rejected_out, ..State::default() }),
        });
        let ended = match client {
            Some(client) => import.keep(&client, rows).await,
            None => import.check(rows),
        };
        ended.map_err(|failure| import.with_the_way_on(failure))?;
        import.summarize(args.dry_run)
    }
}

/// An import while it goes on.
struct Import {
    from_line: u64,
    printer: Printer,
    progress: Progress,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    /// The lines of what was handed on and not answered yet.
    unanswered: BTreeSet<u64>,
    /// The last line that was answered.
    last_answered: u64,
    rejected_out: Option<RejectionFile>,
    /// What ended the reading early.
    ended: Option<Failure>,
}

/// A record on its way, as far as it may be shown.
struct Sent {
    line: u64,
    machine: MachineId,
    key_id: Option<KeyId>,
}

/// What was read and is to be kept.
enum Found {
    Key(Sent, Deposit),
    Machine(Sent, ImportedMachine),
}

impl Import {
    /// Keeps what is well formed.
    async fn keep(self: &Arc<Self>, client: &Client, rows: Rows) -> Result<(), Failure> {
        let (key_sender, keys) = mpsc::channel(UNANSWERED_MAX);
        let (machine_sender, machines) = mpsc::channel(UNANSWERED_MAX);
        // Not one of the runtime's, which would wait for it: it may wait for standard input.
        let import = self.clone();
        std::thread::spawn(move || {
            import.read(rows, |found| match found {
                Found::Key(sent, deposit) => key_sender.blocking_send((sent, deposit)).is_ok(),
                Found::Machine(sent, machine) => machine_sender.blocking_send((sent, machine)).is_ok(),
            });
        });
        let keys = client.escrow_many(ReceiverStream::new(keys), |sent, answer| self.answered(&sent, answer));
        let machines =
            client.import_machines(ReceiverStream::new(machines), |sent, noted| self.noted(&sent, noted));
        // Whoever stops it wants to know where to go on.
        let kept = tokio::select! {
            kept = async { tokio::try_join!(keys, machines) } => kept,
            _ = tokio::signal::ctrl_c() => return Err(Failure::new(Exit::Failed, "it was interrupted")),
        };
        kept.map_err(Failure::from).and_then(|_| self.read_to_its_end())
    }

    /// Checks everything and keeps nothing.
    fn check(&self, rows: Rows) -> Result<(), Failure> {
        self.read(rows, |(Found::Key(sent, _) | Found::Machine(sent, _))| {
            self.state().settle(sent.line);
            true
        });
        self.read_to_its_end()
    }

    /// Gives every key and machine among the records to `give`, until there is no more, it takes no more, or something is
    /// wrong that ends the reading.
    fn read(&self, rows: Rows, mut give: impl FnMut(Found) -> bool) {
        for row in rows {
            let (line, record) = match row {
                Ok(row) => (row.line, row.record),
                Err(error) => {
                    self.state().ended = Some(unreadable(error));
                    return;
                }
            };
            let mut give = |found| {
                self.count_record();
                self.state().unanswered.insert(line);
                give(found) && self.state().ended.is_none()
            };
            let goes_on = match record {
                _ if line < self.from_line => {
                    self.state().tally.skipped += 1;
                    true
                }
                Record::Other => {
                    self.state().tally.passed_over += 1;
                    true
                }
                Record::Key(deposit) => {
                    let sent = Sent { line, machine: deposit.machine.clone(), key_id: deposit.key_id };
                    give(Found::Key(sent, *deposit))
                }
                Record::Machine(machine) => {
                    let sent = Sent { line, machine: machine.machine.clone(), key_id: None };
                    give(Found::Machine(sent, *machine))
                }
                Record::Rejected(invalid) => {
                    self.count_record();
                    self.rejected(&Rejection::of_record(line, invalid))
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    fn read_to_its_end(&self) -> Result<(), Failure> {
        self.state().ended.take().map_or(Ok(()), Err)
    }

    fn count_record(&self) {
        let mut state = self.state();
        state.tally.records += 1;
        self.progress.at(state.tally.records);
    }

    fn answered(&self, sent: &Sent, answer: BulkAnswer) {
        match answer {
            BulkAnswer::Kept(kept) if kept.already_escrowed => self.state().tally.already_escrowed += 1,
            BulkAnswer::Kept(_) => self.state().tally.kept += 1,
            BulkAnswer::Refused(refused) => self.refused(sent, refused),
        }
        self.state().settle(sent.line);
    }

    fn noted(&self, sent: &Sent, noted: MachineNoted) {
        match noted {
            MachineNoted::New => self.state().tally.machines_noted += 1,
            MachineNoted::KnownBefore => self.state().tally.machines_known += 1,
            MachineNoted::Refused(refused) => self.refused(sent, refused),
        }
        self.state().settle(sent.line);
    }

    fn refused(&self, sent: &Sent, refused: BulkRefused) {
        // Whether that could be reported is seen at the next record.
        self.rejected(&Rejection::of_answer(sent.line, &sent.machine, sent.key_id, refused));
    }

    /// Reports a rejected record; whether that could be done.
    fn rejected(&self, rejection: &Rejection) -> bool {
        let mut state = self.state();
        state.tally.rejected += 1;
        let Some(file) = &mut state.rejected_out else {
            if state.tally.rejected <= REJECTIONS_TOLD_MAX {
                self.progress.above(|| self.printer.note(&rejection.to_string()));
            }
            return true;
        };
        let written = file.write(rejection);
        let could = written.is_ok();
        if let Err(failure) = written {
            state.ended.get_or_insert(failure);
        }
        could
    }

    /// The failure that ended it, with what to do next.
    fn with_the_way_on(&self, failure: Failure) -> Failure {
        let mut state = self.state();
        if let Some(file) = &mut state.rejected_out {
            // One failure is told, and this is not the first.
            let _ = file.flush();
        }
        let Tally { kept, already_escrowed, machines_noted, machines_known, settled_line, .. } = state.tally;
        let mut so_far = format!("{kept} keys were kept, {already_escrowed} had been");
        if machines_noted + machines_known > 0 {
            so_far += &format!(", {machines_noted} machines were noted, {machines_known} had been known");
        }
        failure.with_the_way_on(self.from_line, settled_line, &so_far)
    }

    fn summarize(&self, dry_run: bool) -> Result<(), Failure> {
        let mut state = self.state();
        if let Some(file) = &mut state.rejected_out {
            file.flush()?;
        }
        let (tally, seconds) = (state.tally.clone(), self.began.elapsed().as_secs_f64());
        self.progress.finish();
        let per_second = tally.records as f64 / seconds.max(f64::EPSILON);
        let summary = Summary { dry_run, tally, seconds, per_second };
        self.printer.result(&summary, || text(&summary))?;
        let Tally { rejected, records, .. } = summary.tally;
        if rejected == 0 {
            return Ok(());
        }
        let failure = Failure::new(Exit::Failed, format!("{rejected} of {records} records were rejected"));
        Err(failure.with_hint(
            "--rejected-out FILE writes each with its line and the reason; the others are not touched by it",
        ))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts and a file: a panic elsewhere leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What stands on this line is answered.
    fn settle(&mut self, line: u64) {
        self.unanswered.remove(&line);
        self.last_answered = self.last_answered.max(line);
        // Keys and machines overtake each other.
        let first_unanswered = self.unanswered.first().copied().unwrap_or(u64::MAX);
        self.tally.settled_line = self.last_answered.min(first_unanswered - 1);
    }
}

/// The file, and how much of it was read.
struct SourceFile {
    source: Box<dyn Read + Send>,
    /// Bytes, if that is known.
    length: Option<u64>,
    read: Arc<AtomicU64>,
}

impl SourceFile {
    fn open(path: &Path) -> Result<Self, Failure> {
        let read = Arc::default();
        if path == Path::new(STANDARD_INPUT) {
            let source = super::input::stdin_unbuffered().map_err(|error| unreadable(error.into()))?;
            return Ok(Self { source: Box::new(source), length: None, read });
        }
        let file = File::open(path).map_err(|error| unreadable(error.into()))?;
        let metadata = file.metadata().map_err(|error| unreadable(error.into()))?;
        let length = metadata.is_file().then_some(metadata.len());
        Ok(Self { source: Box::new(file), length, read })
    }
}

impl Read for SourceFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The path is not repeated: it might be a secret given by mistake.
fn unreadable(error: ImportError) -> Failure {
    match error {
        ImportError::Io(error) => Failure::new(Exit::Invalid, format!("file: cannot read it: {error}")),
        error => Failure::new(Exit::Invalid, format!("file: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_goes_on_leaves_nothing_out_however_keys_and_machines_overtake_each_other() {
        let mut state = State::default();
        state.unanswered.extend([2, 3, 9]);
        for (answered, settled) in [(3, 1), (2, 3), (9, 9)] {
            state.settle(answered);
            assert_eq!(state.tally.settled_line, settled);
        }
    }
}
