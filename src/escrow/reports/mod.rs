//! Reports: how machines stand, where keys and compliance do not go together, who asked for which key. Pure rendering:
//! from what is known, the policy and a time given, to rows. So the same question at the same index has the same answer on
//! every node, to the byte.
//!
//! A report over machines is handed one [`Bundle`] after the other, in the order of machine ids, and holds none of them:
//!
//! ```text
//! bundle -> judged: state, keys, verdict, findings at that time -> filter -> rows
//! ```
//!
//! A question about the past ([`MachineQuery::as_of`]) is answered by the state that the machine was in, the keys that were
//! in escrow and the exemption that held at that time, judged by today's policy. What is not part of a machine's state, as
//! its model or its users, is what is known last.
//!
//! | file | what it holds |
//! |---|---|
//! | [`bundle`] | all that is known of one machine |
//! | [`query`] | what can be asked |
//! | [`row`] | columns and cells |
//! | `judged` | a machine at the time that is asked about |
//! | `enterprise`, `computer`, `findings`, `stale` | the reports over machines |
//! | [`recovery`] | the report over the audit trail |

pub mod bundle;
mod computer;
mod enterprise;
mod findings;
mod judged;
pub mod query;
pub mod recovery;
pub mod row;
mod stale;

pub use self::bundle::{Bundle, without_secrets};
pub use self::query::{MachineFilter, MachinePattern, MachineQuery, RecoveryFilter, ReportKind};
pub use self::recovery::KeyRequest;
pub use self::row::{Cell, Column, ColumnKind, LIST_SEPARATOR, Row};

use self::enterprise::Overview;
use self::judged::Judged;
use super::compliance::CompliancePolicy;

/// A report over machines while it is made.
pub struct MachineReport {
    query: MachineQuery,
    policy: CompliancePolicy,
    overview: Overview,
    machines: u64,
}

impl MachineReport {
    /// A report of no machines yet.
    pub fn new(query: MachineQuery, policy: CompliancePolicy) -> Self {
        Self { query, policy, overview: Overview::default(), machines: 0 }
    }

    /// Takes the next machine, and answers the rows that it makes.
    pub fn add(&mut self, bundle: &Bundle) -> Vec<Row> {
        let Some(judged) = Judged::of(bundle, &self.query, &self.policy) else { return Vec::new() };
        if !judged.matches(&self.query.filter) {
            return Vec::new();
        }
        self.machines += 1;
        match self.query.kind {
            ReportKind::Computer => computer::rows(&judged),
            ReportKind::Enterprise => {
                self.overview.count(&judged);
                Vec::new()
            }
            ReportKind::EnterpriseDetails => vec![enterprise::detail(&judged)],
            ReportKind::Findings => findings::rows(&judged, &self.query.filter),
            ReportKind::Stale => {
                let days = self.query.stale_days.unwrap_or(self.policy.stale_days);
                stale::row(&judged, days).into_iter().collect()
            }
            // Not a report over machines.
            ReportKind::RecoveryAudit => Vec::new(),
        }
    }

    /// The rows that stand only at the end, once every machine was taken.
    pub fn finish(&self) -> Vec<Row> {
        match self.query.kind {
            ReportKind::Enterprise => self.overview.rows(),
            _ => Vec::new(),
        }
    }

    /// How many machines are in it.
    pub fn machines(&self) -> u64 {
        self.machines
    }
}
