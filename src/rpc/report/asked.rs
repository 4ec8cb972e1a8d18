//! What is asked of a report, checked.

use super::{now, wire};
use crate::escrow::ids::{Invalid, MachineId, Timestamp};
use crate::escrow::reports::{MachineFilter, MachineQuery, RecoveryFilter, ReportKind, query};
use crate::proto::{ReportFilter, ReportRequest};

/// Most words of one filter: there are not so many different ones.
const WORDS_MAX: usize = 32;

/// What is asked for.
pub(super) struct Asked {
    /// Of the computer report: which.
    pub machine: Option<MachineId>,
    /// Of the reports over machines; of the others too, which one and when.
    pub machines: MachineQuery,
    /// Of the recovery audit.
    pub recovery: RecoveryFilter,
    pub order: Order,
}

/// In which order rows are sent, and how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// The place of the column to sort by.
    pub column: Option<usize>,
    pub descending: bool,
    /// No more than so many, but for what else there is of the last machine; 0 for all.
    pub limit: u64,
}

impl Asked {
    pub fn read(kind: ReportKind, names_users: bool, request: &ReportRequest) -> Result<Self, Invalid> {
        let ReportRequest { machine, filter, sort, descending, limit, at_ms, as_of_ms, .. } = request;
        let nothing = ReportFilter::default();
        let filter = filter.as_ref().unwrap_or(&nothing);
        check_is_of(kind, filter)?;
        let machine = match (kind, machine.as_str()) {
            (ReportKind::Computer, machine) => Some(machine.parse()?),
            (_, "") => None,
            _ => return Err(Invalid::new("machine", "left out: only the computer report is of one machine")),
        };
        if as_of_ms.is_some() && !kind.has_past() {
            return Err(Invalid::new("as_of", format!("left out: report {kind} is of what is known now")));
        }
        if as_of_ms.is_some() && at_ms.is_some() {
            return Err(Invalid::new("at", "left out: how things stood at a time is judged at that time"));
        }
        if at_ms.is_some() && kind == ReportKind::RecoveryAudit {
            return Err(Invalid::new("at", format!("left out: report {kind} judges nothing")));
        }
        let column = wire::optional(sort, |name| kind.column(name))?;
        if column.is_some() && !filter.after.is_empty() {
            let expected = "left out where rows are sorted: pages are in the order of machines";
            return Err(Invalid::new("after", expected));
        }
        if *descending && column.is_none() {
            return Err(Invalid::new("descending", "given together with a column to sort by"));
        }
        let at = as_of_ms.or(*at_ms).map_or_else(now, Timestamp);
        let stale_days = Some(filter.stale_days).filter(|days| *days > 0).map(query::stale_days);
        let machines = MachineQuery {
            kind,
            at,
            as_of: as_of_ms.is_some(),
            filter: if kind == ReportKind::RecoveryAudit {
                Default::default()
            } else {
                machine_filter(filter)?
            },
            stale_days: stale_days.transpose()?,
            names_users,
        };
        let recovery = recovery_filter(filter)?;
        Ok(Self {
            machine,
            machines,
            recovery,
            order: Order { column, descending: *descending, limit: *limit },
        })
    }
}

/// That nothing is asked for which the report does not go by: what is passed over in silence is taken for obeyed.
fn check_is_of(kind: ReportKind, filter: &ReportFilter) -> Result<(), Invalid> {
    let ReportFilter {
        statuses,
        findings,
        machine,
        domain,
        user,
        after,
        stale_days,
        since_ms,
        until_ms,
        actor,
    } = filter;
    let audit = kind == ReportKind::RecoveryAudit;
    let computer = kind == ReportKind::Computer;
    let given = [
        ("statuses", !statuses.is_empty(), !audit && !computer),
        ("findings", !findings.is_empty(), !audit && !computer),
        ("machine", !machine.is_empty(), !computer),
        ("domain", !domain.is_empty(), !audit && !computer),
        ("user", !user.is_empty(), !computer),
        ("after", !after.is_empty(), !audit && !computer),
        ("stale_days", *stale_days > 0, kind == ReportKind::Stale),
        ("since", since_ms.is_some(), audit),
        ("until", until_ms.is_some(), audit),
        ("actor", !actor.is_empty(), audit),
    ];
    match given.iter().find(|(_, is_given, is_of_it)| *is_given && !is_of_it) {
        Some((field, ..)) => Err(Invalid::new(*field, format!("left out: report {kind} does not go by it"))),
        None => Ok(()),
    }
}

fn machine_filter(message: &ReportFilter) -> Result<MachineFilter, Invalid> {
    let filter = MachineFilter {
        statuses: words("status", &message.statuses)?,
        findings: words("finding", &message.findings)?,
        machine: wire::optional(&message.machine, str::parse)?,
        domain: Some(message.domain.clone()).filter(|domain| !domain.is_empty()),
        user: wire::optional(&message.user, str::parse)?,
        after: wire::optional(&message.after, str::parse)?,
    };
    filter.check()?;
    Ok(filter)
}

fn words<T: std::str::FromStr<Err = Invalid>>(field: &str, words: &[String]) -> Result<Vec<T>, Invalid> {
    if words.len() > WORDS_MAX {
        return Err(Invalid::new(field, format!("at most {WORDS_MAX} of them")));
    }
    words.iter().map(|word| word.parse()).collect()
}

fn recovery_filter(message: &ReportFilter) -> Result<RecoveryFilter, Invalid> {
    let filter = RecoveryFilter {
        since: message.since_ms.map(Timestamp),
        until: message.until_ms.map(Timestamp),
        actor: Some(message.actor.clone()).filter(|actor| !actor.is_empty()),
        machine: wire::optional(&message.machine, str::parse)?,
        user: wire::optional(&message.user, str::parse)?,
    };
    filter.check()?;
    Ok(filter)
}
