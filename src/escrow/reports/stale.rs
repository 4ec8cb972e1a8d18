//! The report of machines that were not heard of for long.

use super::judged::Judged;
use super::row::ColumnKind::{List, Number, Text, Time};
use super::row::{Cell, Column, Row, column};

/// Its columns.
pub const COLUMNS: &[Column] = &[
    column("machine", Text),
    column("computer_name", Text),
    column("domain", Text),
    column("last_contact", Time),
    column("days_silent", Number),
    column("status", Text),
    column("exemption", Text),
    column("users", List),
    column("type", Text),
    column("reported_at", Time),
    column("keys_in_escrow", Number),
    column("rotation_owed_since", Time),
];

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// The row of a machine, if it was not heard of for more than `days`. One that never was has no last contact, and is silent
/// since the cluster was told of it.
pub(super) fn row(judged: &Judged<'_>, days: u32) -> Option<Row> {
    let since = judged.stood.silent_since(judged.bundle.machine.first_seen)?;
    let silent_ms = judged.at.0.saturating_sub(since.0);
    if silent_ms <= u64::from(days) * DAY_MS {
        return None;
    }
    Some(vec![
        judged.machine_cell(),
        judged.said(|report| &report.name),
        judged.said(|report| &report.domain),
        Cell::time(judged.stood.heard_at),
        Cell::Number(silent_ms / DAY_MS),
        judged.status_cell(),
        Cell::Text(judged.exemption().word.to_owned()),
        judged.users_cell(),
        judged.said(|report| report.machine_type.as_str()),
        Cell::time(judged.stood.told_at),
        Cell::Number(judged.keys.iter().filter(|key| key.may_open).count() as u64),
        Cell::time(judged.rotation_owed_since()),
    ])
}
