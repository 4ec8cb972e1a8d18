//! The computer report: one machine, a row for each of its volumes. With the columns of MBAM's report of that name; beside
//! each volume stand the keys in escrow for it.

use super::judged::{Judged, reason_in_short};
use super::row::ColumnKind::{List, Number, Text, Time};
use super::row::{Cell, Column, Row, column, machine_column};
use crate::escrow::compliance::words::VolumeKind;
use crate::escrow::compliance::{Reason, VolumeState};
use crate::escrow::records::KeyState;

/// Its columns.
pub const COLUMNS: &[Column] = &[
    machine_column("machine", Text),
    machine_column("computer_name", Text),
    machine_column("domain", Text),
    machine_column("type", Text),
    machine_column("os", Text),
    machine_column("manufacturer", Text),
    machine_column("model", Text),
    machine_column("agent", Text),
    machine_column("users", List),
    machine_column("status", Text),
    machine_column("status_until", Time),
    machine_column("reasons", List),
    machine_column("os_drive", Text),
    machine_column("fixed_drives", Text),
    machine_column("exemption", Text),
    machine_column("exempt_since", Time),
    machine_column("exempt_until", Time),
    machine_column("exempt_by", Text),
    machine_column("exempt_reason", Text),
    machine_column("policy_enforcement", Text),
    machine_column("policy_cipher", Text),
    machine_column("policy_os_drive", Text),
    machine_column("policy_os_protector", Text),
    machine_column("policy_fixed_drives", Text),
    machine_column("policy_removable_drives", Text),
    machine_column("error", Text),
    machine_column("last_contact", Time),
    machine_column("reported_at", Time),
    machine_column("clock_ahead", Text),
    machine_column("state_since", Time),
    machine_column("told_later", Text),
    machine_column("rotation_owed_since", Time),
    machine_column("findings", List),
    column("drive", Text),
    column("drive_kind", Text),
    column("label", Text),
    column("volume_status", Text),
    column("volume_details", List),
    column("cipher", Text),
    column("protectors", List),
    column("protector_state", Text),
    column("encryption_state", Text),
    column("percent", Number),
    column("auto_unlock", Text),
    column("recovery_keys", List),
    column("keys_in_escrow", List),
    column("seen_at", Time),
];

/// The rows of a machine; one without a drive if it told of none.
pub(super) fn rows(judged: &Judged<'_>) -> Vec<Row> {
    let machine = machine(judged);
    let volumes = judged.state().map_or(&[][..], |state| &state.volumes);
    if volumes.is_empty() {
        let rest = COLUMNS.len() - machine.len();
        return vec![[machine, vec![Cell::Absent; rest]].concat()];
    }
    volumes.iter().map(|of| [machine.clone(), volume(judged, of)].concat()).collect()
}

fn machine(judged: &Judged<'_>) -> Row {
    let exempt = judged.exemption();
    let grant = judged.bundle.exemption.as_ref().and_then(|exemption| exemption.in_force(judged.at));
    let policy = judged.device_policy();
    let error = judged.state().and_then(|state| state.error);
    let error = error.map(|code| match judged.error_text() {
        Some(text) => format!("{code}: {text}"),
        None => code.to_string(),
    });
    let drives = |kind| Cell::Text(judged.drives(kind).to_owned());
    let of_machine = judged.verdict.reasons.iter().filter(|reason| reason.volume.is_none());
    vec![
        judged.machine_cell(),
        judged.said(|report| &report.name),
        judged.said(|report| &report.domain),
        judged.said(|report| report.machine_type.as_str()),
        judged.said(|report| &report.os),
        judged.said(|report| &report.make),
        judged.said(|report| &report.model),
        Cell::text(judged.agent()),
        judged.users_cell(),
        judged.status_cell(),
        Cell::time(judged.verdict.until),
        Cell::list(of_machine.map(reason_in_short)),
        drives(VolumeKind::Os),
        drives(VolumeKind::Fixed),
        Cell::Text(exempt.word.to_owned()),
        Cell::time(exempt.since),
        Cell::time(exempt.until),
        Cell::text(grant.map(|grant| &grant.by)),
        Cell::text(grant.map(|grant| &grant.request.reason)),
        Cell::text(judged.state().map(|state| state.enforcement)),
        Cell::text(policy.and_then(|policy| policy.cipher)),
        Cell::text(policy.map(|policy| policy.os)),
        Cell::text(policy.and_then(|policy| policy.os_protector)),
        Cell::text(policy.map(|policy| policy.fixed)),
        Cell::text(policy.map(|policy| policy.removable)),
        Cell::text(error),
        Cell::time(judged.stood.heard_at),
        Cell::time(judged.stood.told_at),
        judged.clock_ahead_cell(),
        Cell::time(judged.stood.since),
        judged.told_later_cell(),
        Cell::time(judged.rotation_owed_since()),
        judged.findings_cell(),
    ]
}

fn volume(judged: &Judged<'_>, state: &VolumeState) -> Row {
    let id = &state.volume;
    let said = judged.reported(id);
    let percent = said.and_then(|said| said.percent);
    let keys = judged.bundle.keys.iter().filter(|known| known.key.volume == *id).filter_map(|known| {
        let state = judged.key_state(known).filter(|state| *state != KeyState::Retired)?;
        Some(format!("{} {state}", known.key.id))
    });
    vec![
        Cell::Text(id.to_string()),
        Cell::Text(state.kind.to_string()),
        Cell::Text(said.map(|said| said.label.clone()).unwrap_or_default()),
        Cell::Text(judged.volume_status(id).to_owned()),
        Cell::list(judged.reasons_of(id).map(reason_in_words)),
        Cell::Text(state.method.to_string()),
        Cell::list(&state.protectors),
        Cell::Text(state.protection.to_string()),
        Cell::Text(state.conversion.to_string()),
        percent.map_or(Cell::Absent, |percent| Cell::Number(percent.number().into())),
        Cell::flag(state.auto_unlock),
        Cell::list(state.recovery_keys.iter().flatten()),
        Cell::list(keys),
        Cell::time(said.and_then(|said| said.seen_at)),
    ]
}

/// `not-encrypted: the volume must be encrypted and is not (code 1)`.
fn reason_in_words(reason: &Reason) -> String {
    match reason.code {
        Some(code) => format!("{}: {} (code {})", reason.kind, code.text(), code.number()),
        None => reason.kind.to_string(),
    }
}
