//! The report of findings: where keys and compliance do not go together, a row for each.

use super::judged::Judged;
use super::query::MachineFilter;
use super::row::ColumnKind::{List, Text, Time};
use super::row::{Cell, Column, Row, column};

/// Its columns.
pub const COLUMNS: &[Column] = &[
    column("machine", Text),
    column("computer_name", Text),
    column("domain", Text),
    column("finding", Text),
    column("drive", Text),
    column("key_id", Text),
    column("since", Time),
    column("status", Text),
    column("users", List),
    column("last_contact", Time),
];

/// The rows of a machine: of the findings that are asked for.
pub(super) fn rows(judged: &Judged<'_>, filter: &MachineFilter) -> Vec<Row> {
    let asked = judged
        .findings
        .iter()
        .filter(|found| filter.findings.is_empty() || filter.findings.contains(&found.kind));
    let row = |found: &crate::escrow::compliance::Finding| {
        vec![
            judged.machine_cell(),
            judged.said(|report| &report.name),
            judged.said(|report| &report.domain),
            Cell::Text(found.kind.to_string()),
            Cell::text(found.volume.as_ref()),
            Cell::text(found.key_id),
            Cell::time(found.since),
            judged.status_cell(),
            judged.users_cell(),
            Cell::time(judged.stood.heard_at),
        ]
    };
    asked.map(row).collect()
}
