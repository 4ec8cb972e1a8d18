//! `strongroom audit verify`: whether the audit trail is what the nodes recorded, on the cluster or in exported files.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::file::{Lines, not_an_export, unreadable};
use super::progress::Progress;
use super::{believed, trust_of};
use crate::cli::output::table;
use crate::cli::{Exit, Failure, Global, Printer};
use crate::client::Client;
use crate::escrow::audit::check::{Checked, Checker, Expectation, Fault, Signed, Tampering};
use crate::proto;
use crate::seal::checkpoint::Checkpoint;
use crate::tls::TrustAnchors;

/// Most files of one export.
const FILES_MAX: usize = 1_024;
/// Most checkpoints in the files of one export: one an hour for more than ten years.
const CHECKPOINTS_MAX: usize = 100_000;

/// Check the audit trail.
#[derive(Debug, Args)]
pub(super) struct VerifyCommand {
    /// Exported files, in the order of their records; without any, the trail of the cluster is checked.
    #[arg(value_name = "FILE", num_args = 0..=FILES_MAX)]
    files: Vec<PathBuf>,
    /// The certificate authority, PEM [default: ca.crt of the profile].
    #[arg(long, value_name = "FILE", requires = "files")]
    ca: Option<PathBuf>,
    /// The files begin after this record, of which nothing is known.
    #[arg(long, value_name = "SEQ", default_value_t = 0, requires = "files")]
    after: u64,
    /// The trail must reach at least to this record.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    expect_seq: u64,
    /// Also compare the end of the files with the cluster: they must hold everything it has now.
    #[arg(long, requires = "files")]
    against: bool,
    /// Check the chain alone, without signatures: finds damage, but nobody who wrote the chain anew.
    #[arg(long, requires = "files", conflicts_with = "ca")]
    chain_only: bool,
}

impl VerifyCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        if self.files.is_empty() {
            self.cluster(global, printer).await
        } else {
            self.exported(global, printer).await
        }
    }

    /// Checks exported files.
    async fn exported(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        // What is missing on the command line is said before anything is read.
        let client = self.against.then(|| global.client()).transpose()?;
        let signed = if self.chain_only {
            Vec::new()
        } else {
            checkpoints(&self.files, &trust_of(self.ca.as_deref(), global)?)?
        };
        let nodes = nodes_of(&signed);
        let expectation = Expectation {
            after: self.after,
            after_hash: None,
            signed,
            all_signed: !self.chain_only,
            reaches: self.expect_seq,
        };
        let (checked, starts) = check_files(&self.files, expectation)?;
        let held = match (checked, &client) {
            (Ok(checked), Some(client)) => against(client, &checked).await?.map(|()| checked),
            (checked, _) => checked,
        };
        match held {
            Ok(checked) => {
                let document = json!({
                    "verified": true,
                    "records": checked.records,
                    "after": checked.after,
                    "head": checked.head.sequence,
                    "hash": data_encoding::HEXLOWER.encode(&checked.head.hash),
                    "signed_to": checked.signed_to,
                    "signed_by": nodes,
                    "against_cluster": self.against,
                });
                printer.result(&document, || said(&checked, &nodes, self.against))
            }
            Err(fault) => refuse(&fault, starts.place(&fault, &self.files), printer),
        }
    }

    /// Checks the trail of the cluster: all of it on one node, and where the others say theirs stands.
    async fn cluster(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        let trust = trust_of(None, global)?;
        // First what the others say, and then a trail that must hold all of that.
        let answers = client.audit_checkpoints().await?.nodes;
        let mut words = Vec::with_capacity(answers.len());
        for answer in answers {
            words.push(Word::of(answer, &trust)?);
        }
        let min_index = words.iter().map(|word| word.index).max().unwrap_or_default();
        let request = proto::ReadAuditRequest { min_index, ..Default::default() };
        let mut trail = client.read_audit(&request).await?;
        let checkpoint = Checkpoint::parse(&trail.begin().checkpoint)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let own = believed(&checkpoint, &trust, "the node that was asked")?;
        let signed = words.iter().filter_map(|word| word.signed).chain([own]).collect();
        let mut checker = Checker::new(Expectation {
            signed,
            all_signed: true,
            reaches: self.expect_seq,
            ..Expectation::default()
        });
        let progress = Progress::new(printer, checkpoint.seq);
        while let Some(page) = trail.next().await? {
            page.records.iter().for_each(|record| checker.line(&record.line));
            progress.at(checker.sequence());
        }
        drop(progress);
        match checker.finish() {
            Ok(checked) => {
                let nodes: Vec<Value> = words.iter().map(Word::json).collect();
                let document = json!({
                    "verified": true,
                    "records": checked.records,
                    "after": 0,
                    "head": checked.head.sequence,
                    "hash": data_encoding::HEXLOWER.encode(&checked.head.hash),
                    "read_from": own.node,
                    "nodes": nodes,
                });
                printer.result(&document, || {
                    let rows = words.iter().map(Word::row).collect();
                    let nodes = table(&["NODE", "RECORDS", "TRAIL"], &[0, 1], rows);
                    format!(
                        "the trail holds: {} records, read from node {}\n\n{nodes}",
                        checked.records, own.node
                    )
                })
            }
            Err(fault) => refuse(&fault, None, printer),
        }
    }
}

/// What one node says of its trail.
struct Word {
    node: u64,
    signed: Option<Signed>,
    index: u64,
    detail: String,
}

impl Word {
    fn of(answer: proto::NodeCheckpoint, trust: &TrustAnchors) -> Result<Self, Failure> {
        let proto::NodeCheckpoint { node, checkpoint, detail } = answer;
        if checkpoint.is_empty() {
            return Ok(Self { node, signed: None, index: 0, detail });
        }
        let place = format!("node {node}");
        let checkpoint = Checkpoint::parse(&checkpoint)
            .map_err(|error| Failure::new(Exit::Failed, format!("{place}: {error}")))?;
        let signed = believed(&checkpoint, trust, &place)?;
        if signed.node != node {
            let what = format!("{place}: its checkpoint was signed by node {}", signed.node);
            return Err(Failure::new(Exit::Failed, what));
        }
        Ok(Self { node, signed: Some(signed), index: checkpoint.index, detail })
    }

    fn json(&self) -> Value {
        json!({
            "id": self.node,
            "agrees": self.signed.map(|_| true),
            "head": self.signed.map(|signed| signed.head.sequence),
            "detail": self.detail,
        })
    }

    fn row(&self) -> Vec<String> {
        match self.signed {
            Some(signed) => {
                vec![self.node.to_string(), signed.head.sequence.to_string(), "agrees".to_owned()]
            }
            None => vec![self.node.to_string(), "-".to_owned(), format!("no answer: {}", self.detail)],
        }
    }
}

/// What nodes have signed in all files, every signature checked.
fn checkpoints(files: &[PathBuf], trust: &TrustAnchors) -> Result<Vec<Signed>, Failure> {
    let mut signed = Vec::new();
    for path in files {
        let mut lines = Lines::open(path)?;
        let mut number = 0;
        while let Some(line) = lines.next().map_err(|error| unreadable(path, &error))? {
            number += 1;
            if !line.is_checkpoint() {
                continue;
            }
            let place = format!("{}, line {number}", path.display());
            let checkpoint = Checkpoint::parse(&line.text).map_err(|error| {
                Failure::new(Exit::Failed, format!("{place}: altered: {error}"))
                    .with_hint("somebody changed it, or the file is damaged")
            })?;
            signed.push(believed(&checkpoint, trust, &place)?);
            if signed.len() > CHECKPOINTS_MAX {
                let what = format!("{place}: more than {CHECKPOINTS_MAX} checkpoints");
                return Err(Failure::new(Exit::Invalid, what)
                    .with_hint("verify the files in parts: the first ones, then the rest with --after SEQ"));
            }
        }
    }
    Ok(signed)
}

fn nodes_of(signed: &[Signed]) -> Vec<u64> {
    let mut nodes: Vec<u64> = signed.iter().map(|signed| signed.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// How many lines stand before each file.
struct Starts(Vec<u64>);

impl Starts {
    /// Where a fault is, for people: the file and the line of it.
    fn place(&self, fault: &Fault, files: &[PathBuf]) -> Option<String> {
        let line = fault.line?;
        let file = self.0.iter().rposition(|before| *before < line)?;
        Some(format!("{}, line {}", files[file].display(), line - self.0[file]))
    }
}

/// Checks the records of all files, one after the other.
fn check_files(
    files: &[PathBuf],
    expectation: Expectation,
) -> Result<(Result<Checked, Fault>, Starts), Failure> {
    let mut checker = Checker::new(expectation);
    let mut starts = Vec::with_capacity(files.len());
    let mut count = 0;
    for path in files {
        starts.push(count);
        let (mut any, before) = (false, checker.readable());
        let mut lines = Lines::open(path)?;
        while let Some(line) = lines.next().map_err(|error| unreadable(path, &error))? {
            count += 1;
            any |= line.is_checkpoint();
            if line.is_checkpoint() { checker.skip() } else { checker.line(&line.text) }
        }
        // Not one good line: this is another file.
        if !any && checker.readable() == before {
            return Err(not_an_export(path));
        }
    }
    Ok((checker.finish(), Starts(starts)))
}

/// Holds the end of an export against what the cluster has now.
async fn against(client: &Client, checked: &Checked) -> Result<Result<(), Fault>, Failure> {
    let last = checked.head.sequence;
    let quorum = proto::Consistency::Quorum.into();
    let newest =
        proto::ReadAuditRequest { newest_first: true, limit: 1, consistency: quorum, ..Default::default() };
    let begin = client.read_audit(&newest).await?.begin().clone();
    let node = begin.freshness.as_ref().map_or(0, |freshness| freshness.node);
    let at_end = |sequence, kind, why| Ok(Err(Fault { sequence, kind, why, line: None }));
    if begin.head < last {
        let why =
            format!("the trail of the cluster ends before it, at record {}, says node {node}", begin.head);
        return at_end(begin.head + 1, Tampering::Inserted, why);
    }
    if last > 0 {
        let request =
            proto::ReadAuditRequest { after: last - 1, to: last, consistency: quorum, ..Default::default() };
        let mut trail = client.read_audit(&request).await?;
        let mut checker = Checker::new(Expectation {
            after: last - 1,
            signed: vec![Signed { head: checked.head, node }],
            ..Expectation::default()
        });
        while let Some(page) = trail.next().await? {
            page.records.iter().for_each(|record| checker.line(&record.line));
        }
        if checker.finish().is_err() {
            return at_end(last, Tampering::Altered, format!("it is not the record that node {node} has"));
        }
    }
    if begin.head > last {
        let why =
            format!("the files end before it, the cluster has {} records, says node {node}", begin.head);
        return at_end(last + 1, Tampering::Truncated, why);
    }
    Ok(Ok(()))
}

fn said(checked: &Checked, nodes: &[u64], against: bool) -> String {
    let records = match checked.records {
        0 => "no records".to_owned(),
        1 => format!("record {}", checked.head.sequence),
        _ => format!("records {} to {}", checked.after + 1, checked.head.sequence),
    };
    let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
    let signed = match (checked.signed_to, nodes.as_slice()) {
        (None, _) => ", the chain alone: no signature was checked".to_owned(),
        (_, [node]) => format!(", signed by node {node}"),
        (_, nodes) => format!(", signed by nodes {}", nodes.join(", ")),
    };
    let against = if against { "; the cluster has the same and no more" } else { "" };
    format!("the export holds: {records}{signed}{against}")
}

/// Says what does not fit, to programs as a result, to all as a failure.
fn refuse(fault: &Fault, place: Option<String>, printer: Printer) -> Result<(), Failure> {
    let document = json!({
        "verified": false,
        "record": fault.sequence,
        "kind": fault.kind.as_str(),
        "why": fault.why,
        "place": place,
    });
    printer.result(&document, || format!("record {} does not fit: {}", fault.sequence, fault.kind))?;
    let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
    let hint = match fault.kind {
        Tampering::Truncated => {
            "was the export cut off? Go on with it by `strongroom audit export --append FILE`"
        }
        Tampering::Deleted if fault.sequence == 1 => {
            "if it is the later part of an export, name the earlier files first, or say where it begins with --after SEQ"
        }
        Tampering::Unsigned => "if the checkpoints were never there, --chain-only checks the rest",
        _ => "keep the file as evidence, and compare with an export from another node",
    };
    Err(Failure::new(Exit::Failed, format!("{fault}{place}")).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_placed_in_its_file() {
        let files = [PathBuf::from("a"), PathBuf::from("b"), PathBuf::from("c")];
        let starts = Starts(vec![0, 5, 5]);
        let at = |line| Fault { sequence: 1, kind: Tampering::Altered, why: String::new(), line };
        assert_eq!(starts.place(&at(Some(5)), &files).unwrap(), "a, line 5");
        assert_eq!(starts.place(&at(Some(6)), &files).unwrap(), "c, line 1");
        assert_eq!(starts.place(&at(None), &files), None);
    }
}
