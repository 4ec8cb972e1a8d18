//! The reports, over the state of a script.

use std::fmt::Write as _;

use goldenscript::ArgumentConsumer;

use super::{Outcome, at, optional, required};
use crate::escrow::audit::query::{Filter, Window};
use crate::escrow::ids::Timestamp;
use crate::escrow::lookup;
use crate::escrow::memory::Memory;
use crate::escrow::records::MachineRecord;
use crate::escrow::reports::query::stale_days;
use crate::escrow::reports::{
    Bundle, KeyRequest, MachineFilter, MachineQuery, MachineReport, RecoveryFilter, ReportKind, Row,
};

pub(super) fn report(state: &Memory, args: &mut ArgumentConsumer<'_>, now: Timestamp) -> Outcome {
    let kind: ReportKind = required(args, "report")?;
    if kind == ReportKind::RecoveryAudit {
        return recovery_audit(state, args);
    }
    let as_of = optional::<u64>(args, "as-of")?.map(at);
    let now = optional::<u64>(args, "now")?.map_or(now, at);
    let query = MachineQuery {
        kind,
        at: as_of.unwrap_or(now),
        as_of: as_of.is_some(),
        filter: MachineFilter {
            statuses: words(args.take_key("status"), str::parse)?,
            findings: words(args.take_key("finding"), str::parse)?,
            machine: optional(args, "filter")?,
            domain: optional(args, "domain")?,
            user: optional(args, "user")?,
            after: optional(args, "after")?,
        },
        stale_days: optional::<u32>(args, "days")?.map(stale_days).transpose()?,
        names_users: optional(args, "users")?.unwrap_or(true),
    };
    let only: Option<String> = optional(args, "machine")?;
    let mut report = MachineReport::new(query, lookup::compliance_policy(state)?);
    let mut rows: Vec<Row> = Vec::new();
    for machine in state.all::<MachineRecord>()? {
        if only.as_ref().is_none_or(|only| machine.id.as_str() == only) {
            rows.extend(report.add(&Bundle::read(state, machine)?));
        }
    }
    rows.extend(report.finish());
    Ok(format!("{}{} machines", text(kind, &rows)?, report.machines()))
}

fn recovery_audit(state: &Memory, args: &mut ArgumentConsumer<'_>) -> Outcome {
    let filter = RecoveryFilter {
        since: optional::<u64>(args, "since")?.map(at),
        until: optional::<u64>(args, "until")?.map(at),
        actor: optional(args, "actor")?,
        machine: optional(args, "filter")?,
        user: optional(args, "user")?,
    };
    let begin = Filter { since: filter.since, ..Filter::default() };
    let head = lookup::heads(state)?.audit.sequence;
    let mut window = Window { after: 0, to: head }.within(state, &begin)?;
    let mut rows = Vec::new();
    while !window.is_empty() {
        let page = window.next_page(state, &Filter::default(), false)?;
        for request in page.iter().filter_map(KeyRequest::of).filter(|request| request.matches(&filter)) {
            rows.push(request.row(lookup::key(state, request.key_id)?.map(|key| key.kind)));
        }
    }
    text(ReportKind::RecoveryAudit, &rows)
}

fn words<T>(
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, crate::escrow::ids::Invalid>,
) -> Outcome<Vec<T>> {
    let words = text.unwrap_or_default().split('/').filter(|word| !word.is_empty());
    Ok(words.map(parse).collect::<Result<_, _>>()?)
}

/// Each row in a paragraph, a cell on each line.
fn text(kind: ReportKind, rows: &[Row]) -> Outcome {
    let mut text = String::new();
    for row in rows {
        assert_eq!(row.len(), kind.columns().len(), "a cell for each column");
        for (column, cell) in kind.columns().iter().zip(row) {
            let cell = cell.to_string().replace('\n', " | ");
            if !cell.is_empty() {
                writeln!(text, "{}: {cell}", column.name)?;
            }
        }
        writeln!(text, "-")?;
    }
    Ok(text)
}
