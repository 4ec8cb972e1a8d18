//! `strongroom report`: a report, as its node sends it.
//!
//! As CSV, standard output has the rows under their columns and nothing else, and what they were made from is said on
//! standard error. As JSON it is one document a line: first the header, then each row, and last the totals. A report that
//! ends without its totals was cut off, and so the command fails.

pub(super) mod computer;
pub(super) mod render;
mod terminal;

use clap::{Args, Subcommand, ValueEnum};

use self::render::Render;
use super::audit::time;
use super::find::Consistency;
use super::{Failure, Format, Global, Printer};
use crate::escrow::compliance::words::{FindingKind, Status};
use crate::escrow::ids::{MachineId, Timestamp, UserName};
use crate::escrow::reports::{MachinePattern, ReportKind};
use crate::proto;

/// Make a report, at any node.
#[derive(Debug, Args)]
pub(super) struct ReportCommand {
    #[command(subcommand)]
    report: Which,
}

#[derive(Debug, Subcommand)]
enum Which {
    /// One machine, drive by drive.
    Computer(ComputerCommand),
    /// How many machines stand how, or how each of them does.
    Enterprise(EnterpriseCommand),
    /// Where keys and compliance do not go together: disks nobody can open, keys that open nothing, rotations owed.
    Findings(FindingsCommand),
    /// Who asked for which key, and what came of it.
    RecoveryAudit(RecoveryAuditCommand),
    /// Machines that were not heard of for long.
    Stale(StaleCommand),
}

#[derive(Debug, Args)]
struct ComputerCommand {
    /// The machine.
    #[arg(value_name = "MACHINE")]
    machine: MachineId,
    #[command(flatten)]
    past: Past,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct EnterpriseCommand {
    /// A row for each machine.
    #[arg(long)]
    details: bool,
    #[command(flatten)]
    machines: Machines,
    #[command(flatten)]
    past: Past,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct FindingsCommand {
    #[command(flatten)]
    machines: Machines,
    #[command(flatten)]
    past: Past,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct StaleCommand {
    /// After how many days without a contact; by default as the policy of compliance says.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: Option<u32>,
    #[command(flatten)]
    machines: Machines,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct RecoveryAuditCommand {
    /// Not before this time: RFC 3339, or a day (UTC).
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// By whom: a name, ROLE/NAME, or a whole identity.
    #[arg(long, value_name = "WHO")]
    actor: Option<String>,
    /// Of machines whose id is so: `*` stands for any characters, `?` for one.
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    machine: Option<String>,
    /// For this user of the machine.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
    #[command(flatten)]
    common: Common,
}

/// Which machines.
#[derive(Debug, Args)]
struct Machines {
    /// Only machines that stand so; more than one may be given.
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<Status>,
    /// Only machines of which this was found; more than one may be given.
    #[arg(long, value_name = "FINDING", value_delimiter = ',')]
    finding: Vec<FindingKind>,
    /// Only machines whose id or name is so: `*` stands for any characters, `?` for one.
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    machine: Option<String>,
    /// Only machines in this domain.
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Only machines on which this user was seen.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
    /// Only machines behind this one in the order of ids: where a page ended, as it says itself.
    #[arg(long, value_name = "MACHINE", conflicts_with = "sort")]
    after: Option<MachineId>,
}

#[derive(Debug, Args)]
struct Past {
    /// How things stood then, by the history of each machine: RFC 3339, or a day (UTC).
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "at")]
    as_of: Option<Timestamp>,
}

/// What every report takes.
#[derive(Debug, Args)]
struct Common {
    /// How to print it; by default a table, or JSON with --output json.
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<ReportFormat>,
    /// Sort by this column, as CSV names it; by default machines stand in the order of their ids.
    #[arg(long, value_name = "COLUMN")]
    sort: Option<String>,
    /// The largest first.
    #[arg(long, requires = "sort")]
    descending: bool,
    /// End after so many rows. The rows of a machine stay together, so there may be a few more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Judge at this time and not now: two nodes that stand at one index then answer the same, to the byte.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
    /// Wait until the answering node has applied this index.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    min_index: u64,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// For people: the most important columns, in 80 columns of a terminal.
    Table,
    /// Every column; what it was made from is said on standard error.
    Csv,
    /// Every column: a document a line, of which the first is the header and the last the totals.
    Json,
}

fn pattern(text: &str) -> Result<String, crate::escrow::ids::Invalid> {
    text.parse::<MachinePattern>().map(|_| text.to_owned())
}

impl ReportCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let (kind, common, request) = self.report.request();
        if let Some(sort) = &common.sort {
            kind.column(sort)?;
        }
        let format = common.format.unwrap_or(match printer.format() {
            Format::Table => ReportFormat::Table,
            Format::Json => ReportFormat::Json,
        });
        let mut report = global.client()?.report(&request).await?;
        let mut render = Render::begin(kind, format, report.header(), printer)?;
        while let Some(rows) = report.next().await? {
            // Whoever reads it has read what they wanted.
            if !render.rows(&rows)? {
                return Ok(());
            }
        }
        render.finish(&report.totals().cloned().unwrap_or_default())
    }
}

impl Which {
    fn request(self) -> (ReportKind, Common, proto::ReportRequest) {
        let nothing = proto::ReportFilter::default;
        let (kind, machine, filter, past, common) = match self {
            Self::Computer(ComputerCommand { machine, past, common }) => {
                (ReportKind::Computer, machine.to_string(), nothing(), Some(past), common)
            }
            Self::Enterprise(EnterpriseCommand { details, machines, past, common }) => {
                let kind = if details { ReportKind::EnterpriseDetails } else { ReportKind::Enterprise };
                (kind, String::new(), machines.filter(), Some(past), common)
            }
            Self::Findings(FindingsCommand { machines, past, common }) => {
                (ReportKind::Findings, String::new(), machines.filter(), Some(past), common)
            }
            Self::Stale(StaleCommand { days, machines, common }) => {
                let filter = proto::ReportFilter { stale_days: days.unwrap_or(0), ..machines.filter() };
                (ReportKind::Stale, String::new(), filter, None, common)
            }
            Self::RecoveryAudit(audit) => {
                let RecoveryAuditCommand { since, until, actor, machine, user, common } = audit;
                let filter = proto::ReportFilter {
                    machine: machine.unwrap_or_default(),
                    user: user.map(String::from).unwrap_or_default(),
                    since_ms: since.map(|at| at.0),
                    until_ms: until.map(|at| at.0),
                    actor: actor.unwrap_or_default(),
                    ..nothing()
                };
                (ReportKind::RecoveryAudit, String::new(), filter, None, common)
            }
        };
        let consistency: proto::Consistency = common.consistency.into();
        let request = proto::ReportRequest {
            report: kind.to_string(),
            machine,
            filter: Some(filter),
            sort: common.sort.clone().unwrap_or_default(),
            descending: common.descending,
            limit: common.limit.unwrap_or(0),
            at_ms: common.at.map(|at| at.0),
            as_of_ms: past.and_then(|past| past.as_of).map(|at| at.0),
            consistency: consistency.into(),
            min_index: common.min_index,
        };
        (kind, common, request)
    }
}

impl Machines {
    fn filter(self) -> proto::ReportFilter {
        let Self { status, finding, machine, domain, user, after } = self;
        proto::ReportFilter {
            statuses: status.iter().map(ToString::to_string).collect(),
            findings: finding.iter().map(ToString::to_string).collect(),
            machine: machine.unwrap_or_default(),
            domain: domain.unwrap_or_default(),
            user: user.map(String::from).unwrap_or_default(),
            after: after.map(String::from).unwrap_or_default(),
            ..Default::default()
        }
    }
}
