//! `strongroom custody`: does every node hold a key, and can it open it?

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::output::table;
use super::{Exit, Failure, Global, Printer, input};
use crate::escrow::ids::KeyId;
use crate::proto;

/// Challenge every node.
#[derive(Debug, Args)]
pub(super) struct CustodyCommand {
    /// The id of the key.
    #[arg(value_name = "KEY_ID")]
    key_id: KeyId,
    /// Also ask whether the key is the secret in this file, or on standard input if it is `-`. It is sent to the node
    /// that is asked, and to no other.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl CustodyCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        let secret = match self.secret_file.as_deref() {
            Some(file) if file == Path::new("-") => Some(input::secret(None)?),
            Some(file) => Some(input::secret(Some(file))?),
            None => None,
        };
        let custody = client.custody(self.key_id, secret.as_ref()).await?;
        let verdict = verdict(&custody);
        // A key that every member says is none has no table.
        if custody.nodes.iter().any(|node| node.outcome != "absent") {
            printer.result(&json_of(&custody), || text_of(&custody))?;
        }
        verdict
    }
}

/// What a script that asks wants to know: a copy that is missing or damaged on a node that answered is a failure.
/// A node that is away proves nothing either way, as long as another one holds the key.
fn verdict(custody: &proto::CustodyResponse) -> Result<(), Failure> {
    let answers = |outcome: &str| custody.nodes.iter().filter(|node| node.outcome == outcome).count();
    let (proven, absent, mismatch) = (answers("proven"), answers("absent"), answers("mismatch"));
    let unreachable = answers("unreachable");
    let others = custody.nodes.len() - proven - unreachable;
    match (proven, others) {
        (1.., 0) => Ok(()),
        (0, 0) => Err(Failure::new(Exit::Unavailable, "no node could be asked")),
        (0, _) if absent == others => {
            Err(Failure::new(Exit::NotFound, format!("no node that answered holds key {}", custody.key_id)))
        }
        (0, _) if custody.compared && mismatch == others => {
            Err(Failure::new(Exit::Conflict, "the secret that was given is not the one that is kept"))
        }
        _ => Err(Failure::new(Exit::Failed, format!("{others} of the nodes did not prove custody"))
            .with_hint("`strongroom status` shows whether they lag or differ")),
    }
}

fn json_of(custody: &proto::CustodyResponse) -> Value {
    let nodes: Vec<Value> = custody
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.node,
                "outcome": node.outcome,
                "detail": node.detail,
                "applied": node.applied,
            })
        })
        .collect();
    json!({ "key_id": custody.key_id, "compared": custody.compared, "nodes": nodes })
}

fn text_of(custody: &proto::CustodyResponse) -> String {
    let rows = custody
        .nodes
        .iter()
        .map(|node| {
            vec![node.node.to_string(), node.applied.to_string(), node.outcome.clone(), node.detail.clone()]
        })
        .collect();
    let compared = if custody.compared { ", compared with the secret that was given" } else { "" };
    format!(
        "key {}{compared}\n\n{}",
        custody.key_id,
        table(&["NODE", "APPLIED", "CUSTODY", ""], &[0, 1], rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custody(outcomes: &[&str]) -> proto::CustodyResponse {
        let nodes = (1..)
            .zip(outcomes)
            .map(|(node, outcome)| proto::CustodyAnswer {
                node,
                outcome: (*outcome).into(),
                detail: String::new(),
                applied: 9,
            })
            .collect();
        proto::CustodyResponse {
            key_id: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            nodes,
            compared: false,
        }
    }

    #[test]
    fn custody_fails_if_a_node_that_answered_has_no_good_copy() {
        let exit = |outcomes: &[&str]| verdict(&custody(outcomes)).err().map(|failure| failure.exit);
        assert_eq!(exit(&["proven", "proven"]), None);
        assert_eq!(exit(&["proven", "unreachable"]), None);
        assert_eq!(exit(&["unreachable", "unreachable"]), Some(Exit::Unavailable));
        assert_eq!(exit(&["absent", "absent", "unreachable"]), Some(Exit::NotFound));
        assert_eq!(exit(&["proven", "absent"]), Some(Exit::Failed));
        assert_eq!(exit(&["proven", "mismatch"]), Some(Exit::Failed));
        assert_eq!(exit(&["absent", "cannot-open"]), Some(Exit::Failed));
        assert_eq!(exit(&["absent", "unjudged"]), Some(Exit::Failed));
    }

    #[test]
    fn a_secret_that_no_node_keeps_is_a_conflict_and_one_that_some_keep_a_failure() {
        let exit = |outcomes: &[&str]| {
            let compared = proto::CustodyResponse { compared: true, ..custody(outcomes) };
            verdict(&compared).err().map(|failure| failure.exit)
        };
        assert_eq!(exit(&["proven", "proven", "unreachable"]), None);
        assert_eq!(exit(&["mismatch", "mismatch", "unreachable"]), Some(Exit::Conflict));
        assert_eq!(exit(&["proven", "mismatch"]), Some(Exit::Failed));
        assert_eq!(exit(&["mismatch", "absent"]), Some(Exit::Failed));
        assert_eq!(exit(&["absent", "absent"]), Some(Exit::NotFound));
    }

    #[test]
    fn the_table_of_custody_names_each_node() {
        let text = text_of(&custody(&["proven", "cannot-open"]));
        assert!(text.contains("   1        9  proven\n   2        9  cannot-open"), "{text}");
    }
}
