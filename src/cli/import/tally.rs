//! What became of the records of an import, as it is summed up at its end.

use serde::Serialize;

use crate::cli::output::facts;

/// What became of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    /// Keys and machines that were read, from the first line that was asked for on.
    pub(super) records: u64,
    /// Of them, keys kept by this import.
    pub(super) kept: u64,
    /// Keys kept before.
    pub(super) already_escrowed: u64,
    /// Machines of which something was not known before.
    pub(super) machines_noted: u64,
    /// Machines of which everything was.
    pub(super) machines_known: u64,
    /// Not kept, or not well formed.
    pub(super) rejected: u64,
    /// Objects that are neither.
    pub(super) passed_over: u64,
    /// Records in front of the line that was asked for.
    pub(super) skipped: u64,
    /// Up to this line everything is settled; 0 if nothing was answered.
    pub(super) settled_line: u64,
}

/// An import in sum.
#[derive(Serialize)]
pub(super) struct Summary {
    pub(super) dry_run: bool,
    #[serde(flatten)]
    pub(super) tally: Tally,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
}

/// The same for people.
pub(super) fn text(summary: &Summary) -> String {
    let Summary { dry_run, tally, seconds, per_second } = summary;
    let well_formed = ("well formed", (tally.records - tally.rejected).to_string());
    let mut lines = vec![("records", tally.records.to_string())];
    let has_machines = tally.machines_noted + tally.machines_known > 0;
    if *dry_run {
        lines.push(well_formed);
    }
    if !*dry_run && (!has_machines || tally.kept + tally.already_escrowed > 0) {
        lines.push(("kept", tally.kept.to_string()));
        lines.push(("kept before", tally.already_escrowed.to_string()));
    }
    if has_machines {
        lines.push(("machines noted", tally.machines_noted.to_string()));
        lines.push(("machines known before", tally.machines_known.to_string()));
    }
    lines.push(("rejected", tally.rejected.to_string()));
    for (name, count) in [("passed over", tally.passed_over), ("skipped", tally.skipped)] {
        if count > 0 {
            lines.push((name, count.to_string()));
        }
    }
    lines.extend([("seconds", format!("{seconds:.1}")), ("per second", format!("{per_second:.0}"))]);
    let facts = facts(&lines);
    if *dry_run { format!("nothing was sent: a dry run\n\n{facts}") } else { facts }
}
