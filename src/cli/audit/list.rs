//! `strongroom audit list`: records of the audit trail, the newest first.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::find::Consistency;
use crate::cli::output::table;
use crate::cli::recover::{freshness_json, freshness_text};
use crate::cli::{Exit, Failure, Global, Printer};
use crate::escrow::audit::facts::{Decided, Outcome};
use crate::escrow::ids::{Invalid, MachineId, Timestamp, UserName};
use crate::proto;

/// Most records of one answer.
const LIMIT_MAX: i64 = 1_000;
/// Letters of the last column of the table, so that all of it fits in 80 columns with numbers up to ten million.
const WIDTH: usize = 48;

/// Show records of the audit trail.
#[derive(Debug, Args)]
pub(super) struct ListCommand {
    /// On record not before this time: RFC 3339, or a day (UTC).
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// On record before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// By whom, whatever the case: a name, ROLE/NAME, or a whole identity.
    #[arg(long, value_name = "WHO")]
    actor: Option<String>,
    /// About whose machine.
    #[arg(long, value_name = "ID")]
    machine: Option<MachineId>,
    /// About which key: its id, or at least its first 8 digits.
    #[arg(long, value_name = "PREFIX", value_parser = key_id)]
    key_id: Option<String>,
    /// About which user of the machine.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
    /// What was allowed, or what was denied.
    #[arg(long, value_name = "allowed|denied")]
    outcome: Option<Outcome>,
    /// What a quorum decided, or what one node decided alone.
    #[arg(long, value_name = "quorum|degraded")]
    source: Option<Decided>,
    /// The oldest first.
    #[arg(long)]
    oldest_first: bool,
    /// Answer from the nearest replica as it is, or with everything recorded so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
    /// Wait until the answering node has applied this index.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    min_index: u64,
    /// Show at most this many records.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX as u64))]
    limit: u64,
}

/// A moment, or the beginning of a day.
pub(in crate::cli) fn time(text: &str) -> Result<Timestamp, Invalid> {
    let day = text.len() == "2030-01-31".len();
    let parsed: Result<Timestamp, _> = if day { format!("{text}T00:00:00Z").parse() } else { text.parse() };
    parsed.map_err(|_| {
        Invalid::new("time", "RFC 3339, such as 2030-01-31T12:00:00Z, or a day, such as 2030-01-31")
    })
}

fn key_id(text: &str) -> Result<String, Invalid> {
    text.parse::<crate::escrow::lookup::KeyIdPrefix>().map(|_| text.to_owned())
}

/// What was found.
struct Found {
    records: Vec<Value>,
    truncated: bool,
    head: u64,
    freshness: Option<proto::Freshness>,
}

impl ListCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let mut trail = global.client()?.read_audit(&self.request()).await?;
        let (head, freshness) = (trail.begin().head, trail.begin().freshness.clone());
        let mut found = Found { records: Vec::new(), truncated: false, head, freshness };
        while let Some(page) = trail.next().await? {
            found.truncated |= page.truncated;
            for proto::AuditLine { seq, line } in page.records {
                let record = serde_json::from_str(&line).map_err(|error| {
                    Failure::new(Exit::Failed, format!("the node's record {seq} is not JSON: {error}"))
                })?;
                found.records.push(record);
            }
        }
        printer.result(&found.json(), || found.text())
    }

    fn request(self) -> proto::ReadAuditRequest {
        let filter = proto::AuditFilter {
            since_ms: self.since.map(|at| at.0),
            until_ms: self.until.map(|at| at.0),
            actor: self.actor.unwrap_or_default(),
            machine: self.machine.map(String::from).unwrap_or_default(),
            key_id_prefix: self.key_id.unwrap_or_default(),
            user: self.user.map(String::from).unwrap_or_default(),
            outcome: self.outcome.map(|outcome| outcome.to_string()).unwrap_or_default(),
            source: self.source.map(|source| source.to_string()).unwrap_or_default(),
        };
        proto::ReadAuditRequest {
            newest_first: !self.oldest_first,
            limit: self.limit,
            filter: Some(filter),
            consistency: proto::Consistency::from(self.consistency).into(),
            min_index: self.min_index,
            ..Default::default()
        }
    }
}

impl Found {
    fn json(&self) -> Value {
        json!({
            "records": self.records,
            "truncated": self.truncated,
            "head": self.head,
            "freshness": freshness_json(self.freshness.as_ref()),
        })
    }

    fn text(&self) -> String {
        let mut text = if self.records.is_empty() {
            "no records".to_owned()
        } else {
            let rows = self.records.iter().map(row).collect();
            table(&["SEQ", "TIME", "WHO, WHAT"], &[0], rows)
        };
        if self.truncated {
            text.push_str("\n\nthere are more records: narrow the search or raise --limit");
        }
        let _ = write!(text, "\n\n{}", freshness_text(self.freshness.as_ref()));
        text
    }
}

/// Who and where from, what and how it ended, and then each detail that is known.
fn row(record: &Value) -> Vec<String> {
    let field = |name: &str| word(&record[name]);
    let time = field("time");
    let second = time.get(..19).map_or(time.clone(), |second| format!("{}Z", second.replace('T', " ")));
    let actor = field("actor");
    // The trust domain is that of the whole cluster.
    let who = actor.splitn(4, '/').last().unwrap_or_default();
    let mut lines = vec![format!("{who} at node {}", field("node"))];
    let degraded = if field("source") == Decided::Degraded.as_str() { ", degraded" } else { "" };
    lines.push(format!("{} {}{degraded}", field("event"), field("outcome")));
    if let Some(at) = record["decided_at"].as_str() {
        lines.push(format!("  decided {at}"));
    }
    for (name, value) in record["details"].as_object().into_iter().flatten() {
        match value {
            // What a node noted when it decided alone: as of any other reveal.
            Value::Object(noted) => lines.extend(noted.iter().filter_map(detail)),
            _ => lines.extend(detail((name, value))),
        }
    }
    let about = lines.iter().map(|line| clipped(line)).collect::<Vec<_>>().join("\n");
    vec![field("seq"), second, about]
}

fn detail((name, value): (&String, &Value)) -> Option<String> {
    (!value.is_null()).then(|| format!("  {name} {}", word(value)))
}

/// A value in words; texts without quotes, and nothing in them that a terminal would obey.
fn word(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn clipped(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let golden = include_str!("../../escrow/audit/testdata/export.jsonl");
        let mut records: Vec<Value> =
            golden.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        records[3]["details"]["reason"] = format!("\u{1b}[2J{}", "why ".repeat(99)).into();
        records[3]["seq"] = 1_234_567.into();
        let freshness = proto::Freshness { node: 2, consistency: "local".into(), ..Default::default() };
        Found { records, truncated: true, head: 8, freshness: Some(freshness) }
    }

    #[test]
    fn the_table_fits_in_80_columns_and_tells_a_terminal_nothing() {
        let text = found().text();
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        for expected in
            ["helpdesk/desk1 at node 1", "reveal denied", "escrow-conflict denied", "2023-11-14 22:13:20Z"]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(text.contains("00000000-0000-0000-0000-000000000007"), "whole key ids: {text}");
        let alone = text.split("reveal-reconciled").nth(1).unwrap().split("keyring-rotated").next().unwrap();
        for expected in ["decided 1970-01-01T00:00:00.005Z", "reason lost PIN", "machine PC-0001"] {
            assert!(alone.contains(expected), "{expected}: {alone}");
        }
        assert!(text.contains("officer/olga at node 3"), "who asked, where: {text}");
    }

    #[test]
    fn json_holds_the_records_as_exports_have_them() {
        let json = found().json();
        assert_eq!(json["records"][1]["event"], "escrow-conflict");
        assert_eq!((&json["truncated"], &json["head"]), (&true.into(), &8.into()));
        assert_eq!(json["freshness"]["consistency"], "local");
    }

    #[test]
    fn a_time_is_a_moment_or_a_day() {
        assert_eq!(time("1970-01-02").unwrap(), Timestamp(86_400_000));
        assert_eq!(time("1970-01-01T01:00:00+01:00").unwrap(), Timestamp(0));
        for bad in ["", "yesterday", "2030-13-01", "2030-01-31 12:00", "1969-12-31", "12"] {
            assert_eq!(time(bad).unwrap_err().field, "time", "{bad}");
        }
    }
}
