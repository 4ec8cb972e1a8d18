//! How many records were read, on a terminal; silent elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Printer;

/// A line that follows the reading.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shows itself if a person watches; `length` records are to come.
    pub(super) fn new(printer: Printer, length: u64) -> Self {
        let target =
            if printer.watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos} of {len} records, {eta} left") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So many were read.
    pub(super) fn at(&self, records: u64) {
        self.0.set_position(records);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
