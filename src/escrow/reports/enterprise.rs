//! The enterprise report: how many machines stand how, and how each one stands. With the columns of MBAM's report of that
//! name, and what only a server that also has the keys can say.

use super::judged::Judged;
use super::row::ColumnKind::{List, Number, Text, Time};
use super::row::{Cell, Column, Row, column};
use crate::escrow::compliance::Status;
use crate::escrow::compliance::words::VolumeKind;

/// Of the overview.
pub const OVERVIEW: &[Column] =
    &[column("status", Text), column("machines", Number), column("percent", Number)];

/// Of the details.
pub const DETAILS: &[Column] = &[
    column("machine", Text),
    column("computer_name", Text),
    column("domain", Text),
    column("status", Text),
    column("reasons", List),
    column("status_until", Time),
    column("exemption", Text),
    column("exempt_since", Time),
    column("exempt_until", Time),
    column("users", List),
    column("os_drive", Text),
    column("fixed_drives", Text),
    column("removable_drives", Text),
    column("policy_enforcement", Text),
    column("policy_cipher", Text),
    column("policy_os_drive", Text),
    column("policy_os_protector", Text),
    column("policy_fixed_drives", Text),
    column("policy_removable_drives", Text),
    column("manufacturer", Text),
    column("model", Text),
    column("type", Text),
    column("os", Text),
    column("error_code", Number),
    column("error", Text),
    column("last_contact", Time),
    column("reported_at", Time),
    column("clock_ahead", Text),
    column("state_since", Time),
    column("told_later", Text),
    column("keys_in_escrow", Number),
    column("rotation_owed_since", Time),
    column("findings", List),
];

/// How many machines stand how.
#[derive(Debug, Default)]
pub(super) struct Overview {
    counts: [u64; Status::ALL.len()],
}

impl Overview {
    pub fn count(&mut self, judged: &Judged<'_>) {
        let place = Status::ALL.iter().position(|status| *status == judged.verdict.status);
        if let Some(place) = place {
            self.counts[place] += 1;
        }
    }

    pub fn rows(&self) -> Vec<Row> {
        let total: u64 = self.counts.iter().sum();
        let row = |(status, count): (&Status, &u64)| {
            vec![Cell::Text(status.to_string()), Cell::Number(*count), Cell::Tenths(tenths(*count, total))]
        };
        Status::ALL.iter().zip(&self.counts).map(row).collect()
    }
}

/// How many tenths of a hundredth `part` is of `whole`, rounded.
fn tenths(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let rounded = (u128::from(part) * 2_000 + u128::from(whole)) / (u128::from(whole) * 2);
    u64::try_from(rounded).unwrap_or(u64::MAX)
}

/// How one machine stands, as its row in the details.
pub(super) fn detail(judged: &Judged<'_>) -> Row {
    let exempt = judged.exemption();
    let policy = judged.device_policy();
    let error = judged.state().and_then(|state| state.error);
    let drives = |kind| Cell::Text(judged.drives(kind).to_owned());
    vec![
        judged.machine_cell(),
        judged.said(|report| &report.name),
        judged.said(|report| &report.domain),
        judged.status_cell(),
        judged.reasons_cell(),
        Cell::time(judged.verdict.until),
        Cell::Text(exempt.word.to_owned()),
        Cell::time(exempt.since),
        Cell::time(exempt.until),
        judged.users_cell(),
        drives(VolumeKind::Os),
        drives(VolumeKind::Fixed),
        drives(VolumeKind::Removable),
        Cell::text(judged.state().map(|state| state.enforcement)),
        Cell::text(policy.and_then(|policy| policy.cipher)),
        Cell::text(policy.map(|policy| policy.os)),
        Cell::text(policy.and_then(|policy| policy.os_protector)),
        Cell::text(policy.map(|policy| policy.fixed)),
        Cell::text(policy.map(|policy| policy.removable)),
        judged.said(|report| &report.make),
        judged.said(|report| &report.model),
        judged.said(|report| report.machine_type.as_str()),
        judged.said(|report| &report.os),
        error.map_or(Cell::Absent, |code| Cell::Number(code.into())),
        Cell::text(judged.error_text()),
        Cell::time(judged.stood.heard_at),
        Cell::time(judged.stood.told_at),
        judged.clock_ahead_cell(),
        Cell::time(judged.stood.since),
        judged.told_later_cell(),
        Cell::Number(judged.keys.iter().filter(|key| key.may_open).count() as u64),
        Cell::time(judged.rotation_owed_since()),
        judged.findings_cell(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_and_nothing_is_of_nothing() {
        assert_eq!([tenths(0, 0), tenths(1, 3), tenths(2, 3), tenths(3, 3)], [0, 333, 667, 1_000]);
        assert_eq!(tenths(u64::MAX, u64::MAX), 1_000);
    }
}
