//! How far an import is, on a terminal; silent elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Printer;

/// How many records go by between two looks: a look costs more than a record.
const RECORDS_PER_LOOK: u64 = 256;

/// A line that follows the reading.
pub(super) struct Progress {
    bar: ProgressBar,
    read: Arc<AtomicU64>,
}

impl Progress {
    /// Shows itself if a person watches; of the file, `length` bytes if that is known, `read` says how much was read.
    pub(super) fn new(printer: Printer, length: Option<u64>, read: Arc<AtomicU64>) -> Self {
        let target =
            if printer.watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(length, target);
        let template = match length {
            Some(_) => "{bar:20} {bytes} of {total_bytes}, {msg} records, {eta} left",
            None => "{spinner} {bytes}, {msg} records",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, read }
    }

    /// So many records were read.
    pub(super) fn at(&self, records: u64) {
        if records.is_multiple_of(RECORDS_PER_LOOK) && !self.bar.is_hidden() {
            self.bar.set_position(self.read.load(Ordering::Relaxed));
            self.bar.set_message(records.to_string());
        }
    }

    /// Says something above the line.
    pub(super) fn above(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }

    /// Takes the line away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
