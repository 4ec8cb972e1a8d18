//! What is asked of a report: which one, of when, and which rows of it.

use std::fmt;
use std::str::FromStr;

use wildmatch::WildMatchPattern;

use super::row::Column;
use super::{computer, enterprise, findings, recovery, stale};
use crate::escrow::compliance::policy::DAYS_MAX;
use crate::escrow::compliance::{FindingKind, Status};
use crate::escrow::ids::{Invalid, MachineId, Timestamp, UserName};

/// Longest pattern of machines and longest domain to look for, in bytes.
pub const PATTERN_MAX_BYTES: usize = 128;
/// Longest name of somebody to look for in the recovery audit: a whole identity.
pub const ACTOR_MAX_BYTES: usize = 256;

/// Which report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// One machine, volume by volume.
    Computer,
    /// How many machines stand how.
    Enterprise,
    /// How each machine stands.
    EnterpriseDetails,
    /// Where keys and compliance do not go together.
    Findings,
    /// Who asked for which key.
    RecoveryAudit,
    /// Machines that were not heard of for long.
    Stale,
}

impl ReportKind {
    /// Every report.
    pub const ALL: [Self; 6] = [
        Self::Computer,
        Self::Enterprise,
        Self::EnterpriseDetails,
        Self::Findings,
        Self::RecoveryAudit,
        Self::Stale,
    ];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Computer => "computer",
            Self::Enterprise => "enterprise",
            Self::EnterpriseDetails => "enterprise-details",
            Self::Findings => "findings",
            Self::RecoveryAudit => "recovery-audit",
            Self::Stale => "stale",
        }
    }

    /// Its columns.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Computer => computer::COLUMNS,
            Self::Enterprise => enterprise::OVERVIEW,
            Self::EnterpriseDetails => enterprise::DETAILS,
            Self::Findings => findings::COLUMNS,
            Self::RecoveryAudit => recovery::COLUMNS,
            Self::Stale => stale::COLUMNS,
        }
    }

    /// Whether it can be asked of the past.
    pub fn has_past(self) -> bool {
        !matches!(self, Self::RecoveryAudit | Self::Stale)
    }

    /// The place of a column to sort by.
    ///
    /// # Errors
    /// [`Invalid`] if there is no such column.
    pub fn column(self, name: &str) -> Result<usize, Invalid> {
        let columns = self.columns();
        columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
            Invalid::new("sort", format!("a column of this report: {}", names.join(", ")))
        })
    }
}

impl fmt::Display for ReportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ReportKind {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            Invalid::new("report", format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Which machines, of those there are: those that match everything that is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MachineFilter {
    /// That stand so; empty for all.
    pub statuses: Vec<Status>,
    /// Of which this was found; empty for all.
    pub findings: Vec<FindingKind>,
    /// Whose id or name is so.
    pub machine: Option<MachinePattern>,
    /// In this domain, whatever the case.
    pub domain: Option<String>,
    /// On which this user was seen.
    pub user: Option<UserName>,
    /// Behind this one in the order of ids: where a page ended.
    pub after: Option<MachineId>,
}

impl MachineFilter {
    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Invalid`] naming the field.
    pub fn check(&self) -> Result<(), Invalid> {
        match &self.domain {
            Some(domain) if domain.len() > PATTERN_MAX_BYTES => {
                Err(Invalid::new("domain", format!("at most {PATTERN_MAX_BYTES} bytes")))
            }
            _ => Ok(()),
        }
    }
}

/// Machines by id or name: `*` stands for any characters, `?` for one; case does not matter.
#[derive(Debug, Clone, PartialEq)]
pub struct MachinePattern(WildMatchPattern<'*', '?'>);

impl MachinePattern {
    /// Whether `text` is so.
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(&text.to_lowercase())
    }
}

impl FromStr for MachinePattern {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > PATTERN_MAX_BYTES || text.chars().any(char::is_control) {
            let expected = format!(
                "1 to {PATTERN_MAX_BYTES} bytes, * for any characters and ? for one, such as LAPTOP-*"
            );
            return Err(Invalid::new("machine", expected));
        }
        Ok(Self(WildMatchPattern::new(&text.to_lowercase())))
    }
}

/// Which requests for keys, of those on record: those that match everything that is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecoveryFilter {
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// By whom: a whole identity, `role/name`, or the name alone, of an end user also without the domain; without regard to
    /// case.
    pub actor: Option<String>,
    /// Of which machines.
    pub machine: Option<MachinePattern>,
    /// For which user of them.
    pub user: Option<UserName>,
}

impl RecoveryFilter {
    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Invalid`] naming the field.
    pub fn check(&self) -> Result<(), Invalid> {
        match &self.actor {
            Some(actor) if actor.len() > ACTOR_MAX_BYTES => {
                Err(Invalid::new("actor", "an identity, role/name, or a name"))
            }
            _ => Ok(()),
        }
    }
}

/// What is asked of a report over machines.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineQuery {
    /// Which report.
    pub kind: ReportKind,
    /// When it is judged. The same for every node that is asked, so that they answer the same.
    pub at: Timestamp,
    /// Whether it is about how things stood at that time, and not about what is known last.
    pub as_of: bool,
    /// Which machines.
    pub filter: MachineFilter,
    /// After how many days a machine counts as silent in the report of those; by default as the policy says.
    pub stale_days: Option<u32>,
    /// Whether users are named: beside those that are asked for. Where they are the word by which a caller is known, a
    /// report must not tell it.
    pub names_users: bool,
}

/// A number of days to be silent for.
///
/// # Errors
/// [`Invalid`] if it is none, or more than [`DAYS_MAX`].
pub fn stale_days(days: u32) -> Result<u32, Invalid> {
    if (1..=DAYS_MAX).contains(&days) {
        return Ok(days);
    }
    Err(Invalid::new("stale_days", format!("1 to {DAYS_MAX} days, not {days}")))
}
