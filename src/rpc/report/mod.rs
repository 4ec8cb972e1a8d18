//! Reports, made of this node's replica.
//!
//! What a report needs is taken down in one pass over the base ([`Node::take_machines`](crate::raft::Node)), at one index;
//! from then on only temporary files are read, at the pace of whoever reads the report. One machine is in memory at a time,
//! and where rows are sorted by something else than the machine, they are sorted on the disk.
//!
//! The recovery audit reads the audit trail page by page instead, up to where it stood when the report began: records are
//! only ever appended, so the pages are of one state.

mod asked;
mod send;

use tonic::{Request, Status};
use tracing::Instrument as _;

use self::asked::Asked;
use self::send::Sender;
use super::serving::{Answers, Places, Serving};
use super::{Context, now, wire};
use crate::escrow::audit::query::{Filter, Window};
use crate::escrow::compliance::{CompliancePolicy, CompliancePolicyRecord};
use crate::escrow::ids::{MachineId, Role, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, must_name_user};
use crate::escrow::records::LogPosition;
use crate::escrow::reports::{Bundle, Column, MachineQuery, MachineReport, ReportKind, Row};
use crate::escrow::state::StateError;
use crate::proto::{Freshness, ReportChunk, ReportColumn, ReportHeader, ReportRequest, ReportRow};
use crate::raft::on_own_thread;
use crate::request_id::carried;
use crate::store::spool::Spool;
use crate::store::spool::machines::MachineSink;

/// Batches of rows that are made ahead of what a reader has taken.
const BATCHES_AHEAD: usize = 2;
/// Most reports that a node makes at once: each takes a pass over the base, room on the disk and a thread.
pub const REPORTS_MAX: usize = 4;

/// What a report is made of, and where that stands.
struct Source {
    of: SourceKind,
    policy: CompliancePolicy,
    policy_version: u64,
    position: LogPosition,
}

enum SourceKind {
    Machine(Box<Bundle>),
    Machines(Box<MachineSink>),
    Trail(Window),
}

impl Source {
    fn new(
        of: SourceKind,
        policy: Option<&CompliancePolicyRecord>,
        position: LogPosition,
    ) -> Result<Self, StateError> {
        let policy_version = policy.map_or(0, |record| record.version);
        let policy = policy.map(|record| CompliancePolicy::stored(&record.policy)).transpose()?;
        Ok(Self { of, policy: policy.unwrap_or_default(), policy_version, position })
    }
}

/// One machine, and its rows in the computer report.
pub(super) struct Computer {
    pub bundle: Box<Bundle>,
    pub rows: Vec<ReportRow>,
}

impl Context {
    /// Begins a report. The recovery audit is for those who may read the audit trail, which it is made of.
    pub(super) async fn begin_report(
        &self,
        places: &Places,
        request: Request<ReportRequest>,
    ) -> Result<Answers<ReportChunk>, Status> {
        let kind: ReportKind = request.get_ref().report.parse()?;
        let operation = match kind {
            ReportKind::RecoveryAudit => Operation::ReadAudit,
            _ => Operation::ReadCompliance,
        };
        let caller = self.admit(&request, operation)?;
        let asked = Asked::read(kind, names_users(caller.identity.role), request.get_ref())?;
        let (serving, answers) = Serving::begin(self, &request, places.take()?, BATCHES_AHEAD);
        let request = request.into_inner();
        self.node.wait_applied(request.min_index).await?;
        let freshness = self.fresh(request.consistency).await?;
        tracing::info!(by = %caller.identity, report = %kind, "a report is made");
        let sender = Sender::new(self.clone(), serving, asked.order);
        tokio::spawn(carried(sender.begin(asked, freshness)).in_current_span());
        Ok(answers)
    }

    async fn source_of(&self, asked: &Asked, spool: &Spool) -> Result<Source, Status> {
        match (asked.machines.kind, &asked.machine) {
            (ReportKind::RecoveryAudit, _) => {
                let node = self.node.clone();
                let filter = Filter { since: asked.recovery.since, ..Filter::default() };
                let read = move || {
                    let view = node.view()?;
                    let head = lookup::heads(&view)?.audit.sequence;
                    // A record is stamped when it is put down, which may be long after what it tells of: where the trail
                    // ends for a time is not to be found by its stamps, only where it begins.
                    let window = Window { after: 0, to: head }.within(&view, &filter)?;
                    let policy = lookup::compliance_policy_record(&view)?;
                    let position = view.position().unwrap_or_default();
                    Ok(Source::new(SourceKind::Trail(window), policy.as_ref(), position)?)
                };
                Ok(on_own_thread(read).await?)
            }
            (_, Some(machine)) => self.one_machine(machine.clone()).await,
            (_, None) => {
                let as_of = asked.machines.as_of.then_some(asked.machines.at);
                let (sink, position) = self.node.take_machines(spool.clone(), as_of).await?;
                let policy = sink.policy().cloned();
                Ok(Source::new(SourceKind::Machines(Box::new(sink)), policy.as_ref(), position)?)
            }
        }
    }

    async fn one_machine(&self, id: MachineId) -> Result<Source, Status> {
        let node = self.node.clone();
        let unknown = Status::not_found(format!("no machine {id} is known"));
        let read = move || {
            let view = node.view()?;
            let Some(machine) = lookup::machine(&view, &id)? else { return Ok(None) };
            let bundle = Box::new(Bundle::read(&view, machine)?);
            let policy = lookup::compliance_policy_record(&view)?;
            let position = view.position().unwrap_or_default();
            Ok(Some(Source::new(SourceKind::Machine(bundle), policy.as_ref(), position)?))
        };
        on_own_thread(read).await?.ok_or(unknown)
    }

    /// One machine as the computer report has it.
    pub(super) async fn computer(
        &self,
        id: MachineId,
        as_of: Option<Timestamp>,
        names_users: bool,
    ) -> Result<Computer, Status> {
        let Source { of: SourceKind::Machine(mut bundle), policy, .. } = self.one_machine(id).await? else {
            return Err(Status::internal("one machine was read as something else"));
        };
        let query = MachineQuery {
            kind: ReportKind::Computer,
            at: as_of.unwrap_or_else(now),
            as_of: as_of.is_some(),
            filter: Default::default(),
            stale_days: None,
            names_users,
        };
        if let Some(record) = bundle.compliance.as_mut().filter(|_| !names_users) {
            record.report.users.clear();
        }
        let rows = MachineReport::new(query, policy).add(&bundle);
        let rows = rows.iter().map(|row| ReportRow { cells: cells(row) }).collect();
        Ok(Computer { bundle, rows })
    }
}

fn header(asked: &Asked, source: &Source, freshness: Freshness) -> ReportHeader {
    let query = &asked.machines;
    ReportHeader {
        report: query.kind.to_string(),
        // The entry it was made at, not a later one that the node may have applied by now.
        freshness: Some(Freshness {
            applied: source.position.index,
            term: source.position.term,
            ..freshness
        }),
        at_ms: query.at.0,
        as_of: query.as_of,
        policy_version: source.policy_version,
        columns: columns(query.kind),
    }
}

/// Whether `role` is told who uses a machine: not who has to name a user to be shown a key.
pub(super) fn names_users(role: Role) -> bool {
    !must_name_user(role)
}

/// The columns of a report as they go out.
pub(super) fn columns(kind: ReportKind) -> Vec<ReportColumn> {
    let column = |column: &Column| ReportColumn {
        name: column.name.to_owned(),
        kind: column.kind.as_str().to_owned(),
        of_machine: column.of_machine,
    };
    kind.columns().iter().map(column).collect()
}

/// Rows of one machine, of which only the first says what is of the machine: together they are no larger than what is
/// known of it, and fit in one message.
pub(super) fn without_repeats(mut rows: Vec<ReportRow>) -> Vec<ReportRow> {
    for row in rows.iter_mut().skip(1) {
        let cells = ReportKind::Computer.columns().iter().zip(&mut row.cells);
        cells.filter(|(column, _)| column.of_machine).for_each(|(_, cell)| cell.clear());
    }
    rows
}

fn cells(row: &Row) -> Vec<String> {
    row.iter().map(ToString::to_string).collect()
}
