//! How far a node has caught up, on a terminal; silent elsewhere.

use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Printer;
use crate::proto::MemberProgress;

/// How often the spinner turns while nothing is reported.
const TICK: Duration = Duration::from_millis(120);

/// A line that follows a change.
pub(super) struct CatchUp(ProgressBar);

impl CatchUp {
    /// Shows itself if a person watches.
    pub(super) fn new(printer: Printer) -> Self {
        let target =
            if printer.watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1), target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:12} {bar:20} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix("connecting");
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Shows one step.
    pub(super) fn show(&self, step: &MemberProgress) {
        self.0.set_prefix(step.step.clone());
        if step.target > 0 {
            self.0.set_length(step.target);
            self.0.set_position(if step.applied > 0 { step.applied } else { step.matched });
        }
        self.0.set_message(said(step));
    }

    /// Clears the line.
    pub(super) fn end(self) {
        self.0.finish_and_clear();
    }
}

/// Entries, bytes and the time left.
fn said(step: &MemberProgress) -> String {
    if step.target == 0 {
        return String::new();
    }
    let MemberProgress { matched, target, sent_bytes, total_bytes, applied, .. } = step;
    if *applied > 0 {
        return format!("applied {applied} of {target}");
    }
    let bytes = format!("{} of {}", HumanBytes(*sent_bytes), HumanBytes(*total_bytes));
    let left = match step.seconds_left {
        Some(seconds) => format!(", {} left", HumanDuration(Duration::from_secs(seconds))),
        None => String::new(),
    };
    format!("entry {matched} of {target}, {bytes}{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_entries_bytes_and_time() {
        let step = MemberProgress {
            matched: 5,
            target: 9,
            sent_bytes: 1_024,
            total_bytes: 4_096,
            seconds_left: Some(3),
            ..MemberProgress::default()
        };
        assert_eq!(said(&step), "entry 5 of 9, 1.00 KiB of 4.00 KiB, 3 seconds left");
        assert_eq!(
            said(&MemberProgress { seconds_left: None, ..step }),
            "entry 5 of 9, 1.00 KiB of 4.00 KiB"
        );
        let applying = MemberProgress { matched: 9, target: 9, applied: 7, ..MemberProgress::default() };
        assert_eq!(said(&applying), "applied 7 of 9");
        assert_eq!(said(&MemberProgress::default()), "");
    }
}
